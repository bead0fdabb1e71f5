"""The noise schedule and the samplers: against diffusers' own, and against distributions whose answer is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from diffbody_ref.ops.noise import philox_noise
from diffbody_ref.ops.samplers import (
    SAMPLERS,
    NoiseProcess,
    NoiseSource,
    StepInfo,
    alphas_cumprod,
    both_ends,
    initial_latents,
    make_schedule,
    next_latents,
    predict_z0,
    schedule_of,
)
from diffbody_ref.sampling import generator_noise, noise_source, sample

SHAPE = (4, 6, 5)
SEEDS = (11, 2**63)


def curved_denoiser(z: Tensor, t: Tensor) -> Tensor:
    """Some smooth function of z and t that mixes neighbours but not samples."""
    return torch.tanh(0.7 * z + 0.2 * z.roll(1, dims=-1)) + 0.3 * torch.cos(t / 250.0).to(z)[:, None, None, None]


def seeded(dtype: torch.dtype = torch.float64, seeds: tuple[int, ...] = SEEDS) -> NoiseSource:
    return noise_source(seeds, SHAPE, dtype=dtype)


def run(sampler: str, steps: int, latents: Tensor, noise: NoiseSource, **options: Any) -> Tensor:
    return sample(curved_denoiser, latents, make_schedule(sampler, steps), noise, **options)


def test_alphas_cumprod_are_stable_diffusions() -> None:
    alphas = alphas_cumprod()
    assert alphas.shape == (1000,)
    assert alphas.dtype == np.float64
    assert alphas[0] == pytest.approx(1 - 0.00085, abs=1e-15)
    # By hand, in plain Python; 1000 products of float64.
    product, low, high = 1.0, 0.00085**0.5, 0.012**0.5
    for step in range(1000):
        product *= 1 - (low + (high - low) * step / 999) ** 2
    assert alphas[-1] == pytest.approx(product, rel=1e-12)
    assert alphas[-1] == pytest.approx(0.00466, abs=5e-6)  # the well-known terminal value


def iddpm_timesteps(count: int) -> list[int]:
    """Nichol & Dhariwal's respacing of one section, retold: add up a fractional stride, round each."""
    position, steps = 0.0, []
    for _ in range(count):
        steps.append(round(position))
        position += 999 / (count - 1)
    return steps[::-1]


def test_timesteps_of_every_count() -> None:
    for count in range(2, 1001):
        steps = both_ends(count)
        assert steps == iddpm_timesteps(count)
        assert (steps[0], steps[-1], len(steps)) == (999, 0, count)
        assert (np.diff(steps) < 0).all()
    assert both_ends(1) == [999]
    assert both_ends(50)[:4] == [999, 979, 958, 938]


@pytest.mark.parametrize("count", [1, 2, 7, 50, 1000])
def test_coefficients_are_the_posteriors(count: int) -> None:
    """The posterior q(z_prev | z_t, z_0) by Bayes' rule for two Gaussians, in precision form."""
    plan = make_schedule("ddpm", count)
    assert plan.alphas_cumprod_prev[:-1] == plan.alphas_cumprod[1:]
    a, prev = np.array(plan.alphas_cumprod[:-1]), np.array(plan.alphas_cumprod_prev[:-1])
    # z_prev ~ N(sqrt(prev) z_0, 1 - prev), and z_t | z_prev ~ N(sqrt(alpha) z_prev, 1 - alpha).
    alpha = a / prev
    precision = 1 / (1 - prev) + alpha / (1 - alpha)
    # A few float64 operations, some of which lose digits in 1 - alpha (down to 1e-3): 1e-12.
    np.testing.assert_allclose(plan.posterior_mean_coef1[:-1], np.sqrt(prev) / (1 - prev) / precision, rtol=1e-12)
    np.testing.assert_allclose(plan.posterior_mean_coef2[:-1], np.sqrt(alpha) / (1 - alpha) / precision, rtol=1e-12)
    np.testing.assert_allclose(plan.posterior_std[:-1], precision**-0.5, rtol=1e-12)
    last = (plan.alphas_cumprod_prev[-1], plan.posterior_mean_coef1[-1], plan.posterior_mean_coef2[-1])
    assert last == pytest.approx((1, 1, 0), abs=1e-15)
    assert plan.posterior_std[-1] == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_keeps_the_last_steps(sampler: str) -> None:
    whole = dataclasses.asdict(make_schedule(sampler, 50))
    for strength, steps in [(1.0, 50), (0.5, 25), (0.3, 15), (0.999, 50), (1e-6, 1)]:
        part = dataclasses.asdict(make_schedule(sampler, 50, strength))
        assert (part.pop("sampler"), part.pop("prediction_type")) == (sampler, "epsilon")
        for name, values in part.items():
            assert values == whole[name][-steps:]


def test_a_schedule_holds_plain_floats() -> None:
    """So that no float64 scalar of numpy widens float32 latents."""
    for name, values in dataclasses.asdict(make_schedule("dpm++", 7)).items():
        if name not in ("sampler", "prediction_type"):
            assert {type(value) for value in values} == {int if name == "timesteps" else float}


def test_other_alphas_make_another_schedule() -> None:
    alphas = np.linspace(0.99, 0.01, 1000)
    found = make_schedule("ddim", 4, process=NoiseProcess(tuple(alphas.tolist())))
    assert found.alphas_cumprod == tuple(alphas[[999, 749, 499, 249]].tolist())


def test_schedule_rejects_bad_values() -> None:
    for count in (0, -1, 1001):
        with pytest.raises(ValueError, match=rf"1\.\.1000, got {count}"):
            make_schedule("ddpm", count)
    for strength in (float("nan"), 0.0, -0.5, 1.0001, float("inf")):
        with pytest.raises(ValueError, match="strength"):
            make_schedule("ddpm", 50, strength)
    for steps in ([], [5, 5], [1, 2]):
        with pytest.raises(ValueError, match="descending"):
            schedule_of("ddpm", steps)
    for steps in ([1000, 5], [5, -1]):
        with pytest.raises(ValueError, match=r"0\.\.999"):
            schedule_of("ddpm", steps)
    with pytest.raises(ValueError, match=r"unknown sampler 'euler', choose one of ddpm, ddpm-trailing, ddim, dpm\+\+"):
        make_schedule("euler", 5)


# ---- samplers against diffusers and against distributions whose answer is known


def test_ddpm_equals_diffusers() -> None:
    schedule = make_schedule("ddpm", 20)
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
    reference.set_timesteps(timesteps=list(schedule.timesteps))

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    expected = start = seeded()(0)
    drawing = generators()
    for t in reference.timesteps:
        eps = curved_denoiser(expected, t.repeat(2))
        expected = reference.step(eps, t, expected, generator=drawing).prev_sample
    noise = generator_noise(generators(), SHAPE, dtype=torch.float64)
    found = sample(curved_denoiser, start, schedule, noise)
    # 20 steps of float64; the first divides by sqrt(0.0047), so errors of 1e-16 grow by some tens.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


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


def double(scheduler: DDIMScheduler | DPMSolverMultistepScheduler) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """diffusers' scheduler with its noise levels in float64: it computes them in float32."""
    scheduler.alphas_cumprod = torch.from_numpy(alphas_cumprod())
    if isinstance(scheduler, DDIMScheduler):
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("steps", [1, 4, 7, 30])
def test_dpm_solver_equals_diffusers(steps: int) -> None:
    scheduler = double(DPMSolverMultistepScheduler(**STABLE_DIFFUSION))
    start, noise = seeded()(0), seeded()
    # diffusers takes its logarithms of noise levels in float32: 1e-7 relative, of steps whose differences cancel.
    torch.testing.assert_close(
        run("dpm++", steps, start, noise), diffusers_loop(scheduler, steps, start), rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("steps", [1, 5, 20, 50])  # divisors of 1000, where diffusers' DDIM has the right noise levels
def test_ddim_equals_diffusers(steps: int) -> None:
    scheduler = double(DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, set_alpha_to_one=True))
    start, noise = seeded()(0), seeded()
    # float64, with logarithms in between; the first step divides by √ᾱ_999 = 0.07.
    torch.testing.assert_close(
        run("ddim", steps, start, noise), diffusers_loop(scheduler, steps, start), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("strength", [1.0, 0.45])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_numpy_and_torch_give_the_same_bits(sampler: str, steps: int, strength: float) -> None:
    """One text for both: float32 sums and products of the same values in the same order."""
    schedule = make_schedule(sampler, steps, strength)
    draw = lambda step: philox_noise(5, step, SHAPE)[None]  # noqa: E731
    z_r = np.random.default_rng(1).standard_normal((1, *SHAPE)).astype(np.float32)
    denoise = lambda z, t: z * np.float32(0.3) + np.float32(t / 1000)  # noqa: E731, each operation rounds once in both

    z = initial_latents(schedule, z_r, draw, strength)
    previous = None
    for step, t in enumerate(schedule.timesteps):
        z0 = predict_z0(schedule, step, z, denoise(z, t))
        assert z0.dtype == np.float32
        z, previous = next_latents(schedule, step, z, z0, previous, draw), z0
        assert z.dtype == np.float32

    noise = noise_source([5], SHAPE)
    start = initial_latents(schedule, torch.from_numpy(z_r), noise, strength)
    by_torch = sample(lambda z, t: torch.from_numpy(denoise(z.numpy(), int(t[0]))), start, schedule, noise)
    np.testing.assert_array_equal(z, by_torch.numpy())


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
    found = sample(denoiser, noise(0), make_schedule(sampler, 500), noise)
    # 20,000 samples: standard errors 0.0035 of the mean, 0.0025 of the deviation, times 4. On top: SD's last step is
    # not quite noise, sqrt(alpha_999) = 0.068, so starting from noise alone is off by 0.055, of which DDIM keeps
    # std/1 times (its map is linear with that slope): 0.027. Finite steps: under 1 % of the deviation.
    assert float(found.mean()) == pytest.approx(mean, abs=0.014 + (0.002 if sampler.startswith("ddpm") else 0.027))
    assert float(found.std()) == pytest.approx(std, abs=0.010 + 0.005)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_partial_strength_starts_from_the_regression(sampler: str) -> None:
    z_r, noise = seeded()(99), seeded()
    schedule = make_schedule(sampler, 50, 0.4)
    start = initial_latents(schedule, z_r, noise, 0.4)
    alpha = alphas_cumprod()[schedule.timesteps[0]]
    expected = math.sqrt(alpha) * z_r + math.sqrt(1 - alpha) * noise(0)
    torch.testing.assert_close(start, expected, rtol=0, atol=1e-15)
    assert torch.equal(initial_latents(make_schedule(sampler, 50), z_r, noise, 1.0), noise(0))

    seen: list[int] = []

    def denoiser_of_z_r(z: Tensor, t: Tensor) -> Tensor:
        """Knows that the data is z_r and nothing else."""
        seen.append(int(t[0]))
        a = alphas_cumprod()[int(t[0])]
        return (z - math.sqrt(a) * z_r) / math.sqrt(1 - a)

    found = sample(denoiser_of_z_r, start, schedule, noise)
    assert tuple(seen) == schedule.timesteps
    assert len(seen) == 20
    torch.testing.assert_close(found, z_r, rtol=0, atol=1e-12)


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

    found = run(sampler, 12, noise(0), noise, guidance=guidance)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-12)  # float64 throughout
    assert [step for _, step in calls] == list(range(12))
    assert calls[0][0] == 999
    assert all(type(t) is int for t, _ in calls)


def test_guidance_moves_the_posterior_mean_by_coef1() -> None:
    """Shifting z_0 by d at the one guided step shifts the next latents by coef1·d, and nothing else."""
    noise, schedule, shift = seeded(), make_schedule("ddpm", 10), 0.25
    after: dict[bool, Tensor] = {}
    for guided in (False, True):

        def guidance(z0: Tensor, t: int, step: int, on: bool = guided) -> tuple[Tensor, None]:
            return (z0 + shift if on and step == 4 else z0), None

        def callback(info: StepInfo, on: bool = guided) -> None:
            if info.step == 4:
                after[on] = info.latents

        sample(curved_denoiser, noise(0), schedule, noise, guidance, callback)
    expected = torch.full_like(after[True], shift * schedule.posterior_mean_coef1[4])
    torch.testing.assert_close(after[True] - after[False], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_equals_its_samples_alone_and_repeats(sampler: str) -> None:
    noise = seeded()
    batch = run(sampler, 8, noise(0), noise)
    assert torch.equal(batch, run(sampler, 8, noise(0), seeded()))
    for index, seed in enumerate(SEEDS):
        alone = seeded(seeds=(seed,))
        # Elementwise functions may be vectorised differently for another size: rounding of float64.
        found = run(sampler, 8, alone(0), alone)
        torch.testing.assert_close(found[0], batch[index], rtol=0, atol=1e-12)
    other = seeded(seeds=(12, 2**63))
    assert not torch.allclose(run(sampler, 8, other(0), other)[0], batch[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback_sees_every_step(sampler: str) -> None:
    noise, infos = seeded(torch.float32), list[StepInfo]()
    loss = torch.tensor([1.0, 2.0])
    found = run(
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
    assert infos[-1].latents is found
    assert infos[-1].z0.shape == found.shape
    torch.testing.assert_close(infos[-1].z0, found, rtol=0, atol=1e-5)  # the last step ends at its z_0
    assert [info.loss is loss for info in infos] == [False, True, False, True, False, True, False]
    assert not found.requires_grad

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
    for sampler in SAMPLERS:
        assert sample(half_denoiser, noise(0), make_schedule(sampler, 3), noise).dtype == torch.float32


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
        generator_noise([], (2, 3))
    drawn = generator_noise([torch.Generator().manual_seed(8)], (2, 3))
    fresh = torch.Generator().manual_seed(8)
    for step in (0, 1):
        assert torch.equal(drawn(step)[0], torch.randn((2, 3), generator=fresh))


def test_start_and_step_noise_are_different_draws() -> None:
    """Draw 0 starts the sampling; each of N steps but the last adds one more, never the same twice."""
    asked: list[int] = []

    def noise(draw: int) -> Tensor:
        asked.append(draw)
        return seeded()(draw)

    schedule = make_schedule("ddpm", 5)
    start = initial_latents(schedule, torch.zeros(2, *SHAPE, dtype=torch.float64), noise, 1.0)
    sample(curved_denoiser, start, schedule, noise)
    assert asked == [0, 1, 2, 3, 4]


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="noise is of shape"):
        initial_latents(make_schedule("ddpm", 5), torch.zeros(1, *SHAPE), seeded(), 1.0)
