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

NoiseSource = Callable[[int], np.ndarray]
"""Draw number → standard normal noise of all samples; draw 0 starts the sampling, draw i + 1 follows step i."""


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


@dataclass
class Trajectory:
    """One sampling under way, advanced step by step: of many, each can be at another step.

    Attributes:
        sampler: one of `diffbody_ref.ops.schedule.SAMPLERS`. schedule: of `sampler_schedule`.
        latents: z at timestep `t`, and after the last step z_0.
        noise: see `NoiseSource`.
        step: steps done.
        previous: z_0 of the step before, of which "dpm++" makes use.
    """

    sampler: str
    schedule: SamplerSchedule
    latents: np.ndarray
    noise: NoiseSource
    step: int = 0
    previous: np.ndarray | None = None

    @property
    def done(self) -> bool:
        """All steps are done."""
        return self.step == len(self.schedule)

    @property
    def t(self) -> int:
        """The timestep of the latents."""
        return int(self.schedule.timesteps[self.step])

    def predict_z0(self, eps: np.ndarray) -> np.ndarray:
        """z̃_0 of eq. 5."""
        alpha = float(self.schedule.alphas_cumprod[self.step])
        return (self.latents - np.float32(math.sqrt(1.0 - alpha)) * eps) / np.float32(math.sqrt(alpha))

    def advance(self, z0: np.ndarray, loss: np.ndarray | None = None) -> Step:
        """To the next timestep, by the guided z_0; what a callback learns of it."""
        t, step = self.t, self.step
        move = _ancestral if self.sampler == "ddpm" else _solver
        self.latents = move(self, z0)
        self.previous, self.step = z0, step + 1
        return Step(step, len(self.schedule), t, z0, self.latents, loss)


def _ancestral(state: Trajectory, z0: np.ndarray) -> np.ndarray:
    """A draw from q(z_prev | z_t, z_0) (Ho et al. 2020, eq. 6 and 7)."""
    schedule, step = state.schedule, state.step
    by_z0, by_latents = (c[step] for c in (schedule.posterior_mean_coef1, schedule.posterior_mean_coef2))
    mean = np.float32(by_z0) * z0 + np.float32(by_latents) * state.latents
    if step == len(schedule) - 1:
        return mean
    return mean + np.float32(schedule.posterior_std[step]) * state.noise(step + 1)


def _solver(state: Trajectory, z0: np.ndarray) -> np.ndarray:
    """DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), multistep; of first order it is DDIM. The last step is z_0."""
    schedule, step = state.schedule, state.step
    if step == len(schedule) - 1:
        return z0
    steps = np.diff(_log_snr(schedule))
    slope = z0
    if state.sampler == "dpm++" and state.previous is not None:
        slope = z0 + np.float32(0.5 * steps[step] / steps[step - 1]) * (z0 - state.previous)
    here, there = float(schedule.alphas_cumprod[step]), float(schedule.alphas_cumprod_prev[step])
    keep = math.sqrt((1.0 - there) / (1.0 - here))
    return np.float32(keep) * state.latents - np.float32(math.sqrt(there) * math.expm1(-steps[step])) * slope


def _log_snr(schedule: SamplerSchedule) -> np.ndarray:
    """λ_t = ½ log(ᾱ_t / (1 − ᾱ_t)), half the logarithm of the signal-to-noise ratio."""
    return 0.5 * np.log(schedule.alphas_cumprod / (1.0 - schedule.alphas_cumprod))
