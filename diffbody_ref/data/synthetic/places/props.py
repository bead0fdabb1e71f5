"""Things on which a person sits or against which they lean, and things between the person and the camera."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.cast import Actor
from diffbody_ref.data.synthetic.places import furniture as f
from diffbody_ref.data.synthetic.places import plants, street
from diffbody_ref.data.synthetic.scene import Camera
from diffbody_ref.data.synthetic.shading import scene_of
from diffbody_ref.data.synthetic.solids import Solid, box, cushion, lathe, placed, tube
from diffbody_ref.data.synthetic.surfaces import surface
from diffbody_ref.ops import keypoints as kp


def _rail(rng: np.random.Generator, height: float, length: float) -> list[Solid]:
    """A railing along x: a handrail on posts, with a lower rail and possibly vertical bars."""
    s = f.metal(rng)
    parts = [tube((-length / 2, 0, height - 0.025), (length / 2, 0, height - 0.025), 0.025, s)]
    parts += [
        tube((x, 0, 0), (x, 0, height - 0.025), 0.022, s, sides=6) for x in np.linspace(-length / 2, length / 2, 4)
    ]
    if rng.random() < 0.5:
        parts += [
            tube((x, 0, 0.1), (x, 0, height - 0.03), 0.008, s, sides=4)
            for x in np.arange(-length / 2, length / 2, 0.12)
        ]
    return [*parts, tube((-length / 2, 0, 0.12), (length / 2, 0, 0.12), 0.014, s, sides=6)]


def support(rng: np.random.Generator, person: Actor, outdoors: bool) -> tuple[list[Solid], str]:
    """The things that a person's pose needs, fitted to the person, and the words for a seat.

    Args:
        rng: source of randomness.
        person: the person, at the origin and facing -y.
        outdoors: whether the place is outdoors.
    """
    need, v = person.pose.support, person.vertices
    if need == "seat":
        hips = person.posed.keypoints[[kp.INDEX["left_hip"], kp.INDEX["right_hip"]]].mean(0)
        near = (np.abs(v[:, 0] - hips[0]) < 0.2) & (np.abs(v[:, 1] - hips[1] - 0.02) < 0.12)
        below = v[near & (v[:, 2] > 0.5 * hips[2]) & (v[:, 2] < hips[2])]
        height = float(np.quantile(below[:, 2], 0.05)) + 0.01  # cloth and flesh are compressed
        things, words = f.seat(rng, height, outdoors)
        return placed(things, (float(hips[0]), float(hips[1]) - 0.03, 0)), words
    if need == "wall":
        back = v[(v[:, 2] > 0.45 * v[:, 2].max()) & (v[:, 2] < 0.8 * v[:, 2].max())]
        y = float(back[:, 1].max()) - 0.01
        if rng.random() < 0.5:
            s = surface(
                rng,
                "bricks" if rng.random() < 0.4 else "plaster",
                (176, 160, 142),
                (120, 100, 84),
                (186, 180, 170),
                scale=0.22,
            )
            return [box((float(rng.uniform(0.5, 3.0)), 0.35, 3.2), (rng.normal(0, 0.1), y + 0.175, 0), s)], ""
        r = float(rng.uniform(0.14, 0.24))
        return [
            lathe(
                [(r, 0), (r, 3.2)],
                (0.0, y + r, 0),
                plants.bark(rng) if outdoors else surface(rng, "plaster", (206, 202, 196)),
                20,
            )
        ], ""
    if need == "rail":
        wrists = person.posed.keypoints[[kp.INDEX["left_wrist"], kp.INDEX["right_wrist"]]]
        return placed(_rail(rng, float(wrists[:, 2].min()) - 0.03, 4.0), (0, float(wrists[:, 1].min()) - 0.07, 0)), ""
    return [], ""


def _occluder(rng: np.random.Generator, kind: str) -> tuple[list[Solid], float, float]:
    """Draw a thing of a kind around the origin.

    Returns:
        Its solids, half of its depth, and how far to the side it may stand so that it still hides something, in metres.
    """
    if kind == "table":
        return f.table(rng, (1.4, 0.7, 0.74)) + f.ornaments(rng, 1.2, 0.74), 0.35, 0.5
    if kind == "rail":
        return _rail(rng, float(rng.uniform(0.8, 1.05)), 5.0), 0.05, 0.4
    if kind == "plant":
        return f.potted_plant(rng, float(rng.uniform(0.7, 1.5))), 0.25, 0.35
    if kind == "shrub":
        return plants.shrub(rng, (0.0, 0.0), float(rng.uniform(0.6, 1.0)), plants.foliage(rng), 1.6), 0.4, 0.5
    if kind == "bicycle":
        return placed(street.bicycle(rng), (0, 0, 0), np.pi * float(rng.integers(2))), 0.3, 0.4
    if kind == "car":
        return placed(street.car(rng), (0, 0, 0), np.pi / 2 * float(rng.choice([-1, 1]))), 0.9, 1.6
    if kind == "pillar":
        s = surface(rng, "plaster", (190, 184, 174))
        return [lathe([(0.2, 0), (0.16, 0.2), (0.15, 3.2)], (0, 0, 0), s, 20)], 0.2, 0.3
    if kind == "chair":
        return placed(f.chair(rng, 0.45), (0, 0, 0), rng.uniform(-np.pi, np.pi)), 0.3, 0.4
    if kind == "trunk":
        return plants.tree(rng, (0.0, 0.0), 6.5, plants.foliage(rng), plants.bark(rng)), 0.2, 0.35
    s = surface(rng, "wood", (168, 130, 88), scale=0.3)
    size = rng.uniform(0.35, 0.8, 3)
    return [cushion((size[0], size[1], size[2]), (0, 0, 0), s, 0.01)], float(size[1] / 2), 0.5


_KINDS = {
    "room": ("table", "plant", "chair", "pillar", "box", "rail"),
    "street": ("bicycle", "car", "rail", "pillar", "box", "plant"),
    "nature": ("shrub", "rail", "trunk", "bicycle", "shrub"),
    "studio": ("box", "chair"),
}


def occluders(rng: np.random.Generator, person: Actor, camera: Camera, kind: str) -> list[Solid]:
    """Draw a thing in front of the person that hides part of them, but not most; in two thirds of the pictures nothing.

    Args:
        rng: source of randomness.
        person: the person.
        camera: the camera.
        kind: kind of the place, a key of `places.KINDS`.
    """
    if rng.random() > 0.34 or person.pose.support == "rail":
        return []
    things, depth, aside = _occluder(rng, str(rng.choice(_KINDS[kind])))
    ahead = np.array([np.cos(camera.heading), np.sin(camera.heading)])
    sideways = np.array([ahead[1], -ahead[0]])
    reach = float(-(person.vertices[:, :2] @ ahead).min()) + depth + 0.06
    distance = float(-camera.position[:2] @ ahead)
    gap = reach + float(rng.uniform(0.0, 0.3)) * max(distance - reach - 0.6, 0.0)
    if distance - gap < max(depth + 0.5, 0.55 * distance):
        return []
    spot = -ahead * gap + sideways * rng.uniform(-aside, aside)
    things = placed(things, (*spot, 0.0), camera.heading - np.pi / 2 + rng.normal(0, 0.15))
    return things if _hidden_share(person, camera, things) < 0.5 else []


def _hidden_share(person: Actor, camera: Camera, things: list[Solid]) -> float:
    """The share of the person that things hide; 1 if they hide most of the face."""
    points = np.concatenate([person.posed.keypoints[kp.BODY], person.vertices[::61]])
    rays = points - camera.position
    depth = np.linalg.norm(rays, axis=1)
    face, hit, _ = scene_of(things).trace(camera.position, rays / depth[:, None])
    hidden = (face >= 0) & (hit < depth)
    return 1.0 if hidden[:5].sum() > 2 else float(hidden.mean())


def unobstructed(solids: list[Solid], person: Actor, camera: Camera, height: int, width: int) -> list[Solid]:
    """The solids without those that hide the person, or that fill the view from directly in front of the camera.

    Args:
        solids: the solids of a place.
        person: the person.
        camera: the camera.
        height: height of the picture in pixels.
        width: width of the picture in pixels.
    """
    points = np.concatenate([person.posed.keypoints[kp.BODY], person.vertices[::61]]) - camera.position
    depth = np.linalg.norm(points, axis=1)
    view = camera.rays(height, width, 1)[:: height // 12, :: width // 6].reshape(-1, 3)
    rays = np.concatenate([points / depth[:, None], view])
    reach = np.concatenate([depth - 0.1, np.full(len(view), 0.45 * np.median(depth))])
    numbers = np.repeat(np.arange(len(solids)), [len(s.faces) for s in solids])
    while solids:  # a solid behind another one may obstruct the view once the other is removed
        face, hit, _ = scene_of(solids).trace(camera.position, rays)
        obstructing = np.unique(numbers[face[(face >= 0) & (hit < reach)]])
        if not len(obstructing):
            break
        solids = [s for i, s in enumerate(solids) if i not in set(obstructing.tolist())]
        numbers = np.repeat(np.arange(len(solids)), [len(s.faces) for s in solids])
    return solids
