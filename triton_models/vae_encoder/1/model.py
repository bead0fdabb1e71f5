"""The regression as latents."""

from __future__ import annotations

import numpy as np

from runtime.triton.models import Model, Settings


class TritonPythonModel(Model):
    """r → z_r."""

    stages = ("vae_encoder",)

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        return {"latents": self.restorer.encode(tensors["picture"], settings.options)}
