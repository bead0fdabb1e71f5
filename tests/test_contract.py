"""What server, models and client share: one contract, and what needs no Triton to be tested."""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from diffbody_ref.ops.options import RestoreOptions
from runtime.restore import Sizes
from runtime.triton import client, contract
from runtime.triton.admission import Admission
from runtime.triton.batching import run_in_groups
from runtime.triton.client import InvalidRequestError
from runtime.triton.client_errors import UnavailableError, as_client_error
from runtime.triton.client_messages import request_tensors
from runtime.triton.contract import (
    ANSWER,
    ENSEMBLE,
    GRPC_STATUS,
    MODELS,
    REQUEST,
    TICKET,
    ErrorCode,
    ModelParameters,
    TritonTensor,
    span_input,
)
from runtime.triton.errors import MAX_MESSAGE, BusyError, add_code, code_and_message, error_from_message, split_code
from runtime.triton.heartbeats import IN_FLIGHT, WORKING, Heartbeats
from runtime.triton.messages import RestorationReport, read_request, since_first
from runtime.triton.repository import SOURCES
from runtime.triton.request_notes import KEEP_SECONDS, SECRET, RequestNotes, StepNote
from runtime.triton.settings import Settings, Ticket

PACKAGE = Path(client.__file__).parent


def test_every_model_is_in_the_contract() -> None:
    assert {path.parent.name for path in SOURCES.glob("*/config.pbtxt")} == set(MODELS)


def test_the_ensembles_tensors_are_connected() -> None:
    """Each input is an earlier output of the same dtype and shape, and no two outputs are one."""
    wires = {tensor.wire: tensor for tensor in (TICKET, *REQUEST)}
    for model in ENSEMBLE:
        for tensor in model.inputs:
            source = wires[tensor.wire]
            assert (tensor.dtype, tensor.shape) == (source.dtype, source.shape), (model.name, tensor.name)
        for tensor in model.outputs:
            assert tensor.wire not in wires, (model.name, tensor.name)
            wires[tensor.wire] = tensor
    assert all(wires[tensor.wire] == tensor for tensor in ANSWER)


def test_the_ensembles_models_work_one_after_the_other() -> None:
    """Triton never releases a request that fails in one model while another one works on it."""
    for before, model in pairwise(ENSEMBLE):
        assert span_input(before.name).wire in {tensor.wire for tensor in model.inputs}, model.name


WITH_NAMES = ("client", "models", "fronts", "probe", "server", "tritonserver", "flights")


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
    [
        *SOURCES.glob("*/1/model.py"),
        *(PACKAGE / f"{name}.py" for name in WITH_NAMES),
    ],
    ids=lambda path: path.parts[-3] if path.name == "model.py" else path.stem,
)
def test_names_of_the_contract_are_spelled_nowhere_else(path: Path) -> None:
    tensors = {tensor.name for model in MODELS.values() for tensor in (*model.inputs, *model.outputs)}
    texts = {value for value in vars(contract).values() if isinstance(value, str)} - {contract.__doc__}
    names = tensors | texts - {contract.__name__, contract.__file__}
    assert {"regression", "IMAGE", "SPAN_POSE", "x-api-key", "diffbody_in_flight", "sampler"} <= names
    assert not {text for text in strings(path) if text in names}


def test_nothing_but_the_models_needs_triton_and_clients_need_no_server() -> None:
    modules = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("models", "fronts", "__init__"))
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
        bundle=Path("/bundles/a b"),
        bundle_sha256="0a",
        engine="tensorrt",
        guidance="torch",
        device="cuda",
        plans=("restorer", "vae_decoder"),
        threads=3,
        precision="float16",
        max_in_flight=5,
        max_queue=6,
        join_at_steps=False,
        max_pixels=10,
        max_seconds=7.5,
        stall_seconds=8.5,
    )
    strings = parameters.to_strings()
    assert strings["plans"] == "restorer vae_decoder"
    assert ModelParameters.from_strings({**strings, "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}) == parameters


def test_settings_go_from_model_to_model() -> None:
    options = RestoreOptions(num_inference_steps=3, upscale=1.5, tile_size=128)
    ticket = Ticket("secret", 2**63 - 1, 12.5)
    settings = Settings(options, Sizes(20, 30, 32, 32, 40, 60), "a man", "ü", 2**64 - 1, "png", True, ticket)
    tensor = settings.to_tensor()
    assert tensor.shape == (1, 1)
    assert Settings.from_tensor(tensor) == settings
    assert Ticket.from_tensor(ticket.to_tensor()) == ticket


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"x",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"key": 3}',
        b"\xff",
        b"[" * 100_000,
        b'{"secret": 1, "key": "a", "deadline": []}',
    ],
)
def test_what_a_client_made_up_is_no_ticket(text: bytes) -> None:
    tensor = np.array([text], np.object_)
    with pytest.raises(ValueError, match="not a ticket of this server"):
        Ticket.from_tensor(tensor)
    with pytest.raises(ValueError, match="not settings that this server made"):
        Settings.from_tensor(tensor)


def test_a_deadline_is_checked() -> None:
    Ticket("", 1, time.time() + 3600).check_deadline()
    with pytest.raises(TimeoutError, match="the request's time is over"):
        Ticket("", 1, time.time() - 1).check_deadline()


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
    passed_on = error_from_message(
        f"in ensemble '{contract.PIPELINE_MODEL}', [request id: a] {add_code(code, message)}"
    )
    assert code_and_message(passed_on) == (code, message)


def test_messages_are_bounded() -> None:
    _, message = code_and_message(ValueError("x" * 100_000_000))
    assert len(message) == MAX_MESSAGE + 1


def test_a_message_without_a_code_is_whole() -> None:
    assert split_code("OTHER: message") == (None, "OTHER: message")
    assert split_code("message, not UNAVAILABLE: it") == (None, "message, not UNAVAILABLE: it")


def test_an_error_of_another_model_is_recognised_by_its_phrase() -> None:
    assert isinstance(error_from_message(f"in ensemble: 8 {contract.TOO_MANY_IN_FLIGHT}"), BusyError)
    assert isinstance(error_from_message(f"8 {contract.TOO_MANY_WAITING}"), BusyError)
    assert isinstance(error_from_message("Exceeds maximum queue size"), BusyError)
    assert isinstance(error_from_message(contract.TIME_IS_OVER), TimeoutError)
    assert isinstance(error_from_message(contract.WAS_CANCELLED), TimeoutError)
    assert type(error_from_message("out of memory")) is RuntimeError


def test_a_model_whose_process_has_failed_is_busy_for_who_asks() -> None:
    """It is started again: the same request may succeed then."""
    tritons = "Stub process 'restorer_0_0' is not healthy."
    error = error_from_message(f"in ensemble 'pipeline', {tritons}")
    assert isinstance(error, BusyError)
    assert "retry later" in str(error)
    assert "Stub" not in str(error)
    called = as_client_error("host:1", InferenceServerException(tritons, status="StatusCode.INTERNAL"))
    assert isinstance(called, UnavailableError)
    assert "retry later" in str(called)


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


def names(notes: RequestNotes) -> set[str]:
    return {path.name for path in notes.folder.iterdir()} - {SECRET}


def test_notes_on_requests_reach_the_models(tmp_path: Path) -> None:
    notes, elsewhere = RequestNotes(tmp_path / "notes"), RequestNotes(tmp_path / "notes")
    assert notes.secret == elsewhere.secret
    assert notes.cancelled_and_watched([1, 2]) == (set(), set())
    notes.check(1)
    notes.cancel(1)
    notes.watch(2)
    assert elsewhere.cancelled_and_watched([1, 2, 3]) == ({1}, {2})
    elsewhere.check(2)
    with pytest.raises(TimeoutError, match="the request was cancelled"):
        elsewhere.check(1)
    assert elsewhere.read_step(2) is None
    z0 = np.random.default_rng(0).standard_normal((1, 4, 2, 2), np.float32)
    for step in (1, 2):
        notes.write_step(2, StepNote(step, 7, 16, 24, z0))
    found = elsewhere.read_step(2)
    assert found is not None
    assert (found.step, found.steps, found.height, found.width) == (2, 7, 16, 24)
    np.testing.assert_array_equal(found.z0, z0)
    for key in (1, 2, 3):
        notes.forget(key)
    assert names(notes) == set()
    assert [mode & 0o077 for mode in (notes.folder.stat().st_mode, (notes.folder / SECRET).stat().st_mode)] == [0, 0]


def test_a_client_cancels_what_it_has_sent_by_its_own_id(tmp_path: Path) -> None:
    notes, odd = RequestNotes(tmp_path / "notes"), "../an ID/of any text ü"
    before = time.time()
    assert not notes.was_asked_to_cancel(odd, before)
    notes.ask_to_cancel(odd)
    assert notes.was_asked_to_cancel(odd, before)
    assert not notes.was_asked_to_cancel("another", before)
    assert not notes.was_asked_to_cancel("", before)
    # One that comes later is not meant, though it has the same ID.
    assert not notes.was_asked_to_cancel(odd, time.time() + 1)


def test_old_notes_are_removed(tmp_path: Path) -> None:
    notes = RequestNotes(tmp_path / "notes")
    notes.ask_to_cancel("old")
    (old,) = names(notes)
    long_ago = time.time() - KEEP_SECONDS - 1
    os.utime(notes.folder / old, (long_ago, long_ago))
    notes.ask_to_cancel("new")
    notes.remove_old()
    assert len(names(notes) - {old}) == len(names(notes)) == 1
    notes.remove()
    assert not notes.folder.exists()


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_hang_is_told_from_hard_work(tmp_path: Path) -> None:
    heartbeats = Heartbeats(tmp_path)
    assert heartbeats.find_hang(60.0) is None
    with heartbeats.working("sampler"):
        assert heartbeats.find_hang(60.0) is None
        aged(tmp_path / f"{WORKING}sampler", 61.0)
        assert heartbeats.find_hang(60.0) == "the model sampler has worked on one batch for 61 s"
        assert heartbeats.find_hang(100.0) is None
    heartbeats.report_in_flight(3)
    assert heartbeats.find_hang(60.0) is None
    aged(tmp_path / IN_FLIGHT, 31.0)
    assert heartbeats.find_hang(60.0) == "3 requests in flight, and no step for 31 s"
    with heartbeats.working("sampler"):  # a long step
        assert heartbeats.find_hang(60.0) is None
    heartbeats.report_in_flight(0)
    aged(tmp_path / IN_FLIGHT, 1000.0)
    assert heartbeats.find_hang(60.0) is None


def test_as_many_are_worked_on_and_wait_as_may() -> None:
    async def come_and_go() -> None:
        counts, order, leave = [(0, 0)], [], asyncio.Event()
        admission = Admission(1, 2, lambda at_work, waiting: counts.append((at_work, waiting)))

        async def visit(name: str) -> None:
            async with admission:
                order.append(name)
                await leave.wait()

        visits = [asyncio.ensure_future(visit(name)) for name in ("a", "b", "c")]
        await asyncio.sleep(0)
        assert (order, counts[-1]) == (["a"], (1, 2))
        with pytest.raises(BusyError, match="2 requests are waiting, which is the most; retry later"):
            await visit("d")
        visits[1].cancel()  # who leaves makes room
        await asyncio.wait([visits[1]])
        visits.append(asyncio.ensure_future(visit("e")))
        await asyncio.sleep(0)
        leave.set()
        await asyncio.wait(visits)
        assert (order, counts[-1]) == (["a", "c", "e"], (0, 0))

    asyncio.run(come_and_go())
