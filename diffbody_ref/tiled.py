"""A network over a picture larger than it should see at once: overlapping tiles, blended with feathered weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffbody_ref.ops.tiling import Tile, plan_tiles, tile_weights


def apply_tiled(
    network: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    tile_size: int,
    overlap: int,
    multiple: int = 1,
    factor: tuple[int, int] = (1, 1),
) -> torch.Tensor:
    """`network(inputs)`, tile by tile where `inputs` is larger than a tile.

    Args:
        network: (B, C, h, w) → (B, C', h·factor, w·factor).
        inputs: (B, C, H, W), H and W multiples of `multiple`.
        tile_size, overlap: in cells of `inputs`.
        multiple: tiles lie on this grid of `inputs`.
        factor: (up, down): the output's size over the input's is up/down; `multiple` must then be a multiple of down.
    """
    height, width = inputs.shape[-2:]
    if height <= tile_size and width <= tile_size:
        return network(inputs)
    tiles = plan_tiles(height, width, tile_size, tile_size, overlap, multiple)
    scaled = [rescaled(tile, factor) for tile in tiles]
    blended: torch.Tensor | None = None
    for tile, out_tile, weight in zip(tiles, scaled, tile_weights(scaled), strict=True):
        patch = network(inputs[(..., *tile.slices)])
        if blended is None:
            blended = patch.new_zeros(*patch.shape[:2], *(side * factor[0] // factor[1] for side in (height, width)))
        # Out of place on a padded patch would cost a whole canvas a tile; autograd follows the in-place sum as well.
        blended[(..., *out_tile.slices)] += patch * torch.from_numpy(weight).to(patch)
    assert blended is not None  # a plan has at least one tile
    return blended


def rescaled(tile: Tile, factor: tuple[int, int]) -> Tile:
    """The tile on a grid `up` times finer or `down` times coarser."""
    up, down = factor
    return tile.enlarged(up) if down == 1 else tile.reduced(down)
