"""Equation 3: the structure maps P = pose(r) and A = parts(r) of a picture with any number of people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from diffbody_ref.models.parts import PartNet, attention_map
from diffbody_ref.models.pose import PersonDetector, PoseEstimator, detect_people, estimate_pose
from diffbody_ref.ops.drawing import draw_pose
from diffbody_ref.ops.pose import person_crop


@dataclass(frozen=True)
class Structure:
    """What was found in one picture of H×W pixels.

    Attributes:
        boxes: float32 (N, 5): x0, y0, x1, y1 in pixels and the detector's score.
        keypoints: float32 (N, 133, 3): x, y in pixels and a score.
        crops: N pixel windows (x0, y0, x1, y1) that the part network looks at, inside the picture.
        pose: (1, 3, H, W) in [0, 1], the OpenPose-style drawing; black where nobody is.
        attention: (1, K+1, H, W) in [0, 1], K part maps and their foreground map; 0 where nobody is.
    """

    boxes: np.ndarray
    keypoints: np.ndarray
    crops: list[tuple[int, int, int, int]]
    pose: torch.Tensor
    attention: torch.Tensor


@torch.no_grad()
def structure_maps(
    detector: PersonDetector, estimator: PoseEstimator, parts: PartNet, picture: torch.Tensor
) -> Structure:
    """Detect people, draw their poses, and lay their part maps over one another (maximum).

    Args:
        picture: (1, 3, H, W), RGB in [0, 1]: the regression result r.
    """
    height, width = picture.shape[-2:]
    pixels = picture[0].clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    boxes = detect_people(detector, pixels)
    keypoints = estimate_pose(estimator, pixels, boxes)
    drawing = torch.from_numpy(draw_pose(keypoints, height, width)).permute(2, 0, 1)[None]
    attention = picture.new_zeros(1, len(parts.part_names) + 1, height, width)
    crops = [person_crop(box, height, width) for box in boxes]
    for x0, y0, x1, y1 in crops:
        maps = attention_map(parts(picture[..., y0:y1, x0:x1]), y1 - y0, x1 - x0)
        window = attention[..., y0:y1, x0:x1]
        window.copy_(torch.maximum(window, maps.to(window)))
    return Structure(boxes, keypoints, crops, drawing.to(picture), attention)


def empty_structure(picture: torch.Tensor, part_count: int) -> Structure:
    """Structure of a picture (1, 3, H, W) in which nobody is looked for."""
    attention = picture.new_zeros(1, part_count + 1, *picture.shape[-2:])
    nobody = np.zeros((0, 5), np.float32), np.zeros((0, 133, 3), np.float32)
    return Structure(*nobody, [], torch.zeros_like(picture), attention)
