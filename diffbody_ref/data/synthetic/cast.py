"""The people in a picture: the main person, and sometimes others beside, behind or in front of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.spatial import cKDTree

from diffbody_ref.data.synthetic import clothing
from diffbody_ref.data.synthetic.body import Posed, body_model
from diffbody_ref.data.synthetic.face import random_expression
from diffbody_ref.data.synthetic.poses import Pose, random_pose
from diffbody_ref.data.synthetic.scene import Camera
from diffbody_ref.data.synthetic.tracing import Scene
from diffbody_ref.data.synthetic.wardrobe import Identity, random_identity
from diffbody_ref.ops import keypoints as kp


@dataclass(frozen=True)
class Actor:
    """A dressed person in a pose, standing or sitting on the ground.

    Attributes:
        who: the person.
        mesh: the dressed mesh, independent of the pose.
        posed: the posed body.
        pose: the pose.
        vertices: float32 (N, 3), posed vertices of the mesh.
        normals: float32 (N, 3), unit normals at the vertices.
    """

    who: Identity
    mesh: clothing.Dressed
    posed: Posed
    pose: Pose
    vertices: np.ndarray
    normals: np.ndarray

    def moved(self, x: float, y: float, yaw: float) -> Actor:
        """The actor turned about z by `yaw` radians, then moved by (x, y)."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)
        shift = np.array([x, y, 0], np.float32)
        posed = Posed(self.posed.vertices @ turn + shift, self.posed.keypoints @ turn + shift)
        return replace(self, posed=posed, vertices=self.vertices @ turn + shift, normals=self.normals @ turn)


def generator(seed: int, *key: int) -> np.random.Generator:
    """A Philox generator that depends only on the seed and the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key])))


@lru_cache(maxsize=4)
def dressed(seed: int, identity: int) -> tuple[Identity, clothing.Dressed]:
    """An identity and its mesh; cached, because an identity's views are rendered one after the other."""
    who = random_identity(generator(seed, identity))
    return who, clothing.dress(body_model(), who)


def actor(seed: int, identity: int, rng: np.random.Generator, seated: bool | None = None) -> Actor:
    """A person in a random pose; `seated` requests a pose on a seat or on the feet, None allows both."""
    who, mesh = dressed(seed, identity)
    held = tuple("L" if thing.side > 0 else "R" for thing in who.things if thing.slot == "hand")
    pose = random_pose(rng, who.phenotype, seated, held)
    worn = clothing.wear(who, pose.rotations)
    posed = body_model().pose(who.phenotype, worn, who.features, random_expression(rng))
    vertices, normals = clothing.drape(mesh, posed.vertices, int(rng.integers(1 << 20)))
    lift = np.array([0, 0, vertices[mesh.parts.any(1), 2].min()], np.float32)  # soles stand on the ground
    return Actor(who, mesh, Posed(posed.vertices - lift, posed.keypoints - lift), pose, vertices - lift, normals)


def _has_room(place: Scene, x: float, y: float) -> bool:
    """Whether a standing person has room at (x, y), and nothing stands between them and the origin."""
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    around = np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    distance = float(np.hypot(x, y))
    inwards = np.array([[-x / distance, -y / distance, 0.0]])
    for z in (0.3, 1.1):
        spot = np.array([x, y, z])
        near, between = place.trace(spot, around, 0.38)[0], place.trace(spot, inwards, distance - 0.3)[0]
        if (near >= 0).any() or (between >= 0).any():
            return False
    return True


def _hides(other: Actor, main: Actor, camera: Camera) -> bool:
    """Whether another person hides the main person's face or half of their body."""
    rays = main.posed.keypoints[kp.BODY] - camera.position
    depth = np.linalg.norm(rays, axis=1)
    scene = Scene(other.vertices, other.mesh.faces, other.mesh.fields)
    face, hit, _ = scene.trace(camera.position, rays / depth[:, None])
    hidden = (face >= 0) & (hit < depth)
    return bool(hidden[:5].sum() > 2 or hidden.mean() > 0.5)


def companions(
    rng: np.random.Generator, seed: int, identity: int, main: Actor, camera: Camera, place: Scene, kind: str
) -> list[Actor]:
    """Draw other people: none in most pictures, else one beside or partly in front of the main person, or some behind.

    They are identities of the same seed with other numbers, so they may also have pictures of their own.

    Args:
        rng: source of randomness.
        seed: seed of the set.
        identity: number of the main person.
        main: the main person.
        camera: the camera.
        place: the solids of the place.
        kind: kind of the place, a key of `places.KINDS`.
    """
    if kind == "studio" or rng.random() > (0.5 if kind == "street" else 0.3):
        return []
    where = str(rng.choice(["beside", "behind", "before"], p=[0.35, 0.5, 0.15]))
    ahead = np.array([np.cos(camera.heading), np.sin(camera.heading)])
    aside = np.array([ahead[1], -ahead[0]])
    distance = float(np.hypot(*camera.position[:2]))
    people = [main]
    for _ in range(int(rng.integers(1, 4)) if where == "behind" else 1):
        side = float(rng.choice([-1.0, 1.0]))
        if where == "beside":
            spot = aside * side * rng.uniform(0.5, 0.75) + ahead * rng.uniform(-0.2, 0.35)
        elif where == "before":
            spot = aside * side * rng.uniform(0.3, 0.55) - ahead * min(rng.uniform(0.5, 1.0), 0.4 * distance)
        else:
            depth = rng.uniform(0.9, 9.0)
            spot = ahead * depth + aside * side * rng.uniform(0.25, 0.5 + 0.22 * (depth + distance))
        if not _has_room(place, float(spot[0]), float(spot[1])):
            continue
        toward = np.arctan2(camera.position[1], camera.position[0]) + np.pi / 2
        yaw = (
            rng.uniform(-np.pi, np.pi)
            if where == "behind"
            else toward + rng.normal(0, 0.7) + np.pi * (rng.random() < 0.15)
        )
        other = actor(seed, identity + int(rng.integers(1, 50000)), rng, seated=False).moved(
            float(spot[0]), float(spot[1]), yaw
        )
        tree = cKDTree(other.vertices[::7])
        apart = min(tree.query(person.vertices[::7])[0].min() for person in people) > 0.04
        if apart and not _hides(other, main, camera):
            people.append(other)
    return people[1:]
