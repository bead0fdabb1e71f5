"""What goes into a `DiffBodyPipeline` call and what comes out: conversions and result types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from diffbody_ref.ops.images import Picture, picture_from_image, resize

ImageInput = Image.Image | np.ndarray | Picture


@dataclass(frozen=True)
class Intermediates:
    """What the stages found in one picture of working size H×W.

    Attributes:
        regression: r, float32 (H, W, 3) in [0, 1].
        boxes: float32 (N, 5), pixels and score. keypoints: float32 (N, 133, 3), pixels and score.
        pose: float32 (H, W, 3) in [0, 1]. attention: float32 (K+1, H, W) in [0, 1].
        loss_curve: (timestep, loss of eq. 6) of every guided step.
    """

    regression: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    pose: np.ndarray
    attention: np.ndarray
    loss_curve: list[tuple[int, float]]


@dataclass
class DiffBodyOutput(BaseOutput):
    """Restored pictures, what was found on the way (on request), and notices for whoever asked, one list a picture."""

    images: Any
    intermediates: list[Intermediates] | None = None
    notices: list[list[str]] = field(default_factory=list)


def as_picture(image: ImageInput) -> Picture:
    """A call's input as a `Picture`.

    Raises:
        ValueError: an array of another shape or range, or a picture smaller than 16×16.
    """
    if isinstance(image, Image.Image):
        return picture_from_image(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f"an array must be float (H, W, 3) in [0, 1], got {image.dtype} {image.shape}")
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise ValueError("an array's values must be in [0, 1]")
        image = Picture(image.astype(np.float32))
    if not isinstance(image, Picture):
        raise ValueError(f"image must be a PIL picture, an array or a list of them, got {type(image).__name__}")
    if min(image.pixels.shape[:2]) < 16:
        raise ValueError(f"picture is too small: {image.pixels.shape[1]}x{image.pixels.shape[0]}, need at least 16x16")
    return image


def to_pixels(tensor: Tensor) -> np.ndarray:
    """(1, 3, H, W) to float32 (H, W, 3)."""
    return tensor[0].float().cpu().permute(1, 2, 0).numpy()


def as_output(pixels: np.ndarray, source: Picture, output_type: str) -> Any:
    """A restored picture as "np", "pt" (3, H, W) or "pil" (RGBA where the source had alpha)."""
    if output_type == "np":
        return pixels
    if output_type == "pt":
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    levels = np.uint8(np.round(pixels * 255.0))
    if source.alpha is None:
        return Image.fromarray(levels)
    alpha = resize(source.alpha, pixels.shape[0], pixels.shape[1], method="bicubic")
    return Image.fromarray(np.dstack([levels, np.uint8(np.round(np.clip(alpha, 0, 1) * 255.0))]))
