"""Steps of concurrent requests run together, and are told one by one."""

from __future__ import annotations

import asyncio
from typing import Any

from diffbody_ref.ops.images import decode_image
from runtime.triton.client import AsyncClient, Client, ClientConfig
from runtime.triton.client_messages import Answer, SamplingProgress
from runtime.triton.server import Server
from tests.serving.common import LONG, PERSON, metric, wait_in_flight
from tests.waiting import wait_until


def test_steps_of_concurrent_requests_run_together(server: Server) -> None:
    """Of eight requests that are in flight an execution of the sampler takes all a step further."""

    async def watch() -> None:
        async with AsyncClient(ClientConfig((server.grpc_url,))) as client:
            tasks = [asyncio.ensure_future(client.restore(PERSON, **LONG)) for _ in range(8)]
            await asyncio.to_thread(wait_in_flight, server, 8)
            before = metric(server, "nv_inference_exec_count"), metric(server, "diffbody_steps_total")
            await asyncio.to_thread(wait_until, lambda: metric(server, "diffbody_steps_total") >= before[1] + 80)
            after = metric(server, "nv_inference_exec_count"), metric(server, "diffbody_steps_total")
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            # Half of eight: the counters are not read at the same time.
            assert after[1] - before[1] >= 4 * (after[0] - before[0])

    asyncio.run(watch())
    wait_in_flight(server, 0)


def test_each_request_takes_its_own_number_of_steps(server: Server) -> None:
    before = metric(server, "diffbody_steps_total")
    with Client(ClientConfig((server.grpc_url,), concurrency=8)) as client:
        answers = client.restore_many([PERSON] * 8, num_inference_steps=6, strength=1.0)
        assert all(isinstance(answer, Answer) for answer in answers)
    assert metric(server, "diffbody_steps_total") - before == 48


def test_progress_is_streamed(server: Server) -> None:
    """The model looks 50 times a second and misses steps on a busy machine: enough steps are taken to see some."""
    seen: list[SamplingProgress] = []

    async def watch() -> None:
        async with AsyncClient(ClientConfig((server.grpc_url,))) as client:
            request = client.restore(PERSON, **LONG, on_progress=seen.append, preview_every=2)
            task = asyncio.ensure_future(request)
            await asyncio.to_thread(
                wait_until,
                lambda: len(seen) >= 6 and any(progress.preview for progress in seen),
                while_true=lambda: not task.done(),
            )
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(watch())
    steps = [progress.step for progress in seen]
    assert steps == sorted(set(steps))
    assert {progress.steps for progress in seen} == {1000}
    assert all(progress.step % 2 == 0 for progress in seen if progress.preview)
    preview = next(progress.preview for progress in seen if progress.preview)
    wait_in_flight(server, 0)
    call: dict[str, Any] = {"num_inference_steps": 2}
    with Client(ClientConfig((server.grpc_url,))) as client:
        answer = client.restore(PERSON, **call, on_progress=seen.append)
        assert answer.image == client.restore(PERSON, **call).image
    assert decode_image(preview).pixels.shape == answer.picture.pixels.shape
