"""One server for all tests of served pictures that do not need one of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffbody_ref.ops.builtin import NANO_FOLDER
from runtime.engines import EngineConfig
from runtime.restore import Restorer
from runtime.triton.client import Client, ClientConfig
from runtime.triton.config import RepositoryConfig, ServerConfig
from runtime.triton.repository import render
from runtime.triton.server import Server
from tests.serving.common import ANY_PORTS, url
from tests.waiting import HANG


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "models"
    return render(RepositoryConfig(NANO_FOLDER, threads=1, max_in_flight=8, max_queue=16), folder)


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    with Server(ServerConfig(repository, **ANY_PORTS)) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(ClientConfig((url(server, request.param),), timeout=HANG)) as client:
        yield client


@pytest.fixture(scope="session")
def restorer() -> Restorer:
    return Restorer.open(NANO_FOLDER, EngineConfig(threads=1))
