"""Training pictures: mirrored, degraded and cropped at random."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.degradations import degrade
from diffbody_ref.ops.images import resize
from diffbody_ref.training.config import TrainConfig


def mirrored(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture or, half of the time, its mirror image."""
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def degraded_pair(picture: np.ndarray, rng: np.random.Generator, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a uint8 picture: x is float32 in [0, 1]; y is its degraded version at the same size (bicubic)."""
    high = picture.astype(np.float32) / 255.0
    low = resize(degrade(high, rng, config.degradation), high.shape[0], high.shape[1], method="bicubic")
    return high, np.clip(low, 0.0, 1.0)


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
