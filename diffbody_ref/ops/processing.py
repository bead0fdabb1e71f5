"""What happens to a picture before the first network and after the last one: sizes, y, and step 6 of the method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from diffbody_ref.ops.colour import match_colour
from diffbody_ref.ops.images import MIN_SIDE, Picture, crop, pad, resize, round_up, scale_to_area, working_size
from diffbody_ref.ops.options import ModelSettings, RestoreOptions

Array = TypeVar("Array")
"""An array of numpy or a tensor of PyTorch."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that one picture takes on its way, in pixels.

    Attributes:
        height: at work, without padding.
        width: see `height`.
        padded_height: at work, with the padding at the bottom.
        padded_width: with the padding on the right.
        output_height: of the restored picture.
        output_width: see `output_height`.
    """

    height: int
    width: int
    padded_height: int
    padded_width: int
    output_height: int
    output_width: int

    @classmethod
    def plan(cls, size: Sequence[int], options: RestoreOptions, settings: ModelSettings, multiple: int) -> Sizes:
        """The sizes of one picture.

        Args:
            size: its height and width in pixels.
            options: its `upscale`, `height` and `width` count.
            settings: its base size counts.
            multiple: the padded sides are multiples of it.
        """
        (height, width), output = size, None
        if options.upscale is not None:
            output = [max(1, round(side * options.upscale)) for side in (height, width)]
            height, width = (max(MIN_SIDE, round(side * options.upscale)) for side in (height, width))
        if options.height is not None and options.width is not None:
            sides = scale_to_area(height, width, options.height * options.width)
            height, width = (max(MIN_SIDE, side) for side in sides)
            output = output or [max(pair) for pair in zip(size, (height, width), strict=True)]
        else:
            height, width = working_size(height, width, settings.base_height, settings.base_width)
        return cls(height, width, round_up(height, multiple), round_up(width, multiple), *(output or (height, width)))


def preprocess(picture: Picture, sizes: Sizes) -> np.ndarray:
    """y of eq. 2: the picture at its padded working size, float32 (1, 3, H, W) in [0, 1]."""
    pixels = pad(resize(picture.pixels, sizes.height, sizes.width), sizes.padded_height, sizes.padded_width)
    return np.ascontiguousarray(np.clip(pixels, 0.0, 1.0).transpose(2, 0, 1)[None])


def reconstruct(
    decode: Callable[[Array], Array], z_0: Array, z_r: Array, regression: Array, options: RestoreOptions
) -> Array:
    """D(z_0), to which `use_residual` adds r − D(z_r): what the autoencoder loses of r.

    Args:
        decode: D, latents (B, C, h, w) → pictures (B, 3, H, W) about [0, 1].
        z_0: the sample.
        z_r: the regression result's latents.
        regression: r, (B, 3, H, W).
    """
    decoded = decode(z_0)
    return decoded + (regression - decode(z_r)) if options.use_residual else decoded  # type: ignore[operator]


def postprocess(decoded: np.ndarray, regression: np.ndarray, sizes: Sizes, options: RestoreOptions) -> np.ndarray:
    """Step 6 of the method: the padding is cut off, the colours are corrected after r, the output size is made.

    Args:
        decoded: float32 (1, 3, H, W) of the padded working size, about [0, 1].
        regression: r, the same.

    Returns:
        float32 (H, W, 3) in [0, 1] of the output size.
    """
    ours, theirs = (crop(to_pixels(picture), sizes.height, sizes.width) for picture in (decoded, regression))
    pixels = match_colour(ours, theirs, options.colour_fix)
    if pixels.shape[:2] != (sizes.output_height, sizes.output_width):
        pixels = resize(pixels, sizes.output_height, sizes.output_width)
    return np.clip(pixels, 0.0, 1.0).astype(np.float32)


def resize_alpha(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture's alpha at another size, float32 (height, width) in [0, 1]."""
    return np.clip(resize(alpha, height, width), 0.0, 1.0)


def to_pixels(picture: np.ndarray) -> np.ndarray:
    """(1, 3, H, W) to (H, W, 3)."""
    return picture[0].transpose(1, 2, 0)
