"""SwinIR, equation 2: ‖x − SwinIR(y)‖²."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from diffbody_ref.training.stages.base import Stage, channels_first, degraded_pair, grid, mirrored, random_crop


class RestorationStage(Stage):
    """Trains `swinir` on pairs degraded on the fly."""

    trained = ("swinir",)

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng = self.random(serial)
        high, low = degraded_pair(mirrored(self.people[index].picture, rng), rng, self.config)
        high, low = random_crop([high, low], self.config.crop, rng)
        return {"high": channels_first(high), "low": channels_first(low)}

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        restored = self.swinir(batch["low"])
        return {"loss": F.mse_loss(restored.float(), batch["high"])}

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        return grid([batch["low"][:8], self.swinir(batch["low"][:8]), batch["high"][:8]])
