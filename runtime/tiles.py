"""Large pictures in overlapping tiles, with numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffbody_ref.ops.tiling import blend, plan_tiles, tile_weights

OVERLAP = 0.125  # of a tile's side, shared by neighbours

Cells = tuple[Any, slice, slice]
"""An index of (…, H, W)."""

WHOLE: Cells = (..., slice(None), slice(None))


def in_tiles(
    network: Callable[[Cells], np.ndarray],
    size: tuple[int, ...],
    tile_size: int,
    multiple: int,
    factor: tuple[int, int] = (1, 1),
    cell: int = 1,
) -> np.ndarray:
    """`network` of all cells, in overlapping tiles where the size is larger than a tile.

    Args:
        network: what a tile of the inputs becomes.
        size: height and width of the inputs.
        tile_size: a tile's side in pixels. multiple: of pixels that its corners lie on.
        factor: (up, down): the output's size over the inputs' is up/down.
        cell: pixels per cell of the inputs.
    """
    step = multiple // cell
    side = max(1, tile_size // multiple) * step
    height, width = size
    if height <= side and width <= side:
        return network(WHOLE)
    tiles = plan_tiles(height, width, side, side, max(step, int(side * OVERLAP) // step * step), step)
    up, down = factor
    scaled = [tile.enlarged(up) if down == 1 else tile.reduced(down) for tile in tiles]
    patches = (network((..., *tile.slices)) for tile in tiles)
    return blend(patches, scaled, tile_weights(scaled), channels_last=False)
