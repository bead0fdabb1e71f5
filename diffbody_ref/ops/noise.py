"""Noise that a seed determines wherever it is drawn: reference, runtime, server, alone or in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_SEED = 2**64 - 1


def philox_noise(seed: int, step: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal noise of one sample, float32 of `shape`, filled in C order.

    It comes from numpy's Philox 4×64 counter generator, whose 128-bit key is (seed, step), so any step's noise can be
    drawn without the ones before it. Step 0 is the noise sampling starts from; step i + 1 is the noise added after the
    i-th sampling step (counted from 0 at the first step that runs).

    Args:
        seed: 0..2⁶⁴−1, one a sample.
        step: 0..2⁶⁴−1.
        shape: the shape of one sample, usually (C, h, w).

    Raises:
        ValueError: the seed or the step is not an integer in that range.
    """
    key = np.array([check_seed(seed), check_seed(step, "step")], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(shape), dtype=np.float32)


def check_seed(seed: int, name: str = "seed") -> int:
    """The seed as a Python int.

    Raises:
        ValueError: it is not an integer in 0..2⁶⁴−1; the message calls it `name`.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) <= MAX_SEED:
        raise ValueError(f"{name} must be an integer in 0..{MAX_SEED}, got {seed!r}")
    return int(seed)
