"""Requests that are cancelled, too late or too many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from runtime.triton.client import (
    AsyncClient,
    Client,
    ClientConfig,
    DeadlineError,
    UnavailableError,
)
from runtime.triton.client_messages import Answer, request_tensors
from runtime.triton.contract import AT_WORK_METRIC, CANCEL_MODEL, MODEL, REQUEST_ID, STEPS_METRIC, WAITING_METRIC
from runtime.triton.server import Server
from tests.serving.common import LONG, PERSON, metric, wait_idle, wait_in_flight
from tests.waiting import HANG, wait_until


def test_a_cancelled_request_leaves_the_sampler(server: Server) -> None:
    async def cancel() -> None:
        async with AsyncClient(ClientConfig((server.grpc_url,))) as client:
            task = asyncio.ensure_future(client.restore(PERSON, **LONG))
            await asyncio.to_thread(wait_in_flight, server, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    wait_in_flight(server, 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_deadline_ends_the_request_on_both_sides(server: Server, streamed: bool) -> None:
    watch = (lambda progress: None) if streamed else None
    with Client(ClientConfig((server.grpc_url,), timeout=2.0)) as client, pytest.raises(DeadlineError):
        client.restore(PERSON, **LONG, on_progress=watch)
    wait_in_flight(server, 0)


def test_beyond_the_limit_the_answer_is_retry(server: Server) -> None:
    """Eight are worked on, 16 wait: of 28 long ones four are refused at once, while the others go on."""

    wait_idle(server)

    async def ask_all() -> list[Any]:
        async with AsyncClient(ClientConfig((server.grpc_url,), tries=1)) as client:
            going = {asyncio.ensure_future(client.restore(PERSON, **LONG)) for _ in range(28)}
            refused: set[asyncio.Future[Answer]] = set()
            while len(refused) < 4:
                done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
            await asyncio.to_thread(wait_in_flight, server, 8)
            assert metric(server, WAITING_METRIC, MODEL) == 16
            for task in going:
                task.cancel()
            await asyncio.wait(going)
            return [task.exception() for task in refused]

    errors = asyncio.run(ask_all())
    assert len(errors) == 4
    assert all(isinstance(error, UnavailableError) and "retry later" in str(error) for error in errors), errors
    wait_idle(server)


def plain_request() -> list[grpc.InferInput]:
    """A long request as tritonclient makes it."""
    made = []
    for name, value in request_tensors(PERSON, LONG).items():
        made.append(
            grpc.InferInput(name, value.shape, {"object": "BYTES", "int64": "INT64"}.get(str(value.dtype), "FP64"))
        )
        made[-1].set_data_from_numpy(value)
    return made


def test_a_client_that_hangs_up_frees_its_place_and_its_turn(server: Server) -> None:
    """Plain clients that say nothing of a deadline to the server: 8 are worked on and 8 wait, until they leave."""
    wait_idle(server)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        errors: list[Any] = []
        calls = [
            client.async_infer(MODEL, plain_request(), lambda result, error: errors.append(error)) for _ in range(16)
        ]
        wait_until(lambda: metric(server, "diffbody_in_flight") == 8 and metric(server, WAITING_METRIC, MODEL) == 8)
        for call in calls:
            call.cancel()
        wait_idle(server)
        wait_until(lambda: len(errors) == 16)
    with Client(ClientConfig((server.grpc_url,), timeout=HANG)) as client:
        assert client.restore(PERSON, num_inference_steps=1).image


def test_a_client_that_closes_its_http_connection_frees_its_place_when_its_time_is_over(server: Server) -> None:
    """Triton does not read from a connection that waits for an answer, so that it does not see it closed."""
    wait_idle(server)
    host, _, port = server.http_url.rpartition(":")
    pixels = np.zeros((64, 64, 3), np.uint8)
    inputs = [
        {"name": "PIXELS", "datatype": "UINT8", "shape": [64, 64, 3], "data": pixels.ravel().tolist()},
        {"name": "NUM_INFERENCE_STEPS", "datatype": "INT64", "shape": [1], "data": [1000]},
        {"name": "STRENGTH", "datatype": "FP64", "shape": [1], "data": [1.0]},
    ]
    body = json.dumps({"inputs": inputs, "parameters": {"timeout": 4_000_000}}).encode()
    head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    before = metric(server, STEPS_METRIC)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: metric(server, WAITING_METRIC, MODEL) + metric(server, AT_WORK_METRIC, MODEL) == 1)
    wait_idle(server)
    assert metric(server, STEPS_METRIC) - before < 1000


def test_a_plain_client_cancels_by_its_own_id(server: Server) -> None:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        answered = threading.Event()
        errors: list[Any] = []

        def take(result: Any, error: Any) -> None:
            errors.append(error)
            answered.set()

        client.async_infer(MODEL, plain_request(), take, request_id="mine")
        wait_in_flight(server, 1)
        for asked, over in (("another's", False), ("mine", True)):
            name = grpc.InferInput(REQUEST_ID.name, [1], REQUEST_ID.dtype)
            name.set_data_from_numpy(np.array([asked.encode()], np.object_))
            client.infer(CANCEL_MODEL, [name])
            assert answered.wait(HANG if over else 0.5) is over
    assert "the request was cancelled" in str(errors[0])
    wait_idle(server)


def test_a_timeout_of_the_request_is_kept(server: Server) -> None:
    over = pytest.raises(InferenceServerException, match="the request's time is over")
    with grpc.InferenceServerClient(server.grpc_url) as client, over:
        client.infer(MODEL, plain_request(), timeout=1_500_000, client_timeout=HANG)
    wait_idle(server)


def test_a_client_that_is_closed_leaves_nothing_under_way(server: Server) -> None:
    client = Client(ClientConfig((server.grpc_url,)))
    ended = threading.Event()

    def ask() -> None:
        with contextlib.suppress(BaseException):
            client.restore(PERSON, **LONG)
        ended.set()

    threading.Thread(target=ask).start()
    wait_in_flight(server, 1)
    client.close()
    assert ended.wait(HANG)
    wait_idle(server)


def leave_together(server: Server, errors: list[Any]) -> None:
    """A hundred requests at once, whose clients all leave after four seconds; an error of each."""
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for _ in range(100):
            client.async_infer(MODEL, plain_request(), lambda result, error: errors.append(error), client_timeout=4)
        wait_until(lambda: len(errors) == 100)


@pytest.mark.slow
def test_a_crowd_with_deadlines_leaves_a_server_that_works(server: Server) -> None:
    """What crashed Triton 2.51 as long as an ensemble answered clients itself: many that leave in the same moment."""
    for _ in range(3):
        errors: list[Any] = []
        leave_together(server, errors)
        assert all(error is not None for error in errors)
        wait_idle(server)
        server.check()
    server.probe()


def test_a_dead_server_is_skipped(server: Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody listens
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        with Client(ClientConfig((dead, server.grpc_url))) as client:
            for _ in range(3):
                assert client.restore(PERSON, num_inference_steps=1).image
        with (
            Client(ClientConfig((dead,), tries=2)) as client,
            pytest.raises(UnavailableError, match="cannot be reached"),
        ):
            client.restore(PERSON)
