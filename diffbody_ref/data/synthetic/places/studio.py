"""Studios: a seamless backdrop lit by softboxes."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.scene import Camera, Place, Sky, key_direction, light
from diffbody_ref.data.synthetic.solids import Solid, placed
from diffbody_ref.data.synthetic.surfaces import surface

_TONES = (
    (236, 236, 234),
    (206, 206, 204),
    (150, 152, 154),
    (84, 86, 90),
    (190, 178, 160),
    (140, 156, 170),
    (120, 104, 92),
    (46, 48, 52),
    (176, 150, 144),
)


def random_studio(rng: np.random.Generator, camera: Camera) -> Place:
    """Draw a studio: paper that hangs behind the person and continues on the floor towards the camera in one curve."""
    paper = surface(rng, "plaster", _TONES[int(rng.integers(len(_TONES)))], scale=1.0)
    y, radius, width = rng.uniform(1.2, 2.6), 0.5, 8.0
    bend = np.linspace(0, np.pi / 2, 9)
    line = np.concatenate(
        [
            [(-3.0, 0.002)],
            np.stack([y - radius + radius * np.sin(bend), 0.002 + radius * (1 - np.cos(bend))], 1),
            [(y, 4.0)],
        ]
    )
    count = len(line)
    vertices = np.concatenate([np.insert(line, 0, x, 1) for x in (-width / 2, width / 2)])
    i = np.arange(count - 1)
    faces = np.concatenate([np.stack([i, i + count, i + count + 1], 1), np.stack([i, i + count + 1, i + 1], 1)])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    uv = np.stack([np.repeat([0, width], count), np.tile(along, 2)], 1)
    sweep = placed([Solid(vertices, faces, uv, paper)], (0, 0, 0), camera.heading - np.pi / 2)
    soft = light(
        key_direction(rng, camera, 0.7, (0.5, 0.95)),
        rng.uniform(0.2, 0.4),
        np.full(3, rng.uniform(0.6, 1.4)),
        np.full(3, rng.uniform(0.35, 0.6)),
        paper.colours[0] * rng.uniform(0.3, 0.5),
        np.full(3, rng.uniform(0.3, 0.9)),
        key_direction(rng, camera, 1.1, (0.0, 0.4)),
        1.5,
    )
    tone = np.asarray(paper.colours[0])
    return Place("in front of a plain backdrop", sweep, paper, 0.0, Sky(tone, tone, 0.0, np.zeros((0, 3)), 0), soft)
