"""Step 2, the people and their poses."""

from __future__ import annotations

import numpy as np

from runtime.triton.contract import BOXES, POSE, REGRESSION
from runtime.triton.models import Model
from runtime.triton.settings import Settings


class TritonPythonModel(Model):
    """r → boxes (1, N, 5) and P."""

    stages = ("pose_detector", "pose")

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        people = self.restorer.find_people(tensors[REGRESSION.name], settings.options)
        return {BOXES.name: people.boxes[None], POSE.name: people.pose}
