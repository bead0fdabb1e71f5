"""Latents as a picture."""

from __future__ import annotations

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from runtime.triton.models import PictureModel


class TritonPythonModel(PictureModel):
    """z_0 → D(z_0)."""

    stages = ("vae_decoder",)
    source, result = "latents", "picture"

    def transform(self, batch: np.ndarray, options: RestoreOptions) -> np.ndarray:
        return self.restorer.decode(batch, options)
