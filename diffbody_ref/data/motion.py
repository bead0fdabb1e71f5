"""Motion blur along a path: of the whole picture, as a hand shakes a camera, or of a limb that moves.

A limb is found by part labels where they are known, as of rendered people; elsewhere a capsule of a limb's shape at a
random place stands for one (compare HAODiff, Gong et al. 2025, which moves segmented limbs).
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, label
from scipy.signal import fftconvolve

from diffbody_ref.ops.parts import PART_LABELS

LIMBS = tuple(PART_LABELS.index(name) for name in ("head", "arms", "legs", "feet"))
TURN = 0.8  # standard deviation of the turn of a path over its whole length, in radians
STEPS_PER_PIXEL = 4
LIMB_LENGTH, LIMB_WIDTH = (0.2, 0.5), (0.04, 0.12)  # of a capsule, in shorter sides of the picture
SOFTNESS = 1.5  # standard deviation in pixels of the edge between what moves and what does not


def motion_kernel(length: float, rng: np.random.Generator) -> np.ndarray:
    """The trace of a point that moves along a smooth random path with a varying speed.

    Args:
        length: length of the path in pixels.
        rng: source of randomness.

    Returns:
        float64 (2r+1, 2r+1) of sum 1, its centre of mass in the middle.
    """
    count = max(2, round(length * STEPS_PER_PIXEL))
    # Curvature and speed change slowly: each is a line with a random slope.
    turn = rng.normal(0.0, TURN, 2)
    where = np.linspace(0.0, 1.0, count)
    angle = rng.uniform(0.0, 2.0 * np.pi) + turn[0] * where + turn[1] * where**2
    speed = 1.0 + rng.uniform(-0.8, 0.8) * (2.0 * where - 1.0)
    step = length / count * speed
    points = np.stack([np.cumsum(step * np.sin(angle)), np.cumsum(step * np.cos(angle))])
    points -= points.mean(axis=1, keepdims=True)
    radius = max(1, int(np.ceil(np.abs(points).max())))
    kernel = np.zeros((2 * radius + 2, 2 * radius + 2))
    corner = np.floor(points).astype(int)
    part = points - corner
    for dy in (0, 1):
        for dx in (0, 1):  # each point is shared among its four pixels
            share = np.abs(1 - dy - part[0]) * np.abs(1 - dx - part[1])
            np.add.at(kernel, (corner[0] + radius + dy, corner[1] + radius + dx), share)
    return kernel[: 2 * radius + 1, : 2 * radius + 1] / kernel[: 2 * radius + 1, : 2 * radius + 1].sum()


def moved(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A picture, float32 (H, W, C), convolved with a kernel; beyond its edges it goes on as at the edge."""
    radius = kernel.shape[0] // 2
    padded = np.pad(picture, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    return fftconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1)).astype(np.float32)


def limb_moved(
    picture: np.ndarray, kernel: np.ndarray, rng: np.random.Generator, parts: np.ndarray | None = None
) -> np.ndarray:
    """A picture in which a limb moves and the rest does not.

    Args:
        picture: float32 (H, W, 3).
        kernel: see `motion_kernel`.
        rng: source of randomness, for the choice of the limb.
        parts: part labels, uint8 (H, W), of `PART_LABELS`; None draws a capsule.
    """
    mask = None if parts is None else _labelled_limb(parts, rng)
    if mask is None:
        mask = _capsule(picture.shape[0], picture.shape[1], rng)
    soft = gaussian_filter(mask.astype(np.float32), SOFTNESS)[..., None]
    # What moves covers what is behind it for as long as it is there; where it leaves, what is beside it shows.
    cover = np.clip(moved(soft, kernel), 0.0, 1.0)
    limb = moved(picture * soft, kernel) / np.maximum(cover, 1e-3)
    still = np.where(soft > cover, moved(picture, kernel), picture)
    return np.asarray(np.clip(cover * limb + (1.0 - cover) * still, 0.0, 1.0), np.float32)


def _labelled_limb(parts: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """One connected region of a limb's label, bool (H, W), or None if the picture shows no limb."""
    present = [number for number in LIMBS if (parts == number).any()]
    if not present:
        return None
    regions, count = label(parts == present[rng.integers(len(present))])
    return regions == 1 + rng.integers(count)


def _capsule(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """All pixels near a random line segment, bool (H, W)."""
    side = min(height, width)
    length, radius = side * rng.uniform(*LIMB_LENGTH), side * rng.uniform(*LIMB_WIDTH)
    angle = rng.uniform(0.0, np.pi)
    along = np.array([np.sin(angle), np.cos(angle)])
    y, x = np.mgrid[:height, :width]
    place = np.stack([y - rng.uniform(0, height), x - rng.uniform(0, width)])
    position = np.clip(np.tensordot(along, place, 1), -length / 2, length / 2)
    return np.square(place - along[:, None, None] * position).sum(axis=0) < radius**2
