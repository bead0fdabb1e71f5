"""Foreign pose graphs brought to the form that a stage has: names, layout, number format, boxes, batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffbody_ref.models.graphs import REPEAT
from diffbody_ref.ops.pose import detector_cells
from diffbody_ref.ops.tensors import TensorSpec

OPSET = 20  # of the graphs of bundles, with which this one is joined
IR_VERSION = 10  # of ONNX's file format, the first one with operators of that version
# The inverse of `ops.pose.decode_boxes`: offset = centre / stride − cell, log(side / stride); a side of 0 has a
# logarithm, too.
IN_CELLS = """
    zero = Constant<value_ints=[0]>()
    two = Constant<value_ints=[2]>()
    four = Constant<value_ints=[4]>()
    end = Constant<value_ints=[1000000]>()
    least = Constant<value_float=1e-30>()
    centres = Slice(boxes, zero, two, two)
    sides = Slice(boxes, two, four, two)
    scores = Slice(boxes, four, end, two)
    places = Div(centres, strides)
    offsets = Sub(places, cells)
    ratios = Div(sides, strides)
    positive = Max(ratios, least)
    logarithms = Log(positive)
    in_cells = Concat<axis=2>(offsets, logarithms, scores)
"""


@dataclass(frozen=True)
class Form:
    """What a foreign graph is, and what it is to become.

    Attributes:
        input: the stage's input, (batch, 3, H, W).
        outputs: the stage's outputs.
        sources: for each of them, the graph's output.
        channels_last: the graph reads (batch, H, W, 3).
        one_at_a_time: the graph reads a batch of one only.
        boxes_in_pixels: the graph is a detector that gives centres and sides in pixels, not in units of cells.
    """

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    sources: tuple[str, ...]
    channels_last: bool = False
    one_at_a_time: bool = False
    boxes_in_pixels: bool = False


def as_stage(path: Path, model: Any, form: Form) -> Any:
    """The graph with a stage's tensors, in ONNX's operators of version `OPSET`.

    Args:
        path: of the graph, for errors.
        model: the `onnx.ModelProto` with its weights.
        form: what the graph is.

    Raises:
        ValueError: its operators cannot be converted.
    """
    import onnx

    try:
        model = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's errors have no common class
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: cannot be converted to ONNX's operators of version {OPSET}: {reason}") from None
    network = onnx.compose.add_prefix(model, "network/").graph
    weights = {tensor.name for tensor in network.initializer}
    (read,) = (value for value in network.input if value.name not in weights)
    inner = _of_sample(form) if form.one_at_a_time else form
    before, after = _before(inner, read), _after(inner)
    nodes = [*before.node, *network.node, *after.node]
    initializers = [*before.initializer, *network.initializer, *after.initializer]
    if form.one_at_a_time:
        nodes = [_each_sample(nodes, form, inner)]
    made = onnx.helper.make_graph(
        nodes, "network", [_value(form.input)], [_value(spec) for spec in form.outputs], initializers
    )
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _before(form: Form, read: Any) -> Any:
    """A graph from the stage's input to the network's."""
    steps = [("Transpose", {"perm": [0, 2, 3, 1]})] if form.channels_last else []
    return _chain(form.input.name, [*steps, ("Cast", {"to": read.type.tensor_type.elem_type})], read.name)


def _after(form: Form) -> Any:
    """A graph from the network's outputs to the stage's."""
    import onnx

    if form.boxes_in_pixels:
        size = int(form.input.shape[-1])
        cells, strides = detector_cells(size)
        made = onnx.parser.parse_graph(f"after (float[b, a, c] boxes) => (float[b, a, c] in_cells) {{{IN_CELLS}}}")
        for name, values in (("cells", cells), ("strides", strides[:, None])):
            made.initializer.append(onnx.numpy_helper.from_array(values, name))
        made = onnx.compose.add_prefix_graph(made, "after/")
        rename = {"after/boxes": "after/boxes_read", "after/in_cells": form.outputs[0].name}
        for node in made.node:
            node.input[:] = [rename.get(name, name) for name in node.input]
            node.output[:] = [rename.get(name, name) for name in node.output]
        cast = _chain(f"network/{form.sources[0]}", [("Cast", {"to": onnx.TensorProto.FLOAT})], "after/boxes_read")
        made.node.insert(0, cast.node[0])
        return made
    made = onnx.GraphProto()
    for source, spec in zip(form.sources, form.outputs, strict=True):
        made.node.extend(_chain(f"network/{source}", [("Cast", {"to": onnx.TensorProto.FLOAT})], spec.name).node)
    return made


def _chain(source: str, steps: Sequence[tuple[str, dict[str, Any]]], target: str) -> Any:
    """A graph of nodes of one input and one output, one after the other."""
    import onnx

    made = onnx.GraphProto()
    for number, (kind, attributes) in enumerate(steps):
        output = target if number == len(steps) - 1 else f"{target}/{number}"
        made.node.append(onnx.helper.make_node(kind, [source], [output], **attributes))
        source = output
    return made


def _of_sample(form: Form) -> Form:
    """The form inside of `_each_sample`, where names must be others than outside."""
    rename = lambda spec: replace(spec, name=f"sample/{spec.name}")  # noqa: E731
    return replace(form, input=rename(form.input), outputs=tuple(rename(spec) for spec in form.outputs))


def _each_sample(nodes: Sequence[Any], form: Form, inner: Form) -> Any:
    """A node that applies nodes for a batch of one to each sample of a batch; their weights stay outside of it."""
    from onnx import TensorProto, helper

    one, results = "sample/one", [f"{spec.name}/one" for spec in inner.outputs]
    inside = [
        helper.make_node("Constant", [], ["sample/first"], value_ints=[0]),
        helper.make_node("Unsqueeze", [one, "sample/first"], [inner.input.name]),
        *nodes,
        *(
            helper.make_node("Squeeze", [spec.name, "sample/first"], [result])
            for spec, result in zip(inner.outputs, results, strict=True)
        ),
    ]
    read = helper.make_tensor_value_info(one, TensorProto.FLOAT, inner.input.shape[1:])
    made = [
        helper.make_tensor_value_info(result, TensorProto.FLOAT, spec.shape[1:])
        for spec, result in zip(inner.outputs, results, strict=True)
    ]
    body = helper.make_graph(inside, "each_sample", [read], made)
    outputs = [spec.name for spec in form.outputs]
    return helper.make_node("Scan", [form.input.name], outputs, name=REPEAT, body=body, num_scan_inputs=1)


def _value(spec: TensorSpec) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape)
