"""One picture of one synthetic person, with its labels, from the seed, the identity's number and the view's number."""

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
from diffbody_ref.data.synthetic.shading import Stage, scene_of
from diffbody_ref.ops import keypoints as kp
from diffbody_ref.ops.captions import Caption

SAMPLES = 2  # rays a pixel in each direction


@dataclass(frozen=True)
class Picture:
    """A rendered person. Others may be in the picture too: the labels are of the one person only.

    To parts and box, other people are what things are: background, and they hide what they are in front of.

    Attributes:
        image: uint8 (H, W, 3) sRGB.
        parts: uint8 (H, W), labels of `diffbody_ref.ops.parts.PART_LABELS`.
        keypoints: float32 (133, 3): x, y in pixels (centres at integers), visibility 0, 1 (hidden by the person
            themselves, by a thing, by another person, or out of the frame) or 2.
        box: float32 (4,): x0, y0, x1, y1 of the visible person.
        caption: one sentence.
    """

    image: np.ndarray
    parts: np.ndarray
    keypoints: np.ndarray
    box: np.ndarray
    caption: str


def _caption(person: Actor, points: np.ndarray, seen: str, crop: str, where: str, seat: str, others: int) -> str:
    who, shown = person.who, points[:, 2] == 2
    hands = who.hand_words
    if not hands and shown[kp.LEFT_HAND].sum() > 8 and shown[kp.RIGHT_HAND].sum() > 8:
        hands = "hands visible"
    pose = person.pose.words.replace("sitting", f"sitting {seat}") if seat else person.pose.words
    view = f"{pose}, seen {seen}"
    company = {0: "", 1: " with another person"}.get(others, " with other people")
    return Caption(
        look=who.look,
        hair=who.hair.words,
        face=who.face_words(seen != "from behind"),
        upper=who.upper_words,
        lower="" if not (crop == "full body" or shown[[13, 14]].any()) else who.lower.words,
        hands=hands,
        shoes=who.shoes.words if shown[kp.FEET].any() else "",
        pose=view if crop == "full body" else f"{crop}, {view}",
        background=where + company,
    ).sentence()


def render(seed: int, identity: int, view: int, height: int = 256, width: int = 128) -> Picture:
    """Render one picture; the same arguments give the same picture on one machine.

    Raises:
        ValueError: a size below 16 pixels.
    """
    if min(height, width) < 16:
        raise ValueError(f"height × width is {height}×{width}; both must be at least 16")
    rng = generator(seed, identity, view + 1)
    person = actor(seed, identity, rng)
    trunk = person.mesh.parts[:, ARMS] < 0.5
    camera, seen, crop = random_camera(
        rng, person.vertices, trunk, person.posed.keypoints, height, width, person.pose.support
    )
    place, kind = random_place(rng, camera)
    under, seat = support(rng, person, kind in ("street", "nature"))
    place = replace(place, solids=unobstructed(place.solids, person, camera, height, width) + under)
    others = companions(rng, seed, identity, person, camera, scene_of(place.solids), kind)
    before = occluders(rng, person, camera, kind) if not others else []
    place = replace(place, solids=place.solids + before)

    stage = Stage([person, *others], place)
    rays = camera.rays(height, width, SAMPLES)
    shape, rays = (rays.shape[0], rays.shape[1]), rays.reshape(-1, 3)
    hits = stage.look(camera, rays)
    colour = stage.radiance(hits, rays, shape, int(rng.integers(1 << 30)))

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
    points = labels.keypoints(person.posed, camera, stage.scene, person.mesh, height, width)
    caption = _caption(person, points, seen, crop, place.words, seat, len(others))
    return Picture(image, parts, points, labelled_box(parts), caption)
