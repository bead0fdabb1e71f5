"""Overlapping tiles: pictures larger than a network's size are cut, processed tile by tile and blended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW_KINDS = ("gaussian", "uniform")

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


def feather_window(height: int, width: int, kind: str = "gaussian") -> np.ndarray:
    """A tile's blending weights, float32 (height, width), all positive, at most 1 and symmetric.

    "gaussian" falls to about 4e-6 at the middle of each side; "uniform" is a plain mean of the tiles.

    Raises:
        ValueError: a size is not positive or the kind unknown.
    """
    if height < 1 or width < 1:
        raise ValueError(f"window sizes must be positive, got {height}x{width}")
    if kind not in WINDOW_KINDS:
        raise ValueError(f"unknown window kind {kind!r}, choose one of {', '.join(WINDOW_KINDS)}")
    if kind == "uniform":
        return np.ones((height, width), dtype=np.float32)
    return np.outer(_gaussian(height), _gaussian(width)).astype(np.float32)


def _gaussian(size: int) -> np.ndarray:
    offset = (np.arange(size) - (size - 1) / 2) / size
    return np.exp(-(offset**2) / (2 * _GAUSSIAN_VARIANCE))


def tile_weights(tiles: Sequence[Tile], kind: str = "gaussian") -> list[np.ndarray]:
    """Each tile's share of the result, float32 (tile.height, tile.width): at every point the shares add up to 1.

    Tiles are then blended in any array library by adding up weight · patch.

    Raises:
        ValueError: there are no tiles, or the kind is unknown.
    """
    height, width = _covered_size(tiles)
    total = np.zeros((height, width), dtype=np.float64)
    for tile in tiles:
        total[tile.slices] += feather_window(tile.height, tile.width, kind)
    return [(feather_window(t.height, t.width, kind) / total[t.slices]).astype(np.float32) for t in tiles]


def blend(
    patches: Iterable[np.ndarray], tiles: Sequence[Tile], weights: Sequence[np.ndarray], channels_last: bool = True
) -> np.ndarray:
    """Put processed tiles together.

    Args:
        patches: one a tile, in the same order, each float (h, w, …), or (…, h, w) with `channels_last=False`; may be a
            generator, so that only one patch is in memory.
        tiles: on the grid of the patches: for an output of another scale, `enlarged` or `reduced` ones.
        weights: from `tile_weights(tiles)`.

    Returns:
        float32 (H, W, …) or (…, H, W). Where the patches agree the result is that value, up to rounding.

    Raises:
        ValueError: the counts differ, or a patch has not its tile's size.
    """
    height, width = _covered_size(tiles)
    blended: np.ndarray | None = None
    for patch, tile, weight in zip(patches, tiles, weights, strict=True):
        grid = patch if channels_last else np.moveaxis(patch, (-2, -1), (0, 1))
        if grid.shape[:2] != (tile.height, tile.width) or weight.shape != (tile.height, tile.width):
            raise ValueError(f"a patch of {patch.shape} with weights of {weight.shape} does not fit {tile}")
        if blended is None:
            blended = np.zeros((height, width, *grid.shape[2:]), dtype=np.float32)
        blended[tile.slices] += grid * weight.reshape(*weight.shape, *[1] * (grid.ndim - 2))
    assert blended is not None  # there is a tile, and zip is strict
    return blended if channels_last else np.moveaxis(blended, (0, 1), (-2, -1))


def _covered_size(tiles: Sequence[Tile]) -> tuple[int, int]:
    if not tiles:
        raise ValueError("there are no tiles")
    return max(tile.top + tile.height for tile in tiles), max(tile.left + tile.width for tile in tiles)
