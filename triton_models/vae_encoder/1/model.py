"""The regression as latents."""

from __future__ import annotations

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from runtime.triton.models import PictureModel


class TritonPythonModel(PictureModel):
    """r → z_r."""

    stages = ("vae_encoder",)

    def transform(self, *batches: np.ndarray, options: RestoreOptions) -> np.ndarray:
        return self.restorer.encode(*batches, options)
