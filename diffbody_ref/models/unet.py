"""The denoiser: diffusers' UNet2DConditionModel at the size of Stable Diffusion 2.1-base, or small."""

from __future__ import annotations

from diffusers import UNet2DConditionModel

from diffbody_ref.models.vae import CONFIGS as VAE_CONFIGS

CONFIGS: dict[str, dict] = {
    "sd21": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20, 20),  # diffusers reads this as the number of heads, of 64 channels each
        "cross_attention_dim": 1024,
    },
    # Attention only on the coarsest grid (16×8 at 256×128), where it is cheap and sees the whole person.
    "nano": {
        "sample_size": (64, 32),
        "block_out_channels": (64, 64, 128),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": 64,
        "norm_num_groups": 16,
    },
}


def build_unet(preset: str) -> UNet2DConditionModel:
    """The denoiser at a preset's size, with random weights: (B, C, h, w), t (B,), text (B, L, D) → ε (B, C, h, w)."""
    channels = VAE_CONFIGS[preset]["latent_channels"]
    return UNet2DConditionModel(
        in_channels=channels, out_channels=channels, use_linear_projection=True, **CONFIGS[preset]
    )
