"""Models that lack networks: what they can do they do as any other, what they cannot is said, and nothing breaks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from diffbody_ref.components import COMPONENT_CLASSES, OPTIONAL, build_component
from diffbody_ref.models.control import ControlBranch, condition_latents, with_parts
from diffbody_ref.models.regression import REGRESSIONS
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import read_image
from diffbody_ref.ops.results import NO_REGRESSION, guidance_notices, lack_notices
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.stages import STAGES, bind_stages
from diffbody_ref.training.release import release, release_notices
from runtime.bundle import MANIFEST, Bundle, Manifest, read_manifest
from runtime.restore import Restorer
from runtime.triton.plans import STAGES as PLANNED
from runtime.triton.plans import planned_stages

SAMPLE = Path(__file__).parents[1] / "export" / "sample.jpg"
LEAST = ("text_encoder", "vae_encoder", "denoiser", "vae_decoder")
FAST: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "strength": 0.5}


@pytest.fixture(scope="module")
def pipe() -> DiffBodyPipeline:
    torch.manual_seed(0)
    components = {name: build_component(name, "nano") for name in COMPONENT_CLASSES}
    torch.nn.init.normal_(components["control"].controlnet_cond_embedding.weight, std=0.1)
    for block in components["control"].controlnet_down_blocks:
        torch.nn.init.normal_(block.weight, std=0.05)  # else the condition has no way in before training
    return DiffBodyPipeline(**components, base_height=64, base_width=32, tile_size=128, body_guidance_scale=0.3)


def without(pipe: DiffBodyPipeline, *names: str) -> DiffBodyPipeline:
    components = {**pipe.components, **dict.fromkeys(names)}
    return DiffBodyPipeline(**components, **pipe.settings.of_pipeline())


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).random((64, 32, 3), dtype=np.float32)


@pytest.fixture
def one_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights find nobody: say that one person fills the picture; all else is the real thing."""

    def found(detector: Any, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        return np.array([[2, 2, width - 3, height - 3, 0.9]], np.float32)

    monkeypatch.setattr("diffbody_ref.structure.detect_people", found)


NO_PARTS = "the model has no part network: no attention maps and no body guidance"
NO_POSE = "the model has no pose network: an empty pose map"
NO_DETECTOR = (
    "the model has no person detector: nobody is found, an empty pose map, no attention maps and no body guidance"
)
DIFFBIR = (
    "the model has no person detector, no pose network, no part network: "
    "nobody is found, an empty pose map, no attention maps and no body guidance"
)


@pytest.mark.parametrize(
    ("lacking", "same_as", "said"),
    [
        (("parts",), {"use_attention": False, "body_guidance_scale": 0.0}, NO_PARTS),
        (("pose",), {"use_pose": False}, NO_POSE),
        (("pose_detector",), {"use_structure": False}, NO_DETECTOR),
        (("pose_detector", "pose", "parts"), {"use_structure": False}, DIFFBIR),
    ],
)
def test_a_model_without_a_network_is_one_that_does_not_use_it(
    pipe: DiffBodyPipeline,
    picture: np.ndarray,
    one_person: None,
    lacking: Sequence[str],
    same_as: dict[str, Any],
    said: str,
) -> None:
    found = without(pipe, *lacking)(picture, **FAST)
    np.testing.assert_array_equal(found.images[0], pipe(picture, **FAST, **same_as).images[0])
    assert found.notices == [[said]]


def test_without_a_regression_the_picture_is_the_regression(pipe: DiffBodyPipeline, picture: np.ndarray) -> None:
    found = without(pipe, "swinir", "pose_detector")(picture, **FAST, return_intermediates=True)
    np.testing.assert_array_equal(found.intermediates[0].regression, picture)
    assert found.notices[0] == [NO_REGRESSION, NO_DETECTOR]


def test_asking_for_guidance_that_there_is_not_is_answered(pipe: DiffBodyPipeline, picture: np.ndarray) -> None:
    diffbir = without(pipe, *OPTIONAL)
    said = "body_guidance_scale does nothing: the model has no person detector and no part network"
    assert diffbir(picture, **FAST, body_guidance_scale=2.0).notices == [[NO_REGRESSION, DIFFBIR, said]]
    assert diffbir(picture, **FAST, use_structure=False).notices == [[NO_REGRESSION]]
    for asked in ({}, {"body_guidance_scale": None}, {"body_guidance_scale": 0.0}):
        assert guidance_notices(asked, ["parts"]) == []
    assert lack_notices([]) == []
    assert guidance_notices({"body_guidance_scale": 1.0}, ["restorer", "pose"]) == []


def test_what_is_needed_is_needed(pipe: DiffBodyPipeline) -> None:
    for name in COMPONENT_CLASSES:
        if name not in OPTIONAL:
            with pytest.raises(TypeError, match=name):
                DiffBodyPipeline(**{each: value for each, value in pipe.components.items() if each != name})


def test_a_model_is_saved_and_loaded_with_what_it_has(
    pipe: DiffBodyPipeline, picture: np.ndarray, tmp_path: Path
) -> None:
    diffbir = without(pipe, *OPTIONAL)
    diffbir.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert [index[name] for name in OPTIONAL] == [[None, None]] * 4
    again = DiffBodyPipeline.from_pretrained(tmp_path)
    assert again.lacking == ("restorer", "pose_detector", "pose", "parts")
    np.testing.assert_array_equal(again(picture, **FAST).images[0], diffbir(picture, **FAST).images[0])
    with_pose = DiffBodyPipeline.from_pretrained(tmp_path, pose=pipe.pose, pose_detector=pipe.pose_detector)
    assert with_pose.lacking == ("restorer", "parts")
    assert DiffBodyPipeline.from_pretrained(NANO_FOLDER, parts=None, swinir=None).lacking == ("restorer", "parts")
    shutil.rmtree(tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match="no component 'vae'"):
        DiffBodyPipeline.from_pretrained(tmp_path)
    index["parts"] = ["diffbody_ref.models.parts", "PartNet"]  # said to be there, and is not
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="no component 'parts'"):
        DiffBodyPipeline.from_pretrained(tmp_path, vae=pipe.vae)


def test_the_stages_are_what_is_there(pipe: DiffBodyPipeline) -> None:
    assert tuple(stage.name for stage in bind_stages(without(pipe, *OPTIONAL))) == LEAST
    left = tuple(stage.name for stage in bind_stages(without(pipe, "parts")))
    assert left == tuple(name for name in STAGES if name not in ("parts", "guidance"))


# ---- Bundles: nano's own, less some stages


def cut(manifest: Manifest, *names: str) -> Manifest:
    """A manifest as an export without these networks writes it."""
    absent = {*names} | ({"guidance"} if "parts" in names else set())
    sizes = {"pose_detector": {"detector_size": 0}, "pose": {"pose_height": 0, "pose_width": 0}}
    changes: dict[str, Any] = {"part_names": ()} if "parts" in names else {}
    for name in names:
        changes |= sizes.get(name, {})
    stages = {name: entry for name, entry in manifest.stages.items() if name not in absent}
    return dataclasses.replace(manifest, stages=stages, geometry=dataclasses.replace(manifest.geometry, **changes))


@pytest.mark.parametrize(
    "lacking",
    [("parts",), ("pose",), ("restorer", "pose_detector", "pose", "parts")],
    ids=lambda names: "+".join(names),
)
def test_a_bundle_restores_as_the_pipeline(lacking: tuple[str, ...], tmp_path: Path) -> None:
    whole = Restorer.open(NANO_FOLDER)
    (tmp_path / MANIFEST).write_text(cut(whole.manifest, *lacking).to_json())
    manifest = read_manifest(tmp_path, verify=False)
    assert set(manifest.lacking) == {*lacking}
    assert manifest.part_count == 5

    def infer(stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert stage in manifest.stages
        return whole.infer(stage, feed)

    restorer = Restorer(manifest, infer, whole.tokenize)
    components = {"restorer": "swinir"}
    pipeline = DiffBodyPipeline.from_pretrained(NANO_FOLDER, **{components.get(n, n): None for n in lacking})
    assert pipeline.geometry == manifest.geometry
    person = read_image(SAMPLE)
    call: dict[str, Any] = {"num_inference_steps": 2, "body_guidance_scale": 3.0}
    wanted = pipeline(person, **call, output_type="np", return_intermediates=True)
    found = restorer.restore(person, **call)
    # Graphs agree with networks to 1e-5 of what they make.
    np.testing.assert_allclose(found.pixels, wanted.images[0], atol=5e-3)
    assert sorted(found.notices) == sorted(wanted.notices[0])
    assert found.intermediates.keypoints.shape == wanted.intermediates[0].keypoints.shape


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        (("denoiser",), "stages.denoiser is missing"),
        (("text_encoder",), "stages.text_encoder is missing"),
        (("guidance",), "stages.guidance is missing"),
    ],
)
def test_a_bundle_without_what_is_needed_is_refused(lacking: tuple[str, ...], named: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(cut(Bundle.open(NANO_FOLDER, verify=False).manifest, *lacking).to_json())
    with pytest.raises(ValueError, match=named):
        read_manifest(tmp_path, verify=False)


def test_a_servers_plan_models_are_the_stages_that_there_are() -> None:
    bundle = Bundle.open(NANO_FOLDER, verify=False)
    assert planned_stages(bundle) == PLANNED
    less = Bundle(bundle.folder, cut(bundle.manifest, "restorer"))
    assert planned_stages(less) == tuple(stage for stage in PLANNED if stage != "restorer")


# ---- Other numbers of parts, other regressions


def test_a_branch_that_knows_no_parts_fits_any_number(pipe: DiffBodyPipeline) -> None:
    unet, channels = pipe.unet, pipe.unet.config.in_channels
    branch = ControlBranch.from_unet(unet, 5)
    with torch.no_grad():
        branch.controlnet_cond_embedding.weight[:, : channels + 3].normal_()  # what reads z_r and pose, as of DiffBIR
        branch.controlnet_down_blocks[0].weight.normal_()
    assert with_parts(branch, 5) is branch
    z, text = torch.randn(1, channels, 8, 8), torch.randn(1, 77, unet.config.cross_attention_dim)
    for count in (0, 8):
        other = with_parts(branch, count)
        assert other.config.part_count == count
        conditions = [condition_latents(z, torch.ones(1, 3, 64, 64), torch.ones(1, k + 1, 64, 64)) for k in (5, count)]
        with torch.no_grad():
            ours, theirs = (
                net(z, torch.tensor([500]), text, controlnet_cond=c, return_dict=False)[0][0]
                for net, c in zip((branch, other), conditions, strict=True)
            )
        # A sum over more zeros may run in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="was trained with attention maps of 5 parts, the part network has 8"):
        with_parts(pipe.control, 8)
    with pytest.raises(ValueError, match="the part network has 5 parts, the control branch reads attention maps of 8"):
        DiffBodyPipeline(**{**pipe.components, "control": with_parts(branch, 8)})


class Darker(ModelMixin, ConfigMixin):
    """A regression network of another class."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.factor * pictures


def test_any_registered_regression_is_the_first_step(
    pipe: DiffBodyPipeline, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    darker = DiffBodyPipeline(**{**pipe.components, "swinir": Darker()}, **pipe.settings.of_pipeline())
    darker.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown regression network 'Darker'; known are SwinIR"):
        DiffBodyPipeline.from_pretrained(tmp_path)
    monkeypatch.setitem(REGRESSIONS, "Darker", Darker)
    found = DiffBodyPipeline.from_pretrained(tmp_path)(picture, **FAST, return_intermediates=True)
    np.testing.assert_allclose(found.intermediates[0].regression, picture / 2, rtol=1e-6)


# ---- Releases


def test_a_release_of_the_least_is_diffbir(pipe: DiffBodyPipeline, picture: np.ndarray, tmp_path: Path) -> None:
    for name in ("text_encoder", "vae", "unet", "control"):
        pipe.components[name].save_pretrained(tmp_path / "components" / name)
    release(tmp_path / "components", tmp_path / "model", "nano")
    assert release_notices(tmp_path / "components") == [NO_REGRESSION, DIFFBIR]
    model = DiffBodyPipeline.from_pretrained(tmp_path / "model")
    assert tuple(stage.name for stage in bind_stages(model)) == LEAST
    assert np.isfinite(model(picture, num_inference_steps=1, output_type="np").images[0]).all()
    pipe.components["parts"].save_pretrained(tmp_path / "components" / "parts")
    release(tmp_path / "components", tmp_path / "model", "nano")
    assert DiffBodyPipeline.from_pretrained(tmp_path / "model").lacking == ("restorer", "pose_detector", "pose")


@pytest.mark.slow
def test_the_least_is_exported_and_restores(pipe: DiffBodyPipeline, tmp_path: Path) -> None:
    from export.bundle import export_bundle

    least = DiffBodyPipeline.from_pretrained(NANO_FOLDER, **dict.fromkeys(OPTIONAL))
    least.save_pretrained(tmp_path / "model")  # transformers writes its tokenizer as one file
    bundle = Bundle.open(export_bundle(tmp_path / "model", tmp_path / "bundle"))
    assert tuple(bundle.manifest.stages) == LEAST
    found = Restorer.open(bundle).restore(SAMPLE, num_inference_steps=2)
    assert found.notices == [NO_REGRESSION, DIFFBIR]
