"""Step 1 of the method, the regression."""

from __future__ import annotations

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from runtime.triton.models import PictureModel


class TritonPythonModel(PictureModel):
    """y → r."""

    stages = ("restorer",)

    def transform(self, *batches: np.ndarray, options: RestoreOptions) -> np.ndarray:
        return self.restorer.regress(*batches, options)
