"""Step 2, the body parts of the people."""

from __future__ import annotations

import numpy as np

from runtime.triton.contract import ATTENTION, BOXES, EMBEDDINGS, REGRESSION, VISIBILITY, WINDOWS
from runtime.triton.models import Model
from runtime.triton.settings import Settings


class TritonPythonModel(Model):
    """r and boxes → A, and what body guidance aims at, each with a batch of 1."""

    stages = ("parts",)

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        parts = self.restorer.find_parts(tensors[REGRESSION.name], tensors[BOXES.name][0])
        return {
            ATTENTION.name: parts.attention,
            EMBEDDINGS.name: parts.target.embeddings[None],
            VISIBILITY.name: parts.target.visibility[None],
            WINDOWS.name: parts.target.windows[None],
        }
