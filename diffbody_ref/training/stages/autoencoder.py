"""The stage of the VAE: reconstruction, with latents pulled weakly to a unit Gaussian (Rombach et al. 2022, §3.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.crops import mirrored, random_crop
from diffbody_ref.training.stages.base import TrainingStage, channels_first, grid

KL_WEIGHT = 1e-6
EDGE_WEIGHT = 0.5
INITIAL_LOG_VARIANCE = -6.0
INITIAL_NOISE = 0.3  # factor on PyTorch's initialisation
PICTURES_FOR_SCALE = 256


class AutoencoderStage(TrainingStage):
    """Trains `vae`, or only its decoder, and measures the scale of its latents.

    The loss is L1 on pixels and on their differences (edges), squared error, and KL·1e-6.
    """

    trained = ("vae",)

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        if not (Path(config.pipeline) / "vae").is_dir():
            start_near_identity(self.vae, config.seed)
        if config.tuning == "decoder":
            self.vae.requires_grad_(False)
            for module in (self.vae.post_quant_conv, self.vae.decoder):
                module.requires_grad_(True)

    def compiled(self) -> list[torch.nn.Module]:
        return [self.vae.encoder, self.vae.decoder]

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng = self.random(serial)
        (picture,) = random_crop(mirrored([self.people[index].picture], rng), self.config.crop, rng)
        height, width = (side // self._factor for side in picture.shape[:2])
        noise = rng.standard_normal((self.vae.config.latent_channels, height, width), dtype=np.float32)
        return {"picture": channels_first(picture).astype(np.float32) / 127.5 - 1.0, "noise": noise}

    @property
    def _factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        picture = batch["picture"]
        posterior = self.vae.encode(picture).latent_dist
        latents = posterior.mean + posterior.std * batch["noise"]
        decoded = self.vae.decode(latents).sample.float()
        pixels, edges = F.l1_loss(decoded, picture), edge_l1(decoded, picture)
        squared = F.mse_loss(decoded, picture)
        kl = posterior.kl().mean() / latents[0].numel()
        return {
            "loss": pixels + EDGE_WEIGHT * edges + squared + KL_WEIGHT * latents[0].numel() * kl,
            "pixels": pixels,
            "edges": edges,
            "squared": squared,
            "kl": kl,
        }

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        picture = batch["picture"][:16]
        decoded = self.vae.decode(self.vae.encode(picture).latent_dist.mode()).sample
        return grid([picture / 2 + 0.5, decoded / 2 + 0.5], count=16)

    def finish(self, pipeline: Path) -> None:
        """Save with the scaling factor that gives the latents unit standard deviation over the training pictures.

        If only the decoder is trained, latents and scaling factor do not change.
        """
        if self.config.tuning == "full":
            self._measure_scale()
        super().finish(pipeline)

    def _measure_scale(self) -> None:
        indices = self.order(0)[:PICTURES_FOR_SCALE]
        device = next(self.vae.parameters()).device
        squares = []
        for index in indices:
            picture = torch.from_numpy(channels_first(self.people[int(index)].picture)).to(device).float()
            mode = self.vae.encode(picture[None] / 127.5 - 1.0).latent_dist.mode()
            squares.append(mode.square().mean().item())
        self.vae.register_to_config(scaling_factor=float(1.0 / np.sqrt(np.mean(squares))))


@torch.no_grad()
def start_near_identity(vae: AutoencoderKL, seed: int) -> None:
    """Initialise a fresh autoencoder so that it reproduces pictures roughly from the first step on.

    The residual blocks add nothing at first, each convolution between them is a random rotation of the channels at its
    centre plus a little noise, and the posterior is nearly deterministic. With PyTorch's own initialisation a small
    autoencoder spends its first thousand steps on grey blurs.

    Args:
        vae: the autoencoder, changed in place.
        seed: seed of the random weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        torch.nn.init.zeros_(module.bias)
        if name.endswith("conv2"):
            torch.nn.init.zeros_(module.weight)
            continue
        rotation = torch.nn.init.orthogonal_(torch.empty(module.weight.shape[:2]), generator=generator)
        module.weight *= INITIAL_NOISE
        module.weight[:, :, module.kernel_size[0] // 2, module.kernel_size[1] // 2] += rotation
    vae.quant_conv.bias[vae.config.latent_channels :] = INITIAL_LOG_VARIANCE


def edge_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference between the horizontal and vertical finite differences of two (B, C, H, W) pictures."""
    rows = F.l1_loss(a[..., 1:, :] - a[..., :-1, :], b[..., 1:, :] - b[..., :-1, :])
    columns = F.l1_loss(a[..., 1:] - a[..., :-1], b[..., 1:] - b[..., :-1])
    return rows + columns
