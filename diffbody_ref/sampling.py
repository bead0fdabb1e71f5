"""Algorithm 1: DiffBody's sampler, for PyTorch; its arithmetic is that of `diffbody_ref.ops.samplers`.

Latents are (B, C, h, w), the denoiser predicts what the schedule's prediction type says, and samplers compute in the
latents' dtype. No gradient is recorded here: a guidance hook that needs one enables it itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from diffbody_ref.ops.noise import check_seed, philox_noise
from diffbody_ref.ops.samplers import NoiseSource, Schedule, StepInfo, next_latents, predict_z0

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z_t (B, C, h, w), t int64 (B,)) → its prediction, of z_t's shape: ε or another of `ops.samplers.PREDICTIONS`."""


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


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: Schedule,
    noise: NoiseSource,
    guidance: GuidanceHook | None = None,
    callback: Callable[[StepInfo], Tensor | None] | None = None,
) -> Tensor:
    """Sample z_0 by the schedule's sampler with a guided z_0 (DiffBody, algorithm 1).

    Args:
        denoiser: predicts what `schedule.prediction_type` says.
        latents: z at the schedule's first timestep, (B, C, h, w); see `ops.samplers.initial_latents`.
        schedule: from `ops.samplers.make_schedule`.
        noise: see `ops.samplers.NoiseSource`; samplers that add no noise do not draw any.
        guidance: replaces each predicted z_0; None samples without.
        callback: called after each step; latents that it returns take the place of the step's, and an exception from it
            ends the sampling.

    Returns:
        The sampled z_0, (B, C, h, w).
    """
    previous = None
    for step, t in enumerate(schedule.timesteps):
        timesteps = torch.full((len(latents),), t, dtype=torch.int64, device=latents.device)
        output = denoiser(latents, timesteps).to(latents.dtype)
        z0, loss = predict_z0(schedule, step, latents, output), None
        if guidance is not None:
            z0, loss = guidance(z0, t, step)
        latents, previous = next_latents(schedule, step, latents, z0, previous, noise), z0
        if callback is not None:
            changed = callback(StepInfo(step, len(schedule), t, z0, latents, loss))
            latents = latents if changed is None else changed
    return latents


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
