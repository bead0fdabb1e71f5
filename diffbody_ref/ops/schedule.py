"""The noise schedule of Stable Diffusion and the coefficients of spaced DDPM sampling.

Notation: ᾱ_t = Π (1 − β_i) is `alphas_cumprod`; z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012

SAMPLERS = ("ddpm", "ddim", "dpm++")


@dataclass(frozen=True, eq=False)
class SamplerSchedule:
    """The sampling steps in the order they run, one entry a step: all arrays are of shape (N,).

    The posterior q(z_prev | z_t, z_0) is a normal distribution with mean `posterior_mean_coef1`·z_0 +
    `posterior_mean_coef2`·z_t and standard deviation `posterior_std` (Ho et al. 2020, eq. 6 and 7), where "prev" is the
    next step to run. After the last step there is z_0 itself: ᾱ_prev = 1, coefficients (1, 0), deviation 0.

    Attributes:
        timesteps: int64, descending, the t the denoiser is given (0..999).
        alphas_cumprod: float64, ᾱ_t.
        alphas_cumprod_prev: float64, ᾱ of the following step, 1 at the end.
        posterior_mean_coef1: float64, √ᾱ_prev·β / (1 − ᾱ_t) with β = 1 − ᾱ_t/ᾱ_prev.
        posterior_mean_coef2: float64, √(1 − β)·(1 − ᾱ_prev) / (1 − ᾱ_t).
        posterior_std: float64, √(β·(1 − ᾱ_prev) / (1 − ᾱ_t)), the "fixed small" variance.
    """

    timesteps: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray
    posterior_std: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    def to_dict(self) -> dict[str, list[float]]:
        """The arrays as lists, ready for JSON; `from_dict` gives back exactly the same numbers."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplerSchedule:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field is missing or unknown, or the lengths differ.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if sorted(values) != sorted(names):
            raise ValueError(f"a sampler schedule has the fields {', '.join(names)}, got {', '.join(values)}")
        arrays = {
            name: np.asarray(values[name], dtype=np.int64 if name == "timesteps" else np.float64) for name in names
        }
        if len({array.shape for array in arrays.values()}) != 1 or arrays["timesteps"].ndim != 1:
            raise ValueError("the fields of a sampler schedule must be lists of the same length")
        return cls(**arrays)


def alphas_cumprod() -> np.ndarray:
    """ᾱ_t of Stable Diffusion, float64 (1000,): β is linear in its square root from 0.00085 to 0.012."""
    betas = np.linspace(math.sqrt(BETA_START), math.sqrt(BETA_END), NUM_TRAIN_TIMESTEPS, dtype=np.float64) ** 2
    return np.cumprod(1.0 - betas)


def space_timesteps(num_inference_steps: int) -> np.ndarray:
    """Evenly spaced timesteps with both ends, int64 (N,), descending: 999, …, 0 (Nichol & Dhariwal 2021).

    A single step is 999: the one that can start from noise.

    Raises:
        ValueError: the count is not in 1..1000.
    """
    if not 1 <= num_inference_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_inference_steps must be in 1..{NUM_TRAIN_TIMESTEPS}, got {num_inference_steps}")
    last = NUM_TRAIN_TIMESTEPS - 1
    if num_inference_steps == 1:
        return np.array([last], dtype=np.int64)
    # The stride is added up, and not multiplied, so that ties round as in the original respacing.
    strides = np.full(num_inference_steps, last / (num_inference_steps - 1))
    strides[0] = 0.0
    return np.rint(np.cumsum(strides)).astype(np.int64)[::-1].copy()


def steps_to_run(num_inference_steps: int, strength: float = 1.0) -> int:
    """How many of the last steps run at a strength: round(strength · N), at least one.

    Raises:
        ValueError: the strength is not in (0, 1].
    """
    if not 0.0 < strength <= 1.0:  # also catches NaN
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    return max(1, round(strength * num_inference_steps))


def make_schedule(timesteps: Sequence[int] | np.ndarray, alphas: np.ndarray | None = None) -> SamplerSchedule:
    """The sampling coefficients for chosen timesteps.

    Args:
        timesteps: strictly descending, within the training steps.
        alphas: ᾱ of every training step, float64 (T,); default `alphas_cumprod()`.

    Raises:
        ValueError: the timesteps are empty, out of range or not strictly descending.
    """
    alphas = alphas_cumprod() if alphas is None else np.asarray(alphas, dtype=np.float64)
    steps = np.asarray(timesteps, dtype=np.int64)
    if steps.ndim != 1 or steps.size == 0 or np.any(np.diff(steps) >= 0):
        raise ValueError(f"timesteps must be a strictly descending list, got {steps.tolist()}")
    if steps[0] >= len(alphas) or steps[-1] < 0:
        raise ValueError(f"timesteps must be in 0..{len(alphas) - 1}, got {steps[0]}..{steps[-1]}")
    current = alphas[steps]
    previous = np.append(current[1:], 1.0)
    beta = 1.0 - current / previous
    return SamplerSchedule(
        timesteps=steps,
        alphas_cumprod=current,
        alphas_cumprod_prev=previous,
        posterior_mean_coef1=np.sqrt(previous) * beta / (1.0 - current),
        posterior_mean_coef2=np.sqrt(1.0 - beta) * (1.0 - previous) / (1.0 - current),
        posterior_std=np.sqrt(beta * (1.0 - previous) / (1.0 - current)),
    )


def ddpm_schedule(num_inference_steps: int, strength: float = 1.0) -> SamplerSchedule:
    """Spaced DDPM sampling with Stable Diffusion's noise schedule, as DiffBIR and the paper (50 steps) use it.

    With a strength below 1 only the last round(strength · N) steps are there; sampling then starts from the
    regression's latent, noised to the first of them.

    Raises:
        ValueError: the count is not in 1..1000 or the strength not in (0, 1].
    """
    timesteps = space_timesteps(num_inference_steps)
    return make_schedule(timesteps[-steps_to_run(num_inference_steps, strength) :])
