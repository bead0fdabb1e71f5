"""What comes out of a `DiffBodyPipeline` call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from diffbody_ref.ops.images import Picture, resize
from diffbody_ref.ops.results import Intermediates


@dataclass
class DiffBodyOutput(BaseOutput):
    """Restored pictures, what was found on the way (on request), and notices for whoever asked, one list a picture."""

    images: Any
    intermediates: list[Intermediates] | None = None
    notices: list[list[str]] = field(default_factory=list)


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
