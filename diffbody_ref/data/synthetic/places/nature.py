"""Nature: meadows, parks, woods and shores. They are built with y pointing away from the camera."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.places import plants
from diffbody_ref.data.synthetic.places.weather import random_weather
from diffbody_ref.data.synthetic.scene import Camera, Place
from diffbody_ref.data.synthetic.solids import Solid, cushion, placed, quad, tube
from diffbody_ref.data.synthetic.surfaces import Surface, surface


def _scatter(rng: np.random.Generator, count: int, near: float, far: float) -> np.ndarray:
    """Draw points (count, 2) in a wedge away from the camera, near ones first; the strip before the person is free."""
    distance = np.sort(near * (far / near) ** rng.random(count))
    angle = rng.uniform(-0.6, 0.6, count)
    return np.stack([distance * np.sin(angle), distance * np.cos(angle)], 1)


def _trees(
    rng: np.random.Generator, count: int, near: float, far: float, green: Surface, wood: Surface, firs: float
) -> list[Solid]:
    """Trees between two distances, with fewer leaves the farther they are; `firs` is the share of conifers."""
    parts: list[Solid] = []
    for x, y in _scatter(rng, count, near, far):
        distance = float(np.hypot(x, y))
        detail = float(np.clip(14 / distance, 0.12, 4.0))
        tall = float(rng.uniform(5, 10))
        make = plants.conifer if rng.random() < firs else plants.tree
        parts += make(rng, (float(x), float(y)), tall, green, wood, detail)
    return parts


def _fence(rng: np.random.Generator, y: float) -> list[Solid]:
    """A wooden fence along x."""
    s = surface(rng, "wood", (128, 110, 90), scale=0.3)
    parts = [tube((x, y, 0), (x, y, 1.15), 0.05, s, sides=6) for x in np.arange(-9, 9, 1.8)]
    return parts + [tube((-9, y, z), (9, y, z), 0.035, s, sides=6) for z in (0.5, 0.95)]


def random_nature(rng: np.random.Generator, camera: Camera) -> Place:
    """Draw grass, earth or sand, with a path, trees, shrubs, stones, water or hills in the background."""
    kind = str(rng.choice(["meadow", "park", "wood", "shore"], p=[0.25, 0.33, 0.24, 0.18]))
    green, wood = plants.foliage(rng), plants.bark(rng)
    lawn = surface(rng, "grass", (72, 92, 44), (112, 126, 66), (140, 132, 88), scale=0.06, spread=0.12)
    ground = lawn
    if kind == "wood":
        ground = surface(rng, "earth", (84, 68, 48), (110, 100, 62), scale=0.1)
    elif kind == "shore":
        ground = surface(rng, "earth", (196, 178, 146), (170, 150, 118), scale=0.15)
    hills = {"meadow": 3, "park": 1, "wood": 1, "shore": 2}[kind]
    sky, light = random_weather(rng, camera, np.asarray(ground.colours[0]), hills)
    parts: list[Solid] = []
    if kind == "shore":
        water = surface(rng, "water", (58, 84, 92), scale=2.0, gloss=0.12)
        parts.append(quad((-300, rng.uniform(3, 9), 0.002), (600, 0, 0), (0, 500, 0), water))
        stone = surface(rng, "asphalt", (134, 128, 120), scale=0.3)
        for x, y in _scatter(rng, 7, 1.5, 7):
            size = rng.uniform(0.1, 0.5, 3) * [1.4, 1.2, 0.7]
            parts += placed(
                [cushion(tuple(size), (0, 0, -0.2 * size[2]), stone, float(size.min() / 2))],
                (x, y, 0),
                rng.uniform(0, 3),
            )
    else:
        trees = {"meadow": (7, 8.0), "park": (12, 3.5), "wood": (34, 2.2)}[kind]
        firs = float(rng.choice([0.0, 0.3, 1.0], p=[0.55, 0.3, 0.15]))
        parts += _trees(rng, trees[0], trees[1], 38.0, green, wood, firs)
        parts += _trees(rng, 26, 28.0, 60.0, plants.foliage(rng), wood, firs)
        shrubs = plants.foliage(rng)
        for x, y in _scatter(rng, int(rng.integers(2, 9)), 1.8, 14):
            parts += plants.shrub(
                rng, (float(x), float(y)), float(rng.uniform(0.4, 1.5)), shrubs, 1.2 if y < 6 else 0.6
            )
    if kind in ("park", "meadow") and rng.random() < 0.6:
        path = surface(rng, "earth", (176, 160, 134), (150, 134, 110), scale=0.1)
        wide = rng.uniform(1.2, 2.6)
        strip = quad((-wide / 2, -12, 0.002), (wide, 0, 0), (0, 70, 0), path)
        parts += placed([strip], (rng.normal(0, 0.6), 0, 0), rng.normal(0, 0.5))
    if kind in ("park", "meadow") and rng.random() < 0.25:
        parts += _fence(rng, float(rng.uniform(2, 7)))
    if kind != "shore":
        blade = surface(
            rng,
            "leaf",
            tuple(255 * lawn.colours[0] ** (1 / 2.2) * 0.85),
            tuple(255 * lawn.colours[1] ** (1 / 2.2) * 1.1),
        )
        parts += plants.turf(rng, blade, float(rng.uniform(0.04, 0.13)), 4.5, 2600 if kind != "wood" else 500)
    if kind == "meadow" and rng.random() < 0.6:
        tone = ((236, 226, 120), (230, 230, 236), (200, 90, 110), (150, 120, 190))[int(rng.integers(4))]
        parts += plants.turf(rng, surface(rng, "leaf", tone, tone), 0.12, 6.0, 160)
    words = {"meadow": "in a meadow", "park": "in a park", "wood": "outdoors among trees", "shore": "at the water"}[
        kind
    ]
    return Place(
        words, placed(parts, (0, 0, 0), camera.heading - np.pi / 2 + rng.normal(0, 0.05)), ground, 0.0, sky, light
    )
