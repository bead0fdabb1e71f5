"""Resizing by two matrix products, whose gradient can be exported to ONNX and exists for every floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize (B, C, H, W) -> (B, C, height, width), within the range of the input.

    The result is that of `torch.nn.functional.interpolate(antialias=True)`.
    """
    rows, columns = (_antialiased(*sizes, images) for sizes in zip(images.shape[-2:], (height, width), strict=True))
    return rows @ images @ columns.transpose(0, 1)


def _antialiased(size: int, new_size: int, like: Tensor) -> Tensor:
    """Weights (new_size, size) for cells with centres at half-integers, over max(scale, 1) cells to either side."""
    scale = size / new_size
    # A plain max would fix an exported graph to either shrinking or enlarging.
    return _triangles((_arange(new_size, like) + 0.5) * scale - 0.5, size, torch.sym_max(scale, 1.0), like)


def upsample(features: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize with `align_corners=True`, (B, C, h, w) -> (B, C, height, width); exportable like `resize`."""
    rows, columns = (
        _triangles(_arange(new_size, features) * ((size - 1) / (new_size - 1)), size, 1.0, features)
        for size, new_size in zip(features.shape[-2:], (height, width), strict=True)
    )
    return rows @ features @ columns.transpose(0, 1)


def _triangles(centres: Tensor, size: int, half_width: float, like: Tensor) -> Tensor:
    """Interpolation weights (len(centres), size) in the dtype of `like`; each row sums to 1."""
    weights = (1 - (_arange(size, like) - centres[:, None]).abs() / half_width).clamp_min(0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)


def _arange(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
