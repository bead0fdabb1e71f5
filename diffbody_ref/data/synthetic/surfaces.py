"""Procedural surfaces of places and things: patterns over coordinates u, v in metres. Colours are linear RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic.textures import cell_random, linear, noise


@dataclass(frozen=True)
class Surface:
    """The surface of a solid or a floor.

    Attributes:
        pattern: a key of `PATTERNS`.
        colours: float32 (3, 3), three linear RGB colours, the main one first.
        scale: size in metres of one repeat (tile, plank, brick, bay of a facade).
        seed: seed that selects random cells and shifts the noise.
        gloss: reflectance of a clear coat at normal incidence; 0 is matt.
        glow: radiance as a multiple of the ambient light; 0 is no source. A source is not lit.
    """

    pattern: str
    colours: np.ndarray
    scale: float = 0.5
    seed: int = 0
    gloss: float = 0.0
    glow: float = 0.0


def surface(
    rng: np.random.Generator,
    pattern: str,
    *colours: tuple[float, float, float],
    scale: float = 0.5,
    gloss: float = 0.0,
    glow: float = 0.0,
    spread: float = 0.06,
) -> Surface:
    """A surface with up to three sRGB colours in [0, 255], each varied a little; missing ones are the last one, darker.

    Args:
        rng: source of randomness.
        pattern: see `Surface`.
        colours: the colours.
        scale: see `Surface`.
        gloss: see `Surface`.
        glow: see `Surface`.
        spread: standard deviation of the colours' logarithm.
    """
    tones = [
        linear(np.array(colour)) * np.exp(rng.normal(0, spread, 1) + rng.normal(0, spread / 2, 3)) for colour in colours
    ]
    while len(tones) < 3:
        tones.append(tones[-1] * 0.7)
    return Surface(
        pattern,
        np.clip(np.stack(tones), 0.003, 0.92).astype(np.float32),
        scale,
        int(rng.integers(1 << 16)),
        gloss,
        glow,
    )


def _mix(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours between `low` and `high` by weights (M,), which are clipped to [0, 1]."""
    return low + (high - low) * np.clip(weight, 0, 1)[:, None].astype(np.float32)


def _frac(x: np.ndarray) -> np.ndarray:
    return x - np.floor(x)


def _cloudy(s: Surface, u: np.ndarray, v: np.ndarray, metres: float, kind: int = 2) -> np.ndarray:
    """Noise of unit variance with a period of `metres`, shifted by the seed."""
    return noise(kind, u / np.float32(metres) + s.seed * 0.137, v / np.float32(metres) + s.seed * 0.071)


def _plain(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.repeat(s.colours[:1], len(u), 0)


def _plaster(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return s.colours[0] * np.exp(0.035 * _cloudy(s, u, v, 5.0) + 0.025 * _cloudy(s, u, v, 1.5, 1))[:, None]


def _wallpaper(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = u / s.scale, v / s.scale
    x = x + 0.5 * (np.floor(y) % 2)
    dx, dy = _frac(x) - 0.5, _frac(y) - 0.5
    motif = np.hypot(dx, 0.7 * dy) * (1.0 + 0.35 * np.cos(4 * np.arctan2(dy, dx) + s.seed)) < 0.27
    stripe = np.abs(dx) < 0.06
    return _mix(np.repeat(s.colours[:1], len(u), 0), s.colours[1], 0.7 * (motif if s.seed % 2 else stripe))


def _planks(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = u / s.scale
    along = v / (9 * s.scale) + cell_random(row, np.zeros_like(row), s.seed)[:, 0]
    tone = cell_random(row, along, s.seed)[:, 0] - 0.5
    fibre = noise(1, row * 0.33, v / 14 + tone) + 0.6 * noise(0, row * 0.8, v / 6)
    joint = (np.abs(_frac(row) - 0.5) > 0.485) | (_frac(along) < 0.004)
    colour = s.colours[0] * np.exp(0.4 * tone + 0.13 * fibre)[:, None]
    return np.where(joint[:, None], colour * 0.45, colour)


def _wood(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    ring = noise(1, u * 1.3 + s.seed * 0.1, v * 0.08) + 0.5 * noise(0, u * 2.0, v * 0.2)
    return s.colours[0] * np.exp(0.16 * ring)[:, None]


def _tiles(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = u / s.scale, v / s.scale
    tone = cell_random(x, y, s.seed)[:, 0] - 0.5
    colour = s.colours[0] * np.exp(0.16 * tone + 0.06 * _cloudy(s, u, v, 2.5))[:, None]
    joint = np.maximum(np.abs(_frac(x) - 0.5), np.abs(_frac(y) - 0.5)) > 0.5 - 0.006 / s.scale
    return np.where(joint[:, None], s.colours[2], colour)


def _paving(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    y = v / s.scale
    x = u / (1.6 * s.scale) + 0.5 * (np.floor(y) % 2)
    tone = cell_random(x, y, s.seed)[:, 0] - 0.5
    stain = 0.16 * _cloudy(s, u, v, 6.0) + 0.1 * _cloudy(s, u, v, 1.3, 1) + 0.08 * _cloudy(s, u, v, 2.2, 0)
    colour = s.colours[0] * np.exp(0.22 * tone + stain)[:, None]
    joint = (np.abs(_frac(x) - 0.5) > 0.5 - 0.004 / s.scale) | (np.abs(_frac(y) - 0.5) > 0.5 - 0.006 / s.scale)
    return np.where(joint[:, None], colour * 0.5, colour)


def _asphalt(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    grain = 0.14 * _cloudy(s, u, v, 1.7, 0) + 0.1 * _cloudy(s, u, v, 7.0) + 0.07 * _cloudy(s, u, v, 23.0, 3)
    return s.colours[0] * np.exp(grain)[:, None]


def _bricks(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    y = v / (0.33 * s.scale)
    x = u / s.scale + 0.5 * (np.floor(y) % 2)
    joint = (np.abs(_frac(x) - 0.5) > 0.475) | (np.abs(_frac(y) - 0.5) > 0.43)
    tone = cell_random(x, y, s.seed)[:, 0] - 0.5
    colour = s.colours[0] * np.exp(0.5 * tone + 0.12 * _cloudy(s, u, v, 4.0) + 0.1 * _cloudy(s, u, v, 0.9, 1))[:, None]
    return np.where(joint[:, None], s.colours[2], colour)


def _carpet(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return s.colours[0] * np.exp(0.13 * _cloudy(s, u, v, 1.2, 0) + 0.06 * _cloudy(s, u, v, 4.0))[:, None]


def _rug(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = u / s.scale, v / s.scale
    diamond = _frac(np.abs(_frac(x) - 0.5) + np.abs(_frac(y) - 0.5) + 0.25 * (s.seed % 3))
    base = np.where((diamond < 0.3)[:, None], s.colours[1], s.colours[0])
    base = np.where((np.abs(diamond - 0.55) < 0.06)[:, None], s.colours[2], base)
    return base * np.exp(0.12 * _cloudy(s, u, v, 1.1, 0))[:, None]


def _cloth(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    weave = 0.07 * _cloudy(s, u, v, 0.8, 0) + 0.07 * _cloudy(s, u, v, 1.6)
    return s.colours[0] * np.exp(weave)[:, None]


def _painting(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Broad brush strokes in the three colours, in a pale mount of `scale` metres at the frame."""
    first = _cloudy(s, u, v, 2.4, 2) + 1.5 * np.tanh(4 * (v / max(s.scale, 0.05)) - 1)
    second = _cloudy(s, u + 1, v, 1.2, 2)
    colour = _mix(np.repeat(s.colours[:1], len(u), 0), s.colours[1], 0.5 + 0.6 * first)
    return _mix(colour, s.colours[2], 1.6 * second - 0.5) * np.exp(0.1 * _cloudy(s, u, v, 0.6, 0))[:, None]


def _view(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The overexposed view through a window: sky above, trees or houses below."""
    line = 0.75 * s.scale + 0.16 * _cloudy(s, u, 0 * v, 3.0, 2)
    above = np.clip((v - line) / 0.05, 0, 1)
    leaf = s.colours[1] * np.exp(0.5 * _cloudy(s, u, v, 1.6, 1))[:, None]
    return _mix(leaf, s.colours[0], above)


def _grass(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    broad, tuft, blade = _cloudy(s, u, v, 14.0, 2), _cloudy(s, u, v, 2.1, 1), _cloudy(s, u, v * 0.6, 1.1, 0)
    colour = _mix(np.repeat(s.colours[:1], len(u), 0), s.colours[1], 0.35 + 0.3 * broad + 0.14 * tuft)
    colour = _mix(colour, s.colours[2], 0.9 * _cloudy(s, u + 3, v, 9.0, 2) - 0.9)
    return colour * np.exp(0.2 * tuft + 0.3 * blade)[:, None]


def _earth(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    colour = _mix(np.repeat(s.colours[:1], len(u), 0), s.colours[1], 0.4 + 0.4 * _cloudy(s, u, v, 8.0, 2))
    return colour * np.exp(0.16 * _cloudy(s, u, v, 1.6, 0) + 0.12 * _cloudy(s, u, v, 2.4, 1))[:, None]


def _bark(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    ridge = noise(1, u * 2.2 + s.seed * 0.1, v * 0.5)
    colour = s.colours[0] * np.exp(0.35 * ridge + 0.2 * noise(0, u * 2, v * 1.2))[:, None]
    return _mix(colour, s.colours[1], 0.5 * noise(2, u * 0.3, v * 0.2) - 0.1)


def _leaf(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Leaves, dark to light, some yellow; u is a random number of each leaf."""
    return (
        _mix(np.repeat(s.colours[:1], len(u), 0), s.colours[1], _frac(u * 7.31))
        * np.exp(0.6 * (_frac(u) - 0.5))[:, None]
    )


def _water(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    ripple = noise(1, u / 30, v / 3) + noise(2, u / 70 + 0.3, v / 9)
    return s.colours[0] * np.exp(0.22 * ripple)[:, None]


def _foam(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A far wood or hedge: crowns in light and shade."""
    crown = noise(2, u / (6 * s.scale), v / (6 * s.scale)) + 0.8 * noise(1, u / (3 * s.scale), v / (3 * s.scale))
    colour = _mix(np.repeat(s.colours[:1], len(u), 0), s.colours[1], 0.45 + 0.35 * crown)
    return colour * np.exp(0.35 * noise(1, u / s.scale / 1.5 + 0.4, v / s.scale / 1.5))[:, None]


def _window(s: Surface, x: np.ndarray, y: np.ndarray, tall: float, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A window with frame, sill and shaded reveal: its colours (M, 3), and where it is, bool (M,).

    Args:
        s: the facade's surface.
        x: (M,), horizontal position in bays, from the middle of the bay.
        y: (M,), vertical position in storeys, from the floor.
        tall: height of the window in storeys.
        cell: (M, 3), random numbers of the bay.
    """
    half, low, high = 0.24, 0.27, 0.27 + tall
    inside = (np.abs(x) < half) & (y > low) & (y < high)
    bar = (np.abs(x) < 0.012) | (np.abs(y - low - 0.68 * tall) < 0.012) | (np.abs(x) > half - 0.025)
    bar |= (y < low + 0.025) | (y > high - 0.025)
    reflection = np.clip((y - low) / tall, 0, 1) * (0.3 + cell[:, 0]) * 0.5
    glass = np.array([0.035, 0.042, 0.05], np.float32) + reflection[:, None] * np.array([0.35, 0.42, 0.5], np.float32)
    curtain = (np.abs(x) > half * (0.3 + 0.6 * cell[:, 1])) & (cell[:, 2] > 0.35)
    glass = np.where(curtain[:, None], 0.5 * glass + 0.2 * (0.4 + cell[:, 2:3]), glass)
    shade = np.where((y > high - 0.06) | (x < -half + 0.045), 0.45, 1.0)
    colour = np.where(bar[:, None], s.colours[1] * 1.1, glass) * shade[:, None]
    return colour.astype(np.float32), inside


def _facade(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A weathered house front of storeys and bays (`scale` metres wide), shop windows or doors below, and cornices."""
    storey = 1.45 * s.scale + 0.8
    x, y = u / s.scale, v / storey
    bay = _frac(x) - 0.5
    cell = cell_random(x, y, s.seed, 3)
    wall = (_bricks(Surface("", s.colours, 0.25, s.seed), u, v) if s.seed % 3 == 0 else _plaster(s, u, v)) * np.exp(
        0.12 * _cloudy(s, u, v, 9.0, 3)[:, None] - 0.1 * np.exp(-v[:, None] / 0.5)
    )
    cornice = (_frac(y) < 0.05) & (y > 0.5)
    shadow = (_frac(y) > 0.97) & (y > 0.5)
    wall = np.where(cornice[:, None], s.colours[1], np.where(shadow[:, None], wall * 0.6, wall))
    window, is_window = _window(s, bay, _frac(y), 0.52, cell)
    sill = (np.abs(bay) < 0.28) & (np.abs(_frac(y) - 0.25) < 0.02)
    upper = np.where(is_window[:, None], window, np.where(sill[:, None], s.colours[1], wall))
    shop = s.seed % 2 == 1
    low = y < 1
    if shop:
        pane = (np.abs(bay) < 0.44) & (v > 0.45) & (v < storey * 0.76)
        sign = (v > storey * 0.79) & (v < storey * 0.93)
        letters = sign & (np.abs(v / storey - 0.86) < 0.035) & (cell_random(u / 0.16, 0 * u, s.seed)[:, 0] > 0.35)
        goods = np.exp(0.8 * noise(1, u / 3 + s.seed * 0.1, v / 3))[:, None] * (0.1 + 0.25 * cell)
        goods = goods * np.clip(1.4 - v / storey, 0.2, 1)[:, None] + 0.05
        ground = np.where(pane[:, None], goods, np.where(sign[:, None], s.colours[2] * 0.8, s.colours[2] * 0.45))
        ground = np.where(letters[:, None], 0.75, ground)
    else:
        door = (cell[:, 0] < 0.3) & (np.abs(bay) < 0.24) & (v < 2.2)
        panel = (np.abs(np.abs(bay) - 0.12) < 0.08) & (np.abs(_frac(v / 0.8) - 0.5) < 0.38)
        wood = np.where(panel[:, None], s.colours[2] * 0.75, s.colours[2]) * 0.8
        front, glazed = _window(s, bay, _frac(y), 0.46, cell)
        ground = np.where(glazed[:, None] & (cell[:, :1] >= 0.3), front, wall * np.where(v < 0.5, 0.75, 1)[:, None])
        ground = np.where(door[:, None], wood, ground)
    return np.where(low[:, None], ground, upper)


def _letters(s: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = v / s.scale
    written = (np.abs(_frac(row) - 0.5) < 0.25) & (cell_random(u / (0.3 * s.scale), row, s.seed)[:, 0] > 0.4)
    return np.where(written[:, None], s.colours[1], s.colours[0])


PATTERNS: dict[str, Callable[[Surface, np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "plaster": _plaster,
    "wallpaper": _wallpaper,
    "planks": _planks,
    "wood": _wood,
    "tiles": _tiles,
    "paving": _paving,
    "asphalt": _asphalt,
    "bricks": _bricks,
    "carpet": _carpet,
    "rug": _rug,
    "cloth": _cloth,
    "painting": _painting,
    "view": _view,
    "grass": _grass,
    "earth": _earth,
    "bark": _bark,
    "leaf": _leaf,
    "water": _water,
    "wood edge": _foam,
    "facade": _facade,
    "letters": _letters,
}


def paint(s: Surface, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """The colour of a surface: linear RGB, float32 (M, 3).

    Args:
        s: the surface.
        u: (M,), metres.
        v: (M,), metres.
        footprint: (M,), distance in metres between neighbouring samples on the surface; finer details fade to the mean
            instead of flickering.
    """
    colour = PATTERNS[s.pattern](s, u.astype(np.float32), v.astype(np.float32))
    if s.pattern not in ("leaf", "facade", "wood edge", "plain"):
        detail = np.clip(1.5 - 2.5 * footprint / s.scale, 0, 1)[:, None]
        mean = colour.mean(0)
        colour = mean + (colour - mean) * detail
    return np.clip(colour, 0.002, 1.0).astype(np.float32)
