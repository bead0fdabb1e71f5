"""What the stages find in a picture, and what whoever asked should know of a restoration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffbody_ref.ops.images import crop
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.processing import Sizes, to_pixels

NO_PERSON = "no person found: pose and attention are empty and body guidance is off"
NO_REGRESSION = "the model has no regression network: the picture, brought to size, is taken as it is"

OPTIONAL_STAGES = {
    "restorer": "regression network",
    "pose_detector": "person detector",
    "pose": "pose network",
    "parts": "part network",
}
"""The stages that a model may lack, with their names in a notice."""

FINDERS = ("pose_detector", "pose", "parts")  # of people and of what they look like


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


def lack_notices(lacking: Collection[str], use_structure: bool = True) -> list[str]:
    """What a model cannot do for want of a network, one line each.

    Args:
        lacking: those of `OPTIONAL_STAGES` that it does not have.
        use_structure: False where nobody is looked for anyway.
    """
    told = [NO_REGRESSION] * ("restorer" in lacking)
    absent = [f"no {OPTIONAL_STAGES[stage]}" for stage in FINDERS if stage in lacking]
    if not (absent and use_structure):
        return told
    without = {*lacking} | ({"pose", "parts"} if "pose_detector" in lacking else set())
    follows = [
        *(["nobody is found"] if "pose_detector" in lacking else []),
        *(["an empty pose map"] if "pose" in without else []),
        *(["no attention maps and no body guidance"] if "parts" in without else []),
    ]
    return [*told, f"the model has {', '.join(absent)}: {', '.join(follows)}"]


def guidance_notices(asked: Mapping[str, Any], lacking: Collection[str]) -> list[str]:
    """The answer to an explicit `body_guidance_scale` where the model cannot guide, one line or none.

    Args:
        asked: the options that were given.
        lacking: see `lack_notices`.
    """
    absent = [OPTIONAL_STAGES[stage] for stage in ("pose_detector", "parts") if stage in lacking]
    if not (absent and (asked.get("body_guidance_scale") or 0) > 0):
        return []
    return [f"body_guidance_scale does nothing: the model has no {' and no '.join(absent)}"]


def notices(people: int, guided: int, options: RestoreOptions, lacking: Collection[str] = ()) -> list[str]:
    """What whoever asked should know of a restoration, one line each.

    Args:
        people: how many were found.
        guided: how many of them body guidance looks at.
        options: of the restoration.
        lacking: see `lack_notices`.
    """
    told = lack_notices(lacking, options.use_structure)
    if "pose_detector" in lacking:
        return told
    if options.use_structure and not people:
        return [*told, NO_PERSON]
    if "parts" not in lacking and options.body_guidance_scale > 0 and guided < people:
        left_out = people - guided
        told.append(f"{left_out} of {people} people are not guided: larger than a tile, {options.tile_size} pixels")
    return told
