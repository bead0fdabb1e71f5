"""TensorRT plans: built ahead of time on a CPU, chosen for a machine; run where there is a GPU."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.tensors import TensorSpec
from diffbody_ref.stages import STAGES
from export.tensorrt import add_plans, build_plan, profile_shapes
from runtime.bundle import Bundle, PlanTarget, graph_kind
from runtime.engines import EngineConfig
from runtime.engines.cuda import compute_capability
from runtime.engines.tensorrt import choose_plan, import_tensorrt
from runtime.restore import Restorer

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux on x86-64 only")

VERSION = import_tensorrt("tensorrt_rtx").__version__
EVERY_GPU = ("8.0", "8.6", "8.9", "12.0")


def target(*capabilities: str, precision: str = "float32") -> PlanTarget:
    return PlanTarget("tensorrt_rtx", VERSION, capabilities, precision)


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return Bundle.open(NANO_FOLDER)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(NANO_FOLDER, tmp_path / "bundle"))


def test_a_bundle_gets_plans_for_every_gpu(copy: Path) -> None:
    everywhere = target(*EVERY_GPU)
    add_plans(copy, everywhere)
    bundle = Bundle.open(copy)  # verifies the new files as well
    assert bundle.manifest.plans == (everywhere,)
    assert tuple(bundle.manifest.stages) == tuple(STAGES)
    for entry in bundle.manifest.stages.values():
        data = (copy / entry.graphs[everywhere.kind]).read_bytes()
        for spec in (*entry.inputs, *entry.outputs):
            assert spec.name.encode() in data  # a plan cannot be opened without a GPU, but it holds its tensors' names


def test_profiles_are_the_ranges_of_the_stage(nano: Bundle) -> None:
    entry, config = nano.manifest.stages["denoiser"], nano.manifest.settings
    latents = next(spec for spec in entry.inputs if spec.name == "latents")
    least, usual, most = profile_shapes(entry, latents)
    factor, side = nano.manifest.geometry.factor, config.tile_size
    channels = nano.manifest.geometry.latent_channels
    cells = nano.manifest.geometry.multiple // factor
    assert least == (1, channels, cells, cells)
    assert usual == (1, channels, config.base_height // factor, config.base_width // factor)
    assert most == (8, channels, side // factor, side // factor)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: dataclasses.replace(spec, name="other"),
        lambda spec: dataclasses.replace(spec, dtype="float16"),
        lambda spec: TensorSpec(spec.name, spec.dtype, (*spec.shape[:-1], 7)),
    ],
    ids=["name", "dtype", "shape"],
)
def test_a_graph_of_another_stage_is_refused(nano: Bundle, tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    entry = nano.manifest.stages["text_encoder"]
    other = dataclasses.replace(entry, outputs=tuple(change(spec) for spec in entry.outputs))
    graph = nano.folder / entry.graphs[graph_kind("float32")]
    with pytest.raises(ValueError, match="the stage has"):
        build_plan(graph, other, target("8.6"), tmp_path / "x.plan")
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("float32", "tensorrt_rtx", "1.7", None), "need an NVIDIA GPU"),
        (("float32", "tensorrt_rtx", "1.7", "9.0"), "capability 9.0 .* --compute-capability 9.0"),
        (("float32", "tensorrt_rtx", "1.8", "8.6"), r"tensorrt_rtx 1\.8"),
        (("float32", "tensorrt", "1.7", "8.6"), "tensorrt 1.7"),
        (("float16", "tensorrt_rtx", "1.7", "8.6"), "--precision float16"),
    ],
)
def test_plans_for_another_machine_are_refused(asked: tuple[str, str, str, str | None], message: str) -> None:
    plans = [PlanTarget("tensorrt_rtx", "1.7", ("8.6", "8.9"), "float32")]
    assert choose_plan(plans, "float32", "tensorrt_rtx", "1.7", "8.9") is plans[0]
    with pytest.raises(ValueError, match=message) as caught:
        choose_plan(plans, *asked)
    assert "\n" not in str(caught.value)


def test_a_bundle_without_plans_says_what_to_do(nano: Bundle) -> None:
    with pytest.raises(ValueError, match="GPU"):
        Restorer.open(nano, EngineConfig(engine="tensorrt"))


def test_an_unknown_gpu_is_named(nano: Bundle, tmp_path: Path) -> None:
    entry = nano.manifest.stages["vae_decoder"]
    with pytest.raises(ValueError, match=r"SM80.*not for SM33"):
        build_plan(nano.folder / entry.graphs[graph_kind("float32")], entry, target("3.3"), tmp_path / "x.plan")


@pytest.mark.gpu
def test_plans_say_what_the_graphs_say(copy: Path) -> None:
    capability = compute_capability()
    if capability not in EVERY_GPU:
        pytest.skip(f"TensorRT-RTX does not build for compute capability {capability}")
    add_plans(copy, target(capability))
    bundle = Bundle.open(copy)
    picture, call = np.full((256, 128, 3), 0.5, np.float32), {"num_inference_steps": 4}
    wanted = Restorer.open(bundle).restore(picture, **call).pixels  # type: ignore[arg-type]
    found = Restorer.open(bundle, EngineConfig(engine="tensorrt")).restore(picture, **call).pixels  # type: ignore[arg-type]
    assert -10 * np.log10(np.square(found - wanted).mean() + 1e-12) > 45
