"""DiffBody's sampler (algorithm 1) and the deterministic samplers of diffusers under the same guidance.

z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε throughout, and the denoiser predicts ε. Latents are (B, C, h, w); samplers compute in
the latents' dtype. No gradient is recorded here: a guidance hook that needs one enables it itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from diffbody_ref.ops.noise import check_seed, philox_noise
from diffbody_ref.ops.schedule import (
    BETA_END,
    BETA_START,
    NUM_TRAIN_TIMESTEPS,
    SamplerSchedule,
    make_schedule,
    space_timesteps,
    steps_to_run,
)
from diffbody_ref.ops.schedule import SAMPLERS as SAMPLERS
from diffbody_ref.ops.schedule import ddpm_schedule as ddpm_schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z_t (B, C, h, w), t int64 (B,)) → predicted ε, of z_t's shape."""

NoiseSource = Callable[[int], Tensor]
"""Draw number → standard normal (B, C, h, w). Draw 0 starts the sampling, draw i + 1 follows step i (from 0)."""


class GuidanceHook(Protocol):
    """Moves the predicted z_0 towards a goal (DiffBody eq. 6)."""

    def __call__(self, z0: Tensor, t: int, step: int) -> tuple[Tensor, Tensor | None]:
        """Guide one step.

        Args:
            z0: predicted z_0, (B, C, h, w).
            t: the training timestep, 0..999.
            step: the sampling step, counted from 0.

        Returns:
            The guided z_0, and the loss of each sample (B,), or None where the step is not guided.
        """
        ...


@dataclass(frozen=True)
class StepInfo:
    """What a callback learns after a step.

    Attributes:
        step, num_steps: the step, from 0, and how many there are.
        timestep: t of the step.
        z0: the (guided) prediction of z_0, (B, C, h, w).
        latents: z after the step; after the last one the sample.
        loss: guidance loss of each sample (B,), None where the step was not guided.
    """

    step: int
    num_steps: int
    timestep: int
    z0: Tensor
    latents: Tensor
    loss: Tensor | None


StepCallback = Callable[[StepInfo], None]


def predict_z0(latents: Tensor, eps: Tensor, alpha_cumprod: float) -> Tensor:
    """z_0 = (z_t − √(1 − ᾱ_t) ε) / √ᾱ_t (DiffBody eq. 5)."""
    return (latents - math.sqrt(1.0 - alpha_cumprod) * eps) / math.sqrt(alpha_cumprod)


def initial_latents(z_r: Tensor, schedule: SamplerSchedule, noise: NoiseSource, strength: float = 1.0) -> Tensor:
    """Where sampling starts: noise alone at strength 1, else z_r noised to the schedule's first timestep.

    Args:
        z_r: the regression result's latent, (B, C, h, w).
        schedule: made with the same strength.
        noise: its draw 0 is used.
        strength: in (0, 1].

    Raises:
        ValueError: the strength is out of range, or the noise is not of z_r's shape.
    """
    steps_to_run(len(schedule), strength)  # checks the range
    start = noise(0).to(z_r)
    if start.shape != z_r.shape:
        raise ValueError(f"noise is of shape {tuple(start.shape)}, the latents are {tuple(z_r.shape)}")
    if strength == 1.0:
        return start
    alpha = float(schedule.alphas_cumprod[0])
    return math.sqrt(alpha) * z_r + math.sqrt(1.0 - alpha) * start


@torch.no_grad()
def sample_ddpm(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: SamplerSchedule,
    noise: NoiseSource,
    guidance: GuidanceHook | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Spaced ancestral sampling (Ho et al. 2020, algorithm 2) with a guided z_0 (DiffBody, algorithm 1).

    Args:
        denoiser: predicts ε.
        latents: z at the schedule's first timestep, (B, C, h, w).
        schedule: from `ops.schedule.ddpm_schedule`.
        noise: draw step + 1 is added after each step but the last.
        guidance: replaces each predicted z_0; None samples without.
        callback: called after each step; an exception from it ends the sampling.

    Returns:
        The sampled z_0, (B, C, h, w).
    """
    num_steps = len(schedule)
    for step in range(num_steps):
        t = int(schedule.timesteps[step])
        eps = denoiser(latents, _timestep_batch(latents, t)).to(latents.dtype)
        z0, loss = predict_z0(latents, eps, float(schedule.alphas_cumprod[step])), None
        if guidance is not None:
            z0, loss = guidance(z0, t, step)
        coef1, coef2 = float(schedule.posterior_mean_coef1[step]), float(schedule.posterior_mean_coef2[step])
        latents = coef1 * z0 + coef2 * latents
        if step < num_steps - 1:
            latents = latents + float(schedule.posterior_std[step]) * noise(step + 1).to(latents)
        if callback is not None:
            callback(StepInfo(step, num_steps, t, z0, latents, loss))
    return latents


@torch.no_grad()
def sample_with_scheduler(
    denoiser: Denoiser,
    latents: Tensor,
    scheduler: Any,
    num_inference_steps: int,
    strength: float = 1.0,
    guidance: GuidanceHook | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Deterministic sampling by a diffusers scheduler (DDIM, DPM-Solver++); see `make_scheduler`.

    The scheduler is given the ε that belongs to the guided z_0: ε − √ᾱ_t/√(1 − ᾱ_t) · Δz_0. A hook that changes
    nothing therefore leaves the sample as it is, to the last bit.

    Args:
        latents: z at the first timestep of `scheduler_schedule(scheduler, num_inference_steps, strength)`.
        scheduler: its timesteps are set here, so it may be used again.
        denoiser, guidance, callback: as in `sample_ddpm`.

    Raises:
        ValueError: as `scheduler_schedule`.
    """
    schedule = scheduler_schedule(scheduler, num_inference_steps, strength)
    num_steps = len(schedule)
    for step in range(num_steps):
        t, alpha, loss = int(schedule.timesteps[step]), float(schedule.alphas_cumprod[step]), None
        eps = denoiser(latents, _timestep_batch(latents, t)).to(latents.dtype)
        z0 = predict_z0(latents, eps, alpha)
        if guidance is not None:
            guided, loss = guidance(z0, t, step)
            eps = eps - math.sqrt(alpha / (1.0 - alpha)) * (guided - z0)
            z0 = guided
        latents = scheduler.step(eps, t, latents, return_dict=False)[0]
        if callback is not None:
            callback(StepInfo(step, num_steps, t, z0, latents, loss))
    return latents


def make_scheduler(sampler: str) -> DPMSolverMultistepScheduler:
    """diffusers' scheduler for "ddim" or "dpm++" (multistep, second order), with Stable Diffusion's noise schedule.

    DDIM is DPM-Solver++ of first order (Lu et al. 2022). diffusers' `DDIMScheduler` steps by ⌊1000/N⌋ whatever its
    timesteps are, so for counts that do not divide 1000 its noise levels are off and it can end at a z that is not
    yet free of noise; this scheduler is right for every count, and the same where both are.

    Raises:
        ValueError: the sampler is another one.
    """
    orders = {"ddim": 1, "dpm++": 2}
    if sampler not in orders:
        raise ValueError(f"sampler {sampler!r} is none of diffusers' here, choose one of {', '.join(orders)}")
    return DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",  # starts at 999, where noise alone is right
        algorithm_type="dpmsolver++",
        solver_order=orders[sampler],
    )


def scheduler_schedule(scheduler: Any, num_inference_steps: int, strength: float = 1.0) -> SamplerSchedule:
    """Set a diffusers scheduler's timesteps and return the steps that run, for `initial_latents`.

    Raises:
        ValueError: the count or strength is out of range; the scheduler predicts something else than ε, or its
            noise levels lie between the training steps (Karras and the like).
    """
    space_timesteps(num_inference_steps)  # checks the range
    if scheduler.config.prediction_type != "epsilon":
        raise ValueError(f"the scheduler must predict epsilon, not {scheduler.config.prediction_type}")
    spaced = [name for name in scheduler.config if name.endswith(("_sigmas", "_lambdas")) and scheduler.config[name]]
    if spaced:
        raise ValueError(f"schedulers with {spaced[0]} are not supported: their noise levels are between timesteps")
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.cpu().numpy()[-steps_to_run(num_inference_steps, strength) :]
    return make_schedule(timesteps, scheduler.alphas_cumprod.double().cpu().numpy())


def noise_source(
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NoiseSource:
    """Seeded noise, the same in a batch as alone and the same as the runtime's (`ops.noise.philox_noise`).

    Args:
        seeds: one a sample.
        shape: of one sample, (C, h, w).

    Raises:
        ValueError: there are no seeds, or one is out of range.
    """
    checked = [check_seed(seed) for seed in seeds]
    if not checked:
        raise ValueError("seeds must hold one seed a sample, got none")

    def draw(step: int) -> Tensor:
        samples = [torch.from_numpy(philox_noise(seed, step, shape)) for seed in checked]
        return torch.stack(samples).to(device=device, dtype=dtype)

    return draw


def generator_noise(
    generators: Sequence[torch.Generator],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NoiseSource:
    """Noise from torch generators, one a sample, drawn as diffusers' `randn_tensor` does.

    It follows the order of the calls, and not the draw number.

    Raises:
        ValueError: there are no generators.
    """
    if not generators:
        raise ValueError("generators must hold one generator a sample, got none")

    def draw(step: int) -> Tensor:
        samples = [torch.randn(tuple(shape), generator=g, device=g.device, dtype=dtype) for g in generators]
        return torch.stack(samples).to(device)

    return draw


def _timestep_batch(latents: Tensor, t: int) -> Tensor:
    return torch.full((latents.shape[0],), t, dtype=torch.int64, device=latents.device)
