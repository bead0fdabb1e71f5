"""The stage of SwinIR, equation 2: ‖x − SwinIR(y)‖², optionally relative to ‖x − y‖²."""

from __future__ import annotations

import numpy as np
import torch

from diffbody_ref.training.crops import degraded_pair, mirrored, random_crop
from diffbody_ref.training.stages.base import TrainingStage, channels_first, grid

MIN_ERROR = 1e-4  # 40 dB: a picture that is hardly degraded must not outweigh all others


class RestorationStage(TrainingStage):
    """Trains `swinir` on pictures that are degraded on the fly."""

    trained = ("swinir",)

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng = self.random(serial)
        high, low = degraded_pair(mirrored(self.people[index].picture, rng), rng, self.config)
        weight = 1.0 / max(float(np.square(high - low).mean()), MIN_ERROR) if self.config.relative_loss else 1.0
        high, low = random_crop([high, low], self.config.crop, rng)
        return {"high": channels_first(high), "low": channels_first(low), "weight": np.asarray(weight, np.float32)}

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        restored = self.swinir(batch["low"])
        errors = (restored.float() - batch["high"]).square().mean(dim=(1, 2, 3))
        return {"loss": (batch["weight"] * errors).mean()}

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        return grid([batch["low"][:8], self.swinir(batch["low"][:8]), batch["high"][:8]])
