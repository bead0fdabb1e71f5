"""A server that works for long stays as it was."""

from __future__ import annotations

import re

import pytest

from runtime.triton.client import Client, ClientConfig
from runtime.triton.server import Server
from tests.serving.common import PERSON, processes_of


@pytest.mark.slow
def test_two_hundred_requests_in_a_row_leave_memory_as_it_was(server: Server) -> None:
    def megabytes() -> float:
        assert server.process is not None
        status = [(folder / "status").read_text() for folder in processes_of(server.process.pid)]
        return sum(int(found[1]) for text in status if (found := re.search(r"VmRSS:\s+(\d+)", text))) / 1000

    with Client(ClientConfig((server.grpc_url,))) as client:
        for number in range(20):
            client.restore(PERSON, num_inference_steps=2, seed=number)
        before = megabytes()
        for number in range(200):
            client.restore(PERSON, num_inference_steps=2, seed=number)
    after = megabytes()
    print(f"resident memory of the server: {before:.0f} MB before, {after:.0f} MB after 200 requests")
    assert after < 1.05 * before
