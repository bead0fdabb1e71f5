"""Rendering of a picture of a synthetic person with its labels, from the seed and the numbers of identity and view."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from diffbody_ref.data.boxes import labelled_box
from diffbody_ref.data.synthetic import labels
from diffbody_ref.data.synthetic.body import ARMS
from diffbody_ref.data.synthetic.cast import Actor, actor, companions, generator
from diffbody_ref.data.synthetic.finish import develop, expose_lens, random_aperture
from diffbody_ref.data.synthetic.places import random_place
from diffbody_ref.data.synthetic.places.props import occluders, support, unobstructed
from diffbody_ref.data.synthetic.scene import random_camera
from diffbody_ref.data.synthetic.shading import Shot, scene_of
from diffbody_ref.ops import keypoints as kp
from diffbody_ref.ops.captions import Caption

SAMPLES = 2  # rays per pixel in each direction


@dataclass(frozen=True)
class Picture:
    """A rendered picture of a person with labels.

    Other people may be in the picture, but only the main person is labelled. For parts and box, other people are like
    things: they are background, and hide what is behind them.

    Attributes:
        image: uint8 (H, W, 3) sRGB.
        parts: uint8 (H, W), labels of `diffbody_ref.ops.parts.PART_LABELS`.
        keypoints: float32 (133, 3): x, y in pixels (pixel centres at integers), visibility 0, 1 (hidden by the person
            themselves, by a thing or by another person, or outside the picture) or 2.
        box: float32 (4,): x0, y0, x1, y1 of the visible person in pixels.
        caption: one sentence.
    """

    image: np.ndarray
    parts: np.ndarray
    keypoints: np.ndarray
    box: np.ndarray
    caption: str


def _caption(person: Actor, points: np.ndarray, side: str, crop: str, place: str, seat: str, others: int) -> str:
    """The caption of a picture.

    Args:
        person: the main person.
        points: keypoints as in `Picture`.
        side: the side that the camera sees, such as "from the front".
        crop: one of `scene.CROPS`.
        place: words of the place.
        seat: words of the seat; "" if there is none.
        others: number of other people.
    """
    who, visible = person.who, points[:, 2] == 2
    hands = who.hand_words
    if not hands and visible[kp.LEFT_HAND].sum() > 8 and visible[kp.RIGHT_HAND].sum() > 8:
        hands = "hands visible"
    pose = person.pose.words.replace("sitting", f"sitting {seat}") if seat else person.pose.words
    view = f"{pose}, seen {side}"
    company = {0: "", 1: " with another person"}.get(others, " with other people")
    return Caption(
        look=who.look,
        hair=who.hair.words,
        face=who.face_words(side != "from behind"),
        upper=who.upper_words,
        lower="" if not (crop == "full body" or visible[[13, 14]].any()) else who.lower.words,
        hands=hands,
        shoes=who.shoes.words if visible[kp.FEET].any() else "",
        pose=view if crop == "full body" else f"{crop}, {view}",
        background=place + company,
    ).sentence()


def render(seed: int, identity: int, view: int, height: int = 256, width: int = 128) -> Picture:
    """Render one picture; on one machine, the same arguments always give the same picture.

    Args:
        seed: seed of the set.
        identity: number of the person.
        view: number of the picture of this person.
        height: height of the picture in pixels.
        width: width of the picture in pixels.

    Raises:
        ValueError: a size is below 16 pixels.
    """
    if min(height, width) < 16:
        raise ValueError(f"height × width is {height}×{width}; both must be at least 16")
    rng = generator(seed, identity, view + 1)
    person = actor(seed, identity, rng)
    trunk = person.mesh.parts[:, ARMS] < 0.5
    camera, side, crop = random_camera(
        rng, person.vertices, trunk, person.posed.keypoints, height, width, person.pose.support
    )
    place, kind = random_place(rng, camera)
    supports, seat = support(rng, person, kind in ("street", "nature"))
    place = replace(place, solids=unobstructed(place.solids, person, camera, height, width) + supports)
    others = companions(rng, seed, identity, person, camera, scene_of(place.solids), kind)
    in_front = occluders(rng, person, camera, kind) if not others else []
    place = replace(place, solids=place.solids + in_front)

    shot = Shot([person, *others], place)
    rays = camera.rays(height, width, SAMPLES)
    shape, rays = (rays.shape[0], rays.shape[1]), rays.reshape(-1, 3)
    hits = shot.hits(camera, rays)
    colour = shot.radiance(hits, rays, shape, int(rng.integers(1 << 30)))

    samples = (height, SAMPLES, width, SAMPLES)
    subject = hits.owner == 0
    focus = float(np.median(hits.depth[subject])) if subject.any() else float(np.linalg.norm(camera.position))
    aperture = random_aperture(rng, focus)
    exposed = expose_lens(
        np.minimum(colour, 12).reshape(*samples, 3),
        hits.depth.reshape(samples),
        subject.reshape(samples),
        focus,
        aperture,
    )
    parts = labels.part_map(np.where(subject, hits.label, 0).astype(np.uint8).reshape(shape), SAMPLES)
    image = develop(rng, exposed, parts > 0)
    points = labels.keypoints(person.posed, camera, shot.scene, person.mesh, height, width)
    caption = _caption(person, points, side, crop, place.words, seat, len(others))
    return Picture(image, parts, points, labelled_box(parts), caption)
