"""Bad and hostile requests are refused in one line, and harm nobody else."""

from __future__ import annotations

import http.client
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from runtime.triton.client import Client, ClientConfig, InvalidRequestError
from runtime.triton.contract import (
    CANCEL_MODEL,
    HEALTH_MODEL,
    IMAGE,
    MODEL,
    MODELS,
    NUMPY,
    OPTIONS,
    OUTPUT,
    PIPELINE_MODEL,
    SEED,
    STREAM_MODEL,
)
from runtime.triton.server import Server
from tests.serving.common import PERSON, metric, post, tensor
from tests.waiting import HANG

NUM_STEPS = next(tensor for tensor in OPTIONS if tensor.argument == "num_inference_steps")


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it has 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "call", "message"),
    [
        (b"garbage", {}, "IMAGE: not a picture"),
        (b"", {}, "IMAGE"),
        (PERSON.read_bytes()[:2000], {}, "IMAGE: truncated, corrupt"),
        (bomb(), {}, "IMAGE: too large"),
        (np.zeros((8, 8, 3), np.uint8), {}, "PIXELS is 8x8"),
        (np.zeros((64, 64, 3), np.float32), {}, "PIXELS"),
        (np.zeros((64, 64), np.uint8), {}, "PIXELS"),
        (PERSON, {"num_inference_steps": 10**12}, "num_inference_steps must be in 1..1000"),
        (PERSON, {"num_inference_steps": 0}, "num_inference_steps must be in 1..1000"),
        (PERSON, {"guidance_scale": float("nan")}, "GUIDANCE_SCALE must be a finite number"),
        (PERSON, {"body_guidance_scale": float("inf")}, "BODY_GUIDANCE_SCALE must be a finite number"),
        (PERSON, {"guidance_scale": 1e308}, "guidance_scale must be in 0..100, got 1e+308"),
        (PERSON, {"body_guidance_scale": 1e38}, "body_guidance_scale must be in 0..1,000,000, got 1e+38"),
        (PERSON, {"strength": 1.5}, "strength must be above 0 and at most 1"),
        (PERSON, {"sampler": "euler"}, "unknown sampler 'euler'"),
        (PERSON, {"prompt": "x" * 10_000_000}, "PROMPT has 10,000,000 characters"),
        (PERSON, {"output_format": "x" * 100_000}, "OUTPUT_FORMAT has 100,000 characters"),
        (PERSON, {"sampler": "x" * 100_000}, "SAMPLER has 100,000 characters"),
        (PERSON, {"output_format": "gif"}, "unknown OUTPUT_FORMAT 'gif'"),
        (np.zeros((600, 600, 3), np.uint8), {"upscale": 16.0}, "9600x9600 at work"),
        (PERSON, {"seed": -1}, "seed cannot be -1"),
        (PERSON, {"steps": 3}, "unknown option 'steps'"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_a_bad_request_is_refused_in_one_line(
    client: Client, server: Server, image: Any, call: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)) as caught:
        client.restore(image, **call)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert metric(server, "diffbody_in_flight") == 0


def test_a_streamed_bad_request_is_refused_as_well(server: Server) -> None:
    with Client(ClientConfig((server.grpc_url,))) as client:
        with pytest.raises(InvalidRequestError, match="IMAGE: not a picture"):
            client.restore(b"garbage", on_progress=lambda progress: None)
        assert client.restore(PERSON, num_inference_steps=1).image  # the server is well


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [tensor("IMAGE", "BYTES", [1], ["x"]), tensor("PIXELS", "UINT8", [1, 1, 3], [0, 0, 0])],
        [tensor("IMAGE", "INT32", [1], [3])],
        [tensor("IMAGE", "BYTES", [2], ["a", "b"])],
        [tensor("PIXELS", "UINT8", [2, 2], [0, 0, 0, 0])],
        [tensor("IMAGE", "BYTES", [1], ["x"]), tensor("SEED", "FP32", [1], [0.5])],
        [tensor("IMAGE", "BYTES", [1], ["x"]), tensor("STRENGTH", "FP64", [3], [0.5, 0.5, 0.5])],
        [tensor("IMAGE", "BYTES", [1], ["x"]), tensor("BOGUS", "FP64", [1], [0.5])],
    ],
)
def test_a_malformed_request_is_a_400(server: Server, inputs: list[dict[str, Any]]) -> None:
    status, body = post(server, {"inputs": inputs})
    assert status == 400, body
    assert json.loads(body)["error"]
    assert "Traceback" not in body


@pytest.mark.parametrize("shape", [[1000, 1000, 3], [-1, 5, 3]])
def test_a_shape_that_lies_is_refused(server: Server, shape: list[int]) -> None:
    """By Triton's HTTP service itself, which answers 500 to it."""
    status, body = post(server, {"inputs": [tensor("PIXELS", "UINT8", shape, [0])]})
    assert status in (400, 500), body
    assert json.loads(body)["error"]


def plain_inputs(seed: int, steps: int) -> list[grpc.InferInput]:
    """A request as tritonclient makes it."""
    values = {
        IMAGE: np.array([PERSON.read_bytes()], np.object_),
        SEED: np.array([seed], np.uint64),
        NUM_STEPS: np.array([steps], np.int64),
    }
    return [plain_input(tensor.name, value) for tensor, value in values.items()]


def plain_input(name: str, value: np.ndarray) -> grpc.InferInput:
    made = grpc.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
    made.set_data_from_numpy(value)
    return made


@pytest.mark.parametrize("sequence_id", [77, 1, "mine"])
def test_sequences_of_clients_are_refused_and_mix_with_nobody(server: Server, sequence_id: int | str) -> None:
    def ask(seed: int, **sequence: Any) -> bytes | str:
        with grpc.InferenceServerClient(server.grpc_url) as client:
            try:
                answer = client.infer(MODEL, plain_inputs(seed, 4), **sequence, client_timeout=HANG)
            except InferenceServerException as error:
                return str(error)
            return bytes(answer.as_numpy(OUTPUT.name).reshape(-1)[0])

    alone = [ask(seed) for seed in (1, 2)]
    assert all(isinstance(image, bytes) for image in alone)
    mine = {"sequence_id": sequence_id, "sequence_start": True, "sequence_end": True}
    calls = [(1, {}), (1, mine), (2, mine), (2, {})]
    with ThreadPoolExecutor(4) as pool:
        first, *refused, last = pool.map(lambda call: ask(call[0], **call[1]), calls)
    assert [first, last] == alone
    assert all("a picture is no sequence" in str(error) for error in refused), refused


@pytest.mark.parametrize(
    ("path", "picture"),
    [
        ("diffbody/infer", b'"inputs":[{"name":"IMAGE","shape":[1],"datatype":"BYTES","data":["x"]}]'),
        ("diffbody_stream/generate_stream", b'"IMAGE":"eA=="'),
    ],
    ids=["plain", "stream"],
)
def test_an_id_that_is_no_text_is_refused(server: Server, path: str, picture: bytes) -> None:
    host, _, port = server.http_url.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=HANG)
    connection.request("POST", f"/v2/models/{path}", b'{"id":"\xff\xfe",' + picture + b"}")
    answer = connection.getresponse()
    assert answer.status == 400
    assert b"the request's ID is not UTF-8 text" in answer.read()
    connection.close()


def test_a_long_id_is_refused(server: Server) -> None:
    with grpc.InferenceServerClient(server.grpc_url) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL, plain_inputs(1, 1), request_id="x" * 1000)
    assert "the request's ID has 1,000 characters" in str(caught.value)


INNER = [model for model in MODELS if model not in (MODEL, STREAM_MODEL, CANCEL_MODEL, HEALTH_MODEL)]


@pytest.mark.parametrize("forged", [b"{}", b'{"secret": "", "key": 1, "deadline": 1e300}'], ids=["none", "made up"])
@pytest.mark.parametrize("model", INNER)
def test_the_methods_models_serve_only_their_front(server: Server, model: str, forged: bytes) -> None:
    shapes = {-1: 16}
    inputs = []
    for each in MODELS[model].inputs:
        shape = [shapes.get(side, side) for side in each.shape]
        if model != PIPELINE_MODEL:
            shape = [1, *shape]
        dtype = {"FP32": np.float32, "UINT8": np.uint8, **NUMPY}[each.dtype]
        value = np.zeros(shape, dtype) if dtype is not np.object_ else np.full(shape, forged, np.object_)
        if not each.optional:
            inputs.append(plain_input(each.name, value))
    with grpc.InferenceServerClient(server.grpc_url) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs, sequence_id=5, sequence_start=True, client_timeout=HANG)
    wanted = ("not a ticket of this server", "not settings that this server made", "not called by clients")
    assert any(text in str(caught.value) for text in wanted), caught.value
