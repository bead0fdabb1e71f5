"""What server, models and client share: one contract, and what needs no Triton to be tested."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffbody_ref.ops.options import RestoreOptions
from runtime.restore import Sizes
from runtime.triton import client, contract
from runtime.triton.batching import run_in_groups
from runtime.triton.client import InvalidRequestError, request_tensors
from runtime.triton.contract import (
    ANSWER,
    ENSEMBLE,
    GRPC_STATUS,
    MODELS,
    REQUEST,
    ErrorCode,
    ModelParameters,
    TritonTensor,
)
from runtime.triton.errors import BusyError, add_code, code_and_message, error_from_message, split_code
from runtime.triton.messages import RestorationReport, read_request, since_first
from runtime.triton.repository import SOURCES
from runtime.triton.request_notes import KEEP_SECONDS, RequestNotes, StepNote
from runtime.triton.settings import Settings

PACKAGE = Path(client.__file__).parent


def test_every_model_is_in_the_contract() -> None:
    assert {path.parent.name for path in SOURCES.glob("*/config.pbtxt")} == set(MODELS)


def test_the_ensembles_tensors_are_connected() -> None:
    """Each input is an earlier output of the same dtype and shape, and no two outputs are one."""
    wires = {tensor.wire: tensor for tensor in REQUEST}
    for model in ENSEMBLE:
        for tensor in model.inputs:
            source = wires[tensor.wire]
            assert (tensor.dtype, tensor.shape) == (source.dtype, source.shape), (model.name, tensor.name)
        for tensor in model.outputs:
            assert tensor.wire not in wires, (model.name, tensor.name)
            wires[tensor.wire] = tensor
    assert all(wires[tensor.wire] == tensor for tensor in ANSWER)


def strings(path: Path) -> Iterator[str]:
    """The string constants of a module, but the names of a model's stages."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "stages" for target in targets):
            node.value = ast.Constant(None)  # type: ignore[attr-defined]
    yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.parametrize(
    "path",
    [*SOURCES.glob("*/1/model.py"), *(PACKAGE / f"{name}.py" for name in ("client", "models", "server", "flights"))],
    ids=lambda path: path.parts[-3] if path.name == "model.py" else path.stem,
)
def test_names_of_the_contract_are_spelled_nowhere_else(path: Path) -> None:
    tensors = {tensor.name for model in MODELS.values() for tensor in (*model.inputs, *model.outputs)}
    texts = {value for value in vars(contract).values() if isinstance(value, str)} - {contract.__doc__}
    names = tensors | texts - {contract.__name__, contract.__file__}
    assert {"regression", "IMAGE", "SPAN_POSE", "x-api-key", "diffbody_in_flight", "sampler"} <= names
    assert not {text for text in strings(path) if text in names}


def test_nothing_but_the_models_needs_triton_and_clients_need_no_server() -> None:
    modules = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("models", "__init__"))
    assert "in_flight" in modules
    code = (
        "import importlib, sys\n"
        "import runtime.triton.client\n"
        "assert not {'runtime.triton.server', 'runtime.restore', 'onnxruntime'} & sys.modules.keys()\n"
        f"for name in {modules}: importlib.import_module(f'runtime.triton.{{name}}')\n"
        "assert 'triton_python_backend_utils' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_modules_import_each_other_in_one_direction() -> None:
    """No circle within the package, imports within functions included."""
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    imports: dict[str, set[str]] = {}
    for name in modules:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module is not None]
        found = {str(node.module).removeprefix("runtime.triton.") for node in froms}
        found |= {alias.name for node in froms if node.module == "runtime.triton" for alias in node.names}
        imports[name] = found & modules
    while leaves := {name for name, needed in imports.items() if not needed & imports.keys()}:
        imports = {name: needed for name, needed in imports.items() if name not in leaves}
    assert not imports, f"these import each other in a circle, or such modules: {sorted(imports)}"


CALL: dict[str, Any] = {
    "prompt": "a woman, Übergröße",
    "negative_prompt": "blurred",
    "seed": 2**64 - 1,
    "output_format": "webp",
    "num_inference_steps": 7,
    "guidance_scale": 1.5,
    "sampler": "dpm++",
    "use_residual": True,
    "tile_size": 256,
}


def test_the_server_reads_what_the_client_writes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    request = read_request(request_tensors(pixels, {**CALL, "strength": None}))
    np.testing.assert_array_equal(request.picture.pixels, pixels.astype(np.float32) / np.float32(255))
    found = {name: getattr(request, name) for name in ("prompt", "negative_prompt", "seed", "output_format")}
    assert {**found, **request.options} == CALL
    assert RestoreOptions(**request.options).sampler == "dpm++"


@pytest.mark.parametrize("asked", [{"seed": 0.5}, {"num_inference_steps": "many"}, {"image": b""}, {"seed": 2**64}])
def test_what_a_tensor_cannot_hold_is_refused_by_the_client(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(asked))):
        request_tensors(b"", asked)


def test_parameters_come_back_from_a_configuration() -> None:
    parameters = ModelParameters(
        Path("/bundles/a b"), "tensorrt", "torch", "cuda", ("restorer", "vae_decoder"), 3, "float16", 5, False, 10, 7.5
    )
    strings = parameters.to_strings()
    assert strings["plans"] == "restorer vae_decoder"
    assert ModelParameters.from_strings({**strings, "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}) == parameters


def settings(deadline: float = 0.0) -> Settings:
    options = RestoreOptions(num_inference_steps=3, upscale=1.5, tile_size=128)
    return Settings(options, Sizes(20, 30, 32, 32, 40, 60), "a man", "ü", 2**64 - 1, "png", deadline)


def test_settings_go_from_model_to_model() -> None:
    tensor = settings(12.5).to_tensor()
    assert tensor.shape == (1, 1)
    assert Settings.from_tensor(tensor) == settings(12.5)


def test_a_deadline_is_checked() -> None:
    for fine in (0.0, time.time() + 3600):
        settings(fine).check_deadline()
    with pytest.raises(TimeoutError, match="the request's time is over"):
        settings(time.time() - 1).check_deadline()


def test_a_report_comes_back_from_json() -> None:
    spans = since_first({"pose": np.array([101.00004, 102.5]), "parts": np.array([100.0, 101.0])})
    assert spans == {"pose": (1.0, 2.5), "parts": (0.0, 1.0)}
    report = RestorationReport(spans, 3, 1, [(999, 0.5)], ["a notice"])
    assert RestorationReport.from_json(report.to_json()) == report
    assert "\n" not in report.to_json()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("IMAGE:\n not a picture"), ErrorCode.INVALID_ARG, "IMAGE: not a picture"),
        (BusyError("8 requests"), ErrorCode.UNAVAILABLE, "8 requests"),
        (MemoryError(), ErrorCode.UNAVAILABLE, "MemoryError"),
        (TimeoutError("late"), ErrorCode.CANCELLED, "late"),
        (KeyError("x"), ErrorCode.INTERNAL, "internal error: 'x'"),
    ],
)
def test_errors_have_a_code_and_one_line(error: Exception, code: ErrorCode, message: str) -> None:
    assert code_and_message(error) == (code, message)
    assert split_code(add_code(code, message)) == (code, message)
    assert code in GRPC_STATUS


def test_a_message_without_a_code_is_whole() -> None:
    assert split_code("OTHER: message") == (None, "OTHER: message")
    assert split_code("message, not UNAVAILABLE: it") == (None, "message, not UNAVAILABLE: it")


def test_an_error_of_another_model_is_recognised_by_its_phrase() -> None:
    assert isinstance(error_from_message(f"in ensemble: 8 {contract.TOO_MANY_IN_FLIGHT}"), BusyError)
    assert isinstance(error_from_message("Exceeds maximum queue size"), BusyError)
    assert isinstance(error_from_message(contract.TIME_IS_OVER), TimeoutError)
    assert isinstance(error_from_message(contract.WAS_CANCELLED), TimeoutError)
    assert type(error_from_message("out of memory")) is RuntimeError


def test_a_tensor_may_have_another_name_in_a_model() -> None:
    tensor = TritonTensor("z_r", "FP32", (4, -1, -1))
    assert tensor.wire == "z_r"
    assert tensor.named("latents") == TritonTensor("latents", "FP32", (4, -1, -1), wire="z_r")


def test_groups_run_together_and_fail_together() -> None:
    runs: list[list[int]] = []

    def run(group: list[int]) -> list[str]:
        runs.append(group)
        if group[0] % 3 == 2:
            raise ValueError("no twos")
        return [f"<{item}>" for item in group]

    results = run_in_groups([3, 1, 2, 6, 4, 5], lambda item: item % 3, run)
    assert runs == [[3, 6], [1, 4], [2, 5]]
    assert results[:2] + results[3:5] == ["<3>", "<1>", "<6>", "<4>"]
    assert isinstance(results[2], ValueError)
    assert results[5] is results[2]
    assert run_in_groups([], lambda item: item, run) == []


def test_notes_on_requests_reach_the_sampler(tmp_path: Path) -> None:
    notes, elsewhere = RequestNotes(tmp_path / "notes"), RequestNotes(tmp_path / "notes")
    odd = "../an ID/of any text ü"
    assert notes.cancelled_and_watched([odd, "b", ""]) == (set(), set())
    notes.cancel(odd)
    notes.watch("b")
    assert elsewhere.cancelled_and_watched([odd, "b", "c", ""]) == ({odd}, {"b"})
    assert elsewhere.read_step("b") is None
    z0 = np.random.default_rng(0).standard_normal((1, 4, 2, 2), np.float32)
    for step in (1, 2):
        notes.write_step("b", StepNote(step, 7, z0))
    found = elsewhere.read_step("b")
    assert found is not None
    assert (found.step, found.steps) == (2, 7)
    np.testing.assert_array_equal(found.z0, z0)
    for request_id in (odd, "b", "never came"):
        notes.forget(request_id)
    assert list(notes.folder.iterdir()) == []


def test_old_notes_are_removed(tmp_path: Path) -> None:
    notes = RequestNotes(tmp_path / "notes")
    notes.cancel("old")
    (old,) = notes.folder.iterdir()
    long_ago = time.time() - KEEP_SECONDS - 1
    os.utime(old, (long_ago, long_ago))
    notes.cancel("new")
    notes.remove_old()
    assert notes.cancelled_and_watched(["old", "new"]) == ({"new"}, set())
    notes.remove()
    assert not notes.folder.exists()
