"""Reading of pickled checkpoints without running their code.

PyTorch's own `weights_only` reader comes first: it also refuses what is no plain file of tensors, such as TorchScript.
Where it stops at a class that it does not know, as training frameworks write beside the weights, the file is read
again by an unpickler that imports nothing and calls nothing of the file's choice: it rebuilds tensors, and makes an
inert `Record` of everything else.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Record:
    """An object of a class that is not imported: what the file says of it, and nothing that it does.

    Attributes:
        origin: module and name of the class or function, such as "yacs.config.CfgNode".
        contents: what the object was made of: arguments, items and state, in the file's order.
    """

    origin = ""
    contents: list[Any]
    dump_patches = False  # PyTorch asks classes of whole networks in old files for it

    def __new__(cls, *arguments: Any, **named: Any) -> Record:
        record = super().__new__(cls)
        record.contents = [*arguments, *named.items()]
        return record

    def __repr__(self) -> str:
        return f"Record({self.origin})"

    # The protocol of unpickling. `__setstate__` also keeps the unpickler from setting attributes, of the class too.
    def __setstate__(self, state: Any) -> None:
        self.contents.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.contents.append((key, value))

    def append(self, value: Any) -> None:
        self.contents.append(value)

    def extend(self, values: Any) -> None:
        self.contents.extend(values)

    def add(self, value: Any) -> None:
        self.contents.append(value)

    def __call__(self, *arguments: Any, **named: Any) -> Record:
        return _record_class(f"{self.origin}()")(*arguments, **named)


def _record_class(origin: str) -> type[Record]:
    """A class of its own for each name, as a class may itself be a value or a key in the file."""
    return type("Record", (Record,), {"origin": origin[:200], "__module__": __name__})


class _Function:
    """A function that the file may call, whose attributes the file cannot change."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("the file changes a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file changes a function")


class _Ordered(dict[Any, Any]):
    """A dictionary without attributes; what the file would set on it (a state dict's `_metadata`) is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of a storage; hooks and metadata are dropped.

    Raises:
        pickle.UnpicklingError: the arguments are of other types, or reach beyond the storage.
    """
    numbers = (offset, *size, *stride)
    if not isinstance(storage, torch.storage.TypedStorage) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor's storage, size or stride is of a wrong type")
    data = storage.untyped()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if 0 not in size and last * storage.dtype.itemsize > data.nbytes():
        raise pickle.UnpicklingError(f"a tensor of size {size} reaches beyond its data")
    return torch.empty((0,), dtype=storage.dtype).set_(data, offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _subclass(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, or of a subclass: the tensor that it was."""
    if not isinstance(rebuild, _Function):
        return _record_class("torch._tensor._rebuild_from_type_v2")(rebuild, kind, arguments, state)
    return rebuild(*arguments)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function(_Ordered),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_subclass),
    ("torch", "Size"): _Function(tuple),
    **{("torch", str(dtype).split(".")[1]): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}


class _Unpickler(pickle.Unpickler):
    """Rebuilds tensors and plain values; every other name in the file becomes a class of `Record`."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        return _record_class(f"{module}.{name}") if known is None else known


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


# What `torch.load` asks of a pickle module.
_PICKLE = SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=_load)


def unpickle(path: Path) -> Any:
    """Read a file that `torch.save` wrote, its tensors memory-mapped where the format allows, on the CPU.

    Raises:
        ValueError: it is no such file, or damaged; the message is one line and names the file.
    """
    mmap = zipfile.is_zipfile(path)  # older files are a stream of pickles, which cannot be mapped
    try:
        with warnings.catch_warnings(action="ignore"):  # of classes that are not imported
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            except pickle.UnpicklingError:
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE, mmap=mmap)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the unpickler's steps raise on odd arguments
        reason = " ".join(str(error).split())
        if "TorchScript" in reason:
            reason = "it is a TorchScript program, not a file of weights"
        raise ValueError(f"{path}: cannot be read without running its code: {reason[:160]}") from None
