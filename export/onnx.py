"""Stages as ONNX graphs, by PyTorch's dynamo exporter."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import torch
from onnxscript import rewriter

from export.gradient import gradient_graph
from export.stages import Stage, as_tensors, dynamic_shapes
from export.weights import WeightStore, share_weights
from runtime.bundle import split_side

OPSET = 20
EXTERNAL_FROM = 1 << 30  # bytes of weights; a protobuf message holds 2 GiB at most


def export_onnx(stage: Stage, path: Path, store: WeightStore) -> Path:
    """Write `path`, a graph with the stage's names and dynamic sizes.

    Its weights are those of the store, which must be of the file's folder (see `export.weights`); of others, over 1 GiB
    go to `path`.data. The same weights give the same bytes.

    Raises:
        ValueError: the graph does not have the inputs, outputs or dynamic sizes of the stage.
    """
    args = as_tensors(stage.example(_tracing_sizes(stage)), stage)
    module = gradient_graph(stage, args) if stage.has_gradient else stage.module
    with warnings.catch_warnings(), torch.no_grad(), _weights_as_they_are():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in stage.inputs],
            output_names=[spec.name for spec in stage.outputs],
            dynamic_shapes=dynamic_shapes(stage),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    _check(model, stage)
    share_weights(model, store)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < EXTERNAL_FROM:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", convert_attribute=False)
    return path


def _weights_as_they_are() -> Any:
    """The exporter's simplifications, without folding batch norms into weights: the store has no such weights.

    Engines fold them when they load a graph.
    """
    rules = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if "BatchNorm" not in (rule.name or "")]
    return patch.object(rewriter, "_DEFAULT_REWRITE_RULES", rules)


def _tracing_sizes(stage: Stage) -> dict[str, int]:
    """A size for each dynamic name, all different: the tracer takes equal ones for the same, and 0 and 1 as fixed."""
    sides = [side for spec in stage.inputs for side in spec.shape]
    taken = {side for side in sides if isinstance(side, int)}
    sizes: dict[str, int] = {}
    for name, given in stage.ranges.items():
        factors = {factor for factor, other in (split_side(s) for s in sides if isinstance(s, str)) if other == name}
        size = max(2, given.least)
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


def _check(model: onnx.ModelProto, stage: Stage) -> None:
    for kind, values, specs in (
        ("inputs", model.graph.input, stage.inputs),
        ("outputs", model.graph.output, stage.outputs),
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
