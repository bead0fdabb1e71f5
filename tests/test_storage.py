"""Weights in half precision that compute in float32, networks that are read when they are needed, and working sizes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffbody_ref.components import load_component, weights_variant
from diffbody_ref.loading import load_pipeline
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.files import files_below
from diffbody_ref.ops.images import read_image
from diffbody_ref.ops.options import ModelSettings, RestoreOptions
from diffbody_ref.ops.processing import Sizes
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.storage import LARGE, RESIDENT, OnDemand, empty_pipeline, network_names, upcasts

SAMPLE = Path(__file__).parent.parent / "samples" / "degraded" / "synthetic_1.jpg"
CALL: dict[str, Any] = {
    "num_inference_steps": 2,
    "strength": 1.0,
    "prompt": "a man",
    "guidance_scale": 2.0,
    "seed": 1,
    "height": 128,
    "width": 64,
    "output_type": "np",
}


@pytest.fixture(scope="module")
def wanted() -> np.ndarray:
    """What nano restores in float32."""
    return load_pipeline(NANO_FOLDER, "cpu")(read_image(SAMPLE), **CALL).images[0]


@pytest.mark.parametrize("low_memory", [False, True])
def test_weights_that_are_kept_in_half_precision_compute_in_float32(
    wanted: np.ndarray, low_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nano's weights are float16 on disk, so that nothing is rounded: the picture is the same to the bit."""
    monkeypatch.setattr("diffbody_ref.storage.CPU_FLAGS", {"float16": (), "bfloat16": ()})
    pipeline = load_pipeline(NANO_FOLDER, "cpu", "float16", low_memory=low_memory)
    np.testing.assert_array_equal(pipeline(read_image(SAMPLE), **CALL).images[0], wanted)
    assert pipeline.unet.dtype == torch.float32  # what it takes and gives
    assert {p.dtype for name in LARGE for p in pipeline.components[name].parameters()} == {torch.float16}


def test_networks_come_and_go(wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no room beside the one that is needed, never are two in memory, and the picture is the same."""
    monkeypatch.setattr("diffbody_ref.storage.RESIDENT", 0)
    loaded: list[str] = []
    together: list[int] = []

    class Watched(OnDemand):
        def need(self, name: str) -> None:
            super().need(name)
            together.append(len(self.resident))

    monkeypatch.setattr("diffbody_ref.storage.OnDemand", Watched)
    pipeline = load_pipeline(
        NANO_FOLDER, "cpu", low_memory=True, progress=lambda done, total, name: loaded.append(name)
    )
    assert not loaded  # nothing is read before it is needed
    held = [
        p for network in pipeline.components.values() if isinstance(network, nn.Module) for p in network.parameters()
    ]
    assert all(p.untyped_storage().nbytes() <= 4 for p in held)
    assert {p.device.type for p in held} == {"cpu"}
    np.testing.assert_array_equal(pipeline(read_image(SAMPLE), **CALL).images[0], wanted)
    assert set(together) == {1}
    assert loaded.count("loading unet") == 2  # a step each: the control branch takes its place in between
    assert RESIDENT > 0


def test_a_cpu_says_whether_it_computes_in_half_precision() -> None:
    assert not upcasts("cuda", "float16")
    assert not upcasts("cpu", "float32")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    assert upcasts("cpu", "bfloat16") == ("avx512_bf16" not in flags and "amx_bf16" not in flags)


def test_a_pipeline_without_weights_says_its_sizes() -> None:
    empty = empty_pipeline(NANO_FOLDER)
    full = DiffBodyPipeline.from_pretrained(NANO_FOLDER)
    assert empty.geometry == full.geometry
    assert empty.settings == full.settings
    for name in network_names(NANO_FOLDER):
        shapes = {key: value.shape for key, value in full.components[name].state_dict().items()}
        assert {key: value.shape for key, value in empty.components[name].state_dict().items()} == shapes
        assert all(p.is_meta for p in empty.components[name].parameters())


def test_weights_of_a_variant_are_read(tmp_path: Path) -> None:
    """As the Hub's folders have them: diffusion_pytorch_model.fp16.safetensors, and no other."""
    for name in ("vae", "text_encoder"):
        shutil.copytree(NANO_FOLDER / name, tmp_path / name)
        (plain,) = (tmp_path / name).glob("*.safetensors")
        plain.rename(plain.with_suffix(".fp16.safetensors"))
        assert weights_variant(tmp_path / name) == "fp16"
        found, wanted = load_component(tmp_path, name).state_dict(), load_component(NANO_FOLDER, name).state_dict()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    for path in (tmp_path / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(ValueError, match="no weights in"):
        load_component(tmp_path, "vae")


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["model.non_ema.safetensors", "model.fp16.safetensors"], "fp16"),
    ],
)
def test_variants_are_told_by_the_names(tmp_path: Path, names: list[str], variant: str | None) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert weights_variant(tmp_path) == variant


def test_files_behind_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "model" / "vae").mkdir(parents=True)
    (tmp_path / "model" / "vae" / "config.json").touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "vae").symlink_to(tmp_path / "model" / "vae")
    assert files_below(tmp_path / "links") == [tmp_path / "links" / "vae" / "config.json"]


@pytest.mark.parametrize(
    ("size", "options", "work", "output"),
    [
        ((100, 50), {"height": 512, "width": 512}, (725, 363), (725, 363)),  # up, to at least the area
        ((2000, 1000), {"height": 512, "width": 512}, (725, 363), (2000, 1000)),  # down, and back
        ((1024, 512), {"height": 1024, "width": 512}, (1024, 512), (1024, 512)),
        ((100, 50), {"height": 128, "width": 64, "upscale": 3.0}, (128, 64), (300, 150)),
        ((100, 50), {}, (1024, 512), (1024, 512)),  # the model's own
    ],
)
def test_the_working_size_can_be_chosen(
    size: tuple[int, int], options: dict[str, Any], work: tuple[int, int], output: tuple[int, int]
) -> None:
    sizes = Sizes.plan(size, RestoreOptions(**options), ModelSettings(), 64)
    assert (sizes.height, sizes.width) == work
    assert (sizes.output_height, sizes.output_width) == output
    assert sizes.padded_height % 64 == sizes.padded_width % 64 == 0


@pytest.mark.parametrize("options", [{"height": 512}, {"height": 63, "width": 512}, {"height": 512, "width": 20_000}])
def test_a_working_size_out_of_range_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"height|width"):
        RestoreOptions(**options)
