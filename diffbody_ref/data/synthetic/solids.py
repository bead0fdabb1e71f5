"""Solids of triangles from which places are built: boxes, tubes, cushions, leaves. Lengths in metres, z is up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from diffbody_ref.data.synthetic.surfaces import Surface

Point = np.ndarray | tuple[float, float, float]


@dataclass(frozen=True)
class Solid:
    """A mesh with one surface. It looks smooth at vertices that faces share.

    Attributes:
        vertices: (N, 3), metres.
        faces: int (F, 3).
        uv: (N, 2), surface coordinates in metres.
        surface: the surface.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    surface: Surface


def placed(solids: list[Solid], position: Point, yaw: float = 0.0) -> list[Solid]:
    """The solids turned about z by `yaw` radians (from x towards y), then moved by `position`."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return [replace(s, vertices=s.vertices @ turn.T + np.asarray(position, float)) for s in solids]


def quad(corner: Point, along: Point, up: Point, s: Surface) -> Solid:
    """The parallelogram corner + [0, 1] · along + [0, 1] · up, facing along × up."""
    corner, along, up = np.asarray(corner, float), np.asarray(along, float), np.asarray(up, float)
    vertices = np.stack([corner, corner + along, corner + along + up, corner + up])
    wide, high = np.linalg.norm(along), np.linalg.norm(up)
    uv = np.array([[0, 0], [wide, 0], [wide, high], [0, high]])
    return Solid(vertices, np.array([[0, 1, 2], [0, 2, 3]]), uv, s)


def _joined(solids: list[Solid]) -> Solid:
    """Solids of one surface as one solid."""
    starts = np.cumsum([0] + [len(s.vertices) for s in solids])
    faces = np.concatenate([s.faces + start for s, start in zip(solids, starts, strict=False)])
    return Solid(
        np.concatenate([s.vertices for s in solids]), faces, np.concatenate([s.uv for s in solids]), solids[0].surface
    )


def box(size: tuple[float, float, float], low: tuple[float, float, float], s: Surface) -> Solid:
    """An upright box of `size`, centred in x and y on `low`, whose z is the bottom."""
    x, y, z = np.diag(size)
    corner = np.array(low, float) - x / 2 - y / 2
    sides = [(corner, x, z), (corner + x, y, z), (corner + x + y, -x, z), (corner + y, -y, z)]
    return _joined([quad(*side, s) for side in [*sides, (corner + z, x, y), (corner + y, x, -y)]])


def cushion(
    size: tuple[float, float, float], low: tuple[float, float, float], s: Surface, radius: float, steps: int = 5
) -> Solid:
    """A box with round edges of `radius`; see `box` for the other arguments. Each side has steps² vertices."""
    grid = np.linspace(-1, 1, steps)
    a, b = (x.ravel() for x in np.meshgrid(grid, grid, indexing="ij"))
    one = np.ones_like(a)
    cells = np.arange((steps - 1) * steps).reshape(steps - 1, steps)[:, :-1].ravel()
    square = np.concatenate(
        [np.stack([cells, cells + steps, cells + steps + 1], 1), np.stack([cells, cells + steps + 1, cells + 1], 1)]
    )
    half = np.array(size) / 2
    core = np.maximum(half - radius, 1e-3)
    parts = []
    for k, sign in ((0, 1), (0, -1), (1, 1), (1, -1), (2, 1), (2, -1)):
        # A face's axes in cyclic order give its outward side; for the mirrored face the order is reversed.
        columns = {k: one * sign, (k + 1) % 3: a, (k + 2) % 3: b}
        unit = np.stack([columns[i] for i in range(3)], 1) * half
        inner = np.clip(unit, -core, core)
        out = unit - inner
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
        vertices = inner + out * np.minimum(radius, half.min())
        uv = np.stack([unit[:, (k + 1) % 3], unit[:, (k + 2) % 3]], 1)
        parts.append(Solid(vertices, square if sign > 0 else square[:, ::-1], uv, s))
    merged = _joined(parts)
    return replace(merged, vertices=merged.vertices + np.array(low) + [0, 0, size[2] / 2])


def tube(
    start: Point,
    end: Point,
    radius: float,
    s: Surface,
    radius_end: float | None = None,
    sides: int = 10,
) -> Solid:
    """An open cylinder, or a cone if `radius_end` differs from `radius`, between two points."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    axis = (end - start) / np.linalg.norm(end - start)
    first = np.cross(axis, [1.0, 0, 0] if abs(axis[0]) < 0.7 else [0, 1.0, 0])
    first /= np.linalg.norm(first)
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    ring = np.cos(turn)[:, None] * first + np.sin(turn)[:, None] * np.cross(axis, first)
    top = radius if radius_end is None else radius_end
    vertices = np.concatenate([start + radius * ring, end + top * ring])
    i = np.arange(sides)
    faces = np.concatenate([np.stack([i, i + 1, i + sides + 2], 1), np.stack([i, i + sides + 2, i + sides + 1], 1)])
    around = turn * max(radius, top)
    uv = np.stack([np.tile(around, 2), np.repeat([0, np.linalg.norm(end - start)], sides + 1)], 1)
    return Solid(vertices, faces, uv, s)


def lathe(profile: list[tuple[float, float]], centre: tuple[float, float, float], s: Surface, sides: int = 14) -> Solid:
    """A body of revolution about the vertical axis through `centre`; `profile` is (radius, height) from below."""
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    r, z = np.array(profile).T
    vertices = np.stack(
        [r[:, None] * np.cos(turn), r[:, None] * np.sin(turn), np.repeat(z[:, None], sides + 1, 1)], -1
    ).reshape(-1, 3)
    i = (np.arange(len(r) - 1)[:, None] * (sides + 1) + np.arange(sides)).ravel()
    faces = np.concatenate([np.stack([i, i + 1, i + sides + 2], 1), np.stack([i, i + sides + 2, i + sides + 1], 1)])
    uv = np.stack([np.tile(turn * r.max(), len(r)), np.repeat(z, sides + 1)], 1)
    return Solid(vertices + np.array(centre), faces, uv, s)


def ring(centre: np.ndarray, axis: np.ndarray, radius: float, thick: float, s: Surface, sides: int = 22) -> Solid:
    """A torus around `axis`; `thick` is the radius of its tube."""
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    first = np.cross(axis, [1.0, 0, 0] if abs(axis[0]) < 0.7 else [0, 1.0, 0])
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)
    a, b = (
        x.ravel()
        for x in np.meshgrid(np.linspace(0, 2 * np.pi, sides + 1), np.linspace(0, 2 * np.pi, 7), indexing="ij")
    )
    out = np.cos(a)[:, None] * first + np.sin(a)[:, None] * second
    vertices = np.asarray(centre) + out * (radius + thick * np.cos(b))[:, None] + axis * (thick * np.sin(b))[:, None]
    i = (np.arange(sides)[:, None] * 7 + np.arange(6)).ravel()
    faces = np.concatenate([np.stack([i, i + 7, i + 8], 1), np.stack([i, i + 8, i + 1], 1)])
    return Solid(vertices, faces, np.stack([a * radius, b * thick], 1), s)


def extrusion(profile: list[tuple[float, float]], width: float, s: Surface, inset: float = 0.0) -> Solid:
    """A prism along y, centred at y = 0.

    Args:
        profile: (x, z) of a convex polygon, counter-clockwise.
        width: length along y.
        s: surface.
        inset: relative amount by which the ends are smaller, which rounds the edges.
    """
    points = np.array(profile)
    middle = points.mean(0)
    small = middle + (points - middle) * (1 - inset)
    count = len(points)
    rows = [
        (small, -width / 2),
        (points, -width / 2 + 0.3 * inset),
        (points, width / 2 - 0.3 * inset),
        (small, width / 2),
    ]
    pieces = []
    for (lower, y0), (upper, y1) in pairwise(rows):
        for i in range(count):
            j = (i + 1) % count
            corners = [(*lower[i], y0), (*lower[j], y0), (*upper[j], y1), (*upper[i], y1)]
            vertices = np.array([(x, y, z) for x, z, y in corners])
            uv = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * 0.5
            pieces.append(Solid(vertices, np.array([[0, 2, 1], [0, 3, 2]]), uv, s))
    for y, flip in ((-width / 2, 1), (width / 2, -1)):
        vertices = np.stack([small[:, 0], np.full(count, y), small[:, 1]], 1)
        fan = np.array([(0, i, i + 1)[::flip] for i in range(1, count - 1)])
        pieces.append(Solid(vertices, fan, small.copy(), s))
    return _joined(pieces)


def leaves(rng: np.random.Generator, centres: np.ndarray, size: float, s: Surface, droop: float = 0.0) -> Solid:
    """Leaf-shaped quads (two triangles each) around points (N, 3), turned at random.

    Args:
        rng: source of randomness.
        centres: (N, 3), centres of the leaves.
        size: mean half length in metres.
        s: surface; its u is a random number of each leaf.
        droop: how much the leaves hang down, 0 is not at all.
    """
    count = len(centres)
    along = rng.normal(0, 1, (count, 3)) - np.array([0, 0, droop])
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.cross(along, rng.normal(0, 1, (count, 3)))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)
    length = size * rng.uniform(0.6, 1.4, (count, 1))
    corners = np.stack(
        [
            centres - along * length,
            centres + 0.45 * across * length,
            centres + along * length,
            centres - 0.45 * across * length,
        ],
        1,
    )
    base = 4 * np.arange(count)[:, None]
    faces = np.concatenate([base + np.array(triple) for triple in ((0, 1, 2), (0, 2, 3))])
    number = np.repeat(rng.random(count) * 50, 4)
    return Solid(corners.reshape(-1, 3), faces, np.stack([number, np.zeros_like(number)], 1), s)


def blades(rng: np.random.Generator, feet: np.ndarray, height: float, s: Surface) -> Solid:
    """Blades of grass: an upright, bent triangle at each foot (N, 3), about `height` high."""
    count = len(feet)
    turn, lean = rng.uniform(0, 2 * np.pi, count), rng.normal(0, 0.35, (count, 2))
    wide = 0.09 * height * np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    tall = height * rng.uniform(0.4, 1.3, count)
    tip = feet + np.stack([lean[:, 0] * tall, lean[:, 1] * tall, tall], 1)
    corners = np.stack([feet - wide, feet + wide, tip], 1).reshape(-1, 3)
    number = np.repeat(rng.random(count) * 50, 3)
    return Solid(corners, np.arange(3 * count).reshape(-1, 3), np.stack([number, np.zeros_like(number)], 1), s)


def drape(corner: np.ndarray, along: np.ndarray, height: float, waves: int, depth: float, s: Surface) -> Solid:
    """A hanging curtain, folded in waves.

    Args:
        corner: (3,), a lower corner.
        along: (3,), vector to the other lower corner.
        height: height in metres.
        waves: number of waves.
        depth: amplitude of the waves in metres.
        s: surface.
    """
    steps = 8 * waves + 1
    t = np.linspace(0, 1, steps)
    along = np.asarray(along, float)
    normal = np.cross(along / np.linalg.norm(along), [0, 0, 1.0])
    line = np.asarray(corner) + t[:, None] * along + (depth * np.sin(2 * np.pi * waves * t))[:, None] * normal
    vertices = np.concatenate([line, line + np.array([0, 0, height])])
    i = np.arange(steps - 1)
    faces = np.concatenate([np.stack([i, i + 1, i + steps + 1], 1), np.stack([i, i + steps + 1, i + steps], 1)])
    u = t * np.linalg.norm(along)
    return Solid(vertices, faces, np.stack([np.tile(u, 2), np.repeat([0, height], steps)], 1), s)
