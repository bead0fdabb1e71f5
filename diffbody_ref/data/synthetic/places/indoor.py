"""Rooms: walls, windows, curtains, pictures, furniture, lamps. They are built with y pointing away from the camera."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.places import furniture as f
from diffbody_ref.data.synthetic.scene import Camera, Light, Place, Sky, key_direction, light
from diffbody_ref.data.synthetic.solids import Solid, box, drape, placed, quad
from diffbody_ref.data.synthetic.surfaces import Surface, surface

_WALLS = (
    (236, 232, 224),
    (226, 222, 212),
    (222, 214, 198),
    (206, 212, 208),
    (190, 202, 210),
    (214, 200, 186),
    (172, 186, 176),
    (196, 178, 158),
    (150, 160, 170),
    (120, 132, 128),
    (232, 224, 200),
    (108, 118, 132),
)
_WOODS = ((150, 108, 70), (122, 84, 54), (178, 142, 102), (96, 66, 44), (196, 168, 132), (140, 116, 92))


def _wall_surface(rng: np.random.Generator) -> Surface:
    tone = _WALLS[int(rng.integers(len(_WALLS)))]
    pattern = str(rng.choice(["plaster", "wallpaper", "bricks", "tiles"], p=[0.74, 0.14, 0.07, 0.05]))
    if pattern == "bricks":
        pale = rng.random() < 0.4
        return surface(
            rng, "bricks", (214, 208, 200) if pale else (150, 92, 72), (120, 80, 66), (190, 182, 172), scale=0.22
        )
    if pattern == "tiles":
        return surface(
            rng, "tiles", (222, 224, 222), (200, 200, 200), (150, 150, 148), scale=rng.uniform(0.12, 0.3), gloss=0.03
        )
    red, green, blue = (float(np.clip(x * rng.uniform(0.86, 1.08), 0, 250)) for x in tone)
    return surface(rng, pattern, tone, (red, green, blue), scale=rng.uniform(0.14, 0.5))


def _floor_surface(rng: np.random.Generator) -> Surface:
    pattern = str(rng.choice(["planks", "tiles", "carpet"], p=[0.58, 0.22, 0.2]))
    if pattern == "planks":
        return surface(rng, "planks", _WOODS[int(rng.integers(len(_WOODS)))], scale=rng.uniform(0.08, 0.2), gloss=0.02)
    if pattern == "tiles":
        tone = float(rng.uniform(110, 215))
        return surface(
            rng, "tiles", (tone, tone * 0.97, tone * 0.92), (120, 118, 112), scale=rng.uniform(0.3, 0.6), gloss=0.03
        )
    tone = float(rng.uniform(80, 180))
    return surface(rng, "carpet", (tone, tone * rng.uniform(0.88, 1), tone * rng.uniform(0.8, 1.05)))


def _window(rng: np.random.Generator, x: float, y: float, white: Surface) -> list[Solid]:
    """A window in a wall at y, centred at x, often with curtains or a radiator; `white` is the frame's surface."""
    wide, high, sill = rng.uniform(0.8, 1.9), rng.uniform(1.1, 1.6), rng.uniform(0.7, 1.0)
    outside = surface(rng, "view", (236, 242, 250), (120, 140, 104), scale=high, glow=float(rng.uniform(2.2, 3.6)))
    parts = [quad((x - wide / 2, y - 0.005, sill), (wide, 0, 0), (0, 0, high), outside)]
    bars = [(-wide / 2, 0.06), (wide / 2, 0.06), (0.0, 0.045)]
    parts += [box((thick, 0.07, high), (x + at, y - 0.03, sill), white) for at, thick in bars]
    parts += [box((wide + 0.1, 0.08, 0.06), (x, y - 0.04, at), white) for at in (sill - 0.03, sill + high - 0.03)]
    parts.append(box((wide + 0.2, 0.2, 0.04), (x, y - 0.1, sill - 0.07), white))
    if rng.random() < 0.65:
        tone = rng.uniform(110, 235)
        cloth = surface(rng, "cloth", (tone, tone * rng.uniform(0.8, 1.0), tone * rng.uniform(0.7, 1.05)))
        for side in (-1, 1):
            across = rng.uniform(0.25, 0.5)
            start = x + side * (wide / 2 + 0.12) - across / 2
            parts.append(
                drape(np.array([start, y - 0.12, 0.05]), np.array([across, 0, 0]), sill + high + 0.15, 4, 0.03, cloth)
            )
    if rng.random() < 0.4:
        parts += placed(f.radiator(rng, min(wide, 1.2), white), (x, y - 0.08, 0.0))
    return parts


def _wall_things(rng: np.random.Generator, width: float, y: float, white: Surface) -> list[Solid]:
    """Things side by side along a wall at y, from -width to width: windows, doors, furniture, pictures and so on."""
    parts: list[Solid] = []
    x = -width + rng.uniform(0, 0.6)
    while x < width - 0.5:
        kind = str(
            rng.choice(
                ["window", "door", "shelves", "sofa", "sideboard", "pictures", "plant", "lamp", "nothing"],
                p=[0.17, 0.08, 0.15, 0.12, 0.13, 0.15, 0.08, 0.06, 0.06],
            )
        )
        space = float(rng.uniform(0.9, 1.6))
        middle = x + space / 2
        if kind == "window":
            space += 0.8
            parts += _window(rng, x + space / 2, y, white)
        elif kind == "door":
            parts += placed(f.door(rng, white), (middle, y, 0))
        elif kind == "shelves":
            parts += placed(f.bookshelf(rng, space - 0.1, float(rng.uniform(1.2, 2.2))), (middle, y - 0.17, 0))
        elif kind == "sofa":
            space = float(rng.uniform(1.7, 2.3))
            parts += placed(f.sofa(rng, space - 0.15), (x + space / 2, y - 0.48, 0))
            parts += f.pictures(rng, x + space / 2, y, 1)
        elif kind == "sideboard":
            parts += placed(f.sideboard(rng, space - 0.1), (middle, y - 0.24, 0))
            parts += f.pictures(rng, middle, y, 1)
        elif kind == "pictures":
            parts += f.pictures(rng, middle, y, int(rng.integers(1, 4)))
        elif kind == "plant":
            space *= 0.7
            parts += placed(f.potted_plant(rng, float(rng.uniform(0.7, 1.6))), (x + space / 2, y - 0.35, 0))
        elif kind == "lamp":
            space *= 0.7
            parts += placed(f.floor_lamp(rng), (x + space / 2, y - 0.35, 0))
        x += space + rng.uniform(0.0, 0.35)
    return parts


def _light(rng: np.random.Generator, camera: Camera) -> Light:
    """Draw the light of a window or lamp beside or behind the camera, and the light reflected by the walls."""
    day = rng.random() < 0.65
    warm = rng.uniform(-0.02, 0.06) if day else rng.uniform(0.06, 0.16)
    tint = np.array([1 + warm, 1, 1 - 1.3 * warm])
    side = key_direction(rng, camera, 1.0, (0.1, 0.5))
    base = rng.uniform(0.3, 0.55)
    return light(
        key_direction(rng, camera, 0.8, (0.5, 1.2)),
        rng.uniform(0.15, 0.4),
        tint * rng.uniform(0.4, 1.5),
        tint * base,
        tint * np.array([1.0, 0.93, 0.85]) * base * 0.55,
        np.array([1 - warm, 1, 1 + warm]) * rng.uniform(0.2, 0.9),
        side,
        1.3,
    )


def random_room(rng: np.random.Generator, camera: Camera) -> Place:
    """Draw a living room, office or hall: a back wall, often a side wall, things along them, a rug, a ceiling."""
    wall, floor = _wall_surface(rng), _floor_surface(rng)
    white = surface(rng, "plain", (232, 230, 224) if rng.random() < 0.8 else _WOODS[int(rng.integers(len(_WOODS)))])
    y, ceiling, width = float(rng.choice([rng.uniform(1.0, 1.8), rng.uniform(1.8, 4.5)])), rng.uniform(2.45, 3.0), 5.0
    turn = rng.normal(0, 0.3)
    parts = [
        quad((-width, y, 0), (2 * width, 0, 0), (0, 0, ceiling), wall),
        box((2 * width, 0.02, 0.09), (0, y - 0.01, 0), white),
    ]
    parts += _wall_things(rng, width, y, white)
    for side in (-1, 1):
        if rng.random() < 0.55:
            x, length = side * rng.uniform(1.5, 3.5), 7.0
            aside = [
                quad((-length / 2, 0, 0), (length, 0, 0), (0, 0, ceiling), wall),
                box((length, 0.02, 0.09), (0, -0.01, 0), white),
                *_wall_things(rng, length / 2 - 0.5, 0.0, white),
            ]
            parts += placed(aside, (x, y - length / 2, 0), -side * np.pi / 2)
    if rng.random() < 0.4:
        rug = surface(rng, "rug", *(f.any_tone(rng) for _ in range(3)), scale=rng.uniform(0.25, 0.6))
        wide, deep = rng.uniform(1.5, 2.6), rng.uniform(1.2, 2.0)
        parts.append(
            quad((-wide / 2 + rng.normal(0, 0.4), rng.uniform(-1.0, 0.0), 0.003), (wide, 0, 0), (0, deep, 0), rug)
        )
    if y > 2.6 and rng.random() < 0.6:
        spot = (float(rng.choice([-1, 1]) * rng.uniform(0.8, 1.6)), y - rng.uniform(1.2, 1.5), 0)
        parts += placed(f.table_with_chairs(rng), spot, rng.uniform(-0.4, 0.4))
    tone = np.asarray(wall.colours[0])
    sky = Sky(tone * 0.9, tone * 0.7, 0.0, np.zeros((0, 3)), 0)
    words = str(rng.choice(["in a room", "in a living room", "indoors"]))
    return Place(
        words, placed(parts, (0, 0, 0), camera.heading - np.pi / 2 + turn), floor, ceiling, sky, _light(rng, camera)
    )
