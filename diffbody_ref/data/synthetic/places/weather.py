"""Daylight: sky, sun, and the light reflected by the ground."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.scene import Camera, Light, Sky, key_direction, light
from diffbody_ref.data.synthetic.textures import linear


def random_weather(rng: np.random.Generator, camera: Camera, ground: np.ndarray, hills: int) -> tuple[Sky, Light]:
    """Draw weather: sun, thin clouds, overcast or evening.

    Args:
        rng: source of randomness.
        camera: the camera.
        ground: (3,), linear RGB of the ground.
        hills: number of ranges of hills on the horizon.
    """
    kind = str(rng.choice(["sun", "haze", "overcast", "evening"], p=[0.36, 0.24, 0.26, 0.14]))
    blue, pale = linear(np.array((86, 134, 198))), linear(np.array((196, 214, 232)))
    grey = linear(np.array((206, 212, 218)))
    share = {"sun": 0.0, "haze": 0.5, "overcast": 1.0, "evening": 0.2}[kind]
    zenith, horizon = blue + (0.8 * grey - blue) * share, pale + (1.1 * grey - pale) * share
    key, rise, spread = np.array([1.0, 0.95, 0.86]) * rng.uniform(1.5, 2.6), (0.6, 1.2), 0.015
    if kind == "haze":
        key, spread = np.array([1.0, 0.97, 0.92]) * rng.uniform(0.6, 1.3), 0.12
    elif kind == "overcast":
        key, spread = np.array([1.0, 1.0, 1.0]) * rng.uniform(0.1, 0.4), 0.6
    elif kind == "evening":
        key, rise = np.array([1.0, 0.74, 0.48]) * rng.uniform(1.2, 2.2), (0.2, 0.45)
        horizon = horizon * np.array([1.15, 0.98, 0.8])
    direction = key_direction(rng, camera, 0.85, rise)
    level = {"sun": 1.0, "haze": 1.25, "overcast": 1.5, "evening": 0.8}[kind] * rng.uniform(0.85, 1.15)
    sky_light = (0.6 * zenith + 0.4 * horizon) * level * 1.1
    bounce = ground * (0.75 * sky_light + 0.8 * key * direction[2])
    haze = 0.65 * horizon
    tones = np.array([[0.9, 0.97, 0.92], [0.62, 0.74, 0.58], [0.38, 0.5, 0.3]])[-hills:] if hills else np.zeros((0, 3))
    fade = np.linspace(0.75, 0.2, max(hills, 1))[: len(tones), None]
    ranges = (
        (tones * 0.22 * (sky_light.mean() + 0.6 * key.mean()) * (1 - fade) + haze * fade * level) if hills else tones
    )
    sky = Sky(
        (zenith * level).astype(np.float32),
        (horizon * level * 1.25).astype(np.float32),
        float(
            {
                "sun": rng.uniform(0, 0.5),
                "haze": rng.uniform(0.3, 0.8),
                "overcast": 0.95,
                "evening": rng.uniform(0.1, 0.6),
            }[kind]
        ),
        ranges.astype(np.float32),
        int(rng.integers(1 << 16)),
    )
    side = key_direction(rng, camera, 1.5, (0.0, 0.3))
    return sky, light(direction, spread, key, sky_light, bounce, horizon * rng.uniform(0.1, 0.5), side, 1.6)
