"""Weights of an ONNX graph as those of our own network: layers are matched by how they are connected, not by names.

Exporters fold batch norms into convolutions and rename what they fold. But a network's layers can be told apart by
their shapes and by what they are connected to. Both graphs are reduced to the nodes that have weights and to
concatenations, whose order of parts tells branches apart; everything between is only a connection. Then colour
refinement (Weisfeiler & Leman 1968) gives each node a colour that depends on its whole neighbourhood. If no two layers
of our network have the same colour, and the other graph has exactly the same ones, the layers of a colour are the same.
What lies between them is not compared: run both networks to see that they are one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

ELEMENTWISE = {"Mul": "mul", "Add": "add"}
FORMS = (
    "Cast",
    "Identity",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)  # operators that exporters leave on weights


@dataclass
class Vertex:
    """A node that has weights, or joins branches.

    Attributes:
        kind: what two nodes have in common if they can be the same.
        slots: for each input, the vertices that it comes from.
        weights: of a layer of our network its name; of a node of a graph its tensors by role.
        layer: whether it has weights.
    """

    kind: tuple[Any, ...]
    slots: list[frozenset[int]]
    weights: Any = None
    layer: bool = True


@dataclass
class Reduced:
    """A graph of vertices."""

    vertices: list[Vertex] = field(default_factory=list)

    def add(self, vertex: Vertex) -> frozenset[int]:
        """Add a vertex, and return the sources of its output."""
        self.vertices.append(vertex)
        return frozenset({len(self.vertices) - 1})

    def join(self, slots: Iterable[frozenset[int]]) -> frozenset[int]:
        """A concatenation; of nothing, or of parts of one tensor, it is only a connection."""
        parts = [slot for slot in slots if slot]
        if len(set(parts)) < 2:
            return parts[0] if parts else frozenset()
        return self.add(Vertex(("cat", len(parts)), parts, layer=False))

    def colours(self) -> list[bytes]:
        """A colour for each vertex; equal ones cannot be told apart by what they are connected to."""
        colours = [_digest(vertex.kind) for vertex in self.vertices]
        readers: list[list[tuple[int, int]]] = [[] for _ in self.vertices]
        for number, vertex in enumerate(self.vertices):
            for place, slot in enumerate(vertex.slots):
                for source in slot:
                    readers[source].append((place, number))
        distinct = 0
        while len(set(colours)) > distinct:
            distinct = len(set(colours))
            colours = [
                _digest(
                    (
                        colours[number],
                        [sorted(colours[source] for source in slot) for slot in vertex.slots],
                        sorted((place, colours[reader]) for place, reader in readers[number]),
                    )
                )
                for number, vertex in enumerate(self.vertices)
            ]
        return colours


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).digest()


def matched_weights(network: nn.Module, model: Any) -> dict[str, Tensor] | None:
    """The network's weights from a graph; None where the graph is another network.

    Args:
        network: built by `weights.filling.without_weights`; its tensors are not read.
        model: the `onnx.ModelProto` with its weights.

    Returns:
        Tensors by the network's names. Folded batch norms become the convolution's weights and a norm that only adds
        the bias.
    """
    ours, theirs = reduce_network(network), reduce_graph(model)
    if len(ours.vertices) != len(theirs.vertices):
        return None
    own_colours, colours = ours.colours(), theirs.colours()
    layers = [number for number, vertex in enumerate(ours.vertices) if vertex.layer]
    if sorted(own_colours) != sorted(colours) or len({own_colours[n] for n in layers}) < len(layers):
        return None
    place = dict(zip(colours, theirs.vertices, strict=True))
    weights: dict[str, Tensor] = {}
    for number in layers:
        weights |= _translated(network, ours.vertices[number].weights, place[own_colours[number]].weights)
    return weights


def _translated(network: nn.Module, names: Mapping[str, str], found: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """A layer's tensors by the network's names: `weight`, perhaps `bias`, and perhaps a `norm` after it."""
    state = {names["weight"]: _tensor(found["weight"])}
    outputs, dtype = len(found["weight"]), found["weight"].dtype
    bias = found.get("bias", np.zeros(outputs, dtype))
    if "bias" in names:
        state[names["bias"]] = _tensor(bias)
    if "norm" in names:
        norm = names["norm"]
        eps = network.get_submodule(norm).eps
        if "norm.weight" in found:
            values = [found[f"norm.{role}"] for role in ("weight", "bias", "running_mean", "running_var")]
        else:  # √(variance + ε) is 1
            values = [np.ones(outputs), bias, np.zeros(outputs), np.full(outputs, 1.0 - eps)]
        for role, value in zip(("weight", "bias", "running_mean", "running_var"), values, strict=True):
            state[f"{norm}.{role}"] = _tensor(value.astype(dtype))
    return state


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, order="C"))


def reduce_network(network: nn.Module) -> Reduced:
    """The reduced graph of a network of convolutions, linear layers, batch norms and plain parameters."""
    traced, reduced = fx.Tracer().trace(network), Reduced()
    sources: dict[fx.Node, frozenset[int]] = {}
    producers: dict[fx.Node, Vertex] = {}
    for node in traced.nodes:
        inputs = [sources[argument] for argument in node.all_input_nodes]
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        parameter = next((a for a in node.all_input_nodes if a.op == "get_attr"), None)
        if node.op == "placeholder":
            sources[node] = reduced.add(Vertex(("input",), [], layer=False))
        elif node.op == "get_attr":
            sources[node] = frozenset()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            vertex = Vertex(_layer_kind(module), inputs, _layer_names(node.target, module))
            sources[node] = reduced.add(vertex)
            producers[node] = vertex
        elif isinstance(module, nn.BatchNorm2d):
            producers[node.all_input_nodes[0]].weights["norm"] = node.target
            sources[node] = inputs[0]
        elif node.op == "call_function" and node.target is torch.cat:
            parts = node.args[0]
            sources[node] = reduced.join(sources[part] for part in parts)  # type: ignore[union-attr,index]
        elif parameter is not None:
            name = str(parameter.target)
            shape = tuple(size for size in network.get_parameter(name).shape if size > 1)
            kind = (node.target.__name__ if callable(node.target) else node.target, shape)
            sources[node] = reduced.add(Vertex(kind, [_union(inputs)], {"weight": name}))
        elif node.op == "output":
            for output in node.all_input_nodes:
                reduced.add(Vertex(("output",), [sources[output]], layer=False))
        else:
            sources[node] = _union(inputs)
    return reduced


def _layer_kind(module: nn.Conv2d | nn.Linear) -> tuple[Any, ...]:
    shape = tuple(module.weight.shape)
    return ("linear", shape) if isinstance(module, nn.Linear) else ("conv", shape, tuple(module.stride), module.groups)


def _layer_names(target: Any, module: nn.Conv2d | nn.Linear) -> dict[str, str]:
    return {"weight": f"{target}.weight", **({"bias": f"{target}.bias"} if module.bias is not None else {})}


def _union(inputs: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*inputs)


def constants_of(model: Any) -> dict[str, np.ndarray]:
    """The constants of an ONNX graph by name: its weights, and what is only another form of one."""
    import onnx

    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        source = found.get(node.input[0]) if node.input else None
        if isinstance(value := attributes.get("value"), onnx.TensorProto) and node.op_type == "Constant":
            found[node.output[0]] = onnx.numpy_helper.to_array(value)
        elif source is not None and node.op_type in ("Identity", "Squeeze", "Unsqueeze"):
            found[node.output[0]] = source  # sides of one are nothing to go by
        elif source is not None and node.op_type == "Cast":
            found[node.output[0]] = source.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
        elif source is not None and node.op_type == "Transpose" and source.ndim == 2:
            found[node.output[0]] = source.T
    return found


def reduce_graph(model: Any) -> Reduced:
    """The reduced graph of an ONNX graph."""
    return _GraphReader(model).reduced


class _GraphReader:
    """Reads a graph's nodes in their order."""

    def __init__(self, model: Any) -> None:
        import onnx

        self.reduced = Reduced()
        self.constants = constants_of(model)
        self.sources: dict[str, frozenset[int]] = {}
        self.producers: dict[str, Vertex] = {}
        for value in model.graph.input:
            if value.name not in self.constants:
                self.sources[value.name] = self.reduced.add(Vertex(("input",), [], layer=False))
        for node in model.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            self.sources |= dict.fromkeys(node.output, self._sources_of(node, attributes))
        for value in model.graph.output:
            self.reduced.add(Vertex(("output",), [self._of(value.name)], layer=False))

    def _of(self, name: str) -> frozenset[int]:
        return self.sources.get(name, frozenset())

    def _sources_of(self, node: Any, attributes: Mapping[str, Any]) -> frozenset[int]:
        """The vertices that a node's output comes from, after its own is added."""
        kind, inputs = node.op_type, [self._of(name) for name in node.input]
        constants = [self.constants.get(name) for name in node.input]
        if kind == "Shape" or node.output[0] in self.constants:
            return frozenset()
        if kind == "Concat":
            return self.reduced.join(inputs)
        if kind == "Conv" and constants[1] is not None:
            return self._conv(node, constants, attributes, inputs[0])
        if kind == "BatchNormalization" and node.input[0] in self.producers:
            roles = ("weight", "bias", "running_mean", "running_var")
            norm = {f"norm.{role}": value for role, value in zip(roles, constants[1:5], strict=False)}
            self.producers[node.input[0]].weights.update(norm)
            return inputs[0]
        weight = constants[1] if len(constants) == 2 else None
        if kind in ("MatMul", "Gemm") and weight is not None and weight.ndim == 2:
            weight = weight if attributes.get("transB") else weight.T
            return self.reduced.add(Vertex(("linear", weight.shape), [inputs[0]], {"weight": weight}))
        parameters = [value for value in constants if value is not None and value.ndim]
        if kind in ELEMENTWISE and len(inputs) == 2 and len(parameters) == 1:
            shape = tuple(size for size in parameters[0].shape if size > 1)  # leading sides of one are the exporter's
            weight = parameters[0].reshape(shape or (1,))
            return self.reduced.add(Vertex((ELEMENTWISE[kind], shape), [_union(inputs)], {"weight": weight}))
        return _union(inputs)

    def _conv(
        self, node: Any, constants: list[np.ndarray | None], attributes: Mapping[str, Any], source: frozenset[int]
    ) -> frozenset[int]:
        weights = {role: v for role, v in zip(("weight", "bias"), constants[1:], strict=False) if v is not None}
        kind = ("conv", weights["weight"].shape, tuple(attributes.get("strides", (1, 1))), attributes.get("group", 1))
        vertex = Vertex(kind, [source], weights)
        self.producers[node.output[0]] = vertex
        return self.reduced.add(vertex)
