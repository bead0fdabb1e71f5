"""Opening checkpoints: no code of theirs runs, and what is no checkpoint is said in one line."""

from __future__ import annotations

import argparse
import builtins
import collections
import functools
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffbody_ref.weights.checkpoint import open_checkpoint
from diffbody_ref.weights.unpickling import Record

RAN = "code of the file was run"


class Calls:
    """Unpickles to the result of a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


class CfgNode(dict[str, Any]):
    """As yacs', with attributes beside the items."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.__dict__["__immutable__"] = True


class EarlyStopping:
    """A class that a trainer uses as a key."""


SURROUNDINGS: dict[str, Any] = {
    "yacs": CfgNode({"model": CfgNode({"name": "bpbreid"})}),
    "numpy scalar": np.float64(0.93),
    "numpy array": np.arange(4),
    "namespace": argparse.Namespace(lr=0.1, sizes=np.arange(2)),
    "class as key": {EarlyStopping: {"best": torch.ones(1)}},
    "counter": collections.Counter("aab"),
    "path": Path("runs") / "x",
    "module": nn.Linear(2, 2),
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("kind", SURROUNDINGS)
def test_what_trainers_write_beside_weights_is_inert(tmp_path: Path, kind: str, old: bool) -> None:
    path = tmp_path / "net.pth"
    weights = {"module.layer.weight": torch.arange(6.0).view(2, 3), "module.scale": nn.Parameter(torch.ones(2))}
    torch.save({"state_dict": weights, "beside": SURROUNDINGS[kind]}, path, _use_new_zipfile_serialization=not old)
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors.keys() == {"layer.weight", "scale"}
    assert torch.equal(checkpoint.tensors["layer.weight"], weights["module.layer.weight"])
    assert "beside" in checkpoint.extras


MALICIOUS: dict[str, Any] = {
    "os.system": Calls(os.system, "touch RAN"),
    "print": Calls(print, RAN),
    "eval": Calls(eval, f"print({RAN!r})"),
    "exec in a class's state": Calls(exec, f"print({RAN!r})"),
    "import": Calls(builtins.__import__, "antigravity"),
    "partial": Calls(functools.partial, print, RAN),
    "nested": Calls(map, Calls(functools.partial, os.system), ["touch RAN"]),
    "getattr": Calls(getattr, Calls(builtins.__import__, "os"), "system"),
    "torch.load within": Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, "touch RAN"))),
    "state of a class": Calls(collections.OrderedDict, state={"items": Calls(print, RAN)}),
    "odd rebuild": Calls(torch._utils._rebuild_parameter, Calls(os.system, "touch RAN"), True, {}),
    "subclass": Calls(torch._tensor._rebuild_from_type_v2, print, torch.Tensor, (RAN,), {}),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("kind", MALICIOUS)
def test_code_in_a_file_does_not_run(
    tmp_path: Path, kind: str, old: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    torch.save({"weight": torch.ones(2), "evil": MALICIOUS[kind]}, path, _use_new_zipfile_serialization=not old)
    reason = ""
    try:
        assert open_checkpoint(path).tensors.keys() == {"weight"}
    except ValueError as error:
        reason = str(error)
    assert reason == "" or re.fullmatch(rf"{re.escape(str(path))}: .+", reason)
    assert not (tmp_path / "RAN").exists()
    assert RAN not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "arguments",
    [
        (Ellipsis, 0, (2,), (1,), False, {}),
        (None, 0, (2,), (1,), False, {}),
        ("storage", 0, (10**9,), (1,), False, {}),
        ("storage", 10**9, (1,), (1,), False, {}),
        ("storage", 0, (2,), (-1,), False, {}),
        ("storage", 0, (2, 2), (1,), False, {}),
        ("storage", 0, "ab", (1, 1), False, {}),
    ],
)
def test_tensors_that_reach_beyond_their_data_are_refused(tmp_path: Path, arguments: tuple[Any, ...]) -> None:
    """The file also holds a class that is not known, so that it is the restricted unpickler that reads it."""
    path = tmp_path / "net.pth"
    storage = torch.ones(2).storage()
    filled = tuple(storage if isinstance(a, str) and a == "storage" else a for a in arguments)
    torch.save({"beside": SURROUNDINGS["namespace"], "weight": Calls(torch._utils._rebuild_tensor_v2, *filled)}, path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        open_checkpoint(path)


def test_state_cannot_change_what_unpickles(tmp_path: Path) -> None:
    """BUILD on a class or function that the file names, which plain pickle would do by setattr."""
    for target in (b"ctorch._utils\n_rebuild_parameter\n", b"cos\nsystem\n", b"ccollections\nOrderedDict\n"):
        evil = b"\x80\x02" + target + b"(N}X\x0c\x00\x00\x00__defaults__K\x01stb."
        with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
            archive.writestr("net/data.pkl", evil)
            archive.writestr("net/version", b"3\n")
        with pytest.raises(ValueError, match=r"net\.pth: "):
            open_checkpoint(tmp_path / "net.pth")
    assert not hasattr(Record, "__defaults__")


def test_whole_networks_and_programs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"net\.pth: holds a torch\.nn\.modules\.linear\.Linear as a whole"):
        open_checkpoint(path)
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    with pytest.raises(ValueError, match="TorchScript program"):
        open_checkpoint(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds no tensors"):
        open_checkpoint(path)


def _zip_of_notes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"abc", "is no checkpoint: .* begins with b'abc'"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5214865159\n", "is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(200), "is a truncated file"),
        (_zip_of_notes(), "is a zip archive of other files"),
        (b"\x1f\x8b\x08" + bytes(20), "is an archive; unpack it"),
        (b"\x80\x02}q\x00.", "holds no tensors|cannot be read"),
        (b"\x80\x02garbage", "cannot be read"),
        (b"\x08\x07\x12\x04dddd\xff\xff\xff", "a damaged ONNX graph"),
        ((10**6).to_bytes(8, "little") + b'{"a":', "a truncated safetensors file"),
        ((5).to_bytes(8, "little") + b"{]]]]", "is no readable safetensors"),
    ],
)
def test_junk_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "download.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "\033" not in str(caught.value)


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.ckpt"
    torch.save({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="is a truncated file"):
        open_checkpoint(path)
    save_file({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated safetensors"):
        open_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such checkpoint"):
        open_checkpoint(tmp_path / "none.pth")


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"params": {"w": torch.zeros(1)}, "params_ema": {"w": torch.ones(1)}}, path)
    assert open_checkpoint(path).tensors["w"] == 1
    save_file({"module.w": torch.ones(1)}, tmp_path / "safe.bin")  # recognised by its content
    assert open_checkpoint(tmp_path / "safe.bin").tensors.keys() == {"w"}
