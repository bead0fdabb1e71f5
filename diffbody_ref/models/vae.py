"""The autoencoder: diffusers' AutoencoderKL (Rombach et al. 2022), pictures in [-1, 1] to scaled latents and back."""

from __future__ import annotations

from diffusers import AutoencoderKL
from torch import Tensor

CONFIGS: dict[str, dict] = {
    # Stable Diffusion 2.1's: factor 8, 4 channels.
    "sd21": {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 768,
        "scaling_factor": 0.18215,
    },
    # Factor 4 and 8 channels: at 256×128 the latents keep 64×32 cells, and a small decoder has less to invent. The
    # scaling factor is measured after training. One group: normalising few channels separately would remove the mean
    # colour of a training crop, which would then be learnt late.
    "nano": {
        "block_out_channels": (32, 48, 64),
        "layers_per_block": 1,
        "latent_channels": 8,
        "norm_num_groups": 1,
        "mid_block_add_attention": False,
        "sample_size": 256,
        "scaling_factor": 1.0,
    },
}


def build_vae(preset: str) -> AutoencoderKL:
    """The autoencoder at a preset's size, with random weights."""
    config = CONFIGS[preset]
    levels = len(config["block_out_channels"])
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **config,
    )


def encode_mode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The most likely latents, scaled, such as z_r: (B, 3, H, W) in [-1, 1] → (B, C, H/factor, W/factor)."""
    return vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled latents (B, C, h, w) to pictures (B, 3, h·factor, w·factor), about [-1, 1], not clamped."""
    return vae.decode(latents / vae.config.scaling_factor).sample
