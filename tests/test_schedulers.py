"""A pipeline's scheduler chooses the sampler, wherever the model goes, or it is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from diffbody_ref.components import build_scheduler, load_component
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.schedulers import sampler_of

OURS = build_scheduler("nano").config
FAST: dict[str, Any] = {"num_inference_steps": 4, "output_type": "np", "use_structure": False, "strength": 1.0}


@pytest.fixture(scope="module")
def pipe() -> DiffBodyPipeline:
    return DiffBodyPipeline.from_pretrained(NANO_FOLDER)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).random((48, 32, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("kind", "changes", "sampler"),
    [
        (DDPMScheduler, {}, "ddpm"),
        (DDPMScheduler, {"timestep_spacing": "linspace"}, "ddpm"),
        (DDPMScheduler, {"timestep_spacing": "trailing"}, "ddpm-trailing"),
        (DDIMScheduler, {}, "ddim"),
        (DDIMScheduler, {"timestep_spacing": "trailing"}, "ddim"),
        (DPMSolverMultistepScheduler, {}, "dpm++"),
        (DPMSolverMultistepScheduler, {"solver_order": 1}, "ddim"),
        (DPMSolverMultistepScheduler, {"lower_order_final": False, "steps_offset": 0}, "dpm++"),
    ],
)
def test_a_scheduler_is_a_sampler(kind: Any, changes: dict[str, Any], sampler: str) -> None:
    assert sampler_of(kind.from_config(OURS, **changes)) == sampler


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (EulerDiscreteScheduler, {}, "EulerDiscreteScheduler is not supported"),
        (PNDMScheduler, {}, "PNDMScheduler is not supported"),
        (UniPCMultistepScheduler, {}, "UniPCMultistepScheduler is not supported"),
        (DDPMScheduler, {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        (DDPMScheduler, {"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        (DDPMScheduler, {"beta_end": 1.02}, "beta_start and beta_end: 0.00085 and 1.02"),
        (DDPMScheduler, {"rescale_betas_zero_snr": True}, "does not go with a zero terminal SNR"),
        (DDPMScheduler, {"num_train_timesteps": 500}, "num_train_timesteps is 500"),
        (DDPMScheduler, {"trained_betas": [0.1, 0.2]}, "trained_betas: 2 values"),
        (DDPMScheduler, {"variance_type": "fixed_large"}, "variance_type is 'fixed_large'"),
        (DDPMScheduler, {"clip_sample": True}, "clip_sample is True"),
        (DDPMScheduler, {"thresholding": True}, "thresholding is True"),
        (DDIMScheduler, {"timestep_spacing": "linspace"}, "timestep_spacing is 'linspace'"),
        (DDIMScheduler, {"set_alpha_to_one": False}, "set_alpha_to_one is False"),
        (DDIMScheduler, {"rescale_betas_zero_snr": True}, "does not go with a zero terminal SNR"),
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type is 'sde-dpmsolver"),
        (DPMSolverMultistepScheduler, {"solver_order": 3}, "solver_order is 3"),
        (DPMSolverMultistepScheduler, {"solver_type": "heun"}, "solver_type is 'heun'"),
        (DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min"}, "final_sigmas_type is 'sigma_min'"),
    ],
)
def test_what_samplers_do_not_do_is_refused_by_name(
    pipe: DiffBodyPipeline, picture: np.ndarray, kind: Any, changes: dict[str, Any], named: str
) -> None:
    other = DiffBodyPipeline(**{**pipe.components, "scheduler": kind.from_config(OURS, **changes)})
    with pytest.raises(ValueError, match=named) as caught:
        other(picture, **FAST, sampler="ddpm")  # naming a sampler does not make another model of it
    assert "\n" not in str(caught.value)


def test_swapping_the_scheduler_is_naming_the_sampler(pipe: DiffBodyPipeline, picture: np.ndarray) -> None:
    found = {}
    for kind in (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler):
        swapped = DiffBodyPipeline(**pipe.components, **pipe.settings.of_pipeline())
        swapped.scheduler = kind.from_config(pipe.scheduler.config)
        found[sampler_of(swapped.scheduler)] = swapped(picture, **FAST).images[0]
        assert not np.array_equal(swapped(picture, **FAST, seed=9).images[0], found[sampler_of(swapped.scheduler)])
    assert list(found) == ["ddpm", "ddim", "dpm++"]
    for name, image in found.items():
        np.testing.assert_array_equal(image, pipe(picture, **FAST, sampler=name).images[0])
    assert not np.array_equal(found["ddpm"], found["ddim"])
    assert not np.array_equal(found["ddim"], found["dpm++"])


def test_the_scheduler_stays_what_it_is_when_saved_and_in_a_bundle(pipe: DiffBodyPipeline, tmp_path: Path) -> None:
    from export.bundle import _manifest

    swapped = DiffBodyPipeline(**pipe.components, **pipe.settings.of_pipeline())
    swapped.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    swapped.scheduler.save_pretrained(tmp_path / "scheduler")
    again = load_component(tmp_path, "scheduler")
    assert type(again) is DPMSolverMultistepScheduler
    assert sampler_of(again) == "dpm++"
    assert _manifest(swapped, "x", (), tmp_path, {}).settings.sampler == "dpm++"
    assert swapped.settings.options().sampler == "dpm++"
    assert dataclasses.replace(swapped.settings, sampler="ddpm").options().sampler == "ddpm"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("{", "no scheduler"),
        ("[]", "no scheduler"),
        ("[" * 100_000, "no scheduler"),
        ({}, "_class_name"),
        ({"_class_name": "EulerDiscreteScheduler"}, "'EulerDiscreteScheduler' is not supported"),
        ({"_class_name": ["os", "system"]}, "is not supported"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "x"}, "DDPMScheduler"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_folder_with_another_scheduler_is_named(tmp_path: Path, config: Any, named: str) -> None:
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=named) as caught:
        load_component(tmp_path, "scheduler")
    assert "scheduler" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
