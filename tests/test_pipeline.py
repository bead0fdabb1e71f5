"""DiffBodyPipeline with random nano weights: sizes, inputs, seeds, batches, folders, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffbody_ref.components import COMPONENT_CLASSES, build_component
from diffbody_ref.ops.pose import person_crop
from diffbody_ref.ops.results import NO_PERSON
from diffbody_ref.pipeline import DiffBodyPipeline, _Sampled

FAST: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe() -> DiffBodyPipeline:
    torch.manual_seed(0)
    components = {name: build_component(name, "nano") for name in COMPONENT_CLASSES}
    torch.nn.init.normal_(components["control"].controlnet_cond_embedding.weight, std=0.1)
    for block in components["control"].controlnet_down_blocks:
        torch.nn.init.normal_(block.weight, std=0.05)  # else the condition has no way in before training
    pipeline = DiffBodyPipeline(**components, base_height=64, base_width=32, tile_size=128, body_guidance_scale=0.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


@pytest.fixture
def one_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights find nobody: say that one person fills the picture; all else is the real thing."""

    def found(detector: Any, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        return np.array([[2, 2, width - 3, height - 3, 0.9]], np.float32)

    monkeypatch.setattr("diffbody_ref.structure.detect_people", found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((64, 32), (64, 32)),
        ((61, 35), (61, 35)),
        ((20, 18), (48, 43)),
        ((40, 150), (40, 150)),
        ((150, 140), (150, 140)),
    ],
)
def test_any_size_keeps_its_aspect_and_at_least_the_base_area(
    pipe: DiffBodyPipeline, given: tuple[int, int], expected: tuple[int, int]
) -> None:
    (image,) = pipe(noise_picture(*given), **FAST).images
    assert image.shape == (*expected, 3)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1


def test_upscale_asks_for_the_size(pipe: DiffBodyPipeline) -> None:
    assert pipe(noise_picture(40, 20), **FAST, upscale=2).images[0].shape == (80, 40, 3)
    assert pipe(noise_picture(20, 20), **FAST, upscale=1).images[0].shape == (20, 20, 3)


def test_a_seed_gives_one_picture(pipe: DiffBodyPipeline) -> None:
    picture = noise_picture(64, 32)
    first, again, other = (pipe(picture, **FAST, seed=seed).images[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_batch_gives_what_its_pictures_give_alone(pipe: DiffBodyPipeline, one_person: None) -> None:
    pictures = [noise_picture(64, 32, 1), noise_picture(64, 32, 2), noise_picture(80, 48, 3)]
    settings = {**FAST, "body_guidance_scale": 5.0}
    together = pipe(pictures, **settings, seed=[4, 5, 6], prompt=["a man", "a woman", ""]).images
    for picture, seed, prompt, ours in zip(pictures, (4, 5, 6), ("a man", "a woman", ""), together, strict=True):
        alone = pipe(picture, **settings, seed=seed, prompt=prompt).images[0]
        # float32 sums of another batch size, amplified by √(1/ᾱ_999) ≈ 15 in the first step.
        np.testing.assert_allclose(ours, alone, atol=2e-3)


def test_prompt_and_guidance_scale_reach_the_denoiser(pipe: DiffBodyPipeline) -> None:
    picture = noise_picture(64, 32)
    plain = pipe(picture, **FAST).images[0]
    prompted = pipe(picture, **FAST, prompt="a red coat").images[0]
    scaled = pipe(picture, **{**FAST, "guidance_scale": 3.0}, prompt="a red coat").images[0]
    assert not np.array_equal(plain, prompted)
    assert not np.array_equal(prompted, scaled)
    # Classifier-free guidance between equal prompts is no guidance: w·(ε − ε) vanishes up to float32 rounding.
    equal = pipe(picture, **{**FAST, "guidance_scale": 3.0}, prompt="x", negative_prompt="x").images[0]
    np.testing.assert_allclose(equal, pipe(picture, **FAST, prompt="x").images[0], atol=2e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_sampler_runs_its_share_of_steps(pipe: DiffBodyPipeline, sampler: str, strength: float) -> None:
    seen: list[int] = []
    pipe(
        noise_picture(64, 32),
        **{**FAST, "num_inference_steps": 4},
        sampler=sampler,
        strength=strength,
        callback_on_step_end=lambda _, step, t, tensors: seen.append(t),
    )
    assert len(seen) == 4 * strength
    assert seen == sorted(seen, reverse=True)


def test_body_guidance_lowers_its_loss(pipe: DiffBodyPipeline, one_person: None) -> None:
    picture = noise_picture(64, 32)
    free, guided = (
        pipe(picture, **{**FAST, "num_inference_steps": 6}, body_guidance_scale=s, return_intermediates=True)
        for s in (1e-9, 300.0)
    )
    losses = [out.intermediates[0].loss_curve[-1][1] for out in (free, guided)]
    assert losses[1] < losses[0]


def test_body_guidance_zero_is_the_unguided_sampler(pipe: DiffBodyPipeline, one_person: None) -> None:
    picture = noise_picture(64, 32)
    off = pipe(picture, **FAST, body_guidance_scale=0.0, return_intermediates=True)
    assert off.intermediates[0].loss_curve == []
    # The two steps are t = 999 and t = 0: neither is within 100 < t < 900.
    outside = pipe(picture, **FAST, body_guidance_scale=9.0, body_guidance_start=900, body_guidance_stop=100)
    assert np.array_equal(off.images[0], outside.images[0])


def test_without_pose_or_attention_the_rest_goes_on(pipe: DiffBodyPipeline, one_person: None) -> None:
    """Each map has its own way into the denoiser; without both, people are still found and guided."""
    picture, guided = noise_picture(64, 32), {**FAST, "body_guidance_scale": 300.0}
    whole, no_pose, no_attention, neither = (
        pipe(picture, **guided, use_pose=pose, use_attention=attention, return_intermediates=True)
        for pose, attention in ((True, True), (False, True), (True, False), (False, False))
    )
    results = [out.images[0] for out in (whole, no_pose, no_attention, neither)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(results) for b in results[:i])
    assert len(neither.intermediates[0].loss_curve) == FAST["num_inference_steps"]
    nobody = pipe(picture, **FAST, use_structure=False).images[0]
    unguided = pipe(picture, **FAST, use_pose=False, use_attention=False).images[0]
    np.testing.assert_array_equal(unguided, nobody)


@pytest.mark.parametrize("tile_size", [None, 128], ids=["whole", "tiled"])
def test_with_the_residual_a_sampler_that_changes_nothing_gives_r_back(
    pipe: DiffBodyPipeline, monkeypatch: pytest.MonkeyPatch, tile_size: int | None
) -> None:
    """D(z_r) + r − D(z_r) is r up to float32 rounding, whatever the autoencoder loses; random weights lose most."""
    monkeypatch.setattr(pipe, "_sample", lambda jobs, *_: [_Sampled(job.z_r, [], []) for job in jobs])
    call = {**FAST, "tile_size": tile_size, "colour_fix": "none", "return_intermediates": True}
    kept, lost = (pipe(noise_picture(150, 61), **call, use_residual=use) for use in (True, False))
    regression = kept.intermediates[0].regression
    np.testing.assert_allclose(kept.images[0], regression, atol=1e-5)
    assert np.abs(lost.images[0] - regression).mean() > 0.01


def test_nobody_found_is_said_and_harmless(pipe: DiffBodyPipeline) -> None:
    out = pipe(noise_picture(64, 32), **FAST, body_guidance_scale=5.0, return_intermediates=True)
    assert out.notices == [[NO_PERSON]]
    found = out.intermediates[0]
    assert len(found.boxes) == len(found.keypoints) == 0
    assert found.pose.max() == found.attention.max() == 0
    assert found.loss_curve == []


def test_intermediates_have_the_working_size(pipe: DiffBodyPipeline, one_person: None) -> None:
    out = pipe(noise_picture(61, 35), **FAST, return_intermediates=True)
    found = out.intermediates[0]
    assert found.regression.shape == found.pose.shape == (61, 35, 3)
    assert found.attention.shape == (6, 61, 35)
    assert found.attention.max() > 0
    assert pipe(noise_picture(61, 35), **FAST).intermediates is None


def test_tiles_agree_with_the_whole_where_they_overlap(pipe: DiffBodyPipeline) -> None:
    """Tiles see other borders than the whole, so results differ, but by less than the picture varies."""
    picture = noise_picture(160, 140)
    tiled = pipe(picture, **FAST, tile_size=128, colour_fix="none").images[0]
    whole = pipe(picture, **FAST, tile_size=256, colour_fix="none").images[0]
    assert tiled.shape == whole.shape == (160, 140, 3)
    assert np.abs(tiled - whole).mean() < 0.25 * np.abs(whole - whole.mean()).mean()


def test_alpha_grey_and_orientation(pipe: DiffBodyPipeline) -> None:
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 4), dtype=np.uint8), "RGBA")
    settings = {**FAST, "output_type": "pil"}
    out = pipe(rgba, **settings).images[0]
    assert out.mode == "RGBA"
    assert np.array_equal(np.asarray(out)[..., 3], np.asarray(rgba)[..., 3])  # same size: alpha passes as it is
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32), dtype=np.uint8))
    assert pipe(grey, **settings).images[0].mode == "RGB"
    turned = grey.copy()
    turned.getexif()[0x0112] = 6  # "rotate by 90°": stored lying, shown standing
    assert pipe(turned, **settings).images[0].size == (64, 32)


def test_save_and_load_in_diffusers_layout(pipe: DiffBodyPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model_index.json").is_file()
    assert not list((tmp_path / "saved").rglob("*.bin"))  # safetensors only
    again = DiffBodyPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    picture = noise_picture(64, 32)
    # The same weights at other addresses: a convolution may take another kernel, so equal up to float32 rounding.
    np.testing.assert_allclose(pipe(picture, **FAST).images[0], again(picture, **FAST).images[0], atol=2e-3)
    assert again.config.base_height == 64


def test_a_torch_generator_may_replace_the_seed(pipe: DiffBodyPipeline) -> None:
    picture = noise_picture(64, 32)
    first, again = (pipe(picture, **FAST, generator=torch.Generator().manual_seed(3)).images[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, pipe(picture, **FAST, seed=3).images[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be in"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be"),
        ({"body_guidance_scale": -1.0}, "body_guidance_scale must be"),
        ({"strength": 1.5}, "strength must be"),
        ({"sampler": "euler"}, "unknown sampler 'euler'"),
        ({"colour_fix": "magic"}, "unknown colour_fix 'magic'"),
        ({"upscale": 99}, "upscale must be"),
        ({"tile_size": 8}, "tile_size must be"),
        ({"steps": 3}, "unknown option 'steps'"),
        ({"seed": -1}, "seed must be"),
        ({"seed": [1, 2]}, "2 given for 1 pictures"),
        ({"output_type": "gif"}, "unknown output_type"),
    ],
)
def test_a_wrong_value_is_named(pipe: DiffBodyPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        pipe(noise_picture(64, 32), **{**FAST, **options})
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model_index"):
        DiffBodyPipeline.from_pretrained(tmp_path)


def test_person_crops_stay_inside() -> None:
    box = np.array([-20.0, 5.0, 900.0, 700.0, 0.9])
    assert person_crop(box, 64, 32) == (0, 0, 32, 64)
    x0, y0, x1, y1 = person_crop(np.array([40.0, 70.0, 41.0, 71.0]), 64, 32)  # beyond the picture
    assert 0 <= x0 < x1 <= 32
    assert 0 <= y0 < y1 <= 64
