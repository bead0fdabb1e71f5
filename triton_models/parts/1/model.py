"""Step 2, the body parts of the people."""

from __future__ import annotations

import numpy as np

from runtime.triton.models import Model, Settings


class TritonPythonModel(Model):
    """r and boxes → A, and what body guidance aims at, each with a batch of 1."""

    stages = ("parts",)

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        parts = self.restorer.find_parts(tensors["regression"], tensors["boxes"][0])
        target = {name: getattr(parts.target, name)[None] for name in ("embeddings", "visibility", "windows")}
        return {"attention": parts.attention, **target}
