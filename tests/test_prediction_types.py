"""ε, v and z_0, other betas and a zero terminal SNR: what the scheduler says is what is sampled, wherever it runs."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from diffbody_ref.models.control import denoise
from diffbody_ref.models.text import encode_prompt
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import as_picture
from diffbody_ref.ops.samplers import (
    PREDICTIONS,
    SAMPLERS,
    STABLE_DIFFUSION,
    NoiseProcess,
    alphas_cumprod,
    make_schedule,
    zero_terminal_snr,
)
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.sampling import generator_noise, noise_source, sample
from diffbody_ref.schedulers import noise_process_of, sampler_of, scheduler_for
from diffbody_ref.training.stages import build_stage
from runtime.restore import Restorer
from tests.people import write_people
from tests.test_training_runs import diffusion_config, first_batch, prepared

SHAPE = (4, 6, 5)
SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR: dict[str, Any] = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
PROCESSES: dict[str, dict[str, Any]] = {
    "ε": SD,
    "v": {**SD, "prediction_type": "v_prediction"},
    "z0": {**SD, "prediction_type": "sample"},
    "v, zero terminal SNR": ZERO_SNR,
    "z0, zero terminal SNR": {**ZERO_SNR, "prediction_type": "sample"},
    "v, linear": {"beta_schedule": "linear", "prediction_type": "v_prediction"},
    "ε, other ends": {**SD, "beta_start": 0.0005, "beta_end": 0.02},
    "v, cosine": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    "v, its own betas": {
        "trained_betas": np.linspace(0.001, 0.01, 1000).tolist(),
        "prediction_type": "v_prediction",
    },
}


def curved_denoiser(z: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.7 * z + 0.2 * z.roll(1, dims=-1)) + 0.3 * torch.cos(t / 250.0).to(z)[:, None, None, None]


def scheduler(kind: Any, config: dict[str, Any]) -> Any:
    plain = {} if kind is DPMSolverMultistepScheduler else {"clip_sample": False}
    return kind(**config, **plain, timestep_spacing="trailing")


def in_double(theirs: Any, alphas: np.ndarray) -> Any:
    """diffusers' scheduler with its noise levels in float64: it computes them in float32."""
    theirs.alphas_cumprod = torch.from_numpy(alphas)
    theirs.one = theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return theirs


@pytest.mark.parametrize("config", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_noise_levels_are_diffusers(kind: Any, config: dict[str, Any]) -> None:
    theirs = scheduler(kind, config)
    # diffusers multiplies a thousand numbers in float32: 1e-5; its DPM-Solver writes 2⁻²⁴ for 0.
    wanted = theirs.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(noise_process_of(theirs).alphas_cumprod, wanted, rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("config", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_every_step_is_diffusers(kind: Any, config: dict[str, Any], steps: int) -> None:
    theirs = scheduler(kind, config)
    process = noise_process_of(theirs)
    if kind is DPMSolverMultistepScheduler and process.alphas_cumprod[-1] == 0.0:
        process = dataclasses.replace(process, alphas_cumprod=(*process.alphas_cumprod[:-1], 2.0**-24))
    in_double(theirs, np.array(process.alphas_cumprod)).set_timesteps(steps)
    schedule = make_schedule(sampler_of(theirs), steps, process=process)
    assert schedule.timesteps == tuple(theirs.timesteps.tolist())

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    z, drawn = noise_source([3, 4], SHAPE, dtype=torch.float64)(0), generators()
    seen: list[Tensor] = []
    sample(
        curved_denoiser,
        z,
        schedule,
        generator_noise(generators(), SHAPE, dtype=torch.float64),
        callback=lambda info: seen.append(info.latents),
    )
    random = {} if kind is DPMSolverMultistepScheduler else {"generator": drawn}
    # float64; ε at ᾱ = 2e-9 (cosine) would divide by 5e-5. diffusers' DPM-Solver takes logarithms in float32.
    tolerance = 2e-3 if kind is DPMSolverMultistepScheduler else 1e-9
    for t, ours in zip(theirs.timesteps, seen, strict=True):
        z = theirs.step(curved_denoiser(z, t.repeat(2)), t, z, **random).prev_sample
        torch.testing.assert_close(ours, z, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("steps", [2, 7, 30])
def test_the_solver_has_its_limit_at_pure_noise(steps: int) -> None:
    """ᾱ = 0 is the limit of a small ᾱ: the step's log SNR is −∞, and nothing of that is NaN."""
    exact = noise_process_of(DDPMScheduler(**ZERO_SNR, clip_sample=False))
    noise = noise_source([3], SHAPE, dtype=torch.float64)
    for sampler in ("ddpm", "ddpm-trailing", "ddim", "dpm++"):
        found = [
            sample(curved_denoiser, noise(0), make_schedule(sampler, steps, process=process), noise)
            for process in (exact, dataclasses.replace(exact, alphas_cumprod=(*exact.alphas_cumprod[:-1], 1e-300)))
        ]
        assert torch.isfinite(found[0]).all()
        # The difference of two z̃_0 counts by 1/|λ| in the second-order solver, and λ is −345 at 1e-300.
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-2 if sampler == "dpm++" else 1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_pure_noise_samples_follow_the_data(sampler: str) -> None:
    """With a zero terminal SNR noise alone is right to start from: the mean of the data comes out, without ε's bias."""
    mean, std, shape = 0.8, 0.5, (1, 100, 200)
    process = noise_process_of(DDPMScheduler(**ZERO_SNR, clip_sample=False))
    alphas = torch.tensor(process.alphas_cumprod, dtype=torch.float64)

    def denoise_gaussian(z: Tensor, t: Tensor) -> Tensor:
        """The exact v for data from N(mean, std²): √ᾱ E[ε | z] − √(1 − ᾱ) E[z_0 | z]."""
        a = alphas[t].to(z)[:, None, None, None]
        surplus = (z - a.sqrt() * mean) / (a * std**2 + 1 - a)
        return a.sqrt() * (1 - a).sqrt() * surplus - (1 - a).sqrt() * (mean + a.sqrt() * std**2 * surplus)

    noise = noise_source([5], shape)
    found = sample(denoise_gaussian, noise(0), make_schedule(sampler, 500, process=process), noise)
    # 20,000 samples: four standard errors, 0.014 of the mean and 0.010 of the deviation; finite steps: 1 % of that.
    assert float(found.mean()) == pytest.approx(mean, abs=0.014)
    assert float(found.std()) == pytest.approx(std, abs=0.010 + 0.005)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_what_is_trained_is_what_is_sampled(name: str) -> None:
    """z_0 of the target is z_0, and an error of the output is one of z_0 by the stated scale."""
    rng = np.random.default_rng(0)
    z0, eps, error = rng.standard_normal((3, 2, *SHAPE))
    a = np.array([0.9, 0.02])[:, None, None, None]
    s, n, prediction = np.sqrt(a), np.sqrt(1 - a), PREDICTIONS[name]
    z, target = s * z0 + n * eps, prediction.target(s, n, z0, eps)
    np.testing.assert_allclose(prediction.z0(s, n, z, target), z0, atol=1e-12)
    moved = prediction.z0(s, n, z, target + error) - z0
    scale = np.broadcast_to(prediction.error_scale(a / (1 - a)), a.shape)
    np.testing.assert_allclose(error**2, scale * moved**2, rtol=1e-9)


def test_the_target_is_diffusers_velocity() -> None:
    theirs = in_double(DDPMScheduler(**SD), alphas_cumprod())
    z0, eps = torch.randn(2, 2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 800])
    a = theirs.alphas_cumprod[t][:, None, None, None]
    found = PREDICTIONS["v_prediction"].target(a.sqrt(), (1 - a).sqrt(), z0, eps)
    torch.testing.assert_close(found, theirs.get_velocity(z0, eps, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("alphas", "prediction", "named"),
    [
        (STABLE_DIFFUSION.alphas_cumprod, "flow_prediction", "unknown prediction_type 'flow_prediction'"),
        (STABLE_DIFFUSION.alphas_cumprod[1:], "epsilon", "alphas_cumprod must be 1000 numbers"),
        (STABLE_DIFFUSION.alphas_cumprod[::-1], "epsilon", "alphas_cumprod must be 1000 numbers"),
        ((*STABLE_DIFFUSION.alphas_cumprod[:-1], -1e-9), "v_prediction", "alphas_cumprod must be 1000 numbers"),
        ((*STABLE_DIFFUSION.alphas_cumprod[:-1], math.nan), "v_prediction", "alphas_cumprod must be 1000 numbers"),
        ((*STABLE_DIFFUSION.alphas_cumprod[:-1], 0.0), "epsilon", "does not go with a zero terminal SNR"),
    ],
)
def test_a_process_that_is_none_is_named(alphas: tuple[float, ...], prediction: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NoiseProcess(tuple(alphas), prediction)


# ---- Whole pipelines, with nano's networks: what they make of v is no picture, but the same one everywhere.


@pytest.fixture(scope="module")
def nano() -> DiffBodyPipeline:
    return DiffBodyPipeline.from_pretrained(NANO_FOLDER)


def picture() -> np.ndarray:
    return np.random.default_rng(0).random((48, 32, 3), dtype=np.float32)


def by_scheduler(nano: DiffBodyPipeline, scheduler: Any) -> DiffBodyPipeline:
    """nano with another scheduler, on small pictures."""
    settings = {**nano.settings.of_pipeline(), "base_height": 48, "base_width": 32}
    return DiffBodyPipeline(**{**nano.components, "scheduler": scheduler}, **settings)


CALL: dict[str, Any] = {"num_inference_steps": 5, "strength": 1.0, "use_structure": False}


@pytest.mark.parametrize(
    ("kind", "config"),
    [(DDIMScheduler, ZERO_SNR), (DPMSolverMultistepScheduler, PROCESSES["v"])],
    ids=["ddim", "dpm++"],
)
def test_a_pipeline_samples_as_a_loop_of_diffusers(nano: DiffBodyPipeline, kind: Any, config: dict[str, Any]) -> None:
    theirs = scheduler(kind, config)
    pipe = by_scheduler(nano, theirs)
    job = pipe._prepare(as_picture(picture()), pipe.settings.options(**CALL))
    text = encode_prompt(pipe.tokenizer, pipe.text_encoder, ["a man"])
    theirs.set_timesteps(5)
    z = noise_source([7], job.z_r.shape[1:])(0)
    with torch.no_grad():
        for t in theirs.timesteps:
            output = denoise(pipe.unet, pipe.control, z, t.repeat(1), text, job.condition)
            z = theirs.step(output, t, z).prev_sample
    (found,) = pipe(picture(), "a man", **CALL, seed=7, output_type="latent").images
    # float32 throughout, and diffusers' noise levels are off by 1e-5; its DPM-Solver takes logarithms of them.
    torch.testing.assert_close(found[None], z, rtol=0, atol=5e-3 if kind is DPMSolverMultistepScheduler else 1e-3)


@pytest.mark.parametrize("config", [PROCESSES["v"], ZERO_SNR, PROCESSES["v, linear"]], ids=["v", "zero", "linear"])
def test_a_bundle_samples_what_its_manifest_says(nano: DiffBodyPipeline, config: dict[str, Any]) -> None:
    pipe = by_scheduler(nano, scheduler(DDIMScheduler, config))
    of_epsilon = Restorer.open(NANO_FOLDER)
    process = noise_process_of(pipe.scheduler)
    manifest = dataclasses.replace(
        of_epsilon.manifest,
        settings=pipe.settings,
        alphas_cumprod=process.alphas_cumprod,
        prediction_type=process.prediction_type,
    )
    restorer = Restorer(manifest, of_epsilon.infer, of_epsilon.tokenize)
    call = {**CALL, "use_structure": True, "body_guidance_scale": 0.0, "seed": 2}
    (wanted,) = pipe(picture(), **call, output_type="np").images
    found = restorer.restore(picture(), **call).pixels
    # Graphs agree with networks to 1e-5 of what they make.
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    guided: dict[str, Any] = {**call, "num_inference_steps": 1, "body_guidance_scale": 1e-3}
    curves = [
        restorer.restore(picture(), **guided).intermediates.loss_curve,
        pipe(picture(), **guided, return_intermediates=True).intermediates[0].loss_curve,
    ]
    # The loss of z̃_0 by v, in people that the detector finds in the noise.
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]] == [999]
    assert curves[0][0][1] == pytest.approx(curves[1][0][1], rel=1e-3)
    epsilon = Restorer(
        dataclasses.replace(manifest, prediction_type="epsilon", alphas_cumprod=STABLE_DIFFUSION.alphas_cumprod),
        of_epsilon.infer,
        of_epsilon.tokenize,
    )
    assert np.abs(found - epsilon.restore(picture(), **call).pixels).max() > 0.05


def test_the_manifest_of_an_export_says_the_process(nano: DiffBodyPipeline, tmp_path: Path) -> None:
    from export.bundle import _manifest

    manifest = _manifest(by_scheduler(nano, DDPMScheduler(**ZERO_SNR, clip_sample=False)), "x", (), tmp_path, {})
    assert manifest.prediction_type == "v_prediction"
    np.testing.assert_array_equal(manifest.alphas_cumprod, zero_terminal_snr(alphas_cumprod()))
    assert manifest.alphas_cumprod[-1] == 0.0
    assert _manifest(nano, "x", (), tmp_path, {}).noise_process == STABLE_DIFFUSION


@pytest.mark.parametrize("source", [PNDMScheduler, EulerDiscreteScheduler, DDIMScheduler])
def test_of_a_sources_scheduler_the_process_is_kept(source: Any) -> None:
    config = source(**SD, prediction_type="v_prediction", steps_offset=1).config
    kept = scheduler_for(config)
    assert noise_process_of(kept) == dataclasses.replace(STABLE_DIFFUSION, prediction_type="v_prediction")
    assert sampler_of(kept) == "ddpm"
    zero = scheduler_for({**config, "rescale_betas_zero_snr": True})
    assert noise_process_of(zero).alphas_cumprod[-1] == 0.0
    assert sampler_of(zero) == "ddpm-trailing"
    with pytest.raises(ValueError, match="prediction_type is 'flow_prediction'"):
        scheduler_for({**config, "prediction_type": "flow_prediction"})


# ---- Training


def test_training_follows_the_scheduler(tmp_path: Path) -> None:
    """The loss of a batch is what diffusers' noising and velocity make of the same network's output, min-SNR for v."""
    people = write_people(tmp_path / "people")
    config = diffusion_config(people, tmp_path, snr_gamma=5.0, structure=False, tuning="control", cache_text=True)
    theirs = scheduler_for(ZERO_SNR)
    theirs.save_pretrained(tmp_path / "pipeline" / "scheduler")
    for name in ("pose_detector", "pose", "parts"):  # without structure, nobody is looked for
        shutil.rmtree(tmp_path / "pipeline" / name)
    stage = prepared(config)
    batch = first_batch(stage)
    batch["timestep"] = torch.tensor([999, 400])
    with torch.no_grad():
        found = stage(batch)["loss"]
        noisy = theirs.add_noise(batch["latents"], batch["noise"], batch["timestep"])
        target = theirs.get_velocity(batch["latents"], batch["noise"], batch["timestep"])
        output = denoise(stage.unet, stage.control, noisy, batch["timestep"], batch["text"], batch["condition"])
    snr = theirs.alphas_cumprod[batch["timestep"]] / (1 - theirs.alphas_cumprod[batch["timestep"]])
    weight = snr.clamp(max=5.0) / (snr + 1)
    wanted = ((output - target).square().mean(dim=(1, 2, 3)) * weight).mean()
    # float32; diffusers' noise levels are off by 1e-5.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"no component 'pose_detector' there; .* structure = false"):
        build_stage(dataclasses.replace(config, structure=True))
