"""Latents as a picture."""

from __future__ import annotations

import numpy as np

from runtime.triton.models import Model, Settings


class TritonPythonModel(Model):
    """z_0 → D(z_0)."""

    stages = ("vae_decoder",)

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        return {"picture": self.restorer.decode(tensors["latents"], settings.options)}
