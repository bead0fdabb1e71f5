"""Streets: rows of houses, pavement, road, parked cars, trees, lamps, signs. They are built with y along the street."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.places import plants
from diffbody_ref.data.synthetic.places.furniture import metal
from diffbody_ref.data.synthetic.places.weather import random_weather
from diffbody_ref.data.synthetic.scene import Camera, Place
from diffbody_ref.data.synthetic.solids import Solid, box, cushion, extrusion, lathe, placed, quad, ring, tube
from diffbody_ref.data.synthetic.surfaces import Surface, surface

_PLASTERS = (
    (206, 192, 166),
    (190, 178, 160),
    (216, 208, 194),
    (186, 160, 130),
    (170, 172, 170),
    (196, 164, 140),
    (150, 108, 88),
    (204, 196, 150),
    (156, 164, 160),
    (134, 92, 76),
)
_CARS = (
    (40, 42, 46),
    (190, 192, 194),
    (230, 230, 228),
    (110, 24, 26),
    (40, 62, 104),
    (92, 96, 100),
    (20, 20, 22),
    (70, 84, 72),
)


def _house(rng: np.random.Generator) -> Surface:
    """A random facade."""
    wall = _PLASTERS[int(rng.integers(len(_PLASTERS)))]
    trim = (228, 224, 214) if rng.random() < 0.7 else (96, 92, 88)
    third = ((44, 52, 60), (92, 40, 36), (36, 60, 50), (120, 96, 70), (52, 48, 46))[int(rng.integers(5))]
    return surface(rng, "facade", wall, trim, third, scale=rng.uniform(1.5, 2.4))


def car(rng: np.random.Generator) -> list[Solid]:
    """A parked car, 4.2 m long, along y."""
    body = surface(rng, "plain", _CARS[int(rng.integers(len(_CARS)))], gloss=0.06, spread=0.15)
    glass = surface(rng, "plain", (26, 30, 34), gloss=0.14)
    black, rim = surface(rng, "plain", (24, 24, 25)), surface(rng, "plain", (150, 152, 156), gloss=0.1)
    tall = rng.uniform(1.38, 1.75)
    parts = [cushion((4.25, 1.72, 0.62), (0, 0, 0.24), body, 0.2, 7)]
    cabin = [(-1.75, 0.78), (1.05, 0.78), (0.45, tall - 0.03), (-1.3, tall - 0.03)]
    parts += [extrusion(cabin, 1.5, glass, 0.05), cushion((1.75, 1.36, 0.1), (-0.42, 0, tall - 0.08), body, 0.05, 4)]
    for x in (-0.35, 0.45, -1.2):
        for side in (-1, 1):
            lean = 0.0 if x == -0.35 else 0.55 * (1 if x > 0 else -0.6)
            parts.append(tube((x + lean, side * 0.74, 0.8), (x, side * 0.68, tall - 0.04), 0.035, body, sides=5))
    for x in (-1.3, 1.32):
        for side in (-1, 1):
            hub = np.array([x, side * 0.79, 0.31])
            parts += [ring(hub, np.array([0, 1, 0]), 0.22, 0.1, black, 16), *_disc(hub, side, 0.19, rim)]
    for side in (-1, 1):
        red, lamp = surface(rng, "plain", (150, 20, 18), gloss=0.1), surface(rng, "plain", (220, 222, 224), gloss=0.2)
        parts += [
            box((0.06, 0.35, 0.14), (-2.11, side * 0.58, 0.6), red),
            box((0.06, 0.35, 0.12), (2.11, side * 0.58, 0.58), lamp),
        ]
        parts.append(box((0.03, 0.5, 0.12), (side * 2.13, 0, 0.42), black))
    return placed(parts, (0, 0, 0), np.pi / 2)


def _disc(hub: np.ndarray, side: float, radius: float, s: Surface) -> list[Solid]:
    """The disc of a wheel."""
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    rim = hub + np.stack([radius * np.cos(turn), 0 * turn + 0.06 * side, radius * np.sin(turn)], 1)
    vertices = np.concatenate([hub[None] + np.array([0, 0.08 * side, 0]), rim])
    i = np.arange(12)
    return [Solid(vertices, np.stack([0 * i, i + 1, (i + 1) % 12 + 1], 1), vertices[:, [0, 2]], s)]


def bicycle(rng: np.random.Generator) -> list[Solid]:
    """A bicycle on its stand, along x."""
    paint = surface(rng, "plain", _CARS[int(rng.integers(len(_CARS)))], gloss=0.06, spread=0.3)
    black, steel = surface(rng, "plain", (28, 28, 29)), metal(rng)
    side = np.array([0.0, 1.0, 0.0])
    rear, front = np.array([-0.52, 0, 0.34]), np.array([0.54, 0, 0.34])
    crank, saddle, head = np.array([-0.08, 0, 0.29]), np.array([-0.25, 0, 0.86]), np.array([0.38, 0, 0.82])
    parts = [ring(hub, side, 0.33, 0.018, black, 26) for hub in (rear, front)]
    spokes = [
        hub + 0.32 * np.array([np.cos(a), 0, np.sin(a)])
        for hub in (rear, front)
        for a in np.linspace(0, 2 * np.pi, 13)[:-1]
    ]
    hubs = [hub for hub in (rear, front) for _ in range(12)]
    parts += [tube(hub, end, 0.003, steel, sides=3) for hub, end in zip(hubs, spokes, strict=True)]
    bars = [
        (rear, crank),
        (crank, saddle),
        (rear, saddle - [0, 0, 0.08]),
        (crank, head - [0, 0, 0.12]),
        (saddle - [0, 0, 0.12], head),
        (head - np.array([0.03, 0, -0.12]), front),
    ]
    parts += [tube(a, b, 0.017, paint, sides=6) for a, b in bars]
    grip = head - np.array([0.04, 0, -0.16])
    wide = np.array([0, 0.28, 0])
    parts.append(tube(grip - wide, grip + wide, 0.013, steel, sides=6))
    parts += [
        tube(grip + np.array([0, y, 0]), grip + np.array([-0.14, 1.25 * y, 0.02]), 0.018, black, sides=6)
        for y in (-0.24, 0.24)
    ]
    parts += [cushion((0.26, 0.16, 0.07), (-0.25, 0, 0.86), black, 0.03), ring(crank, side, 0.09, 0.008, steel, 14)]
    if rng.random() < 0.4:
        basket = surface(rng, "wood", (120, 92, 62), scale=0.1)
        parts.append(lathe([(0.12, 0), (0.17, 0.24), (0.16, 0.24), (0.11, 0.01)], (0.6, 0, 0.78), basket))
    return parts


def street_lamp(rng: np.random.Generator, s: Surface) -> list[Solid]:
    """A post with a lamp head."""
    head = surface(rng, "plain", (230, 226, 214), gloss=0.05)
    return [
        lathe([(0.1, 0), (0.09, 0.5), (0.05, 0.6), (0.04, 4.2)], (0, 0, 0), s, 8),
        lathe([(0.08, 4.2), (0.2, 4.6), (0.02, 4.8)], (0, 0, 0), head, 8),
    ]


def road_sign(rng: np.random.Generator, s: Surface) -> list[Solid]:
    """A round or square plate on a pole, facing -y."""
    tone = ((30, 70, 150), (180, 30, 34), (232, 230, 226), (40, 110, 70))[int(rng.integers(4))]
    plate = surface(rng, "letters", tone, (236, 236, 232), scale=0.2)
    return [
        tube((0, 0, 0), (0, 0, 2.6), 0.03, s, sides=6),
        box((0.5, 0.02, float(rng.uniform(0.3, 0.6))), (0, -0.04, 2.0), plate),
    ]


def _row(rng: np.random.Generator, x: float, facing: float, last: float) -> list[Solid]:
    """Houses side by side at x, from y = -20 to `last`; they face +x if `facing` is 1, -x if it is -1."""
    parts: list[Solid] = []
    roof = surface(rng, "plain", (104, 70, 58) if rng.random() < 0.5 else (80, 82, 86))
    y = -20.0
    while y < last:
        wide, high, back = rng.uniform(7, 15), rng.uniform(6.5, 15.0), 9.0
        front = x + rng.uniform(0, 0.5) * -facing
        house = box((back, wide, high), (front - facing * back / 2, y + wide / 2, 0), _house(rng))
        cap = extrusion([(-back / 2, 0), (back / 2, 0), (0.3, 2.2), (-0.3, 2.2)], wide, roof)
        parts += [house, *placed([cap], (front - facing * back / 2, y + wide / 2, high))]
        parts.append(
            box(
                (0.25, wide, 0.2),
                (front + facing * 0.08, y + wide / 2, high - 0.2),
                surface(rng, "plain", (206, 200, 188)),
            )
        )
        if rng.random() < 0.35:
            awning = surface(
                rng, "rug", *[_PLASTERS[0], (140, 44, 40), (60, 84, 66)][int(rng.integers(3)) :], scale=0.5
            )
            at = y + rng.uniform(0.5, wide - 3)
            parts.append(quad((front, at, 3.0), (0, facing * 2.6, 0), (facing * 1.3, 0, -0.6), awning))
        y += wide
    return parts


def _kerbside(rng: np.random.Generator, kerb: float, side: float, last: float) -> list[Solid]:
    """Things at the kerb: cars on the road, and trees, lamps, signs, bicycles, bins and bollards on the pavement.

    Args:
        rng: source of randomness.
        kerb: x of the kerb.
        side: direction of the road along x, 1 or -1.
        last: y of the end.
    """
    parts: list[Solid] = []
    post, green, wood = metal(rng), plants.foliage(rng), plants.bark(rng)
    cars = rng.random() < 0.75
    for y in np.arange(-12.0, last, 5.6):
        if cars and rng.random() < 0.7:
            parts += placed(
                car(rng), (kerb + side * 1.15, y + rng.uniform(-0.3, 0.3), 0), np.pi * float(rng.integers(2))
            )
    trees = rng.random() < 0.6
    for y in np.arange(-10.0, last, 4.5):
        spot, at = kerb - side * 0.45, float(y + rng.uniform(-1, 1))
        if abs(at) < 1.6:
            continue
        kind = rng.random()
        if trees and kind < 0.5:
            parts += plants.tree(rng, (spot, at), float(rng.uniform(4.5, 8)), green, wood, 1.0 if at < 15 else 0.35)
        elif kind < 0.62:
            parts += placed(street_lamp(rng, post), (spot, at, 0))
        elif kind < 0.7:
            parts += placed(road_sign(rng, post), (spot, at, 0), rng.uniform(-0.5, 0.5))
        elif kind < 0.78:
            parts += placed(bicycle(rng), (spot, at, 0), rng.uniform(0, np.pi))
        elif kind < 0.86:
            bin_ = surface(rng, "plain", (52, 70, 58), gloss=0.02)
            parts.append(lathe([(0.2, 0), (0.26, 0.85), (0.2, 0.95), (0.02, 1.0)], (spot, at, 0), bin_))
        else:
            parts += [lathe([(0.06, 0), (0.06, 0.85), (0.03, 0.9)], (spot, at + d, 0), post, 8) for d in (0, 1.5)]
    return parts


def random_street(rng: np.random.Generator, camera: Camera) -> Place:
    """Draw a street: the person stands on a pavement between houses and road; the street runs in any direction."""
    turn = rng.normal(0, 0.35) if rng.random() < 0.5 else rng.uniform(-np.pi, np.pi)
    axis = camera.heading + turn  # direction of the street as an angle on the ground
    mirror = float(rng.choice([-1.0, 1.0]))
    eye = float(camera.position[:2] @ np.array([np.sin(axis), -np.cos(axis)]))  # x of the camera in the street's axes
    kerb, near = rng.uniform(1.0, 2.6), rng.uniform(1.6, 4.0)
    near = max(near, 1.0 - mirror * eye)  # houses stay behind the camera
    far = max(kerb + rng.uniform(7, 13), 1.0 + mirror * eye)
    last = 70.0
    flag = float(rng.uniform(120, 176))
    stone = surface(
        rng,
        str(rng.choice(["paving", "paving", "asphalt", "bricks"])),
        (flag, flag * 0.97, flag * 0.92),
        (90, 86, 80),
        (84, 82, 80),
        scale=float(rng.uniform(0.3, 0.6)),
    )
    tar, paint = surface(rng, "asphalt", (92, 92, 96), scale=0.4), surface(rng, "plain", (212, 212, 208))
    edge = surface(rng, "asphalt", (158, 156, 152), scale=0.3)
    across = far - 2.0 - kerb
    parts = [quad((mirror * kerb, -40, 0.003), (mirror * across, 0, 0), (0, 140, 0), tar)]
    parts += [quad((mirror * x - 0.06, -40, 0.005), (0.14, 0, 0), (0, 140, 0), edge) for x in (kerb, kerb + across)]
    middle = mirror * (kerb + across / 2)
    parts += [quad((middle - 0.06, y, 0.006), (0.12, 0, 0), (0, 2.4, 0), paint) for y in np.arange(-16.0, 60, 5)]
    parts += _row(rng, -mirror * near, mirror, last) + _row(rng, mirror * far, -mirror, last)
    parts += _kerbside(rng, mirror * kerb, mirror, 40.0)
    end = surface(rng, "wood edge", (58, 78, 50), (112, 128, 84), scale=1.0)
    for y in (last, -40.0):
        parts.append(quad((-40, y, 0), (80, 0, 0), (0, 0, float(rng.uniform(4, 9))), end))
    sky, light = random_weather(rng, camera, np.asarray(stone.colours[0]), 0)
    words = str(rng.choice(["on a street", "on a pavement", "in a city street"]))
    return Place(words, placed(parts, (0, 0, 0), axis - np.pi / 2), stone, 0.0, sky, light)
