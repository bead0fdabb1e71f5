"""Noise schedule and samplers, one text for numpy and PyTorch: a new sampler is one function and one row of `SAMPLERS`.

Notation: ᾱ_t = Π (1 − β_i) is `alphas_cumprod`; z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε. Latents are arrays of numpy or tensors
of PyTorch; schedules hold plain floats, which take the latents' dtype wherever they are multiplied with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012

Latents = Any
"""(B, C, h, w), an array of numpy or a tensor of PyTorch."""

NoiseSource = Callable[[int], Latents]
"""Draw number → standard normal noise of the latents' shape, dtype and device. Draw 0 starts the sampling, draw i + 1
follows step i."""


@dataclass(frozen=True)
class Schedule:
    """The sampling steps in the order in which they run: each tuple has one entry a step.

    The posterior q(z_prev | z_t, z_0) is a normal distribution with mean `posterior_mean_coef1`·z_0 +
    `posterior_mean_coef2`·z_t and standard deviation `posterior_std` (Ho et al. 2020, eq. 6 and 7), where "prev" is the
    next step to run. After the last step there is z_0 itself: ᾱ_prev = 1, coefficients (1, 0), deviation 0.

    Attributes:
        sampler: a name in `SAMPLERS`.
        timesteps: descending, the t that the denoiser is given (0..999).
        alphas_cumprod: ᾱ_t.
        alphas_cumprod_prev: ᾱ of the following step, 1 at the end.
        posterior_mean_coef1: √ᾱ_prev·β / (1 − ᾱ_t) with β = 1 − ᾱ_t/ᾱ_prev.
        posterior_mean_coef2: √(1 − β)·(1 − ᾱ_prev) / (1 − ᾱ_t).
        posterior_std: √(β·(1 − ᾱ_prev) / (1 − ᾱ_t)), the "fixed small" variance.
        log_snr: λ_t = ½ log(ᾱ_t / (1 − ᾱ_t)), half the logarithm of the signal-to-noise ratio.
    """

    sampler: str
    timesteps: tuple[int, ...]
    alphas_cumprod: tuple[float, ...]
    alphas_cumprod_prev: tuple[float, ...]
    posterior_mean_coef1: tuple[float, ...]
    posterior_mean_coef2: tuple[float, ...]
    posterior_std: tuple[float, ...]
    log_snr: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class StepInfo:
    """What a callback learns after a sampling step.

    Attributes:
        step: number of the step, from 0.
        num_steps: how many steps run.
        timestep: t of the step.
        z0: the (guided) prediction of z_0, (B, C, h, w).
        latents: z after the step; after the last one, the sample.
        loss: guidance loss of each sample, (B,); None where the step was not guided.
    """

    step: int
    num_steps: int
    timestep: int
    z0: Latents
    latents: Latents
    loss: Any | None


# Samplers: from z at step i and the (guided) prediction of z_0 to z at step i + 1, or after the last step to z_0.


def ancestral(schedule: Schedule, i: int, z: Latents, z0: Latents, previous: Latents, noise: NoiseSource) -> Latents:
    """Draw from q(z_prev | z_t, z_0) (Ho et al. 2020, eq. 6 and 7): the paper's sampler."""
    mean = schedule.posterior_mean_coef1[i] * z0 + schedule.posterior_mean_coef2[i] * z
    return mean if i == len(schedule) - 1 else mean + schedule.posterior_std[i] * noise(i + 1)


def solver(order: int) -> StepFunction:
    """DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), multistep, of order 1, which is DDIM, or 2. It adds no noise."""

    def step(schedule: Schedule, i: int, z: Latents, z0: Latents, previous: Latents, noise: NoiseSource) -> Latents:
        if i == len(schedule) - 1:
            return z0
        width, slope = schedule.log_snr[i + 1] - schedule.log_snr[i], z0
        if order == 2 and previous is not None:
            slope = z0 + 0.5 * width / (schedule.log_snr[i] - schedule.log_snr[i - 1]) * (z0 - previous)
        here, there = schedule.alphas_cumprod[i], schedule.alphas_cumprod_prev[i]
        return math.sqrt((1.0 - there) / (1.0 - here)) * z - math.sqrt(there) * math.expm1(-width) * slope

    return step


StepFunction = Callable[[Schedule, int, Latents, Latents, "Latents | None", NoiseSource], Latents]
"""(schedule, i, z, z_0 of step i, z_0 of step i − 1, noise) → the next z. At i = 0 there is no z_0 before: None."""


def both_ends(num_inference_steps: int) -> list[int]:
    """Evenly spaced timesteps with both ends, descending: 999, …, 0 (Nichol & Dhariwal 2021).

    A single step is 999: the one that can start from noise.
    """
    last = NUM_TRAIN_TIMESTEPS - 1
    if num_inference_steps == 1:
        return [last]
    # The stride is added up, and not multiplied, so that ties round as in the original respacing.
    strides = np.full(num_inference_steps, last / (num_inference_steps - 1))
    strides[0] = 0.0
    return np.rint(np.cumsum(strides)).astype(np.int64)[::-1].tolist()


def trailing(num_inference_steps: int) -> list[int]:
    """Timesteps evenly down from 999, where noise alone is right (Lin et al. 2023, arXiv:2305.08891)."""
    spaced = np.arange(NUM_TRAIN_TIMESTEPS, 0, -NUM_TRAIN_TIMESTEPS / num_inference_steps)
    return (np.rint(spaced).astype(np.int64)[:num_inference_steps] - 1).tolist()


@dataclass(frozen=True)
class Sampler:
    """One way to sample.

    Attributes:
        timesteps: number of inference steps → their timesteps, strictly descending.
        step: from one step's latents to the next one's.
    """

    timesteps: Callable[[int], list[int]]
    step: StepFunction


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(both_ends, ancestral),
    "ddim": Sampler(trailing, solver(1)),
    "dpm++": Sampler(trailing, solver(2)),
}


def next_latents(
    schedule: Schedule, i: int, z: Latents, z0: Latents, previous: Latents | None, noise: NoiseSource
) -> Latents:
    """z of step i + 1 by the schedule's sampler, or after the last step z_0; see `StepFunction`."""
    return SAMPLERS[schedule.sampler].step(schedule, i, z, z0, previous, noise)


def predict_z0(schedule: Schedule, i: int, z: Latents, eps: Latents) -> Latents:
    """z̃_0 = (z_t − √(1 − ᾱ_t) ε) / √ᾱ_t at step i (DiffBody eq. 5)."""
    alpha = schedule.alphas_cumprod[i]
    return (z - math.sqrt(1.0 - alpha) * eps) / math.sqrt(alpha)


def initial_latents(schedule: Schedule, z_r: Latents, noise: NoiseSource, strength: float) -> Latents:
    """Where sampling starts: noise alone at strength 1, else z_r noised to the schedule's first timestep.

    Args:
        schedule: made with the same strength.
        z_r: the regression result's latents, (B, C, h, w).
        noise: its draw 0 is used.
        strength: in (0, 1].

    Raises:
        ValueError: the noise is not of z_r's shape.
    """
    start = noise(0)
    if start.shape != z_r.shape:
        raise ValueError(f"noise is of shape {tuple(start.shape)}, the latents are {tuple(z_r.shape)}")
    if strength == 1.0:
        return start
    alpha = schedule.alphas_cumprod[0]
    return math.sqrt(alpha) * z_r + math.sqrt(1.0 - alpha) * start


def make_schedule(
    sampler: str, num_inference_steps: int, strength: float = 1.0, alphas: Sequence[float] | np.ndarray | None = None
) -> Schedule:
    """The steps of a sampler that run at a strength: the last ones, as many as `steps_to_run` says.

    Args:
        sampler: a name in `SAMPLERS`.
        num_inference_steps: 1..1000.
        strength: in (0, 1]; below 1, sampling starts from the regression's latents, noised to the first of the steps.
        alphas: ᾱ of every training step, (1000,); None is `alphas_cumprod()`.

    Raises:
        ValueError: unknown sampler, or a count or strength that is out of range.
    """
    count = steps_to_run(num_inference_steps, strength)
    return schedule_of(sampler, check_sampler(sampler).timesteps(num_inference_steps)[-count:], alphas)


def schedule_of(sampler: str, timesteps: Sequence[int], alphas: Sequence[float] | np.ndarray | None = None) -> Schedule:
    """The sampling coefficients at chosen timesteps; other arguments as those of `make_schedule`.

    Raises:
        ValueError: the timesteps are empty, out of range or not strictly descending.
    """
    table = alphas_cumprod() if alphas is None else np.asarray(alphas, dtype=np.float64)
    steps = np.asarray(timesteps, dtype=np.int64)
    if steps.ndim != 1 or steps.size == 0 or np.any(np.diff(steps) >= 0):
        raise ValueError(f"timesteps must be a strictly descending list, got {steps.tolist()}")
    if steps[0] >= len(table) or steps[-1] < 0:
        raise ValueError(f"timesteps must be in 0..{len(table) - 1}, got {steps[0]}..{steps[-1]}")
    current = table[steps]
    previous = np.append(current[1:], 1.0)
    beta = 1.0 - current / previous
    columns = (
        current,
        previous,
        np.sqrt(previous) * beta / (1.0 - current),
        np.sqrt(1.0 - beta) * (1.0 - previous) / (1.0 - current),
        np.sqrt(beta * (1.0 - previous) / (1.0 - current)),
        0.5 * np.log(current / (1.0 - current)),
    )
    return Schedule(sampler, tuple(steps.tolist()), *(tuple(column.tolist()) for column in columns))


def alphas_cumprod() -> np.ndarray:
    """ᾱ_t of Stable Diffusion, float64 (1000,): β is linear in its square root from 0.00085 to 0.012."""
    betas = np.linspace(math.sqrt(BETA_START), math.sqrt(BETA_END), NUM_TRAIN_TIMESTEPS, dtype=np.float64) ** 2
    return np.cumprod(1.0 - betas)


def steps_to_run(num_inference_steps: int, strength: float = 1.0) -> int:
    """How many of the last steps run at a strength: round(strength · N), at least one.

    Raises:
        ValueError: the count is not in 1..1000, or the strength not in (0, 1].
    """
    if not 1 <= num_inference_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_inference_steps must be in 1..{NUM_TRAIN_TIMESTEPS}, got {num_inference_steps}")
    if not 0.0 < strength <= 1.0:  # also catches NaN
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    return max(1, round(strength * num_inference_steps))


def check_sampler(name: str) -> Sampler:
    """The row of `SAMPLERS`.

    Raises:
        ValueError: there is no such sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}, choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
