"""Latents as a picture."""

from __future__ import annotations

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from runtime.triton.models import PictureModel


class TritonPythonModel(PictureModel):
    """z_0, z_r and r → D(z_0), or with the residual D(z_0) + r − D(z_r)."""

    stages = ("vae_decoder",)
    sources, result = ("latents", "z_r", "regression"), "picture"

    def transform(self, *batches: np.ndarray, options: RestoreOptions) -> np.ndarray:
        return self.restorer.reconstruct(*batches, options)

    def plan_does_all(self, options: RestoreOptions) -> bool:
        return not options.use_residual
