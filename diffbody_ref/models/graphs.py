"""Pose networks that are ONNX graphs: run by ONNX Runtime, in the place of `PersonDetector` and `PoseEstimator`.

A component's folder holds `config.json`, the graph and its weights beside it in safetensors. Graphs come from anybody:
what is loaded is checked first, and ONNX Runtime is given nothing but operators of ONNX itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin  # noqa: F401  # DiffusionPipeline.from_pretrained looks for it beside the class
from torch import Tensor

from diffbody_ref.models.base import ConfiguredModel
from diffbody_ref.ops.keypoints import COUNT
from diffbody_ref.ops.pose import SPLIT_RATIO, detector_cells
from diffbody_ref.ops.tensors import TensorSpec

GRAPH, WEIGHTS = "model.onnx", "model.safetensors"
DOMAINS = ("", "ai.onnx")
# Of operators with graphs of their own, which may also run forever. A graph of one batch is repeated by the last one.
CONTROL, REPEAT = ("If", "Loop", "Scan"), "diffbody.each_sample"
MAX_BYTES = 2 << 30  # of a graph with its weights: a protobuf message holds no more, and pose networks have a tenth
MAX_NODES = 10_000  # the largest public pose networks have about a thousand
OUTSIDE_FROM = 64  # values: a smaller constant stays in the graph


def check_graph(path: Path, model: Any) -> None:
    """See that a graph can be given to ONNX Runtime: valid, of ONNX's own operators, complete, of a bounded size.

    Args:
        path: of the graph's file, in whose folder its weights may be.
        model: the `onnx.ModelProto`, its external data not loaded.

    Raises:
        ValueError: it cannot; one line says why.
    """
    import onnx

    external = 0
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external += _check_external(path, tensor)
    if path.stat().st_size + external > MAX_BYTES:
        raise ValueError(f"{path}: a graph of more than {MAX_BYTES >> 30} GiB; pose networks are far smaller")
    nodes = list(_nodes(model.graph))
    if len(nodes) > MAX_NODES:
        raise ValueError(f"{path}: a graph of {len(nodes)} nodes, at most {MAX_NODES}")
    if model.functions or any(node.domain not in DOMAINS for node in nodes):
        domain = next((node.domain for node in nodes if node.domain not in DOMAINS), "its own functions")
        raise ValueError(f"{path}: uses operators of {domain[:80]!r}; only ONNX's own are run")
    for node in nodes:
        if node.op_type in CONTROL and node.name != REPEAT:
            raise ValueError(f"{path}: has the operator {node.op_type}; graphs with control flow are not run")
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # the checker's errors have no common class
        raise ValueError(f"{path}: no valid ONNX graph: {' '.join(str(error).split())[:160]}") from None


def _check_external(path: Path, tensor: Any) -> int:
    """Bytes of the file that a tensor is in, which must be in the graph's folder."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    inside, file = PurePosixPath(location), path.parent / location
    if not location or inside.is_absolute() or ".." in inside.parts or "\\" in location or "\0" in location:
        raise ValueError(f"{path}: has weights outside of its folder: {location[:80]!r}; it is not to be trusted")
    if not file.is_file():
        raise ValueError(f"{path}: its weights {location[:80]!r} are not beside it")
    return sum(int(entry.value) for entry in tensor.external_data if entry.key == "length" and entry.value.isdigit())


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _nodes(graph: Any) -> Iterator[Any]:
    for inner in _graphs(graph):
        yield from inner.node


def _tensors(graph: Any) -> Iterator[Any]:
    for inner in _graphs(graph):
        yield from inner.initializer
        for sparse in inner.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(graph):
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.t.dims or attribute.t.raw_data or attribute.t.external_data:
                yield attribute.t


class GraphModel(ConfiguredModel):
    """A network that is an ONNX graph of one input and a dynamic batch, float32 at its doors.

    It has no parameters, and can be neither trained nor converted: its weights keep the precision that they have.

    Args:
        config: an instance of `config_dataclass`.
        graph: the graph, checked: a file, whose weights may be beside it, or an `onnx.ModelProto` with its weights.
    """

    def __init__(self, config: Any, graph: Any) -> None:
        super().__init__(config)
        self.graph = graph
        self.register_buffer("place", torch.empty(0), persistent=False)  # knows the device
        self._sessions: dict[str, Any] = {}

    @property
    def dtype(self) -> torch.dtype:
        """What the graph reads."""
        return torch.float32

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The values in a component's folder, and under `_name_or_path` the folder."""
        values = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        (values[0] if isinstance(values, tuple) else values)["_name_or_path"] = str(pretrained_model_name_or_path)
        return values

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The graph of the folder that `load_config` read; its weights are only read when it is first run.

        Raises:
            TypeError: the configuration is of no folder, and alone does not make a graph.
            ValueError: see `from_pretrained`.
        """
        if "_name_or_path" not in (config or {}):
            raise TypeError(f"{cls.__name__} is a graph: a configuration alone does not make one")
        network = cls.from_pretrained(config["_name_or_path"])
        return (network, {}) if return_unused_kwargs else network

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a component's folder; `torch_dtype` and the like are of no use here.

        Raises:
            ValueError: the graph is none that can be run, or does not fit the configuration.
        """
        import onnx

        folder = Path(pretrained_model_name_or_path)
        values = cls.load_config(folder)
        settings = cls.config_dataclass(**{name: v for name, v in values.items() if not name.startswith("_")})
        try:
            model = onnx.load(folder / GRAPH, load_external_data=False)
        except Exception as error:  # protobuf's errors have no common class
            raise ValueError(f"{folder / GRAPH}: no ONNX graph: {' '.join(str(error).split())[:160]}") from None
        check_graph(folder / GRAPH, model)
        _check_tensors(folder / GRAPH, model, *settings.tensors())
        return cls(settings, folder / GRAPH)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the configuration, the graph, and its weights beside it."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_config(folder)
        write_graph(self.load(), folder)

    def load(self) -> Any:
        """The `onnx.ModelProto` with its weights."""
        import onnx

        return onnx.load(self.graph) if isinstance(self.graph, Path) else self.graph

    def num_parameters(self, *args: Any, **kwargs: Any) -> int:
        """Values of the graph's weights."""
        import onnx

        model = onnx.load(self.graph, load_external_data=False) if isinstance(self.graph, Path) else self.graph
        return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)

    def run(self, inputs: Tensor) -> list[Tensor]:
        """The graph's outputs, in its order, on the device of the inputs."""
        session = self._session("cuda" if self.device.type == "cuda" else "cpu")
        found = session.run(None, {session.get_inputs()[0].name: inputs.detach().float().cpu().numpy()})
        return [torch.from_numpy(array).to(inputs.device) for array in found]

    def _session(self, device: str) -> Any:
        if device not in self._sessions:
            import onnxruntime

            provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
            there = onnxruntime.get_available_providers()
            usable = [name for name in dict.fromkeys((provider, "CPUExecutionProvider")) if name in there]
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = torch.get_num_threads()
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch needs the cores next
            graph = str(self.graph) if isinstance(self.graph, Path) else self.graph.SerializeToString()
            self._sessions[device] = onnxruntime.InferenceSession(graph, options, providers=usable)
        return self._sessions[device]


def _check_tensors(path: Path, model: Any, read: TensorSpec, made: tuple[TensorSpec, ...]) -> None:
    """See that a graph has these tensors, in float32."""
    for values, specs in ((model.graph.input, (read,)), (model.graph.output, made)):
        found = [(value.name, _shape(value), value.type.tensor_type.elem_type) for value in values]
        wanted = [(spec.name, spec.shape, 1) for spec in specs]  # 1 is TensorProto.FLOAT
        if found != wanted:
            raise ValueError(f"{path}: has the tensors {str(found)[:160]}, must have {wanted}")


def _shape(value: Any) -> tuple[int | str, ...]:
    return tuple(side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim)


def write_graph(model: Any, folder: Path) -> None:
    """Write a graph to `folder`, its weights as safetensors, so that a bundle keeps them once for all its graphs."""
    import onnx
    from safetensors.numpy import save_file

    weights = {}
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.size >= OUTSIDE_FROM and values.dtype in (np.float32, np.float16):
            weights[tensor.name] = np.ascontiguousarray(values)
    save_file(weights, folder / WEIGHTS)
    places = _offsets(folder / WEIGHTS)
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    for tensor in slim.graph.initializer:
        if tensor.name in weights:
            begin, end = places[tensor.name]
            kind = onnx.TensorProto(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=onnx.TensorProto.EXTERNAL
            )
            for key, value in (("location", WEIGHTS), ("offset", begin), ("length", end - begin)):
                kind.external_data.add(key=key, value=str(value))
            tensor.CopyFrom(kind)
    onnx.save(slim, folder / GRAPH)


def _offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file begins and ends in it."""
    import json

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


@dataclass(frozen=True)
class GraphDetectorConfig:
    """The configuration of a detector that is a graph.

    Attributes:
        size: side of the square input in pixels, a multiple of 32.
        num_classes: number of classes; class 0 is the person.
    """

    size: int = 640
    num_classes: int = 80

    def tensors(self) -> tuple[TensorSpec, tuple[TensorSpec, ...]]:
        """The graph's input and outputs."""
        raw = TensorSpec("raw", "float32", ("batch", len(detector_cells(self.size)[0]), 5 + self.num_classes))
        return TensorSpec("square", "float32", ("batch", 3, self.size, self.size)), (raw,)


@dataclass(frozen=True)
class GraphPoseConfig:
    """The configuration of a keypoint network that is a graph.

    Attributes:
        height: height of the crop in pixels.
        width: width of the crop in pixels.
    """

    height: int = 384
    width: int = 288

    def tensors(self) -> tuple[TensorSpec, tuple[TensorSpec, ...]]:
        """The graph's input and outputs."""
        simcc_x = TensorSpec("simcc_x", "float32", ("people", COUNT, int(SPLIT_RATIO * self.width)))
        simcc_y = TensorSpec("simcc_y", "float32", ("people", COUNT, int(SPLIT_RATIO * self.height)))
        return TensorSpec("crops", "float32", ("people", 3, self.height, self.width)), (simcc_x, simcc_y)


class GraphDetector(GraphModel):
    """A detector of people that is a graph, in the place of `models.detector.PersonDetector`."""

    config_dataclass = GraphDetectorConfig

    def forward(self, images: Tensor) -> Tensor:
        """See `PersonDetector.forward`: (B, 3, S, S) → (B, A, 5 + classes)."""
        return self.run(images)[0]


class GraphEstimator(GraphModel):
    """A keypoint network that is a graph, in the place of `models.pose.PoseEstimator`."""

    config_dataclass = GraphPoseConfig

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """See `PoseEstimator.forward`: (B, 3, H, W) → (B, 133, 2W) and (B, 133, 2H)."""
        simcc_x, simcc_y = self.run(crops)
        return simcc_x, simcc_y
