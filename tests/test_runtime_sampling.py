"""The runtime's samplers in numpy against the reference's in PyTorch and diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffbody_ref import sampling as reference
from diffbody_ref.ops.noise import philox_noise
from diffbody_ref.ops.schedule import SAMPLERS
from runtime.sampling import Step, Trajectory, initial_latents, sampler_schedule

SHAPE = (2, 4, 3)
MIX = np.random.default_rng(0).standard_normal((2, 2)).astype(np.float32) * 0.5


def denoise(z: np.ndarray, t: int) -> np.ndarray:
    """Any function of z and t does."""
    return np.tanh(np.einsum("cd,bdhw->bchw", MIX, z) + np.float32(t / 1000)).astype(np.float32)


def guide(z0: np.ndarray, t: int, step: int) -> tuple[np.ndarray, np.ndarray | None]:
    return (z0 * np.float32(0.9), np.full(len(z0), float(t), np.float32)) if step % 2 == 0 else (z0, None)


def by_reference(sampler: str, steps: int, strength: float, z_r: np.ndarray) -> np.ndarray:
    def denoiser(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(denoise(z.numpy(), int(t[0])))

    def hook(z0: torch.Tensor, t: int, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        guided, loss = guide(z0.numpy(), t, step)
        return torch.from_numpy(guided), None if loss is None else torch.from_numpy(loss)

    noise = reference.noise_source([5], SHAPE)
    latents = torch.from_numpy(z_r)
    if sampler == "ddpm":
        schedule = reference.ddpm_schedule(steps, strength)
        start = reference.initial_latents(latents, schedule, noise, strength)
        return reference.sample_ddpm(denoiser, start, schedule, noise, hook).numpy()
    scheduler = reference.make_scheduler(sampler)
    start = reference.initial_latents(
        latents, reference.scheduler_schedule(scheduler, steps, strength), noise, strength
    )
    return reference.sample_with_scheduler(denoiser, start, scheduler, steps, strength, hook).numpy()


@pytest.mark.parametrize("strength", [1.0, 0.45])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_sample_is_the_references(sampler: str, steps: int, strength: float) -> None:
    z_r = np.random.default_rng(1).standard_normal((1, *SHAPE)).astype(np.float32)
    noise = lambda step: philox_noise(5, step, SHAPE)[None]  # noqa: E731
    schedule = sampler_schedule(sampler, steps, strength)
    seen: list[Step] = []
    start = initial_latents(z_r, schedule, noise, strength)
    state = Trajectory(sampler, schedule, start, noise)
    while not state.done:
        z0, loss = guide(state.predict_z0(denoise(state.latents, state.t)), state.t, state.step)
        seen.append(state.advance(z0, loss))
    result = state.latents
    # float32 through up to 20 steps; diffusers keeps ᾱ in float32, 1e-7 relative, and divides by √ᾱ of down to 0.07.
    np.testing.assert_allclose(result, by_reference(sampler, steps, strength, z_r), rtol=2e-4, atol=2e-4)
    assert [done.step for done in seen] == list(range(len(schedule)))
    assert [done.loss is not None for done in seen] == [step % 2 == 0 for step in range(len(schedule))]
