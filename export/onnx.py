"""Stages as ONNX graphs, by PyTorch's dynamo exporter."""

from __future__ import annotations

import functools
import logging
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import torch
from onnxscript import rewriter

from diffbody_ref.models.graphs import GraphModel
from diffbody_ref.ops.tensors import split_side
from diffbody_ref.stages import BoundStage
from diffbody_ref.stages.base import Signature
from export.foreign import graph_around
from export.gradient import gradient_graph
from export.weights import WeightStore, share_weights

OPSET = 20
EXTERNAL_FROM = 1 << 30  # bytes of weights; a protobuf message holds 2 GiB at most


def export_onnx(stage: BoundStage, path: Path, store: WeightStore, simplify: bool = True) -> Path:
    """Write `path`, a graph with the stage's names and dynamic sizes.

    Its weights are those of the store, which must be of the file's folder (see `export.weights`); of others, over 1 GiB
    go to `path`.data. The same weights give the same bytes.

    Args:
        stage: with its weights.
        path: the graph's file.
        store: of the file's folder.
        simplify: let the exporter look for simpler forms. Of a network with thousands of nodes that takes most of half
            an hour and finds what engines find themselves when they load the graph.

    Raises:
        ValueError: the graph does not have the inputs, outputs or dynamic sizes of the stage.
    """
    foreign = next((module for module in stage.module.modules() if isinstance(module, GraphModel)), None)
    traced = functools.partial(_traced, simplify=simplify)
    model = traced(stage) if foreign is None else graph_around(stage, foreign, traced)
    _strip(model)
    _check(model, stage)
    share_weights(model, store)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < EXTERNAL_FROM:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", convert_attribute=False)
    return path


def _traced(stage: BoundStage, simplify: bool) -> onnx.ModelProto:
    """The graph of a stage's module."""
    signature, feed = stage.signature, stage.example(_tracing_sizes(stage.signature))
    args = tuple(torch.from_numpy(feed[spec.name]) for spec in signature.inputs)
    module = gradient_graph(stage.module, args) if stage.module.has_gradient else stage.module
    with warnings.catch_warnings(), torch.no_grad(), _weights_as_they_are():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            dynamic_shapes=_dynamic_shapes(signature),
            optimize=simplify,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _weights_as_they_are() -> Any:
    """The exporter's simplifications, without folding batch norms into weights: the store has no such weights.

    Engines fold them when they load a graph.
    """
    rules = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if "BatchNorm" not in (rule.name or "")]
    return patch.object(rewriter, "_DEFAULT_REWRITE_RULES", rules)


def _dynamic_shapes(signature: Signature) -> tuple[dict[int, Any], ...]:
    """The dynamic sizes of each input as `torch.export` wants them, one `Dim` a name."""
    dims = {name: torch.export.Dim(name, min=span.least, max=span.most) for name, span in signature.sizes.items()}
    return tuple(
        {axis: _dim(side, dims) for axis, side in enumerate(spec.shape) if isinstance(side, str)}
        for spec in signature.inputs
    )


def _dim(side: str, dims: dict[str, Any]) -> Any:
    factor, name = split_side(side)
    return dims[name] if factor == 1 else factor * dims[name]


def _tracing_sizes(signature: Signature) -> dict[str, int]:
    """A size for each dynamic name, all different: the tracer takes equal ones for the same, and 0 and 1 as fixed."""
    sides = [side for spec in signature.inputs for side in spec.shape]
    taken = {side for side in sides if isinstance(side, int)}
    sizes: dict[str, int] = {}
    for name, span in signature.sizes.items():
        factors = {factor for factor, other in (split_side(s) for s in sides if isinstance(s, str)) if other == name}
        size = max(2, span.least)
        while taken & {factor * size for factor in factors}:
            size += 1
        sizes[name] = size
        taken |= {factor * size for factor in factors}
    return sizes


def _strip(model: onnx.ModelProto) -> None:
    """Remove what is not of the graph: stack traces with this machine's paths, the tracer's bookkeeping."""
    for holder in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for holder in (*model.graph.input, *model.graph.output):
        del holder.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.value_info[:]


def _check(model: onnx.ModelProto, stage: BoundStage) -> None:
    for kind, values, specs in (
        ("inputs", model.graph.input, stage.signature.inputs),
        ("outputs", model.graph.output, stage.signature.outputs),
    ):
        names, wanted = [value.name for value in values], [spec.name for spec in specs]
        if names != wanted:
            raise ValueError(f"{stage.name}: the graph's {kind} are {names}, the stage's {wanted}")
        for value, spec in zip(values, specs, strict=True):
            dynamic = [bool(side.dim_param) for side in value.type.tensor_type.shape.dim]
            if dynamic != [isinstance(side, str) for side in spec.shape]:
                raise ValueError(f"{stage.name}: {spec.name} is {_sides(value)}, the stage's is {spec.shape}")


def _sides(value: Any) -> list[Any]:
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
