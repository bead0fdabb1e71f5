"""Step 3, the prompts."""

from __future__ import annotations

import numpy as np

from runtime.triton.contract import TEXT
from runtime.triton.models import Model
from runtime.triton.settings import Settings


class TritonPythonModel(Model):
    """The settings' prompts → their embeddings, (1, 1 or 2, L, D)."""

    stages = ("text_encoder",)

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        text = self.restorer.encode_text(settings.prompt, settings.negative_prompt, settings.options)
        return {TEXT.name: text[None]}
