"""Step 1 of the method, the regression."""

from __future__ import annotations

import numpy as np

from runtime.triton.models import Model, Settings


class TritonPythonModel(Model):
    """y → r."""

    stages = ("restorer",)

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        return {"regression": self.restorer.regress(tensors["picture"], settings.options)}
