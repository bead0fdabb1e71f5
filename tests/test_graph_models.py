"""A model whose pose networks are ONNX graphs: restored by the reference, saved, exported, run as a bundle."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from diffbody_ref.components import load_component
from diffbody_ref.models.graphs import GraphDetector, GraphEstimator
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import read_image
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.stages import BoundStage, bind_stages
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.stages.pose import PoseStage
from diffbody_ref.weights.checkpoint import open_checkpoint
from diffbody_ref.weights.sources import folders, graphs
from export.bundle import _networks, export_bundle
from export.onnx import export_onnx
from export.weights import WeightStore
from runtime.bundle import Bundle, StageEntry
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.restore import Restorer

SAMPLE = Path(__file__).parent.parent / "samples" / "degraded" / "synthetic_1.jpg"


def as_graph(name: str, path: Path, dynamic: bool) -> Any:
    """One of nano's networks as a graph of somebody's, used as it is."""
    network = load_component(NANO_FOLDER, name)
    size = (network.settings.height, network.settings.width) if name == "pose" else (network.settings.size,) * 2
    names = ["x", "y"] if name == "pose" else ["found"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            torch.zeros(1, 3, *size),
            str(path),
            dynamo=False,
            opset_version=13,
            input_names=["pictures"],
            output_names=names,
            dynamic_axes={each: {0: "n"} for each in ("pictures", *names)} if dynamic else None,
        )
    checkpoint = open_checkpoint(path)
    (found,) = graphs.detect(checkpoint)
    return graphs.Graph(path, onnx.load(path), found.component, found.config["layout"]).as_it_is()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with both pose networks as graphs, the detector's of a batch of one."""
    folder = tmp_path_factory.mktemp("model") / "graphs"
    own = shutil.ignore_patterns("*.onnx", "manifest.json", "parity.*", "pose", "pose_detector")
    shutil.copytree(NANO_FOLDER, folder, ignore=own)
    for name, dynamic in (("pose", True), ("pose_detector", False)):
        as_graph(name, folder.parent / f"{name}.onnx", dynamic).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> DiffBodyPipeline:
    return DiffBodyPipeline.from_pretrained(folder)


def test_the_reference_restores_with_graphs(pipe: DiffBodyPipeline, tmp_path: Path) -> None:
    assert isinstance(pipe.pose, GraphEstimator)
    picture = read_image(SAMPLE)
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "return_intermediates": True}
    found, wanted = pipe(picture, **call), DiffBodyPipeline.from_pretrained(NANO_FOLDER)(picture, **call)
    assert len(wanted.intermediates[0].boxes)
    # Boxes in pixels and keypoints in bins of half a pixel, from float32 of two engines.
    np.testing.assert_allclose(found.intermediates[0].boxes, wanted.intermediates[0].boxes, atol=0.01)
    np.testing.assert_allclose(found.intermediates[0].keypoints, wanted.intermediates[0].keypoints, atol=1.0)
    assert -10 * np.log10(np.square(found.images[0] - wanted.images[0]).mean() + 1e-12) > 45
    pipe.save_pretrained(tmp_path / "saved")
    again = DiffBodyPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float16)
    assert isinstance(again.pose_detector, GraphDetector)
    # A folder of ours is a source, too.
    checkpoint = open_checkpoint(tmp_path / "saved")
    named = {found.component: found for found in folders.detect(checkpoint)}
    assert named["pose"].what == "GraphEstimator, an ONNX graph"
    assert isinstance(folders.read(checkpoint, named["pose"]).network, GraphEstimator)


@pytest.mark.parametrize("name", ["pose", "pose_detector"])
def test_a_stage_of_a_graph_is_exported(pipe: DiffBodyPipeline, folder: Path, tmp_path: Path, name: str) -> None:
    stage: BoundStage = next(stage for stage in bind_stages(pipe) if stage.name == name)
    model = tmp_path / "model"
    shutil.copytree(folder / name, model / name)
    path = export_onnx(stage, model / f"{name}.float32.onnx", WeightStore(model))
    graph = onnx.load(path, load_external_data=False).graph
    # Weights are kept once, beside it; suppression has a matrix of 256 KiB.
    assert sum(len(tensor.raw_data) for tensor in graph.initializer) < 300_000
    signature = stage.signature
    entry = StageEntry(signature.inputs, signature.outputs, signature.sizes, {})
    engine = OnnxRuntimeEngine(entry, path)
    for count in (1, 3):
        feed = stage.example({"people": count, "batch": count}, seed=count)
        for output, wanted in stage.reference(feed).items():
            found = engine.infer(feed)[output]
            assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_graphs_are_of_the_models_files(folder: Path) -> None:
    names = {path.relative_to(folder).as_posix() for path in _networks(folder)}
    assert {"pose/model.onnx", "pose/model.safetensors", "pose_detector/model.onnx"} <= names


def test_a_graph_is_not_trained(folder: Path) -> None:
    stage = PoseStage.__new__(PoseStage)
    torch.nn.Module.__init__(stage)
    place = str(folder)
    stage.config = TrainConfig("pose", "nano", place, (place,), place, steps=1, batch_size=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"its pose is an ONNX graph, which cannot be trained"):
        stage.load_or_build("pose")


@pytest.mark.slow
def test_a_bundle_of_a_model_of_graphs_restores_as_the_pipeline(
    pipe: DiffBodyPipeline, folder: Path, tmp_path: Path
) -> None:
    restorer = Restorer.open(Bundle.open(export_bundle(folder, tmp_path / "bundle")))
    picture, call = read_image(SAMPLE), {"num_inference_steps": 2}
    wanted = pipe(picture, **call, output_type="np").images[0]
    found = restorer.restore(picture, **call)  # type: ignore[arg-type]
    assert len(found.intermediates.boxes)
    assert -10 * np.log10(np.square(found.pixels - wanted).mean() + 1e-12) > 45
