"""ONNX graphs of pose networks: read into this project's networks where they are those, else used as they are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from diffbody_ref.components import load_component
from diffbody_ref.models.graphs import GraphDetector, GraphEstimator
from diffbody_ref.models.pose import PersonDetector, PoseEstimator
from diffbody_ref.ops.pose import decode_boxes
from diffbody_ref.weights.checkpoint import open_checkpoint
from diffbody_ref.weights.found import Imported
from diffbody_ref.weights.importing import import_checkpoints
from diffbody_ref.weights.sources import SOURCES, graphs
from tests.published_pose import RtmPose, Yolox, randomise

SIDE, HEIGHT, WIDTH = 64, 96, 64


def exported(network: nn.Module, path: Path, dynamic: bool = True, folded: bool = True) -> Path:
    """The file that YOLOX's and mmdeploy's exporters write: PyTorch's older exporter, opset 11."""
    pose = hasattr(network.head, "cls_x")
    names = ["simcc_x", "simcc_y"] if pose else ["output"]
    shape = (HEIGHT, WIDTH) if pose else (SIDE, SIDE)
    sample = torch.zeros(1, 3, *shape, dtype=next(network.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            sample,
            str(path),
            dynamo=False,
            opset_version=11,
            input_names=["input"],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in ("input", *names)} if dynamic else None,
            do_constant_folding=folded,
            training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
        )
    return path


def imported(path: Path) -> Imported:
    checkpoint = open_checkpoint(path)
    ((source, found),) = [(source, found) for source in SOURCES for found in source.detect(checkpoint)]
    assert source is graphs
    return source.read(checkpoint, found)


def sample(network: nn.Module, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    if hasattr(network.head, "cls_x"):
        return torch.randn(batch, 3, HEIGHT, WIDTH, generator=generator)
    return 255 * torch.rand(batch, 3, SIDE, SIDE, generator=generator)


@torch.no_grad()
def assert_same(found: nn.Module, wanted: nn.Module, tolerance: float = 1e-5) -> None:
    """Of float32, the rounding of a hundred layers in another order."""
    x = sample(wanted)
    pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (found(x), wanted(x))), strict=True)
    for one, other in pairs:
        assert one.shape == other.shape
        assert (one - other).norm() / other.norm() < tolerance
        assert other.std() > 0.02


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(
    ("network", "kind"),
    [(RtmPose(c=8, n=6), PoseEstimator), (RtmPose(c=12, n=1), PoseEstimator), (Yolox(c=8, n=3), PersonDetector)],
)
def test_the_known_graphs_become_networks(tmp_path: Path, network: nn.Module, kind: type[Any], folded: bool) -> None:
    randomise(network, 1)
    read = imported(exported(network, tmp_path / "a.onnx", dynamic=kind is PoseEstimator, folded=folded))
    assert type(read.network) is kind
    assert_same(read.network, network)
    assert "Apache" in read.licence


def test_half_precision_stays(tmp_path: Path) -> None:
    network = randomise(RtmPose(), 2)
    read = imported(exported(network.half(), tmp_path / "half.onnx"))
    assert read.network.dtype == torch.float16
    assert all(p.dtype == torch.float16 for p in read.network.parameters())
    assert_same(read.network.float(), network.float(), tolerance=2e-3)  # of weights that were rounded once more


class Other(RtmPose):
    """A network of the same tensors, and not RTMPose."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().forward(x)
        return torch.tanh(x), torch.tanh(y)


class WithoutSquare(RtmPose):
    """The same layers in the same places, with something else between them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(torch.relu(x))


class ChannelsLast(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, network.head

    def forward(self, x: Tensor) -> Any:
        return self.network(x.permute(0, 3, 1, 2))


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("kind", [Other, WithoutSquare])
def test_other_graphs_are_used_as_they_are(tmp_path: Path, kind: type[RtmPose], dynamic: bool) -> None:
    network = randomise(kind(), 3)
    read = imported(exported(network, tmp_path / "a.onnx", dynamic))
    assert isinstance(read.network, GraphEstimator)
    assert "cannot be trained" in read.note
    assert_same(read.network, network)
    read.network.save_pretrained(tmp_path / "model" / "pose")
    again = load_component(tmp_path / "model", "pose", torch.float16)
    assert isinstance(again, GraphEstimator)
    assert again.dtype == torch.float32
    assert_same(again, network)
    assert again.num_parameters() >= sum(p.numel() for p in network.parameters()) * 0.9


def test_boxes_in_pixels_are_adapted(tmp_path: Path) -> None:
    decoded = randomise(Yolox(c=8, n=1, decode=True), 5)
    for layer in decoded.head.reg_preds:  # a trained detector's centres are near their cells
        layer.weight.data.mul_(1e-3)
    path = exported(decoded, tmp_path / "pixels.onnx", dynamic=False)
    read = imported(path)
    assert isinstance(read.network, GraphDetector)
    x = sample(decoded)
    with torch.no_grad():
        found, wanted = read.network(x).numpy(), decoded(x).numpy()
    centres, halves = wanted[..., :2], wanted[..., 2:4] / 2
    corners = np.concatenate([centres - halves, centres + halves], axis=-1)
    np.testing.assert_allclose(
        decode_boxes(found, SIDE), corners, rtol=1e-4, atol=1e-3
    )  # float32 of some tens of pixels
    assert np.linalg.norm(found[..., 4:] - wanted[..., 4:]) < 1e-5 * np.linalg.norm(wanted[..., 4:])


def test_a_graph_of_channels_last_is_transposed(tmp_path: Path) -> None:
    network = randomise(RtmPose(), 6)
    last = ChannelsLast(network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            last,
            torch.zeros(1, HEIGHT, WIDTH, 3),
            str(tmp_path / "last.onnx"),
            dynamo=False,
            opset_version=13,
            input_names=["input"],
            output_names=["y_then_x", "b"],
        )
    read = imported(tmp_path / "last.onnx")
    assert_same(read.network, network)


def refused(path: Path, message: str) -> None:
    checkpoint = open_checkpoint(path)
    with pytest.raises(ValueError, match=message):
        graphs.read(checkpoint, *graphs.detect(checkpoint))


def test_graphs_that_are_not_to_be_run_are_refused(tmp_path: Path) -> None:
    path = exported(randomise(RtmPose(), 7), tmp_path / "a.onnx")
    good = path.read_bytes()

    def changed() -> Any:
        path.write_bytes(good)
        return onnx.load(path)

    model = changed()
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    onnx.save(model, path)
    refused(path, r"a\.onnx: uses operators of 'com\.example'; only ONNX's own are run")
    model = changed()
    model.graph.node.add(op_type="Loop", name="forever")
    onnx.save(model, path)
    refused(path, r"has the operator Loop; graphs with control flow are not run")
    for location, message in (("../secret", "outside of its folder: '../secret'"), ("gone.bin", "are not beside it")):
        model = changed()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        onnx.save(model, path)
        refused(path, message)
    model = changed()
    model.graph.node[5].op_type = "NoSuchOperator"
    onnx.save(model, path)
    refused(path, r"no valid ONNX graph: .*NoSuchOperator")


def test_graphs_of_other_tensors_are_refused(tmp_path: Path) -> None:
    refused(exported(randomise(RtmPose(joints=17), 8), tmp_path / "body.onnx"), "a graph of 17 keypoints")
    refused(exported(randomise(Yolox(classes=20), 8), tmp_path / "voc.onnx"), "a detector of 20 classes")
    other = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) {y = Relu(x)}'
    )
    onnx.save(other, tmp_path / "other.onnx")
    assert graphs.detect(open_checkpoint(tmp_path / "other.onnx")) == []


def test_a_component_of_a_stranger_is_checked_again(tmp_path: Path) -> None:
    read = imported(exported(randomise(Other(), 9), tmp_path / "a.onnx"))
    read.network.save_pretrained(tmp_path / "pose")
    config = tmp_path / "pose" / "config.json"
    right = config.read_text()
    config.write_text(right.replace(f'"height": {HEIGHT}', '"height": 384'))
    with pytest.raises(ValueError, match=r"pose: no GraphEstimator: .*has the tensors .*must have .*384"):
        load_component(tmp_path, "pose")
    config.write_text(right)
    model = onnx.load(tmp_path / "pose" / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "/etc/passwd"
    onnx.save(model, tmp_path / "pose" / "model.onnx")
    with pytest.raises(ValueError, match=r"weights outside of its folder: '/etc/passwd'"):
        load_component(tmp_path, "pose")


def test_weights_beside_a_graph_are_read(tmp_path: Path) -> None:
    network = randomise(RtmPose(), 10)
    exported(network, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="b.data")
    assert_same(imported(tmp_path / "b.onnx").network, network)


def test_the_import_says_how_a_graph_was_read(tmp_path: Path) -> None:
    exported(randomise(Other(), 11), tmp_path / "pose.onnx")
    exported(randomise(Yolox(classes=1), 11), tmp_path / "detector.onnx", dynamic=False)
    rows = import_checkpoints(tmp_path / "model", [tmp_path / "pose.onnx", tmp_path / "detector.onnx"])
    said = {row.component: (row.what, row.parameters > 0) for row in rows}
    assert said == {
        "pose": ("a graph of keypoints in x and y, 96x64, used as the graph that it is; cannot be trained", True),
        "pose_detector": ("a graph of a detector, 64x64, weights read into this project's network", True),
    }
    assert isinstance(load_component(tmp_path / "model", "pose"), GraphEstimator)
    assert isinstance(load_component(tmp_path / "model", "pose_detector"), PersonDetector)
