"""What the stages find in a picture, and what whoever asked should know of a restoration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffbody_ref.ops.images import crop
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.processing import Sizes, to_pixels

NO_PERSON = "no person found: pose and attention are empty and body guidance is off"


@dataclass(frozen=True)
class Intermediates:
    """What the stages found in one picture of working size H×W.

    Attributes:
        regression: r, float32 (H, W, 3) in [0, 1].
        boxes: float32 (N, 5), x0, y0, x1, y1 in pixels and the score of each person.
        keypoints: float32 (N, 133, 3), x, y in pixels and a score.
        pose: float32 (H, W, 3) in [0, 1], the drawn poses.
        attention: float32 (K+1, H, W) in [0, 1], K part maps and their foreground map.
        loss_curve: (timestep, loss of eq. 6) of every guided step.
    """

    regression: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    pose: np.ndarray
    attention: np.ndarray
    loss_curve: list[tuple[int, float]]

    @classmethod
    def without_padding(
        cls,
        sizes: Sizes,
        regression: np.ndarray,
        boxes: np.ndarray,
        keypoints: np.ndarray,
        pose: np.ndarray,
        attention: np.ndarray,
        loss_curve: list[tuple[int, float]],
    ) -> Intermediates:
        """From maps (1, C, H, W) of the padded working size."""
        height, width = sizes.height, sizes.width
        return cls(
            regression=crop(to_pixels(regression), height, width),
            boxes=boxes,
            keypoints=keypoints,
            pose=crop(to_pixels(pose), height, width),
            attention=attention[0, :, :height, :width],
            loss_curve=loss_curve,
        )


def notices(people: int, guided: int, options: RestoreOptions) -> list[str]:
    """What whoever asked should know of a restoration, one line each.

    Args:
        people: how many were found.
        guided: how many of them body guidance looks at.
    """
    if options.use_structure and not people:
        return [NO_PERSON]
    if options.body_guidance_scale > 0 and guided < people:
        left_out = people - guided
        return [f"{left_out} of {people} people are not guided: larger than a tile, {options.tile_size} pixels"]
    return []
