"""ONNX graphs of pose networks, such as the two files of DWPose: a person detector and a keypoint network.

Where the graph is YOLOX or RTMPose, its weights become those of this project's network, which can then be trained and
run in any precision. Another graph of the same tensors is used as it is. In both cases it is seen by running both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffbody_ref.models.detector import DetectorConfig, PersonDetector
from diffbody_ref.models.graphs import (
    GraphDetector,
    GraphDetectorConfig,
    GraphEstimator,
    GraphModel,
    GraphPoseConfig,
    check_graph,
)
from diffbody_ref.models.pose import PoseConfig, PoseEstimator
from diffbody_ref.ops.keypoints import COUNT
from diffbody_ref.ops.pose import SPLIT_RATIO, STRIDES, decode_boxes, detector_cells
from diffbody_ref.stages.base import TOLERANCE
from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.filling import fill, without_weights
from diffbody_ref.weights.found import Found, Imported
from diffbody_ref.weights.graph_stages import Form, as_stage
from diffbody_ref.weights.sources.yolox import PERSON_FIRST
from diffbody_ref.weights.topology import constants_of, matched_weights

NAME = "ONNX"
LICENCES = {"pose": "Apache-2.0 (mmpose, DWPose)", "pose_detector": "Apache-2.0 (YOLOX)"}
UNKNOWN_LICENCE = "unknown; see where the graph is from"
MOST_SIDE = 4096  # pixels; the largest public networks read 1280
MOST_BLOCKS = 8  # of a stage, as RTMPose-x has
YOLOX_CONVS = (59, 24)  # convolutions of YOLOX: those outside of blocks, and those for each block of a short stage


@dataclass(frozen=True)
class Layout:
    """The tensors of a graph.

    Attributes:
        height: of its input, in pixels.
        width: of its input, in pixels.
        channels_last: the input is (batch, height, width, 3).
        one_at_a_time: the batch is one.
        outputs: names of its outputs, in the stage's order.
    """

    height: int
    width: int
    channels_last: bool
    one_at_a_time: bool
    outputs: tuple[str, ...]


def detect(checkpoint: Checkpoint) -> list[Found]:
    """A detector or a keypoint network, by the shapes of a graph's inputs and outputs."""
    if checkpoint.onnx is None or (layout := _layout(checkpoint.onnx)) is None:
        return []
    size = f"{layout.height}x{layout.width}"
    if len(layout.outputs) == 2:
        return [Found("pose", f"a graph of keypoints in x and y, {size}", {"layout": layout})]
    return [Found("pose_detector", f"a graph of a detector, {size}", {"layout": layout})]


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """This project's network with the graph's weights, or else the graph.

    Raises:
        ValueError: the graph is not to be run, or gives something else than its stage.
    """
    import onnx

    check_graph(checkpoint.path, checkpoint.onnx)
    graph = Graph(checkpoint.path, onnx.load(checkpoint.path), found.component, found.config["layout"])
    if (network := graph.as_network()) is not None:
        return Imported(network, {}, LICENCES[found.component], note="weights read into this project's network")
    return Imported(graph.as_it_is(), {}, UNKNOWN_LICENCE, note="used as the graph that it is; cannot be trained")


def _layout(model: Any) -> Layout | None:
    """The tensors of a graph, None if they are those of neither network."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_sides(value) for value in model.graph.input if value.name not in weights]
    outputs = {value.name: _sides(value) for value in model.graph.output}
    if len(inputs) != 1 or len(inputs[0]) != 4 or any(len(sides) != 3 for sides in outputs.values()):
        return None
    batch, *picture = inputs[0]
    channels_last = picture[-1] == 3
    height, width = picture[:2] if channels_last else picture[1:]
    if 3 not in (picture[0], picture[-1]) or not (0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE) or batch > 1:
        return None
    layout = lambda *names: Layout(height, width, channels_last, batch == 1, names)  # noqa: E731
    if len(outputs) == 2:
        bins = [int(SPLIT_RATIO * width), int(SPLIT_RATIO * height)]
        by_bins = {sides[-1]: name for name, sides in outputs.items()}
        if sorted(bins) != sorted(sides[-1] for sides in outputs.values()):
            return None
        return layout(*([by_bins[count] for count in bins] if len(by_bins) == 2 else outputs))
    if len(outputs) != 1 or height != width or height % STRIDES[-1]:
        return None
    ((name, (_, cells, columns)),) = outputs.items()
    fits = (columns == 0 or columns > 5) and cells in (0, len(detector_cells(height)[0]))
    return layout(name) if fits else None


def _sides(value: Any) -> list[int]:
    """The shape of a graph's input or output, 0 for what is dynamic."""
    return [side.dim_value for side in value.type.tensor_type.shape.dim]


class Graph:
    """A graph that is checked, and what it gives for a batch of two.

    Args:
        path: of the graph.
        model: the `onnx.ModelProto` with its weights.
        component: "pose" or "pose_detector".
        layout: of its tensors.

    Raises:
        ValueError: ONNX Runtime cannot run it, or it gives something else than its stage.
    """

    def __init__(self, path: Path, model: Any, component: str, layout: Layout) -> None:
        import onnx

        self.path, self.model, self.component, self.layout = path, model, component, layout
        # Noise will do: two networks that are the same on it are one.
        rng, shape = np.random.default_rng(0), (2, 3, layout.height, layout.width)
        noise = 255 * rng.random(shape) if component == "pose_detector" else rng.standard_normal(shape)
        self.feed = noise.astype(np.float32)
        self.outputs = [np.concatenate(column) for column in zip(*self._one_by_one(), strict=True)]
        self.config = self._pose() if component == "pose" else self._detector()
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
        self.precision = "float16" if half else "float32"

    def _one_by_one(self) -> list[list[np.ndarray]]:
        """The outputs for each of the samples, in the layout's order: a batch of two may be more than it reads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
            (read,) = session.get_inputs()
            values = self.feed.transpose(0, 2, 3, 1) if self.layout.channels_last else self.feed
            values = values.astype(np.float16 if read.type == "tensor(float16)" else np.float32)
            runs = [session.run(list(self.layout.outputs), {read.name: values[i : i + 1]}) for i in range(len(values))]
            return [[result.astype(np.float32) for result in results] for results in runs]
        except Exception as error:  # ONNX Runtime's errors have no common class
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{self.path}: ONNX Runtime cannot run it: {reason}") from None

    def _pose(self) -> GraphPoseConfig:
        if (count := self.outputs[0].shape[1]) != COUNT:
            raise ValueError(
                f"{self.path}: a graph of {count} keypoints; the pose map needs the {COUNT} of COCO-WholeBody"
            )
        return GraphPoseConfig(self.layout.height, self.layout.width)

    def _detector(self) -> GraphDetectorConfig:
        (raw,), size = self.outputs, self.layout.height
        cells, classes = raw.shape[1], raw.shape[2] - 5
        if cells != (wanted := len(detector_cells(size)[0])):
            raise ValueError(f"{self.path}: a detector of {cells} cells; YOLOX of {size} pixels has {wanted}")
        if classes not in PERSON_FIRST:
            raise ValueError(
                f"{self.path}: a detector of {classes} classes; only of COCO's 80, or of a single one, is it known "
                "which is the person"
            )
        if raw[..., 4:].min() < 0 or raw[..., 4:].max() > 1:
            raise ValueError(f"{self.path}: a detector whose scores are not between 0 and 1")
        return GraphDetectorConfig(size, classes)

    @property
    def boxes_in_pixels(self) -> bool:
        """Whether a detector's centres lie near their cells in the picture, and not near 0 in each cell."""
        if self.component == "pose":
            return False
        cells, strides = detector_cells(self.layout.height)
        centres = self.outputs[0][..., :2] / strides[:, None]
        return bool(np.median(np.abs(centres - cells)) < np.median(np.abs(centres)))

    def as_network(self) -> Any:
        """This project's network with the graph's weights; None if the graph is another network."""
        for build in self._networks():
            network = without_weights(build)
            weights = matched_weights(network, self.model)
            if weights is not None:
                found = _computed(fill(network, weights, self.path), self.feed)
                return network if self._same(found, self.outputs) else None
        return None

    def as_it_is(self) -> GraphModel:
        """The graph as a component.

        Raises:
            ValueError: it cannot be brought to its stage's form, or then gives something else.
        """
        read, made = self.config.tensors()
        kind: type[GraphModel] = GraphEstimator if self.component == "pose" else GraphDetector
        form = Form(read, made, self.layout.outputs, self.layout.channels_last, boxes_in_pixels=self.boxes_in_pixels)
        # A batch of any size may be declared, and not be true.
        for one in (True,) if self.layout.one_at_a_time else (False, True):
            network = kind(self.config, as_stage(self.path, self.model, replace(form, one_at_a_time=one)))
            try:
                found = _computed(network, self.feed)
            except RuntimeError:  # ONNX Runtime's errors derive from it
                continue
            if self._same(*self._in_picture(found)):
                return network
        raise ValueError(f"{self.path}: a graph that gives something else once it is brought to the form of a stage")

    def _in_picture(self, found: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What a network found and what the graph does; of boxes in pixels, both as corners in pixels."""
        if not self.boxes_in_pixels:
            return found, self.outputs
        centres, halves = self.outputs[0][..., :2], self.outputs[0][..., 2:4] / 2
        corners = np.concatenate([centres - halves, centres + halves], axis=-1)
        scores = [values[0][..., 4:] for values in (found, self.outputs)]
        return [decode_boxes(found[0], self.layout.height), scores[0]], [corners, scores[1]]

    def _same(self, found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
        """Whether a network gives what the graph does, as near as an exported graph must be to its network.

        Rounding through a hundred layers is a hundredth of that; another epsilon in the norms is far more.
        """
        return all(
            np.linalg.norm(one - other) < TOLERANCE[self.precision] * np.linalg.norm(other)
            for one, other in zip(found, wanted, strict=True)
        )

    def _networks(self) -> Iterator[Callable[[], nn.Module]]:
        """Networks of this project that the graph may be, by the shapes of its layers in their order."""
        layers = list(_layers(self.model))
        convs = [dims for kind, dims in layers if kind == "Conv" and len(dims) == 4]
        linear = [dims for kind, dims in layers if kind == "MatMul" and len(dims) == 2]
        if self.component == "pose_detector":
            blocks, rest = divmod(len(convs) - YOLOX_CONVS[0], YOLOX_CONVS[1])
            if rest == 0 and 0 < blocks <= MOST_BLOCKS and convs[0][1] == 12:
                wide = convs[0][0] / 64
                classes = self.outputs[0].shape[2] - 5
                sizes = DetectorConfig(self.layout.height, blocks / 3, wide, num_classes=classes)
                yield lambda: PersonDetector(sizes)
        elif len(linear) == 5 and convs and linear[1][1] > 4 * linear[0][1]:
            hidden, depthwise = linear[0][1], sum(dims[1] == 1 for dims in convs)  # a block has one depthwise one
            shape = {"final_kernel": convs[-1][2], "hidden": hidden, "attention_dim": linear[1][1] - 4 * hidden}
            for blocks in range(1, MOST_BLOCKS + 1):
                if 2 * max(round(blocks / 2), 1) + 2 * blocks == depthwise:
                    size = self.layout.height, self.layout.width
                    made = PoseConfig(*size, widen=2 * convs[0][0] / 64, deepen=blocks / 6, **shape)
                    yield lambda made=made: PoseEstimator(made)  # type: ignore[misc]


@torch.no_grad()
def _computed(network: Any, feed: np.ndarray) -> list[np.ndarray]:
    """What a network gives for a batch, computed in float32."""
    dtype = network.dtype
    results = network.float()(torch.from_numpy(feed))
    nn.Module.to(network, dtype)  # diffusers' own warns of losses: these values were of that type
    return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]


def _layers(model: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Operator and shape of the weights of a graph's layers, in their order."""
    weights = constants_of(model)
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul") and node.input[1] in weights:
            yield node.op_type, weights[node.input[1]].shape
