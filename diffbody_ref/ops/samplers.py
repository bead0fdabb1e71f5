"""Noise process and samplers, one text for numpy and PyTorch: a new sampler is one function and one row of `SAMPLERS`.

Notation: ᾱ_t = Π (1 − β_i) is `alphas_cumprod`; z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε. Latents are arrays of numpy or tensors
of PyTorch; schedules hold plain floats, which take the latents' dtype wherever they are multiplied with them.

A model says its `NoiseProcess`: the ᾱ of its training, and what its denoiser predicts. From a process, a sampler and a
number of steps follows a `Schedule`, which is all that sampling needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
class Prediction:
    """What a denoiser's output stands for, with s = √ᾱ_t and n = √(1 − ᾱ_t), floats or arrays: z_t = s·z_0 + n·ε.

    Attributes:
        z0: (s, n, z_t, output) → z̃_0, what the output says of z_0; of ε this is DiffBody's eq. 5.
        target: (s, n, z_0, ε) → what training teaches the output to be.
        error_scale: SNR = ᾱ_t / (1 − ᾱ_t) → the output's squared error over the squared error of its z̃_0.
    """

    z0: Callable[[Any, Any, Latents, Latents], Latents]
    target: Callable[[Any, Any, Latents, Latents], Latents]
    error_scale: Callable[[Any], Any]


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction(lambda s, n, z, eps: (z - n * eps) / s, lambda s, n, z0, eps: eps, lambda snr: snr),
    # Salimans & Ho 2022, arXiv:2202.00512: v = s·ε − n·z_0. The only one of noise that works where s is 0.
    "v_prediction": Prediction(
        lambda s, n, z, v: s * z - n * v, lambda s, n, z0, eps: s * eps - n * z0, lambda snr: snr + 1.0
    ),
    "sample": Prediction(lambda s, n, z, z0: z0, lambda s, n, z0, eps: z0, lambda snr: 1.0),
}
"""What denoisers predict, by diffusers' names (`prediction_type`)."""


@dataclass(frozen=True)
class NoiseProcess:
    """How a model's training made noise of latents, and what its denoiser predicts; checked when made.

    Attributes:
        alphas_cumprod: ᾱ of every training step, 1000 numbers that fall from below 1 to above 0, or to 0 (zero terminal
            SNR: the last step is noise alone; Lin et al. 2023, arXiv:2305.08891).
        prediction_type: a name in `PREDICTIONS`.

    Raises:
        ValueError: other numbers, an unknown prediction, or one of ε where ᾱ ends at 0, from which no z_0 follows.
    """

    alphas_cumprod: tuple[float, ...]
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        levels = (1.0, *self.alphas_cumprod)
        falling = all(a > b for a, b in pairwise(levels)) and levels[-1] >= 0.0
        if len(levels) != NUM_TRAIN_TIMESTEPS + 1 or not falling:
            raise ValueError(
                f"alphas_cumprod must be {NUM_TRAIN_TIMESTEPS} numbers that fall from below 1 to 0 or more"
            )
        if self.prediction_type not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise ValueError(f"unknown prediction_type {self.prediction_type!r}, choose one of {known}")
        if levels[-1] == 0.0 and self.prediction_type == "epsilon":
            raise ValueError(
                "prediction_type 'epsilon' does not go with a zero terminal SNR (alphas_cumprod ends at 0), where ε "
                "says nothing of the picture; it must be 'v_prediction' or 'sample'"
            )


@dataclass(frozen=True)
class Schedule:
    """The sampling steps in the order in which they run: each tuple has one entry a step.

    The posterior q(z_prev | z_t, z_0) is a normal distribution with mean `posterior_mean_coef1`·z_0 +
    `posterior_mean_coef2`·z_t and standard deviation `posterior_std` (Ho et al. 2020, eq. 6 and 7), where "prev" is the
    next step to run. After the last step there is z_0 itself: ᾱ_prev = 1, coefficients (1, 0), deviation 0.

    Attributes:
        sampler: a name in `SAMPLERS`.
        prediction_type: a name in `PREDICTIONS`.
        timesteps: descending, the t that the denoiser is given (0..999).
        alphas_cumprod: ᾱ_t.
        alphas_cumprod_prev: ᾱ of the following step, 1 at the end.
        posterior_mean_coef1: √ᾱ_prev·β / (1 − ᾱ_t) with β = 1 − ᾱ_t/ᾱ_prev.
        posterior_mean_coef2: √(1 − β)·(1 − ᾱ_prev) / (1 − ᾱ_t).
        posterior_std: √(β·(1 − ᾱ_prev) / (1 − ᾱ_t)), the "fixed small" variance.
        log_snr: λ_t = ½ log(ᾱ_t / (1 − ᾱ_t)), half the logarithm of the signal-to-noise ratio; −∞ where ᾱ_t is 0.
    """

    sampler: str
    prediction_type: str
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
    "ddpm-trailing": Sampler(trailing, ancestral),
    "ddim": Sampler(trailing, solver(1)),
    "dpm++": Sampler(trailing, solver(2)),
}


def next_latents(
    schedule: Schedule, i: int, z: Latents, z0: Latents, previous: Latents | None, noise: NoiseSource
) -> Latents:
    """z of step i + 1 by the schedule's sampler, or after the last step z_0; see `StepFunction`."""
    return SAMPLERS[schedule.sampler].step(schedule, i, z, z0, previous, noise)


def predict_z0(schedule: Schedule, i: int, z: Latents, output: Latents) -> Latents:
    """z̃_0 of step i by the denoiser's output: of ε, (z_t − √(1 − ᾱ_t) ε) / √ᾱ_t (DiffBody eq. 5)."""
    alpha = schedule.alphas_cumprod[i]
    return PREDICTIONS[schedule.prediction_type].z0(math.sqrt(alpha), math.sqrt(1.0 - alpha), z, output)


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
    sampler: str, num_inference_steps: int, strength: float = 1.0, process: NoiseProcess | None = None
) -> Schedule:
    """The steps of a sampler that run at a strength: the last ones, as many as `steps_to_run` says.

    Args:
        sampler: a name in `SAMPLERS`.
        num_inference_steps: 1..1000.
        strength: in (0, 1]; below 1, sampling starts from the regression's latents, noised to the first of the steps.
        process: the model's; None is `STABLE_DIFFUSION`.

    Raises:
        ValueError: unknown sampler, or a count or strength that is out of range.
    """
    count = steps_to_run(num_inference_steps, strength)
    return schedule_of(sampler, check_sampler(sampler).timesteps(num_inference_steps)[-count:], process)


def schedule_of(sampler: str, timesteps: Sequence[int], process: NoiseProcess | None = None) -> Schedule:
    """The sampling coefficients at chosen timesteps; other arguments as those of `make_schedule`.

    Raises:
        ValueError: the timesteps are empty, out of range or not strictly descending.
    """
    process = process or STABLE_DIFFUSION
    table = np.asarray(process.alphas_cumprod, dtype=np.float64)
    steps = np.asarray(timesteps, dtype=np.int64)
    if steps.ndim != 1 or steps.size == 0 or np.any(np.diff(steps) >= 0):
        raise ValueError(f"timesteps must be a strictly descending list, got {steps.tolist()}")
    if steps[0] >= len(table) or steps[-1] < 0:
        raise ValueError(f"timesteps must be in 0..{len(table) - 1}, got {steps[0]}..{steps[-1]}")
    current = table[steps]
    previous = np.append(current[1:], 1.0)
    beta = 1.0 - current / previous
    with np.errstate(divide="ignore"):  # log 0 = −∞ is right: the samplers' limits are those of pure noise
        log_snr = 0.5 * np.log(current / (1.0 - current))
    columns = (
        current,
        previous,
        np.sqrt(previous) * beta / (1.0 - current),
        np.sqrt(1.0 - beta) * (1.0 - previous) / (1.0 - current),
        np.sqrt(beta * (1.0 - previous) / (1.0 - current)),
        log_snr,
    )
    floats = (tuple(column.tolist()) for column in columns)
    return Schedule(sampler, process.prediction_type, tuple(steps.tolist()), *floats)


def scaled_linear(start: float, end: float) -> np.ndarray:
    """β that are linear in their square root: Stable Diffusion's."""
    return np.linspace(math.sqrt(start), math.sqrt(end), NUM_TRAIN_TIMESTEPS, dtype=np.float64) ** 2


def cosine() -> np.ndarray:
    """β of Nichol & Dhariwal 2021 (arXiv:2102.09672, eq. 17), at most 0.999."""
    roots = np.cos((np.linspace(0.0, 1.0, NUM_TRAIN_TIMESTEPS + 1) + 0.008) / 1.008 * math.pi / 2)
    return np.minimum(1.0 - (roots[1:] / roots[:-1]) ** 2, 0.999)


BETA_SCHEDULES: dict[str, Callable[[float, float], np.ndarray]] = {
    "scaled_linear": scaled_linear,
    "linear": lambda start, end: np.linspace(start, end, NUM_TRAIN_TIMESTEPS, dtype=np.float64),
    "squaredcos_cap_v2": lambda start, end: cosine(),
}
"""β of the 1000 training steps, float64, of β_start and β_end, by diffusers' names (`beta_schedule`)."""


def alphas_cumprod(betas: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """ᾱ_t, float64 (1000,), of β_t; by default of Stable Diffusion's: √β is linear from √0.00085 to √0.012."""
    betas = scaled_linear(BETA_START, BETA_END) if betas is None else np.asarray(betas, np.float64)
    return np.cumprod(1.0 - betas)


def zero_terminal_snr(alphas: np.ndarray) -> np.ndarray:
    """ᾱ_t whose root is shifted and scaled so that the last one is 0 and the first stays (Lin et al. 2023, alg. 1)."""
    roots = np.sqrt(alphas)
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2


STABLE_DIFFUSION = NoiseProcess(tuple(alphas_cumprod().tolist()))


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
