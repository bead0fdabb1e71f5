"""Training pictures: mirrored, degraded and cropped at random."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.degradations import degrade
from diffbody_ref.ops.images import resize
from diffbody_ref.training.config import TrainConfig


def mirrored(arrays: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """All (H, W, ...) arrays or, half of the time, their mirror images."""
    return [a[:, ::-1] for a in arrays] if rng.random() < 0.5 else arrays


def degraded_pair(
    picture: np.ndarray, rng: np.random.Generator, config: TrainConfig, parts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a uint8 picture: x is float32 in [0, 1]; y is its degraded version at the same size (bicubic).

    Args:
        picture: uint8 (H, W, 3).
        rng: source of randomness.
        config: holds the degradation.
        parts: the picture's part labels, uint8 (H, W), where they are known.
    """
    high = picture.astype(np.float32) / 255.0
    low = resize(degrade(high, rng, config.degradation, parts), high.shape[0], high.shape[1], method="bicubic")
    return high, np.clip(low, 0.0, 1.0)


def random_window(arrays: list[np.ndarray], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut the same random window of at most size×size from all (H, W, ...) arrays; shorter sides stay as they are."""
    sides = [min(size, side) for side in arrays[0].shape[:2]]
    top, left = (rng.integers(whole - side + 1) for whole, side in zip(arrays[0].shape, sides, strict=False))
    return [a[top : top + sides[0], left : left + sides[1]] for a in arrays]


def random_crop(arrays: list[np.ndarray], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut the same random window of size×size from all (H, W, ...) arrays; with size 0 they are returned whole.

    Raises:
        ValueError: the window is larger than the arrays.
    """
    if size == 0:
        return arrays
    height, width = arrays[0].shape[:2]
    if size > min(height, width):
        raise ValueError(f"crop is {size}; the pictures are only {height}×{width}")
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    return [a[top : top + size, left : left + size] for a in arrays]
