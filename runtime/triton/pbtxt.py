"""Parts of a model's config.pbtxt, as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from runtime.triton.contract import ModelTensors, TritonTensor


def data_type(dtype: str) -> str:
    """The configuration's name of one of Triton's dtypes: "BYTES" is TYPE_STRING."""
    return f"TYPE_{'STRING' if dtype == 'BYTES' else dtype}"


def dims(shape: Iterable[int]) -> str:
    """A shape as the field `dims`."""
    return f"dims: [ {', '.join(map(str, shape))} ]"


def tensors(listed: Sequence[TritonTensor], ragged: bool = False) -> str:
    """The entries of a model's `input` or `output`.

    Args:
        listed: the tensors.
        ragged: those of any size may differ in size within a batch.
    """

    def entry(tensor: TritonTensor) -> str:
        fields = [f'name: "{tensor.name}"', f"data_type: {data_type(tensor.dtype)}", dims(tensor.shape)]
        if tensor.optional:
            fields.append("optional: true")
        if ragged and -1 in tensor.shape:
            fields.append("allow_ragged_batch: true")
        return f"  {{ {' '.join(fields)} }}"

    return ",\n".join(map(entry, listed))


def ensemble_steps(models: Sequence[ModelTensors]) -> str:
    """The entries of an ensemble's `step`, which connect the models' tensors by their wires."""

    def connections(kind: str, listed: Sequence[TritonTensor]) -> list[str]:
        return [f'      {kind} {{ key: "{tensor.name}" value: "{tensor.wire}" }}' for tensor in listed]

    def step(model: ModelTensors) -> str:
        lines = [f'      model_name: "{model.name}"', "      model_version: -1"]
        lines += connections("input_map", model.inputs) + connections("output_map", model.outputs)
        return "\n".join(["    {", *lines, "    }"])

    return ",\n".join(map(step, models))


def parameters(values: Mapping[str, str]) -> str:
    """A model's parameters, one a line."""
    return "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}' for key, value in values.items()
    )


def dynamic_batching(max_queue: int, delay_microseconds: int = 0) -> str:
    """Batches of what waits for a model; its queue refuses requests beyond `max_queue`.

    Args:
        max_queue: number of requests that may wait.
        delay_microseconds: how long a batch waits to become larger.
    """
    delay = f"max_queue_delay_microseconds: {delay_microseconds} " * (delay_microseconds > 0)
    return f"dynamic_batching {{ {delay}default_queue_policy {{ max_queue_size: {max_queue} }} }}"
