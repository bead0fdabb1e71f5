"""Overlapping tiles: pictures larger than a network's size are cut, processed tile by tile and blended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

OVERLAP = 0.125  # of a tile's side, shared by neighbours

Array = TypeVar("Array")
"""An array of numpy or a tensor of PyTorch."""

Cells = tuple[Any, slice, slice]
"""An index of (…, H, W)."""

WHOLE: Cells = (..., slice(None), slice(None))

_GAUSSIAN_VARIANCE = 0.01  # of the tile's side squared, as in Mixture of Diffusers (Jiménez 2023)


@dataclass(frozen=True)
class Tile:
    """A rectangle of an array's grid, in pixels (or latent cells) from the top left."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns: `array[tile.slices]` of (H, W, …), `array[(..., *tile.slices)]` of (…, H, W)."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def enlarged(self, factor: int) -> Tile:
        """The same tile on a grid `factor` times finer: a latent tile in pixels."""
        return Tile(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def reduced(self, factor: int) -> Tile:
        """The same tile on a grid `factor` times coarser: a pixel tile in latent cells.

        Raises:
            ValueError: the tile does not lie on that grid (plan it with multiple=factor).
        """
        sides = (self.top, self.left, self.height, self.width)
        if factor < 1 or any(side % factor for side in sides):
            raise ValueError(f"{self} does not lie on a grid of {factor}")
        return Tile(*(side // factor for side in sides))


def plan_tiles(
    height: int, width: int, tile_height: int, tile_width: int, overlap: int, multiple: int = 1
) -> list[Tile]:
    """Tiles that cover height × width, row by row, neighbours sharing at least `overlap`.

    All tiles have the same size; the last of a row or column is shifted inside. Where the picture is not larger than
    a tile, the tile has the picture's size.

    Args:
        multiple: every position and size is a multiple of it (the VAE's factor, so that tiles map to latent cells).

    Raises:
        ValueError: a size is not positive or not a multiple, or the overlap leaves no stride.
    """
    if multiple < 1 or overlap < 0:
        raise ValueError(f"multiple must be positive and overlap not negative, got {multiple} and {overlap}")
    for name, size in (("height", height), ("width", width), ("tile height", tile_height), ("tile width", tile_width)):
        if size < 1 or size % multiple:
            raise ValueError(f"{name} must be a positive multiple of {multiple}, got {size}")
    tops = _tile_starts(height, tile_height, overlap, multiple)
    lefts = _tile_starts(width, tile_width, overlap, multiple)
    return [Tile(top, left, min(tile_height, height), min(tile_width, width)) for top in tops for left in lefts]


def _tile_starts(size: int, tile: int, overlap: int, multiple: int) -> list[int]:
    if size <= tile:
        return [0]
    stride = (tile - overlap) // multiple * multiple
    if stride < 1:
        raise ValueError(f"overlap {overlap} leaves a tile of {tile} no stride, which must be at least {multiple}")
    count = 1 + math.ceil((size - tile) / stride)
    return [min(index * stride, size - tile) for index in range(count)]


def feather_window(height: int, width: int) -> np.ndarray:
    """A tile's blending weights, float32 (height, width), all positive, at most 1 and symmetric.

    They are Gaussian along both sides and fall to about 4e-6 at the middle of each.

    Raises:
        ValueError: a size is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"window sizes must be positive, got {height}x{width}")
    return np.outer(_gaussian(height), _gaussian(width)).astype(np.float32)


def _gaussian(size: int) -> np.ndarray:
    offset = (np.arange(size) - (size - 1) / 2) / size
    return np.exp(-(offset**2) / (2 * _GAUSSIAN_VARIANCE))


def tile_weights(tiles: Sequence[Tile]) -> list[np.ndarray]:
    """Each tile's share of the result, float32 (tile.height, tile.width): at every point the shares add up to 1.

    Raises:
        ValueError: there are no tiles.
    """
    height, width = _covered_size(tiles)
    total = np.zeros((height, width), dtype=np.float64)
    for tile in tiles:
        total[tile.slices] += feather_window(tile.height, tile.width)
    return [(feather_window(t.height, t.width) / total[t.slices]).astype(np.float32) for t in tiles]


def blend(patches: Iterable[Array], tiles: Sequence[Tile]) -> Array:
    """Put processed tiles together, weighted by `tile_weights`.

    Args:
        patches: one a tile, in the same order, each (…, h, w), of numpy or PyTorch; may be a generator, so that only
            one patch is in memory.
        tiles: on the grid of the patches: for an output of another scale, `enlarged` or `reduced` ones.

    Returns:
        (…, H, W) of the patches' kind. Where the patches agree the result is that value, up to rounding.

    Raises:
        ValueError: the counts differ, or a patch has not its tile's size.
    """
    size = _covered_size(tiles)
    blended: Any = None
    for patch, tile, weight in zip(patches, tiles, tile_weights(tiles), strict=True):
        shape = tuple(patch.shape)  # type: ignore[attr-defined]
        if shape[-2:] != (tile.height, tile.width):
            raise ValueError(f"a patch of {shape} does not fit {tile}")
        if blended is None:
            blended = _zeros(patch, (*shape[:-2], *size))
        # In place: a padded patch would cost a whole canvas a tile. PyTorch's autograd follows the sum all the same.
        blended[(..., *tile.slices)] += patch * _of_kind(patch, weight)
    return blended


def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def _of_kind(like: Any, values: np.ndarray) -> Any:
    return values if isinstance(like, np.ndarray) else like.new_tensor(values)


def in_tiles(
    network: Callable[[Cells], Array],
    size: Sequence[int],
    tile_size: int,
    multiple: int,
    factor: tuple[int, int] = (1, 1),
    cell: int = 1,
) -> Array:
    """What a network makes of a picture or of latents, in overlapping tiles where they are larger than a tile.

    Args:
        network: an index of the inputs → the output (…, h, w) of that part of them, of numpy or PyTorch.
        size: height and width of the inputs.
        tile_size: a tile's side in pixels.
        multiple: tiles begin and end at multiples of it, in pixels.
        factor: (up, down): the output's size over the inputs' is up/down.
        cell: pixels per cell of the inputs: 1 for pictures, the VAE's factor for latents.
    """
    step, side = multiple // cell, tile_side(tile_size, multiple) // cell
    height, width = size
    if height <= side and width <= side:
        return network(WHOLE)
    tiles = plan_tiles(height, width, side, side, max(step, int(side * OVERLAP) // step * step), step)
    up, down = factor
    outputs = [tile.enlarged(up) if down == 1 else tile.reduced(down) for tile in tiles]
    return blend((network((..., *tile.slices)) for tile in tiles), outputs)


def tile_side(tile_size: int, multiple: int) -> int:
    """The side of a tile in pixels: the largest multiple of `multiple` within the tile size, or one of them."""
    return max(1, tile_size // multiple) * multiple


def _covered_size(tiles: Sequence[Tile]) -> tuple[int, int]:
    if not tiles:
        raise ValueError("there are no tiles")
    return max(tile.top + tile.height for tile in tiles), max(tile.left + tile.width for tile in tiles)
