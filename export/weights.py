"""A bundle keeps each weight once: constants of its graphs refer into the safetensors files of its networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx

SHARED_FROM = 64  # values: a smaller constant is not worth a reference
DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}


@dataclass(frozen=True)
class Stored:
    """Where the bytes of a tensor are: a file by its path in the folder, the offset from its beginning, the length."""

    file: str
    offset: int
    length: int


class WeightStore:
    """The tensors of all safetensors files below a folder, by their contents."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[bytes, Stored] = {}
        for path in sorted(folder.rglob("*.safetensors")):
            data = np.memmap(path, np.uint8, "r")
            for dtype, begin, end in _tensors(path):
                place = Stored(path.relative_to(folder).as_posix(), begin, end - begin)
                self._places.setdefault(_digest(data[begin:end].view(dtype)), place)

    def find(self, values: np.ndarray) -> Stored | None:
        """A tensor of the same dtype and bytes, whatever its shape."""
        return self._places.get(_digest(values))


def share_weights(model: onnx.ModelProto, store: WeightStore) -> None:
    """Let the model's constants be those of the store, where it has them, in half precision if that loses nothing.

    A cast, or a transposition, brings a constant back to what the graph wants; engines fold both when they load it. So
    the graph's results stay the same to the bit. The model must be saved in the store's folder: ONNX allows no other.
    """
    adapters = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < SHARED_FROM or values.dtype not in (np.float32, np.float16):
            continue
        for stored, transposed in _forms(values):
            place = store.find(stored)
            if place is not None:
                adapters += _refer(tensor, stored, place, transposed)
                break
    nodes = [*adapters, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _forms(values: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """What a constant may be stored as, and whether that is transposed."""
    with np.errstate(over="ignore"):
        halves = [values.astype(dtype) for dtype in (np.float16, ml_dtypes.bfloat16)]
    lossless = [half for half in halves if np.array_equal(half.astype(values.dtype), values)]
    for stored in (*lossless, values):
        yield stored, False
        if stored.ndim == 2:
            yield np.ascontiguousarray(stored.T), True


def _refer(tensor: onnx.TensorProto, stored: np.ndarray, place: Stored, transposed: bool) -> list[onnx.NodeProto]:
    """Make `tensor` a reference; the nodes that give its name to the constant that the graph wants."""
    wanted, name, nodes = tensor.data_type, tensor.name, []
    source = name
    if transposed:
        source = f"{source}.transposed"
        nodes.append(onnx.helper.make_node("Transpose", [source], [name], perm=[1, 0]))
    kind = onnx.helper.np_dtype_to_tensor_dtype(stored.dtype)
    if kind != wanted:
        nodes.insert(0, onnx.helper.make_node("Cast", [f"{source}.stored"], [source], to=wanted))
        source = f"{source}.stored"
    reference = onnx.TensorProto(
        name=source, data_type=kind, dims=stored.shape, data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in (("location", place.file), ("offset", place.offset), ("length", place.length)):
        reference.external_data.add(key=key, value=str(value))
    tensor.CopyFrom(reference)
    return nodes


def _tensors(path: Path) -> Iterator[tuple[type, int, int]]:
    """dtype, begin and end in the file of every tensor (https://github.com/huggingface/safetensors#format)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in DTYPES:
            begin, end = entry["data_offsets"]
            yield DTYPES[entry["dtype"]], 8 + length + begin, 8 + length + end


def _digest(values: np.ndarray) -> bytes:
    return hashlib.blake2b(
        np.ascontiguousarray(values).tobytes(), digest_size=20, person=values.dtype.char.encode()
    ).digest()
