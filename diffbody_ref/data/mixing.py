"""The order of samples where folders are mixed by weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STREAM = 3  # tag of the random stream; a stage's own are [seed, epoch] and [seed, 1 or 2, ...]


def quotas(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Samples of each folder in an epoch, as many in all as there are pictures, by the largest remainders.

    Args:
        sizes: pictures of each folder, all positive.
        weights: weight of each folder, as many as there are folders, all positive.

    Raises:
        ValueError: a weight is so small that an epoch has no sample of the folder.
    """
    exact = np.asarray(weights, np.float64) * (sum(sizes) / sum(weights))
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: sum(sizes) - int(counts.sum())]:
        counts[index] += 1
    if not counts.all():
        least = int(np.argmin(counts))
        raise ValueError(f"data_weights: {weights[least]:g} is too small a weight for a sample in {sum(sizes)}")
    return [int(count) for count in counts]


def mixed_order(sizes: Sequence[int], weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """The indices of one epoch's samples in their order, int64; picture i of folder f is sizes[0] + … + sizes[f−1] + i.

    Every folder has its quota of each epoch. Within a folder, each picture comes once before any comes again, across
    epochs too.

    Args:
        sizes: see `quotas`.
        weights: see `quotas`.
        seed: seed of the order.
        epoch: number of the epoch, from 0.

    Raises:
        ValueError: see `quotas`.
    """
    chosen, first = [], 0
    for folder, (size, count) in enumerate(zip(sizes, quotas(sizes, weights), strict=True)):
        position, end = epoch * count, (epoch + 1) * count
        rounds = range(position // size, -(-end // size))
        passes = [np.random.default_rng([seed, STREAM, folder, r]).permutation(size) for r in rounds]
        start = position - rounds.start * size
        chosen.append(first + np.concatenate(passes)[start : start + count])
        first += size
    return np.random.default_rng([seed, STREAM, epoch]).permutation(np.concatenate(chosen)).astype(np.int64)
