"""Procedural albedo: tileable noise, and patterns of cloth. Colours are linear RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_SIZE = 512
_SLOPES = (0.3, 1.0, 1.6, 2.3)  # the noises have amplitude spectra 1/f^slope, from fine to coarse

PALETTE: dict[str, tuple[int, int, int]] = {  # sRGB
    "white": (238, 238, 234),
    "light grey": (188, 190, 192),
    "grey": (125, 127, 130),
    "dark grey": (66, 68, 72),
    "black": (26, 26, 28),
    "navy": (28, 38, 78),
    "blue": (40, 88, 170),
    "light blue": (140, 180, 222),
    "teal": (28, 122, 128),
    "green": (46, 120, 66),
    "olive": (98, 102, 56),
    "khaki": (178, 160, 118),
    "beige": (214, 198, 170),
    "brown": (104, 70, 44),
    "orange": (220, 120, 44),
    "yellow": (230, 198, 70),
    "red": (184, 38, 42),
    "burgundy": (98, 26, 42),
    "pink": (230, 160, 178),
    "purple": (104, 62, 132),
}


@dataclass(frozen=True)
class Material:
    """A textured material.

    Attributes:
        pattern: a key of `PATTERNS`.
        colours: float32 (3, 3), three linear RGB colours, the main one first.
        scale: size in metres of one repeat.
        offset: float32 (2,), shift of the pattern in repeats.
        grain: relative strength of the fine noise.
        seed: seed that selects random cells.
    """

    pattern: str
    colours: np.ndarray
    scale: float
    offset: np.ndarray
    grain: float
    seed: int


def linear(colour: np.ndarray) -> np.ndarray:
    """sRGB in [0, 255] to linear RGB in [0, 1] (IEC 61966-2-1, the 2.2 power approximation)."""
    return (np.asarray(colour, np.float32) / 255) ** np.float32(2.2)


def named_colour(rng: np.random.Generator, name: str, spread: float = 0.08) -> np.ndarray:
    """A linear RGB colour near one of `PALETTE`; `spread` is the standard deviation of its logarithm."""
    return np.clip(linear(np.array(PALETTE[name])) * np.exp(rng.normal(0, spread, 3)), 0.004, 0.95).astype(np.float32)


def material(rng: np.random.Generator, pattern: str, colours: list[np.ndarray], scale: float, grain: float) -> Material:
    """A material with a random offset; missing colours repeat the last one. See `Material` for the arguments."""
    filled = np.stack((colours + [colours[-1]] * 3)[:3]).astype(np.float32)
    return Material(pattern, filled, scale, rng.random(2).astype(np.float32), grain, int(rng.integers(1 << 20)))


@lru_cache(maxsize=1)
def noise_bank() -> np.ndarray:
    """Tileable noises of unit variance, from fine to coarse, the same in every process: float32 (4, 512, 512)."""
    rng = np.random.Generator(np.random.Philox(key=20))
    fy, fx = np.meshgrid(np.fft.fftfreq(_SIZE), np.fft.rfftfreq(_SIZE), indexing="ij")
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    bank = []
    for slope in _SLOPES:
        spectrum = np.fft.rfft2(rng.standard_normal((_SIZE, _SIZE))) * radius**-slope
        field = np.fft.irfft2(spectrum, s=(_SIZE, _SIZE))
        bank.append(field / field.std())
    return np.stack(bank).astype(np.float32)


def noise(kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear lookup in a noise of the bank, of unit variance.

    Args:
        kind: number of the noise in `noise_bank`.
        u: coordinates of any shape; one tile is [0, 1).
        v: coordinates of the same shape.
    """
    flat = noise_bank()[kind].ravel()
    x, y = np.float32(_SIZE) * u, np.float32(_SIZE) * v
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    left, right = x0.astype(np.int32) & (_SIZE - 1), (x0.astype(np.int32) + 1) & (_SIZE - 1)
    top, bottom = (y0.astype(np.int32) & (_SIZE - 1)) * _SIZE, ((y0.astype(np.int32) + 1) & (_SIZE - 1)) * _SIZE
    upper = flat[top + left] * (1 - fx) + flat[top + right] * fx
    return upper + (flat[bottom + left] * (1 - fx) + flat[bottom + right] * fx - upper) * fy


def _speckle(kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """`noise` without interpolation, for texels that are smaller than a pixel."""
    size = np.float32(_SIZE)
    x, y = (np.floor(size * w).astype(np.int32) & (_SIZE - 1) for w in (u, v))
    return noise_bank()[kind].ravel()[y * _SIZE + x]


def cell_random(u: np.ndarray, v: np.ndarray, seed: int, channels: int = 1) -> np.ndarray:
    """Uniform random numbers in [0, 1) that are constant within each unit cell of (u, v): (..., channels)."""
    table = np.random.Generator(np.random.Philox(key=seed)).random((1024, channels), np.float32)
    cell = np.floor(u).astype(np.int64) * 73856093 ^ np.floor(v).astype(np.int64) * 19349663
    return table[(cell ^ (cell >> 13)) & 1023]


def _mix(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours between `low` and `high` by weights (...) in [0, 1]."""
    return low + (high - low) * weight[..., None].astype(np.float32)


def _plain(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.broadcast_to(m.colours[0], (*u.shape, 3))


def _stripes(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    phase = v - np.floor(v)
    return np.where(
        (phase < 0.45)[..., None], m.colours[1], np.where((phase > 0.9)[..., None], m.colours[2], m.colours[0])
    )


def _upright(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _stripes(m, v, u)


def _checks(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    across, down = (u - np.floor(u)) < 0.5, (v - np.floor(v)) < 0.5
    thin = ((u - np.floor(u)) % 0.5 < 0.06) | ((v - np.floor(v)) % 0.5 < 0.06)
    base = _mix(m.colours[0], m.colours[1], 0.5 * across + 0.5 * down)
    return np.where(thin[..., None], m.colours[2], base)


def _dots(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    shifted = u + 0.5 * (np.floor(v) % 2)
    near = (shifted - np.floor(shifted) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < 0.07
    return np.where(near[..., None], m.colours[1], m.colours[0])


def _gradient(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _mix(m.colours[0], m.colours[1], np.clip(0.5 + 0.12 * v, 0, 1))


def _heather(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _mix(m.colours[0], m.colours[1], np.clip(0.35 + 0.28 * noise(0, u * 0.35, v * 0.35), 0, 1))


def _knit(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Columns of V-shaped stitches, with ribs that remain visible from far away."""
    fu = u - np.floor(u)
    row = v * 1.4 + np.abs(fu - 0.5)
    stitch = np.abs(row - np.floor(row) - 0.5) * 1.1 + 0.5 * (np.abs(fu - 0.5) < 0.08)
    rib = 0.35 * (np.floor(u) % 3 == 0)
    return _mix(m.colours[0], m.colours[1] * np.float32(0.8), np.clip(0.75 * stitch + rib, 0, 1))


def _denim(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Twill with worn, lighter patches."""
    line = np.abs((u + v) * 0.5 - np.floor((u + v) * 0.5) - 0.5) * 2
    worn = 0.12 * noise(2, u * m.scale * 1.1, v * m.scale * 0.7) + 0.08 * noise(1, u * m.scale * 2, v * m.scale * 0.5)
    return _mix(m.colours[0], m.colours[1], np.clip(0.3 + 0.15 * line + worn, 0, 1))


def _tartan(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    fu, fv = u - np.floor(u), v - np.floor(v)
    wide = 0.5 * (np.abs(fu - 0.3) < 0.17) + 0.5 * (np.abs(fv - 0.3) < 0.17)
    thin = (np.abs(fu - 0.75) < 0.03) | (np.abs(fv - 0.75) < 0.03)
    return np.where(thin[..., None], m.colours[2], _mix(m.colours[0], m.colours[1], wide))


def _chevron(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    zigzag = v + np.abs(u - np.floor(u) - 0.5)
    return np.where(((zigzag - np.floor(zigzag)) < 0.5)[..., None], m.colours[1], m.colours[0])


def _camouflage(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    field = noise(2, u * 0.12, v * 0.12)
    base = np.where((field > 0.35)[..., None], m.colours[1], m.colours[0])
    return np.where((noise(2, u * 0.12 + 0.37, v * 0.12) > 0.9)[..., None], m.colours[2], base)


def _flowers(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    jitter = cell_random(u, v, m.seed, 3)
    du, dv = u - np.floor(u) - 0.3 - 0.4 * jitter[..., 0], v - np.floor(v) - 0.3 - 0.4 * jitter[..., 1]
    radius = np.hypot(du, dv) / (0.2 + 0.12 * np.cos(5 * np.arctan2(dv, du) + 6 * jitter[..., 2]))
    petal = np.where((jitter[..., 2:] > 0.5), m.colours[1], m.colours[2])
    return np.where(
        (radius < 1)[..., None], np.where((radius < 0.3)[..., None], m.colours[0] * 0.6 + 0.3, petal), m.colours[0]
    )


PATTERNS: dict[str, Callable[[Material, np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "striped": _stripes,
    "pinstriped": _upright,
    "checked": _checks,
    "dotted": _dots,
    "gradient": _gradient,
    "heather": _heather,
    "knit": _knit,
    "denim": _denim,
    "tartan": _tartan,
    "chevron": _chevron,
    "camouflage": _camouflage,
    "floral": _flowers,
}


def albedo(m: Material, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The colour of a material at coordinates u, v in metres, with fine and coarse noise: linear RGB (..., 3)."""
    pu, pv = u / np.float32(m.scale) + m.offset[0], v / np.float32(m.scale) + m.offset[1]
    colour = PATTERNS[m.pattern](m, pu, pv)
    grain = _speckle(1, u * 1.9 + m.offset[1], v * 1.9 + m.offset[0])
    grain += np.float32(0.6) * _speckle(0, u * 2.6 + m.offset[0], v * 2.6)
    return np.clip(colour * np.exp(np.float32(m.grain) * grain)[..., None], 0.002, 1.0).astype(np.float32)
