"""Noise schedules of public checkpoints as a scheduler of ours, and what a U-Net predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from torch import Tensor

from diffbody_ref.components import build_scheduler

Prediction = Literal["epsilon", "v", "v-zero-snr"]
# A checkpoint's schedule in float32 or float16 differs from the formula's by its rounding.
ROUNDING = 2e-3
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
NOISE_LIKE = 0.5  # see `predicts_noise`


def scheduler(prediction: str, source: Mapping[str, Any] | None = None) -> DDPMScheduler:
    """A scheduler for a prediction, with the betas of a source's configuration or else Stable Diffusion's.

    Zero-terminal SNR (Lin et al. 2023, arXiv:2305.08891) needs timesteps that begin at the last one.

    Args:
        prediction: one of `Prediction`.
        source: configuration of a diffusers scheduler.
    """
    betas = {name: source[name] for name in BETAS if source and source.get(name) is not None}
    zero = prediction == "v-zero-snr"
    return DDPMScheduler.from_config(
        build_scheduler("sd21").config,
        prediction_type="epsilon" if prediction == "epsilon" else "v_prediction",
        rescale_betas_zero_snr=zero,
        **({"timestep_spacing": "trailing"} if zero else {}),
        **betas,
    )


def prediction_of(config: Mapping[str, Any]) -> str:
    """The prediction that a diffusers scheduler's configuration states.

    Raises:
        ValueError: it is none of `Prediction`.
    """
    kind, zero = config.get("prediction_type", "epsilon"), bool(config.get("rescale_betas_zero_snr", False))
    stated = {("epsilon", False): "epsilon", ("v_prediction", False): "v", ("v_prediction", True): "v-zero-snr"}
    if (kind, zero) not in stated:
        raise ValueError(f"prediction_type {kind!r} with rescale_betas_zero_snr {zero} is none that DiffBody samples")
    return stated[kind, zero]


def read_schedule(alphas_cumprod: Tensor) -> tuple[bool, dict[str, Any]]:
    """Whether a schedule's last step is pure noise (zero-terminal SNR), and the betas that a configuration needs.

    Args:
        alphas_cumprod: ᾱ_t, (T,).
    """
    usual = torch.from_numpy(build_scheduler("sd21").betas.double().numpy())
    for zero, betas in ((False, usual), (True, rescale_zero_terminal_snr(usual))):
        expected = torch.cumprod(1 - betas, 0)
        if alphas_cumprod.shape == expected.shape and torch.allclose(
            alphas_cumprod.double(), expected, rtol=0, atol=ROUNDING
        ):
            return zero, {}
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod.double()[:-1]])
    betas = (1 - alphas_cumprod.double() / before).clamp(0, 0.999)
    return False, {"num_train_timesteps": len(betas), "trained_betas": betas.tolist()}


@torch.no_grad()
def predicts_noise(unet: Any) -> bool:
    """Whether a U-Net predicts the noise ε: at the last timestep, where its input is nearly nothing else.

    There ε is the input, and v = √ᾱ·ε − √(1−ᾱ)·z_0 is nearly −z_0, which does not resemble it. So the correlation with
    the input is near 1 or near 0.
    """
    noise = torch.randn(1, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 77, unet.config.cross_attention_dim)
    found = unet(noise.to(unet.dtype), torch.tensor([999]), text.to(unet.dtype), return_dict=False)[0].float()
    return bool(torch.nn.functional.cosine_similarity(found.flatten(), noise.flatten(), dim=0) > NOISE_LIKE)
