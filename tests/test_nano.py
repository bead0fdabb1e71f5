"""The weights that come with the package: small, and they restore the samples as the method promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from diffbody_ref.evaluation.measures import psnr, sharpness
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import read_image, resize
from diffbody_ref.ops.results import NO_PERSON
from diffbody_ref.output import DiffBodyOutput
from diffbody_ref.pipeline import DiffBodyPipeline

SAMPLES = Path(__file__).parent.parent / "samples"
BUDGET = 32_000_000  # bytes of all weights together
STEPS = 10


@pytest.fixture(scope="module")
def nano() -> DiffBodyPipeline:
    pipeline = DiffBodyPipeline.from_pretrained(NANO_FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic sample at nano's base size, float32: the original, and the degraded picture brought to that size."""
    clean, low = (read_image(SAMPLES / kind / f"{name}.jpg").pixels for kind in ("clean", "degraded"))
    return np.clip(resize(clean, 256, 128), 0, 1), np.clip(resize(low, 256, 128, method="bicubic"), 0, 1)


@pytest.fixture(scope="module")
def originals() -> list[np.ndarray]:
    return [sample("synthetic_1")[0], sample("synthetic_2")[0]]


@pytest.fixture(scope="module")
def degraded() -> list[np.ndarray]:
    return [sample("synthetic_1")[1], sample("synthetic_2")[1]]


@pytest.fixture(scope="module")
def restored(nano: DiffBodyPipeline, degraded: list[np.ndarray]) -> DiffBodyOutput:
    """With all steps of the default: fewer leave more out."""
    return nano(degraded, output_type="np", return_intermediates=True, seed=1)


def test_the_weights_are_half_precision_and_within_the_budget() -> None:
    files = list(NANO_FOLDER.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) <= BUDGET
    for path in files:
        with safe_open(path, "np") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118, it is no dict
        assert kinds <= {"F16", "I64"}, path  # I64: batch norm's counter


def test_the_regression_stage_is_nearer_to_the_original_than_bicubic(
    originals: list[np.ndarray], degraded: list[np.ndarray], restored: DiffBodyOutput
) -> None:
    assert restored.intermediates is not None
    for original, low, found in zip(originals, degraded, restored.intermediates, strict=True):
        assert psnr(found.regression, original) > psnr(low, original)


def test_the_result_is_sharper_than_the_regression_and_loses_little(
    originals: list[np.ndarray], restored: DiffBodyOutput
) -> None:
    assert restored.intermediates is not None
    for original, image, found in zip(originals, restored.images, restored.intermediates, strict=True):
        assert sharpness(image, original) > sharpness(found.regression, original)
        # 1.5 dB is what the diffusion may cost on the mean of many pictures; a single one may cost twice that.
        assert psnr(image, original) > psnr(found.regression, original) - 3.0


def test_the_residual_spares_what_is_good_already(nano: DiffBodyPipeline, originals: list[np.ndarray]) -> None:
    call = {"num_inference_steps": STEPS, "output_type": "np"}
    kept, lost = (nano(originals, **call, use_residual=use).images for use in (True, False))
    for original, image, without in zip(originals, kept, lost, strict=True):
        # Putting back what the autoencoder loses gained 1.8 and 1.1 dB here with the weights 0468e403.
        assert psnr(image, original) > psnr(without, original) + 0.5


def test_the_person_and_the_parts_are_found(restored: DiffBodyOutput) -> None:
    assert restored.intermediates is not None
    for found, notices in zip(restored.intermediates, restored.notices, strict=True):
        assert len(found.boxes) == 1
        assert found.pose.any()
        assert found.attention[-1].max() > 0.8  # the foreground
        assert NO_PERSON not in notices


def test_the_body_loss_falls_along_the_loop_and_below_the_unguided_one(
    nano: DiffBodyPipeline, degraded: list[np.ndarray]
) -> None:
    """Algorithm 1 on real weights, from noise; a scale of almost 0 moves nothing, yet reports the loss."""
    guided, unguided = (
        nano(
            degraded,
            num_inference_steps=STEPS,
            output_type="np",
            return_intermediates=True,
            seed=1,
            strength=1.0,
            body_guidance_scale=scale,
        ).intermediates
        for scale in (300.0, 1e-9)
    )
    for ours, others in zip(guided, unguided, strict=True):
        losses, unguided_losses = ([loss for _, loss in found.loss_curve] for found in (ours, others))
        assert len(losses) == STEPS
        assert losses[-1] < losses[0]
        assert sum(losses) < sum(unguided_losses)


def test_several_people_are_all_found(nano: DiffBodyPipeline, degraded: list[np.ndarray]) -> None:
    pair = np.concatenate(degraded, axis=1)
    result = nano(pair, num_inference_steps=2, output_type="np", return_intermediates=True)
    assert result.images[0].shape == pair.shape
    assert result.intermediates is not None
    boxes = result.intermediates[0].boxes
    assert len(boxes) == 2
    assert sorted(bool(x0 + x1 > pair.shape[1]) for x0, _, x1, *_ in boxes) == [False, True]  # one in each half


def test_a_picture_without_a_person_is_restored_with_a_notice(nano: DiffBodyPipeline) -> None:
    grey = np.full((256, 128, 3), 0.5, np.float32)
    result = nano(grey, num_inference_steps=2, output_type="np", return_intermediates=True)
    assert result.intermediates is not None
    assert NO_PERSON in result.notices[0]
    assert not len(result.intermediates[0].boxes)
    assert not result.intermediates[0].loss_curve
    assert np.abs(result.images[0] - grey).mean() < 0.1
