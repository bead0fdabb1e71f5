"""Latents as a picture."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from runtime.triton.models import PictureModel


class TritonPythonModel(PictureModel):
    """z_0, z_r and r → D(z_0), or with the residual D(z_0) + r − D(z_r)."""

    stages = ("vae_decoder",)

    def transform(self, *batches: np.ndarray, options: RestoreOptions) -> np.ndarray:
        return self.restorer.reconstruct(*batches, options)

    def group_key(self, options: RestoreOptions) -> Hashable:
        return options.tile_size, options.use_residual

    def cell_size(self) -> int:
        return self.restorer.geometry.factor

    def plan_suffices(self, options: RestoreOptions) -> bool:
        return not options.use_residual
