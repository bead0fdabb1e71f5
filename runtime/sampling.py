"""The samplers of `diffbody_ref.sampling` in numpy: algorithm 1, DDIM and DPM-Solver++ with a guided z_0.

Notation as there: z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε, the denoiser predicts ε, latents are float32 (B, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffbody_ref.ops.schedule import (
    NUM_TRAIN_TIMESTEPS,
    SamplerSchedule,
    ddpm_schedule,
    make_schedule,
    space_timesteps,
    steps_to_run,
)

Denoiser = Callable[[np.ndarray, int], np.ndarray]
"""(z_t, t) → ε, of z_t's shape."""

NoiseSource = Callable[[int], np.ndarray]
"""Draw number → standard normal noise of all samples; draw 0 starts the sampling, draw i + 1 follows step i."""

Guidance = Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray | None]]
"""(z_0, t, step) → guided z_0 and the loss of each sample, None where the step is not guided."""


@dataclass(frozen=True)
class Step:
    """What a callback learns after a step: its number from 0, t, the guided z_0, the latents after it, the loss."""

    step: int
    num_steps: int
    timestep: int
    z0: np.ndarray
    latents: np.ndarray
    loss: np.ndarray | None


def sampler_schedule(sampler: str, num_inference_steps: int, strength: float = 1.0) -> SamplerSchedule:
    """The steps that run, of "ddpm" (both ends of 0..999, evenly) or "ddim" and "dpm++" (evenly down from 999).

    Raises:
        ValueError: the count or strength is out of range.
    """
    if sampler == "ddpm":
        return ddpm_schedule(num_inference_steps, strength)
    space_timesteps(num_inference_steps)  # checks the range
    spaced = np.arange(NUM_TRAIN_TIMESTEPS, 0, -NUM_TRAIN_TIMESTEPS / num_inference_steps)
    timesteps = np.rint(spaced).astype(np.int64)[:num_inference_steps] - 1
    return make_schedule(timesteps[-steps_to_run(num_inference_steps, strength) :])


def initial_latents(z_r: np.ndarray, schedule: SamplerSchedule, noise: NoiseSource, strength: float) -> np.ndarray:
    """Noise alone at strength 1, else z_r noised to the schedule's first timestep."""
    start = noise(0)
    if strength == 1.0:
        return start
    alpha = float(schedule.alphas_cumprod[0])
    return np.float32(math.sqrt(alpha)) * z_r + np.float32(math.sqrt(1.0 - alpha)) * start


def sample(
    sampler: str,
    denoise: Denoiser,
    latents: np.ndarray,
    schedule: SamplerSchedule,
    noise: NoiseSource,
    guidance: Guidance | None = None,
    callback: Callable[[Step], None] | None = None,
) -> np.ndarray:
    """The sampled z_0, float32 (B, C, h, w).

    Args:
        sampler: one of `diffbody_ref.ops.schedule.SAMPLERS`.
        latents: z at the schedule's first timestep.
        schedule: of `sampler_schedule`.
        callback: called after each step; an exception from it ends the sampling.
    """
    advance = _ancestral if sampler == "ddpm" else _solver(order={"ddim": 1, "dpm++": 2}[sampler])
    for step in range(len(schedule)):
        t, alpha = int(schedule.timesteps[step]), float(schedule.alphas_cumprod[step])
        eps = denoise(latents, t)
        z0 = (latents - np.float32(math.sqrt(1.0 - alpha)) * eps) / np.float32(math.sqrt(alpha))
        loss = None
        if guidance is not None:
            z0, loss = guidance(z0, t, step)
        latents = advance(latents, z0, schedule, step, noise)
        if callback is not None:
            callback(Step(step, len(schedule), t, z0, latents, loss))
    return latents


def _ancestral(
    latents: np.ndarray, z0: np.ndarray, schedule: SamplerSchedule, step: int, noise: NoiseSource
) -> np.ndarray:
    """A draw from q(z_prev | z_t, z_0) (Ho et al. 2020, eq. 6 and 7)."""
    mean = (
        np.float32(schedule.posterior_mean_coef1[step]) * z0 + np.float32(schedule.posterior_mean_coef2[step]) * latents
    )
    if step == len(schedule) - 1:
        return mean
    return mean + np.float32(schedule.posterior_std[step]) * noise(step + 1)


def _solver(order: int) -> Callable[[np.ndarray, np.ndarray, SamplerSchedule, int, NoiseSource], np.ndarray]:
    """DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), multistep; of first order it is DDIM. The last step is z_0."""
    previous: list[np.ndarray] = []

    def advance(
        latents: np.ndarray, z0: np.ndarray, schedule: SamplerSchedule, step: int, noise: NoiseSource
    ) -> np.ndarray:
        slope = z0
        if step < len(schedule) - 1:
            steps = np.diff(_log_snr(schedule))
            if order == 2 and previous:
                ratio = steps[step - 1] / steps[step]
                slope = z0 + np.float32(0.5 / ratio) * (z0 - previous[-1])
            here, there = float(schedule.alphas_cumprod[step]), float(schedule.alphas_cumprod_prev[step])
            keep = math.sqrt((1.0 - there) / (1.0 - here))
            latents = np.float32(keep) * latents - np.float32(math.sqrt(there) * math.expm1(-steps[step])) * slope
        else:
            latents = z0
        previous[:] = [z0]
        return latents

    return advance


def _log_snr(schedule: SamplerSchedule) -> np.ndarray:
    """λ_t = ½ log(ᾱ_t / (1 − ᾱ_t)), half the logarithm of the signal-to-noise ratio."""
    return 0.5 * np.log(schedule.alphas_cumprod / (1.0 - schedule.alphas_cumprod))
