"""Stages of a network that is an ONNX graph itself: what the stage does around it is traced, and both are joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import onnx
from torch import Tensor

from diffbody_ref.models.graphs import GraphModel
from diffbody_ref.stages import BoundStage
from diffbody_ref.stages.base import Signature, Stage, uniform

FOUND = "found/"  # prefix of the network's outputs
REST = "rest/"  # prefix of the names inside of the graph around it


def graph_around(
    stage: BoundStage, network: GraphModel, trace: Callable[[BoundStage], onnx.ModelProto]
) -> onnx.ModelProto:
    """The graph of a stage whose first input goes to a network that is a graph.

    Args:
        stage: of that network.
        network: in the stage's module.
        trace: makes the graph of a stage that PyTorch runs.
    """
    rest = trace(_rest_of(stage, network))
    rest = onnx.compose.add_prefix(rest, REST, rename_inputs=False, rename_outputs=False)
    inner = onnx.ModelProto()
    inner.CopyFrom(network.load())
    inner.ir_version = rest.ir_version
    # Not by `add_prefix`, which forgets what a graph inside of a node reads from outside of it.
    names = {value.name: f"{FOUND}{value.name}" for value in inner.graph.output}
    for value in inner.graph.output:
        value.name = names[value.name]
    for node in inner.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    return onnx.compose.merge_models(inner, rest, io_map=[(name, name) for name in names.values()])


def _rest_of(stage: BoundStage, network: GraphModel) -> BoundStage:
    """What a stage does with its other inputs and the network's outputs."""
    whole, (_, made) = stage.signature, network.settings.tensors()
    outputs = tuple(dataclasses.replace(spec, name=f"{FOUND}{spec.name}") for spec in made)
    inputs = (*outputs, *whole.inputs[1:])
    draw = {spec.name: whole.draw.get(spec.name, uniform) for spec in inputs}
    signature = Signature(inputs, whole.outputs, whole.sizes, draw)
    return BoundStage(stage.name, _Rest(stage.module, network, len(outputs)), signature)


class _Rest(Stage):
    """A stage's module that is given its network's outputs in place of the first input."""

    components = ()

    def __init__(self, stage: Stage, network: GraphModel, count: int) -> None:
        super().__init__()
        self.stage, self.network, self.count = stage, network, count

    def forward(self, one: Tensor, two: Tensor) -> Any:
        """Both pose stages have two such tensors in all: boxes and a ratio, or scores in x and in y."""
        tensors = one, two
        made, others = tensors[: self.count], tensors[self.count :]
        with patch.object(self.network, "forward", lambda _: made if self.count > 1 else made[0]):
            return self.stage(made[0], *others)

    def signature(self, geometry: Any, settings: Any) -> Signature:
        return self.stage.signature(geometry, settings)
