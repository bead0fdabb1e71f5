"""Tensors of a stage, described: names, dtypes, and shapes whose sizes may be dynamic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a stage.

    Attributes:
        name: in the graph.
        dtype: its name in numpy.
        shape: whole numbers, and dynamic sizes as "name" or "factor*name": "16*height" is a multiple of 16.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def with_sizes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the dynamic sizes are these."""
        return tuple(side if isinstance(side, int) else _scaled(side, sizes) for side in self.shape)


@dataclass(frozen=True)
class SizeRange:
    """A dynamic size: the least and the most that an engine must accept, and what it is tuned for.

    Attributes:
        least: the smallest.
        usual: what an engine is tuned for.
        most: the largest.
    """

    least: int
    usual: int
    most: int


def split_side(side: str) -> tuple[int, str]:
    """Factor and name of a dynamic size: "16*height" → (16, "height"); "batch" → (1, "batch")."""
    factor, _, name = side.rpartition("*")
    return int(factor or 1), name


def _scaled(side: str, sizes: Mapping[str, int]) -> int:
    factor, name = split_side(side)
    return factor * sizes[name]


def read_sizes(specs: Sequence[TensorSpec], feed: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The dynamic sizes of arrays by name.

    Raises:
        ValueError: a tensor is missing or unknown, has another dtype or shape, or two disagree on a size.
    """
    if unknown := feed.keys() - {spec.name for spec in specs}:
        raise ValueError(f"unknown input {min(unknown)!r}; known are {', '.join(spec.name for spec in specs)}")
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in feed:
            raise ValueError(f"input {spec.name!r} is missing")
        array = feed[spec.name]
        wanted = f"input {spec.name!r} must be {spec.dtype} of shape {spec.shape}"
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            raise ValueError(f"{wanted}, not {array.dtype.name} of {array.shape}")
        for side, size in zip(spec.shape, array.shape, strict=True):
            factor, name = (size, "") if isinstance(side, int) else split_side(side)
            if (isinstance(side, int) and side != size) or size % max(factor, 1):
                raise ValueError(f"{wanted}, not {array.shape}")
            if name and sizes.setdefault(name, size // factor) != size // factor:
                raise ValueError(f"{wanted}, but {name} is {sizes[name]} elsewhere and {size // factor} here")
    return sizes
