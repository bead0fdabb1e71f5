"""Pictures beside a restored one, to look at: before and after, what the stages found, the guidance loss."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffbody_ref.ops.contact import labelled_grid
from diffbody_ref.ops.images import resize

BEFORE_AFTER = "before_after"
INTERMEDIATES = ("regression", "pose", "attention", "loss")
REPORT = "report"  # no picture, but a file beside the restored one as they are: JSON, see `diffbody.reports`
SIDE_PICTURES = (BEFORE_AFTER, *INTERMEDIATES, REPORT)

OVERLAY_OPACITY = 0.7
CHART_SIZE = (640, 360)  # width, height
CHART_MARGIN = 48
INK, LINE = (40, 40, 40), (200, 60, 30)


def draw(names: Sequence[str], before: np.ndarray, after: np.ndarray, found: Any) -> dict[str, np.ndarray]:
    """The side pictures of one restored picture, float32 (H, W, 3) in [0, 1] by name.

    Args:
        names: which of `SIDE_PICTURES`; "loss" is left out where there was no guided step.
        before, after: the input and the restored picture, float32 (H, W, 3) in [0, 1].
        found: the pipeline's intermediates: regression, pose, attention, loss_curve.
    """
    make = {
        BEFORE_AFTER: lambda: before_after(before, after),
        "regression": lambda: found.regression,
        "pose": lambda: found.pose,
        "attention": lambda: attention_overlay(found.regression, found.attention),
        "loss": lambda: loss_chart(found.loss_curve),
    }
    return {name: make[name]() for name in names if name != "loss" or found.loss_curve}


def before_after(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Both side by side with labels, the first brought to the size of the second by bicubic; all float (H, W, 3)."""
    height, width = after.shape[:2]
    return labelled_grid([[resize(before, height, width), after]], ("before", "after"))


def attention_overlay(picture: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Part attention over the picture, one hue a part, as strong as the part's attention.

    Args:
        picture: float32 (H, W, 3) in [0, 1].
        attention: float32 (K+1, H, W) in [0, 1]: K part maps and their foreground map.

    Returns:
        float32 (H, W, 3) in [0, 1].
    """
    parts = attention[:-1]
    hues = [colorsys.hsv_to_rgb(k / len(parts), 1.0, 1.0) for k in range(len(parts))]
    weight = parts.sum(axis=0)[:, :, None]
    hues_of_parts = np.array(hues, np.float32).reshape(-1, 3)  # there may be none
    colour = np.einsum("khw,kc->hwc", parts, hues_of_parts) / np.maximum(weight, 1e-6)
    opacity = OVERLAY_OPACITY * np.clip(weight, 0.0, 1.0)
    return picture * (1.0 - opacity) + colour * opacity


def loss_chart(curve: Sequence[tuple[int, float]]) -> np.ndarray:
    """The guidance loss (eq. 6) against the timestep, which falls from left to right as the sampler goes.

    Args:
        curve: (timestep, loss) of every guided step, at least one.

    Returns:
        float32 (360, 640, 3) in [0, 1].
    """
    width, height = CHART_SIZE
    image = Image.new("RGB", CHART_SIZE, (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    timesteps, losses = np.array(curve, np.float64).T
    left, right, top, bottom = CHART_MARGIN, width - CHART_MARGIN // 2, CHART_MARGIN, height - CHART_MARGIN
    span, highest = max(1.0, timesteps[0] - timesteps[-1]), max(losses.max(), 1e-12)
    x = left + (timesteps[0] - timesteps) / span * (right - left)
    y = bottom - losses / highest * (bottom - top)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=INK, width=1)
    draw.line([(float(a), float(b)) for a, b in zip(x, y, strict=True)], fill=LINE, width=2)
    draw.text((left, 12), f"guidance loss: {losses[0]:.4g} at first, {losses[-1]:.4g} at last", fill=INK, font=font)
    draw.text((left - 4, top), f"{highest:.3g}", fill=INK, font=font, anchor="rt")
    draw.text((left - 4, bottom), "0", fill=INK, font=font, anchor="rb")
    draw.text((left, bottom + 6), f"t = {int(timesteps[0])}", fill=INK, font=font)
    draw.text((right, bottom + 6), f"t = {int(timesteps[-1])}", fill=INK, font=font, anchor="ra")
    return np.asarray(image, np.float32) / np.float32(255)
