"""Opening of checkpoints: files of tensors, ONNX graphs and folders, without running any code of theirs."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffbody_ref.weights.unpickling import Record, unpickle

# Keys under which files keep their tensors, the averaged (EMA) ones first. mmengine keeps the averaged ones as
# "state_dict", and the others as "ema_state_dict".
WRAPPERS = ("params_ema", "model_ema", "state_dict_ema", "state_dict", "model", "params")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Checkpoint:
    """A file or folder that was opened without running code.

    Attributes:
        path: of the file or folder.
        tensors: the tensors by their names in the file, without wrappers and the prefix `module.` of parallel training;
            memory-mapped where the format allows. Empty for a folder and a graph.
        extras: inert records of what the file holds beside the tensors.
        onnx: the `onnx.ModelProto` of a graph, without external data; None for all other files.
        folder: whether it is a folder.
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    onnx: Any = None
    folder: bool = False


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint, whatever its name: a file of tensors (pickled or safetensors), an ONNX graph or a folder.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is no checkpoint; the message is one line that names the file and says what it is instead.
    """
    if path.is_dir():
        return Checkpoint(path, folder=True)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    with path.open("rb") as file:
        head = file.read(512)
    if junk := _junk(path, head):
        raise ValueError(f"{path}: {junk}")
    if _is_onnx(head):
        return Checkpoint(path, onnx=_graph(path))
    loaded = _safetensors(path) if head[8:9] == b"{" else unpickle(path)
    tensors, extras = _unwrapped(loaded)
    if not tensors:
        what = f"a {loaded.origin} as a whole; save its state_dict()" if isinstance(loaded, Record) else "no tensors"
        raise ValueError(f"{path}: holds {what}")
    return Checkpoint(path, {re.sub(r"^module\.", "", name): value for name, value in tensors.items()}, extras)


def _unwrapped(loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and all that lies beside them or around them."""
    extras: dict[str, Any] = {}
    while isinstance(loaded, dict):
        inner = next((key for key in WRAPPERS if isinstance(loaded.get(key), dict) and loaded[key]), None)
        tensors = {n: v.data for n, v in loaded.items() if isinstance(n, str) and isinstance(v, Tensor)}
        extras |= {str(key): value for key, value in loaded.items() if key != inner and key not in tensors}
        if inner is None or len(tensors) > 1:  # a network may itself have a part called "model"
            return tensors, extras
        loaded = loaded[inner]
    return {}, extras


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:160]
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
        damaged = header > path.stat().st_size or "incomplete" in reason.lower()
        what = (
            "is a truncated safetensors file; download it again"
            if damaged
            else f"is no readable safetensors file: {reason}"
        )
        raise ValueError(f"{path}: {what}") from None


def _is_onnx(head: bytes) -> bool:
    """Whether a file begins as a serialised ModelProto does: its version, then a field that may follow it."""
    return len(head) > 2 and head[0] == 0x08 and head[1] < 0x20 and head[2] in (0x12, 0x1A, 0x3A, 0x42)


def _graph(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ValueError(f"{path}: is a damaged ONNX graph; download it again") from None


def _junk(path: Path, head: bytes) -> str:
    """What a file is that cannot be a checkpoint, and what to do; "" if it may be one."""
    text = head.lstrip().lower()
    if not head:
        return "is empty; download it again"
    if head.startswith(LFS_POINTER):
        return "is a Git LFS pointer, which only names the file; fetch the file itself with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file that it was to bring; download it in a browser, or with its direct link"
    if head.startswith(b"PK"):
        return _zip_junk(path)
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return "is an archive; unpack it, and give the checkpoint in it"
    if head[0] == 0x80 or head[8:9] == b"{" or _is_onnx(head):
        return ""
    return f"is no checkpoint: it is no safetensors, ONNX or PyTorch file, and begins with {head[:16]!r}"


def _zip_junk(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "is a truncated file, whose end is missing; download it again"
    with zipfile.ZipFile(path) as archive:
        pickled = any(name.endswith("/data.pkl") for name in archive.namelist())
    return "" if pickled else "is a zip archive of other files; unpack it, and give the checkpoint in it"
