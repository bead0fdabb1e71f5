"""Trees, shrubs and grass: trunks and branches are tubes, foliage consists of single leaves."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.solids import Solid, blades, leaves, tube
from diffbody_ref.data.synthetic.surfaces import Surface, surface

_GREENS = (
    ((44, 70, 30), (106, 132, 62)),
    ((54, 78, 38), (132, 148, 76)),
    ((38, 62, 36), (84, 112, 66)),
    ((70, 84, 44), (150, 156, 92)),
    ((120, 84, 36), (196, 150, 62)),  # autumn
)


def foliage(rng: np.random.Generator) -> Surface:
    """Draw a foliage surface: mostly green, sometimes in autumn colours."""
    dark, bright = _GREENS[int(rng.choice(len(_GREENS), p=[0.26, 0.26, 0.22, 0.16, 0.1]))]
    return surface(rng, "leaf", dark, bright, spread=0.1)


def bark(rng: np.random.Generator) -> Surface:
    """Draw a bark surface: brown or grey, mossy in places."""
    tone = ((92, 74, 58), (110, 100, 88), (70, 56, 46))[int(rng.integers(3))]
    return surface(rng, "bark", tone, (88, 96, 62), scale=0.4)


def _ball(rng: np.random.Generator, count: int, radius: np.ndarray) -> np.ndarray:
    """Draw points (count, 3) in an ellipsoid with radii (3,), denser towards its surface."""
    points = rng.normal(0, 1, (count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points * radius * rng.random((count, 1)) ** 0.35


def tree(
    rng: np.random.Generator,
    foot: tuple[float, float],
    height: float,
    green: Surface,
    wood: Surface,
    detail: float = 1.0,
) -> list[Solid]:
    """A broad-leaved tree whose crown is several balls of leaves on branches.

    Args:
        rng: source of randomness.
        foot: (x, y) of the trunk.
        height: height in metres.
        green: surface of the leaves.
        wood: surface of trunk and branches.
        detail: factor on the number of leaves.
    """
    base = np.array([*foot, 0.0])
    thick, fork = 0.022 * height * rng.uniform(0.8, 1.4), height * rng.uniform(0.28, 0.42)
    top = base + np.array([*rng.normal(0, 0.03 * height, 2), fork])
    parts = [
        tube(base, base + 0.12 * (top - base), 1.5 * thick, wood, thick),
        tube(base + 0.1 * (top - base), top, thick, wood, 0.75 * thick),
    ]
    points = []
    count = int(300 * detail)
    for _ in range(int(rng.integers(5, 8))):
        reach = rng.normal(0, 0.17, 3) * height + np.array([0, 0, 0.36 * height])
        centre = top + reach * np.array([1, 1, rng.uniform(0.4, 1.2)])
        if detail > 0.3:
            parts.append(tube(top, centre, 0.4 * thick, wood, 0.1 * thick, sides=6))
        points.append(centre + _ball(rng, count // 6, np.array([0.2, 0.2, 0.15]) * height * rng.uniform(0.7, 1.2)))
    size = 0.028 * height / max(detail, 0.1) ** 0.5
    return [*parts, leaves(rng, np.concatenate(points), size, green, 0.3)]


def conifer(
    rng: np.random.Generator,
    foot: tuple[float, float],
    height: float,
    green: Surface,
    wood: Surface,
    detail: float = 1.0,
) -> list[Solid]:
    """A spruce: drooping twigs in a cone; see `tree` for the arguments."""
    count = int(320 * detail)
    up = rng.random(count) ** 0.8
    turn, out = rng.uniform(0, 2 * np.pi, count), 0.2 * height * (1.04 - up) * rng.random(count) ** 0.4
    points = np.stack(
        [foot[0] + out * np.cos(turn), foot[1] + out * np.sin(turn), height * (0.1 + 0.9 * up) - 0.35 * out], 1
    )
    trunk = tube((*foot, 0.0), (*foot, 0.9 * height), 0.016 * height, wood, 0.004 * height, sides=6)
    return [trunk, leaves(rng, points, 0.032 * height / max(detail, 0.1) ** 0.5, green, 1.0)]


def shrub(
    rng: np.random.Generator, foot: tuple[float, float], size: float, green: Surface, detail: float = 1.0
) -> list[Solid]:
    """A bush about `size` high; see `tree` for the other arguments."""
    centre = np.array([*foot, 0.42 * size])
    points = centre + _ball(rng, int(220 * detail), np.array([0.6, 0.6, 0.5]) * size)
    return [leaves(rng, points, 0.07 * size / max(detail, 0.1) ** 0.5, green)]


def turf(rng: np.random.Generator, green: Surface, height: float, radius: float, count: int) -> list[Solid]:
    """`count` blades of grass within a radius of the origin, less dense outwards."""
    turn, out = rng.uniform(0, 2 * np.pi, count), radius * rng.random(count) ** 0.7
    feet = np.stack([out * np.cos(turn), out * np.sin(turn), 0 * out], 1)
    return [blades(rng, feet, height, green)]
