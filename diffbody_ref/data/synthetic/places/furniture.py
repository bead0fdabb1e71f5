"""Furniture and other things in rooms and outdoors. Each thing stands on z = 0 around x = y = 0 and faces -y."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.solids import Solid, box, cushion, lathe, leaves, placed, quad, tube
from diffbody_ref.data.synthetic.surfaces import Surface, surface

_WOODS = ((150, 108, 70), (122, 84, 54), (178, 142, 102), (92, 64, 44), (206, 190, 164), (226, 224, 218), (60, 54, 50))
_CLOTHS = (
    (120, 124, 130),
    (86, 96, 110),
    (150, 140, 126),
    (178, 168, 150),
    (92, 108, 92),
    (140, 86, 66),
    (60, 72, 96),
    (196, 190, 180),
    (160, 116, 60),
    (110, 60, 62),
)


def wood(rng: np.random.Generator) -> Surface:
    """A random wood or painted wood."""
    return surface(rng, "wood", _WOODS[int(rng.integers(len(_WOODS)))], scale=0.4, gloss=0.025)


def cloth(rng: np.random.Generator) -> Surface:
    """A random upholstery fabric."""
    return surface(rng, "cloth", _CLOTHS[int(rng.integers(len(_CLOTHS)))], scale=0.3, spread=0.1)


def metal(rng: np.random.Generator) -> Surface:
    """Painted or bare metal."""
    tone = float(rng.choice([40, 60, 150, 190]))
    return surface(rng, "plain", (tone, tone, tone * 1.03), gloss=0.08)


def any_tone(rng: np.random.Generator) -> tuple[float, float, float]:
    """A random sRGB colour in [0, 255], rarely a saturated one."""
    grey, pure = rng.uniform(50, 215), rng.uniform(20, 235, 3)
    share = rng.uniform(0.08, 0.5)
    return tuple(float(x) for x in grey + (pure - grey) * share)  # type: ignore[return-value]


def table(rng: np.random.Generator, size: tuple[float, float, float]) -> list[Solid]:
    """A table; `size` is its width, depth and height."""
    top, (w, d, h) = wood(rng), size
    parts = [box((w, d, 0.035), (0, 0, h - 0.035), top)]
    for x in (-1, 1):
        for y in (-1, 1):
            parts.append(box((0.05, 0.05, h - 0.035), (x * (w / 2 - 0.05), y * (d / 2 - 0.05), 0), top))
    parts += [box((w - 0.1, 0.02, 0.08), (0, y * (d / 2 - 0.05), h - 0.115), top) for y in (-1, 1)]
    return parts


def ornaments(rng: np.random.Generator, width: float, height: float) -> list[Solid]:
    """Vases, books, cups and lamps in a row of a width, on something of a height."""
    parts: list[Solid] = []
    x = -width / 2 + 0.1
    while x < width / 2 - 0.08:
        kind = int(rng.integers(5))
        tone = surface(rng, "plain", any_tone(rng), gloss=0.04)
        r, h = rng.uniform(0.04, 0.07), rng.uniform(0.14, 0.3)
        if kind == 0:
            parts.append(
                lathe([(r * 0.7, 0), (r * 1.2, 0.4 * h), (r * 0.5, 0.85 * h), (r * 0.7, h)], (x, 0, height), tone)
            )
            if rng.random() < 0.6:
                parts += _stems(rng, (x, 0.0, height + h), 0.22)
        elif kind == 1:
            for i in range(int(rng.integers(1, 5))):
                book = surface(rng, "plain", any_tone(rng))
                parts.append(box((rng.uniform(0.14, 0.2), 0.16, 0.03), (x, 0, height + 0.03 * i), book))
        elif kind == 2:
            parts.append(lathe([(0.035, 0), (0.042, 0.09)], (x, 0, height), tone))
        elif kind == 3:
            parts += [lathe([(0.05, 0), (0.015, 0.03), (0.015, 0.22)], (x, 0, height), tone)]
            shade = surface(rng, "plain", (255, 226, 180), glow=float(rng.uniform(1.2, 2.5)))
            parts.append(lathe([(0.13, 0.2), (0.08, 0.38)], (x, 0, height), shade))
        x += rng.uniform(0.16, 0.4)
    return parts


def _stems(rng: np.random.Generator, foot: tuple[float, float, float], reach: float) -> list[Solid]:
    """A bunch of leaves about `reach` high, for a vase."""
    green = surface(rng, "leaf", (58, 92, 40), (116, 146, 74), spread=0.15)
    points = (
        np.array(foot) + rng.normal(0, 1, (40, 3)) * [0.4 * reach, 0.4 * reach, 0.25 * reach] + [0, 0, 0.55 * reach]
    )
    return [leaves(rng, points, 0.2 * reach, green)]


def pictures(rng: np.random.Generator, x: float, y: float, count: int) -> list[Solid]:
    """`count` framed pictures in a row on a wall at y, centred at x."""
    parts: list[Solid] = []
    frame = surface(rng, "plain", *[(30, 28, 26), (190, 160, 110), (232, 230, 224)][int(rng.integers(3)) :], gloss=0.03)
    w = float(rng.uniform(0.3, 0.75)) / (1 + 0.4 * (count - 1))
    h = w * float(rng.uniform(0.7, 1.4))
    for i in range(count):
        left, low = x + (i - (count - 1) / 2) * (w + 0.12) - w / 2, 1.55 - h / 2
        mount = surface(rng, "plain", (236, 234, 228))
        canvas = surface(rng, "painting", any_tone(rng), any_tone(rng), any_tone(rng), scale=h, spread=0.2)
        parts.append(box((w + 0.05, 0.03, h + 0.05), (left + w / 2, y - 0.015, low - 0.025), frame))
        parts.append(quad((left, y - 0.032, low), (w, 0, 0), (0, 0, h), mount))
        m = 0.12 * w if rng.random() < 0.6 else 0.0
        parts.append(quad((left + m, y - 0.034, low + m), (w - 2 * m, 0, 0), (0, 0, h - 2 * m), canvas))
    return parts


def door(rng: np.random.Generator, frame: Surface) -> list[Solid]:
    """A door in a wall at y = 0."""
    leaf = frame if rng.random() < 0.6 else wood(rng)
    parts = [box((0.85, 0.03, 2.02), (0, -0.015, 0), leaf)]
    parts += [box((0.09, 0.06, 2.1), (x, -0.03, 0), frame) for x in (-0.47, 0.47)]
    parts.append(box((1.03, 0.06, 0.09), (0, -0.03, 2.02), frame))
    for z, h in ((0.15, 0.75), (1.05, 0.82)):
        for x in (-0.2, 0.2):
            parts.append(box((0.28, 0.012, h), (x, -0.034, z), leaf))
    return [*parts, tube((0.3, -0.04, 1.0), (0.39, -0.09, 1.0), 0.012, metal(rng))]


def bookshelf(rng: np.random.Generator, width: float, height: float) -> list[Solid]:
    """A bookshelf with books and gaps."""
    case, depth = wood(rng), 0.3
    parts = [box((0.025, depth, height), (side * width / 2, 0, 0), case) for side in (-1, 1)]
    parts.append(box((width, 0.012, height), (0, depth / 2 - 0.01, 0), case))
    levels = int(height / 0.34)
    step = (height - 0.05) / levels
    tones = [any_tone(rng) for _ in range(9)]
    for level in range(levels + 1):
        z = 0.03 + level * step
        parts.append(box((width, depth, 0.022), (0, 0, z), case))
        x = -width / 2 + 0.03
        while level < levels and x < width / 2 - 0.06:
            if rng.random() < 0.07:
                x += rng.uniform(0.05, 0.3)
                continue
            thick, tall = rng.uniform(0.018, 0.055), step * rng.uniform(0.55, 0.86)
            book = surface(rng, "plain", tones[int(rng.integers(9))], spread=0.25)
            parts.append(box((thick, 0.18, tall), (x + thick / 2, -0.02 + rng.normal(0, 0.012), z + 0.022), book))
            x += thick + 0.002
    return parts


def sofa(rng: np.random.Generator, width: float) -> list[Solid]:
    """A sofa with seat, back, arms and loose cushions, 0.85 m deep."""
    s, seats = cloth(rng), 2 if width < 1.7 else 3
    parts = [
        cushion((width, 0.8, 0.3), (0, 0.02, 0.08), s, 0.05),
        cushion((width, 0.22, 0.75), (0, 0.32, 0.1), s, 0.08),
    ]
    parts += [cushion((0.2, 0.82, 0.52), (x * (width / 2 - 0.1), 0, 0.08), s, 0.07) for x in (-1, 1)]
    inner = (width - 0.42) / seats
    for i in range(seats):
        x = -width / 2 + 0.21 + inner * (i + 0.5)
        parts.append(cushion((inner - 0.01, 0.6, 0.15), (x, -0.06, 0.36), s, 0.06))
        if rng.random() < 0.6:
            loose = surface(rng, "rug", any_tone(rng), any_tone(rng), any_tone(rng), scale=0.14)
            parts.append(cushion((0.42, 0.15, 0.4), (x + rng.normal(0, 0.05), 0.14, 0.5), loose, 0.07))
    return parts


def sideboard(rng: np.random.Generator, width: float) -> list[Solid]:
    """A cupboard with doors or drawers, and ornaments on it."""
    s, h, d = wood(rng), float(rng.uniform(0.55, 0.95)), 0.42
    parts = [box((width, d, h - 0.12), (0, 0, 0.12), s), box((width + 0.03, d + 0.03, 0.025), (0, 0, h), s)]
    parts += [
        box((0.04, 0.04, 0.12), (x * (width / 2 - 0.06), y * (d / 2 - 0.05), 0), s) for x in (-1, 1) for y in (-1, 1)
    ]
    fronts, handle = int(rng.integers(2, 4)), metal(rng)
    rows = int(rng.integers(1, 4))
    for i in range(fronts):
        for j in range(rows):
            w, t = width / fronts, (h - 0.16) / rows
            x, z = -width / 2 + w * (i + 0.5), 0.14 + t * j
            parts.append(box((w - 0.02, 0.02, t - 0.02), (x, -d / 2 - 0.01, z + 0.01), s))
            parts.append(box((0.1, 0.02, 0.015), (x, -d / 2 - 0.03, z + 0.7 * t), handle))
    return parts + ornaments(rng, width, h + 0.025)


def radiator(rng: np.random.Generator, width: float, s: Surface) -> list[Solid]:
    """A radiator of ribs in front of a wall at y = 0.08."""
    return [cushion((0.055, 0.09, 0.55), (x, 0, 0.1), s, 0.02, 3) for x in np.arange(-width / 2, width / 2, 0.065)]


def potted_plant(rng: np.random.Generator, height: float) -> list[Solid]:
    """A pot with a leafy or palm-like plant."""
    pot_height, r = float(np.clip(0.3 * height, 0.15, 0.4)), float(np.clip(0.16 * height, 0.09, 0.22))
    pot = surface(
        rng,
        "plain",
        *[(176, 96, 64), (220, 218, 212), (70, 72, 76), (160, 140, 110)][int(rng.integers(4)) :],
        gloss=0.02,
    )
    earth = surface(rng, "earth", (58, 44, 34))
    parts = [
        lathe([(0.75 * r, 0), (r, pot_height), (0.88 * r, pot_height), (0.85 * r, pot_height - 0.03)], (0, 0, 0), pot),
        lathe([(0.86 * r, pot_height - 0.03), (0.001, pot_height - 0.02)], (0, 0, 0), earth),
    ]
    green = surface(rng, "leaf", (40, 78, 36), (104, 140, 70), spread=0.15)
    tall = height - pot_height
    if rng.random() < 0.5:
        count = int(130 + 260 * tall)
        radius = 0.32 * tall * rng.random(count) ** 0.4 + 0.05
        turns, up = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.1, 1.0, count)
        points = np.stack([radius * np.cos(turns), radius * np.sin(turns), pot_height + tall * up], 1)
        stem = surface(rng, "bark", (92, 78, 56))
        parts.append(
            tube((0, 0, pot_height - 0.03), (0, 0, pot_height + 0.8 * tall), 0.012 + 0.01 * tall, stem, sides=6)
        )
        return [*parts, leaves(rng, points, 0.035 + 0.03 * tall, green, 0.3)]
    for _ in range(int(rng.integers(9, 16))):  # arching blades
        turn, reach = rng.uniform(0, 2 * np.pi), tall * rng.uniform(0.3, 0.7)
        t = np.linspace(0, 1, 9)
        out = np.array([np.cos(turn), np.sin(turn)])
        line = np.concatenate(
            [
                out * (reach * t**1.3)[:, None],
                (pot_height + tall * (1.5 * t - 0.75 * t**2) * rng.uniform(0.7, 1.1))[:, None],
            ],
            1,
        )
        wide = 0.035 * (0.4 + tall) * np.sin(np.pi * np.clip(t * 0.9 + 0.1, 0, 1))[:, None] * [-out[1], out[0], 0]
        vertices = np.concatenate([line - wide, line + wide])
        i = np.arange(8)
        faces = np.concatenate([np.stack([i, i + 9, i + 10], 1), np.stack([i, i + 10, i + 1], 1)])
        number = np.full(18, rng.random() * 50)
        parts.append(Solid(vertices, faces, np.stack([number, number * 0], 1), green))
    return parts


def floor_lamp(rng: np.random.Generator) -> list[Solid]:
    """A floor lamp that is switched on."""
    stand, h = metal(rng), float(rng.uniform(1.3, 1.7))
    shade = surface(rng, "plain", (255, 232, 196), glow=float(rng.uniform(1.5, 3.0)))
    return [
        lathe([(0.15, 0), (0.15, 0.02), (0.012, 0.03)], (0, 0, 0), stand),
        tube((0, 0, 0), (0, 0, h), 0.012, stand, sides=6),
        lathe([(0.2, h - 0.05), (0.13, h + 0.25)], (0, 0, 0), shade),
    ]


def chair(rng: np.random.Generator, height: float, size: float = 0.44) -> list[Solid]:
    """A wooden or upholstered chair with four legs and a back; its seat is `height` high and `size` wide and deep."""
    s, soft = wood(rng), rng.random() < 0.45
    seat = cloth(rng) if soft else s
    thick = 0.07 if soft else 0.03
    parts = [cushion((size, size, thick), (0, 0, height - thick), seat, 0.03 if soft else 0.012)]
    for x in (-1, 1):
        for y in (-1, 1):
            parts.append(
                tube(
                    (x * (size / 2 - 0.02), y * (size / 2 - 0.02), 0),
                    (x * (size / 2 - 0.04), y * (size / 2 - 0.04), height - thick),
                    0.018,
                    s,
                    sides=8,
                )
            )
        parts.append(
            tube(
                (x * (size / 2 - 0.03), size / 2 - 0.03, height - 0.03),
                (x * (size / 2 - 0.04), size / 2 + 0.06, height + 0.45),
                0.016,
                s,
                sides=8,
            )
        )
    if rng.random() < 0.5:
        parts += [
            box((size - 0.06, 0.02, 0.07), (0, size / 2 + 0.01 + 0.16 * (z - 0.1), height + z), s)
            for z in (0.14, 0.26, 0.38)
        ]
    else:
        parts.append(cushion((size - 0.04, 0.05, 0.3), (0, size / 2 + 0.045, height + 0.16), seat, 0.02))
    return parts


def bench(rng: np.random.Generator, height: float) -> list[Solid]:
    """A park bench of planks, whose seat is `height` high."""
    s, iron, w = surface(rng, "wood", (128, 96, 66), scale=0.3), metal(rng), float(rng.uniform(1.3, 1.9))
    parts = [box((w, 0.085, 0.035), (0, y, height - 0.035), s) for y in (-0.16, -0.06, 0.04, 0.14)]
    parts += [box((w, 0.025, 0.1), (0, 0.24 + 0.25 * z, height + z), s) for z in (0.14, 0.28)]
    for x in (-w / 2 + 0.12, w / 2 - 0.12):
        parts += [
            tube((x, -0.18, 0), (x, -0.16, height - 0.03), 0.022, iron),
            tube((x, 0.26, 0), (x, 0.2, height - 0.03), 0.022, iron),
        ]
        parts += [
            tube((x, 0.2, height - 0.03), (x, 0.33, height + 0.42), 0.02, iron),
            box((0.04, 0.44, 0.02), (x, 0.0, height - 0.055), iron),
        ]
    return parts


def block(rng: np.random.Generator, height: float) -> list[Solid]:
    """A low stone wall or step, `height` high."""
    s = surface(rng, "asphalt", (168, 162, 152) if rng.random() < 0.6 else (140, 120, 100), scale=0.3)
    return [cushion((float(rng.uniform(0.7, 2.4)), 0.5, height), (0, 0.05, 0), s, 0.02)]


def seat(rng: np.random.Generator, height: float, outdoors: bool) -> tuple[list[Solid], str]:
    """Draw something to sit on, `height` high, and its words for the caption, such as "on a bench"."""
    if outdoors:
        return (bench(rng, height), "on a bench") if rng.random() < 0.6 else (block(rng, height), "on a low wall")
    kind = rng.random()
    if kind < 0.65:
        return chair(rng, height), "on a chair"
    if kind < 0.85:
        stool = [cushion((0.42, 0.42, 0.08), (0, 0, height - 0.08), cloth(rng), 0.035)]
        leg = wood(rng)
        ends = [((x * 0.19, y * 0.19, 0), (x * 0.13, y * 0.13, height - 0.06)) for x in (-1, 1) for y in (-1, 1)]
        return stool + [tube(*end, 0.018, leg, sides=8) for end in ends], "on a stool"
    return [cushion((float(rng.uniform(0.6, 1.5)), 0.55, height), (0, 0.05, 0), cloth(rng), 0.05)], "on an ottoman"


def table_with_chairs(rng: np.random.Generator) -> list[Solid]:
    """A dining table with ornaments, and up to four chairs around it."""
    parts = table(rng, (float(rng.uniform(1.1, 1.6)), 0.8, 0.74)) + ornaments(rng, 1.0, 0.74)
    state = int(rng.integers(1 << 30))
    for x, y, yaw in ((-0.3, -0.6, np.pi), (0.35, -0.55, np.pi), (-0.3, 0.6, 0.0), (0.35, 0.62, 0.0)):
        if rng.random() < 0.7:
            equal_chair = chair(np.random.Generator(np.random.Philox(state)), 0.45)
            parts += placed(equal_chair, (x, y, 0), yaw + rng.normal(0, 0.2))
    return parts
