"""What comes out of a `DiffBodyPipeline` call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from diffbody_ref.ops.images import Picture, to_image
from diffbody_ref.ops.processing import resize_alpha
from diffbody_ref.ops.results import Intermediates

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class DiffBodyOutput(BaseOutput):
    """What a call returns.

    Attributes:
        images: the restored pictures, of the output type.
        intermediates: what was found on the way, one a picture; None unless it was asked for.
        notices: lines for whoever asked, one list a picture.
    """

    images: Any
    intermediates: list[Intermediates] | None = None
    notices: list[list[str]] = field(default_factory=list)


def as_output(pixels: np.ndarray, source: Picture, output_type: str) -> Any:
    """A restored picture as "np", "pt" (3, H, W) or "pil" (RGBA where the source had alpha)."""
    if output_type == "np":
        return pixels
    if output_type == "pt":
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    return to_image(pixels, None if source.alpha is None else resize_alpha(source.alpha, *pixels.shape[:2]))
