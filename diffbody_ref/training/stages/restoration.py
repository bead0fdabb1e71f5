"""The stage of SwinIR, equation 2: ‖x − SwinIR(y)‖², optionally relative to ‖x − y‖².

With weights of the other image-space losses (`training.image_losses`) it trains a sharp regression instead, which
gives up decibels for detail.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.crops import degraded_pair, mirrored, random_crop, random_window
from diffbody_ref.training.held_out import HeldOut
from diffbody_ref.training.image_losses import ImageLosses
from diffbody_ref.training.stages.base import TrainingStage, channels_first, grid

MIN_ERROR = 1e-4  # 40 dB: a picture that is hardly degraded must not outweigh all others


class RestorationStage(TrainingStage):
    """Trains `swinir` on pictures that are degraded on the fly.

    Attributes:
        losses: the losses.
        adversary: the discriminator, if the losses have one.
        held_out: the pictures to measure on, if there are any.
    """

    trained = ("swinir",)
    adversaries = ("adversary",)

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.losses = ImageLosses(config)
        self.adversary = self.losses.build_adversary()
        self.held_out = HeldOut(config) if config.held_out else None

    def prepare(self, accelerator: Any, progress: Progress = silent) -> None:
        if self.held_out is not None and accelerator.is_main_process:
            self.held_out.check_apart(self.contents(accelerator), progress)

    def notices(self) -> list[str]:
        missing = self.held_out.missing if self.held_out is not None else {}
        return [f"not measured on held-out pictures: {name}: {reason}" for name, reason in missing.items()]

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng, person = self.random(serial), self.people[index]
        labels = [] if person.parts is None else [person.parts]
        arrays = mirrored([person.picture, *labels], rng)
        if not self.config.resize:
            arrays = random_window(arrays, 2 * self.config.crop, rng)
        high, low = degraded_pair(arrays[0], rng, self.config, *arrays[1:])
        weight = 1.0 / max(float(np.square(high - low).mean()), MIN_ERROR) if self.config.relative_loss else 1.0
        high, low = random_crop([high, low], self.config.crop, rng)
        return {"high": channels_first(high), "low": channels_first(low), "weight": np.asarray(weight, np.float32)}

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        restored = self.swinir(batch["low"]).float()
        return self.losses(restored, batch["high"], batch["weight"], self.adversary)

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        return grid([batch["low"][:8], self.swinir(batch["low"][:8]), batch["high"][:8]])

    def measure(self) -> dict[str, float]:
        if self.held_out is None:
            return {}
        device = next(self.swinir.parameters()).device

        def restore(low: np.ndarray) -> np.ndarray:
            restored = self.swinir(torch.from_numpy(channels_first(low))[None].to(device))
            return restored[0].float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()

        self.swinir.eval()  # as it is used: with its mirror average, if it has one
        try:
            return self.held_out.measure(restore)
        finally:
            self.swinir.train()
