"""What the page of requests shows works as it stands there."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from diffbody_ref.ops.images import read_image
from runtime.restore import Restorer
from runtime.triton.contract import MODELS, OPTIONS, REQUEST, STREAM_MODEL
from runtime.triton.server import Server
from tests.serving.common import PERSON, in_process
from tests.waiting import HANG

PAGE = (Path(__file__).parents[2] / "docs" / "requests.md").read_text(encoding="utf-8")


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Callable[[str, list[str]], Path]:
    """Runs an example in a folder with photo.jpg, against the server of the tests; the folder."""

    def run(example: str, command: list[str]) -> Path:
        shutil.copy(PERSON, tmp_path / "photo.jpg")
        for port, address in (("8000", server.http_url), ("8001", server.grpc_url)):
            example = example.replace(f"localhost:{port}", address)
        done = subprocess.run([*command, example], cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
        assert done.returncode == 0, done.stderr
        return tmp_path

    return run


SHELL = ["bash", "-euo", "pipefail", "-c"]
Run = Callable[[str, list[str]], Path]


@pytest.mark.parametrize("example", [each for each in examples("sh") if "restored.png" in each])
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_restores_as_bytes_and_as_base64(run: Run, restorer: Restorer, example: str) -> None:
    steps: dict[str, Any] = {"num_inference_steps": 5} if "NUM_INFERENCE_STEPS" in example else {}
    restored = (run(example, SHELL) / "restored.png").read_bytes()
    assert restored == in_process(restorer, read_image(PERSON), **steps)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_shows_progress(run: Run) -> None:
    (example,) = (each for each in examples("sh") if STREAM_MODEL in each)
    lines = (run(example, SHELL) / "progress.txt").read_text().split()
    assert lines[-1] == '"OUTPUT"'
    assert '"STEPS":5' in lines  # of twenty, as nano begins with a quarter of the noise


def test_tritonclient_restores(run: Run, restorer: Restorer) -> None:
    (example,) = examples("python")
    restored = (run(example, [sys.executable, "-c"]) / "restored.png").read_bytes()
    assert restored == in_process(restorer, read_image(PERSON), num_inference_steps=5)


def test_what_grpcurl_sends_is_answered(server: Server, restorer: Restorer) -> None:
    """grpcurl makes a message of JSON by protobuf's rules, and so does protobuf."""
    (example,) = examples("grpcurl")
    picture = base64.b64encode(PERSON.read_bytes()).decode()
    text = example[example.index("'") + 1 : example.index("' \"$(base64")].replace("%s", picture)
    (method,) = re.findall(r"inference\.GRPCInferenceService/(\w+)", example)
    request = json_format.Parse(text, service_pb2.ModelInferRequest())
    with grpc.insecure_channel(server.grpc_url, options=[("grpc.max_receive_message_length", -1)]) as channel:
        answer = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)(request, timeout=HANG)
    message = json_format.MessageToDict(answer)
    place = [output["name"] for output in message["outputs"]].index("OUTPUT")
    assert base64.b64decode(message["rawOutputContents"][place])[4:] == in_process(restorer, read_image(PERSON))


def test_the_page_knows_the_inputs() -> None:
    named = set(re.findall(r"`([A-Z_]{4,})`", PAGE))
    known = {tensor.name for model in MODELS.values() for tensor in (*model.inputs, *model.outputs)}
    assert named <= known
    assert {tensor.name for tensor in REQUEST} - {tensor.name for tensor in OPTIONS} <= named
