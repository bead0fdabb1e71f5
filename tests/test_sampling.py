"""The samplers against diffusers' own loops and against distributions whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from diffbody_ref import sampling
from diffbody_ref.ops.noise import philox_noise
from diffbody_ref.ops.schedule import SAMPLERS, alphas_cumprod, ddpm_schedule
from diffbody_ref.sampling import NoiseSource, StepInfo, initial_latents, noise_source, sample_ddpm

SHAPE = (4, 6, 5)
SEEDS = (11, 2**63)


def curved_denoiser(z: Tensor, t: Tensor) -> Tensor:
    """Some smooth function of z and t that mixes neighbours but not samples."""
    return torch.tanh(0.7 * z + 0.2 * z.roll(1, dims=-1)) + 0.3 * torch.cos(t / 250.0).to(z)[:, None, None, None]


def seeded(dtype: torch.dtype = torch.float64, seeds: tuple[int, ...] = SEEDS) -> NoiseSource:
    return noise_source(seeds, SHAPE, dtype=dtype)


def run(sampler: str, steps: int, latents: Tensor, noise: NoiseSource, **options: object) -> Tensor:
    if sampler == "ddpm":
        return sample_ddpm(curved_denoiser, latents, ddpm_schedule(steps), noise, **options)
    return sampling.sample_with_scheduler(curved_denoiser, latents, sampling.make_scheduler(sampler), steps, **options)


def test_ddpm_equals_diffusers() -> None:
    schedule = ddpm_schedule(20)
    reference = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        variance_type="fixed_small",
        clip_sample=False,
    )
    # diffusers holds its schedule in float32; with float64 there the two differ by rounding only.
    assert np.allclose(reference.alphas_cumprod, alphas_cumprod(), rtol=1e-5)
    reference.alphas_cumprod = torch.from_numpy(alphas_cumprod())
    reference.one = torch.tensor(1.0, dtype=torch.float64)
    reference.set_timesteps(timesteps=schedule.timesteps.tolist())

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    expected = start = seeded()(0)
    drawing = generators()
    for t in reference.timesteps:
        eps = curved_denoiser(expected, t.repeat(2))
        expected = reference.step(eps, t, expected, generator=drawing).prev_sample
    noise = sampling.generator_noise(generators(), SHAPE, dtype=torch.float64)
    sample = sample_ddpm(curved_denoiser, start, schedule, noise)
    # 20 steps of float64; the first divides by sqrt(0.0047), so errors of 1e-16 grow by some tens.
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-12)


STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "trailing",
}


def diffusers_loop(scheduler: DDIMScheduler | DPMSolverMultistepScheduler, steps: int, latents: Tensor) -> Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        latents = scheduler.step(curved_denoiser(latents, t.repeat(len(latents))), t, latents).prev_sample
    return latents


@pytest.mark.parametrize("steps", [1, 4, 7, 30])
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_schedulers_equal_diffusers_loop(kind: type, steps: int) -> None:
    scheduler = kind(**STABLE_DIFFUSION, **({"clip_sample": False} if kind is DDIMScheduler else {}))
    start = seeded(torch.float32)(0)
    sample = sampling.sample_with_scheduler(curved_denoiser, start, scheduler, steps)
    # The same operations in the same order, so to the last bit.
    assert torch.equal(sample, diffusers_loop(scheduler, steps, start))


def test_made_schedulers_are_the_named_samplers() -> None:
    start, noise = seeded(torch.float32)(0), seeded(torch.float32)
    dpm = DPMSolverMultistepScheduler(**STABLE_DIFFUSION)
    assert torch.equal(run("dpm++", 30, start, noise), diffusers_loop(dpm, 30, start))
    ddim = DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False)
    for steps in (1, 5, 20, 50):  # divisors of 1000, where diffusers' DDIM uses the right noise levels
        # Float32 in another order, with logarithms of the noise levels in between: some 1e-6 of the value.
        torch.testing.assert_close(
            run("ddim", steps, start, noise), diffusers_loop(ddim, steps, start), rtol=1e-5, atol=1e-5
        )


def gaussian_denoiser(mean: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact ε for data from N(mean, std²): E[ε | z_t], by the joint Gaussian of ε and z_t."""
    alphas = torch.from_numpy(alphas_cumprod())

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha = alphas[t].to(z)[:, None, None, None]
        return (1 - alpha).sqrt() * (z - alpha.sqrt() * mean) / (alpha * std**2 + 1 - alpha)

    return denoise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_follow_the_data_distribution(sampler: str) -> None:
    mean, std, shape = 0.8, 0.5, (1, 100, 200)
    noise = noise_source([5], shape)
    denoiser = gaussian_denoiser(mean, std)
    if sampler == "ddpm":
        sample = sample_ddpm(denoiser, noise(0), ddpm_schedule(500), noise)
    else:
        sample = sampling.sample_with_scheduler(denoiser, noise(0), sampling.make_scheduler(sampler), 500)
    # 20,000 samples: standard errors 0.0035 of the mean, 0.0025 of the deviation, times 4. On top: SD's last step is
    # not quite noise, sqrt(alpha_999) = 0.068, so starting from noise alone is off by 0.055, of which DDIM keeps
    # std/1 times (its map is linear with that slope): 0.027. Finite steps: under 1 % of the deviation.
    assert float(sample.mean()) == pytest.approx(mean, abs=0.014 + (0.002 if sampler == "ddpm" else 0.027))
    assert float(sample.std()) == pytest.approx(std, abs=0.010 + 0.005)


def test_partial_strength_starts_from_the_regression() -> None:
    z_r, noise = seeded()(99), seeded()
    schedule = ddpm_schedule(50, 0.4)
    start = initial_latents(z_r, schedule, noise, 0.4)
    alpha = alphas_cumprod()[schedule.timesteps[0]]
    expected = math.sqrt(alpha) * z_r + math.sqrt(1 - alpha) * noise(0)
    torch.testing.assert_close(start, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(initial_latents(z_r, ddpm_schedule(50), noise), noise(0), rtol=0, atol=0)

    seen: list[int] = []

    def denoiser_of_z_r(z: Tensor, t: Tensor) -> Tensor:
        """Knows that the data is z_r and nothing else."""
        seen.append(int(t[0]))
        a = alphas_cumprod()[int(t[0])]
        return (z - math.sqrt(a) * z_r) / math.sqrt(1 - a)

    sample = sample_ddpm(denoiser_of_z_r, start, schedule, noise)
    assert seen == schedule.timesteps.tolist()
    assert len(seen) == 20
    torch.testing.assert_close(sample, z_r, rtol=0, atol=1e-12)

    for sampler in SAMPLERS[1:]:
        scheduler = sampling.make_scheduler(sampler)
        schedule = sampling.scheduler_schedule(scheduler, 50, 0.4)
        start = initial_latents(z_r, schedule, noise, 0.4)
        seen.clear()
        sample = sampling.sample_with_scheduler(denoiser_of_z_r, start, scheduler, 50, 0.4)
        assert seen == schedule.timesteps.tolist() == scheduler.timesteps[-20:].tolist()
        # The schedulers hold their coefficients in float32, which is also DPM-Solver's dtype in places.
        torch.testing.assert_close(sample, z_r, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_that_changes_nothing_changes_no_bit(sampler: str) -> None:
    noise = seeded(torch.float32)
    plain = run(sampler, 9, noise(0), noise)
    same = run(sampler, 9, noise(0), noise, guidance=lambda z0, t, step: (z0 - 0.0 * z0.sign(), None))
    assert torch.equal(plain, same)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_replaces_the_prediction(sampler: str) -> None:
    """A hook that always answers with one target must end at that target, whatever the denoiser says."""
    noise, target = seeded(), seeded()(77)
    calls: list[tuple[int, int]] = []

    def guidance(z0: Tensor, t: int, step: int) -> tuple[Tensor, Tensor]:
        calls.append((t, step))
        return target, (z0 - target).square().mean(dim=(1, 2, 3))

    sample = run(sampler, 12, noise(0), noise, guidance=guidance)
    # DDPM is float64 throughout; the schedulers' coefficients are float32.
    torch.testing.assert_close(sample, target, rtol=0, atol=1e-12 if sampler == "ddpm" else 1e-4)
    assert [step for _, step in calls] == list(range(12))
    assert calls[0][0] == 999
    assert all(type(t) is int for t, _ in calls)


def test_guidance_moves_the_posterior_mean_by_coef1() -> None:
    """Shifting z_0 by d at the one guided step shifts the next latents by coef1·d, and nothing else."""
    noise, schedule, shift = seeded(), ddpm_schedule(10), 0.25
    after: dict[bool, Tensor] = {}
    for guided in (False, True):

        def guidance(z0: Tensor, t: int, step: int, on: bool = guided) -> tuple[Tensor, None]:
            return (z0 + shift if on and step == 4 else z0), None

        def callback(info: StepInfo, on: bool = guided) -> None:
            if info.step == 4:
                after[on] = info.latents

        sample_ddpm(curved_denoiser, noise(0), schedule, noise, guidance, callback)
    expected = torch.full_like(after[True], shift * schedule.posterior_mean_coef1[4])
    torch.testing.assert_close(after[True] - after[False], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_equals_its_samples_alone_and_repeats(sampler: str) -> None:
    noise = seeded()
    batch = run(sampler, 8, noise(0), noise)
    assert torch.equal(batch, run(sampler, 8, noise(0), seeded()))
    for index, seed in enumerate(SEEDS):
        alone = seeded(seeds=(seed,))
        # Elementwise functions may be vectorised differently for another size: rounding of float64 (DPM-Solver++ works
        # in float32).
        sample = run(sampler, 8, alone(0), alone)
        torch.testing.assert_close(sample[0], batch[index], rtol=0, atol=1e-5 if sampler == "dpm++" else 1e-12)
    other = seeded(seeds=(12, 2**63))
    assert not torch.allclose(run(sampler, 8, other(0), other)[0], batch[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback_sees_every_step(sampler: str) -> None:
    noise, infos = seeded(torch.float32), list[StepInfo]()
    loss = torch.tensor([1.0, 2.0])
    sample = run(
        sampler,
        7,
        noise(0),
        noise,
        guidance=lambda z0, t, step: (z0, loss if step % 2 else None),
        callback=infos.append,
    )
    assert [info.step for info in infos] == list(range(7))
    assert {info.num_steps for info in infos} == {7}
    assert [info.timestep for info in infos] == sorted((info.timestep for info in infos), reverse=True)
    assert infos[-1].latents is sample
    assert infos[-1].z0.shape == sample.shape
    torch.testing.assert_close(infos[-1].z0, sample, rtol=0, atol=1e-5)  # the last step ends at its z_0
    assert [info.loss is loss for info in infos] == [False, True, False, True, False, True, False]
    assert not sample.requires_grad

    def cancel(info: StepInfo) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(sampler, 7, noise(0), noise, callback=cancel)


def test_denoiser_gets_int64_timesteps_and_latents_keep_their_dtype() -> None:
    def half_denoiser(z: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (2,)
        return (0.5 * z).half()

    noise = seeded(torch.float32)
    assert sample_ddpm(half_denoiser, noise(0), ddpm_schedule(3), seeded()).dtype == torch.float32
    for sampler in SAMPLERS[1:]:
        scheduler = sampling.make_scheduler(sampler)
        assert sampling.sample_with_scheduler(half_denoiser, noise(0), scheduler, 3).dtype == torch.float32


def test_noise_sources() -> None:
    noise = noise_source([3, 4], (2, 3))
    expected = np.stack([philox_noise(3, 6, (2, 3)), philox_noise(4, 6, (2, 3))])
    np.testing.assert_array_equal(noise(6).numpy(), expected)
    assert noise_source([3], (2, 3), dtype=torch.float64)(0).dtype == torch.float64
    with pytest.raises(ValueError, match="seed must be"):
        noise_source([3, -1], (2, 3))
    with pytest.raises(ValueError, match="one seed a sample"):
        noise_source([], (2, 3))
    with pytest.raises(ValueError, match="one generator a sample"):
        sampling.generator_noise([], (2, 3))
    drawn = sampling.generator_noise([torch.Generator().manual_seed(8)], (2, 3))
    fresh = torch.Generator().manual_seed(8)
    for step in (0, 1):
        assert torch.equal(drawn(step)[0], torch.randn((2, 3), generator=fresh))


def test_start_and_step_noise_are_different_draws() -> None:
    """Draw 0 starts the sampling; each of N steps but the last adds one more, never the same twice."""
    asked: list[int] = []

    def noise(draw: int) -> Tensor:
        asked.append(draw)
        return seeded()(draw)

    schedule = ddpm_schedule(5)
    start = initial_latents(torch.zeros(2, *SHAPE, dtype=torch.float64), schedule, noise)
    sample_ddpm(curved_denoiser, start, schedule, noise)
    assert asked == [0, 1, 2, 3, 4]


def test_bad_values() -> None:
    noise = seeded()
    with pytest.raises(ValueError, match="shape"):
        initial_latents(torch.zeros(1, *SHAPE), ddpm_schedule(5), noise)
    for strength in (0.0, float("nan"), 1.5):
        with pytest.raises(ValueError, match="strength"):
            initial_latents(noise(0), ddpm_schedule(5), noise, strength)
    with pytest.raises(ValueError, match=r"ddim, dpm\+\+"):
        sampling.make_scheduler("euler")
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"got {steps}"):
            sampling.sample_with_scheduler(curved_denoiser, noise(0), sampling.make_scheduler("dpm++"), steps)
    with pytest.raises(ValueError, match="epsilon, not v_prediction"):
        sampling.scheduler_schedule(DDIMScheduler(prediction_type="v_prediction"), 10)
    with pytest.raises(ValueError, match="use_karras_sigmas"):
        sampling.scheduler_schedule(DPMSolverMultistepScheduler(use_karras_sigmas=True), 10)
