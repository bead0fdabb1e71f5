"""What the stages find in a picture: shared by the reference and the runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NO_PERSON = "no person found: pose and attention are empty and body guidance is off"


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
