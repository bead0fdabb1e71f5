"""Who can reach a server, by which addresses, and which of its services."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from PIL import Image
from tritonclient.utils import InferenceServerException

from runtime.triton.addresses import is_loopback, parse
from runtime.triton.client import AccessError, Client, ClientConfig, ClientError
from runtime.triton.config import ServerConfig
from runtime.triton.run_folder import TRITONS_PREFIX
from runtime.triton.server import Server
from tests.serving.common import ANY_PORTS, PERSON, processes_of, url
from tests.waiting import HANG


def test_nothing_listens_beyond_this_machine(server: Server) -> None:
    assert server.process is not None
    folders = processes_of(server.process.pid)
    sockets = {str(fd.readlink()) for folder in folders for fd in (folder / "fd").iterdir() if fd.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # listening
                found.append(fields[1].partition(":")[0])
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert len(found) == 3
    assert set(found) <= loopback


@pytest.mark.parametrize(
    "path",
    [
        "systemsharedmemory/status",
        "systemsharedmemory/region/x/register",
        "cudasharedmemory/status",
        "repository/index",
        "repository/models/sampler/unload",
        "trace/setting",
        "logging",
    ],
)
def test_services_that_no_client_needs_are_off_over_http(server: Server, path: str) -> None:
    read = path.endswith(("status", "setting", "logging"))
    for method in ("GET", "POST") if path in ("trace/setting", "logging") else ("GET" if read else "POST",):
        body = None if method == "GET" else json.dumps({"key": "/x", "byte_size": 1}).encode()
        request = urllib.request.Request(f"http://{server.http_url}/v2/{path}", body, method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=HANG)
        assert caught.value.code == 403


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("x", "/x", 1),
        lambda client: client.get_model_repository_index(),
        lambda client: client.unload_model("sampler"),
        lambda client: client.get_trace_settings(),
        lambda client: client.update_log_settings({"log_file": "/tmp/x"}),
    ],
    ids=["regions", "register", "models", "unload", "trace", "log"],
)
def test_services_that_no_client_needs_are_off_over_grpc(server: Server, ask: Callable[[Any], Any]) -> None:
    with grpc.InferenceServerClient(server.grpc_url) as client, pytest.raises(InferenceServerException) as caught:
        ask(client)
    assert "restricted" in str(caught.value)


def test_the_models_memory_is_this_users_and_bears_tritons_name(server: Server) -> None:
    """Later releases of Triton refuse to give regions of that name to clients; 2.51 gives them none as that is off."""
    assert server.process is not None
    names = set()
    for folder in processes_of(server.process.pid):
        for line in (folder / "maps").read_text().splitlines():
            if "/dev/shm/" in line:
                names.add(line.partition("/dev/shm/")[2].removesuffix(" (deleted)"))
    regions = [Path("/dev/shm") / name for name in names if (Path("/dev/shm") / name).is_file()]
    assert regions
    assert all(region.name.startswith(TRITONS_PREFIX) for region in regions)
    assert {region.stat().st_mode & 0o777 for region in regions} == {0o600}


def test_an_api_key_is_asked_for_also_where_pictures_come_in_shared_memory(repository: Path) -> None:
    with Server(ServerConfig(repository, **ANY_PORTS, api_key="secret", shared_memory=True)) as server:
        server.probe()
        for protocol in ("grpc", "http"):
            for key in (None, "wrong"):
                with (
                    Client(ClientConfig((url(server, protocol),), api_key=key)) as client,
                    pytest.raises(AccessError, match="API key"),
                ):
                    client.restore(PERSON, num_inference_steps=1)
            with Client(ClientConfig((url(server, protocol),), api_key="secret")) as client:
                assert client.is_ready()
                image = client.restore(PERSON, num_inference_steps=1).image
            with Client(ClientConfig((url(server, protocol),), api_key="secret", shared_memory=True)) as client:
                assert client.restore(PERSON, num_inference_steps=1).image == image
                assert client.restore(np.asarray(Image.open(PERSON)), num_inference_steps=1).image


def test_pictures_in_shared_memory_are_refused_in_one_line(server: Server) -> None:
    for protocol in ("grpc", "http"):
        with (
            Client(ClientConfig((url(server, protocol),), shared_memory=True)) as client,
            pytest.raises(AccessError, match="shared memory is off"),
        ):
            client.restore(PERSON, num_inference_steps=1)


def test_ipv6_and_a_proxy_for_the_outside_world(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Server(ServerConfig(repository, "::1", **ANY_PORTS)) as server:
        assert server.grpc_url.startswith("[::1]:")
        server.probe()
        assert server.requests_under_way() == 0
        for protocol in ("grpc", "http"):
            with Client(ClientConfig((url(server, protocol),))) as client:
                assert client.is_ready()
                assert client.restore(PERSON, num_inference_steps=1).image


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_proxy_for_the_outside_world_is_not_asked_for_this_machine(
    server: Server, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Client(ClientConfig((url(server, protocol),))) as client:
        assert client.is_ready()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "certificate.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-out", str(made[0]), "-keyout", str(made[1])]
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    return made


@contextmanager
def tls_before(address: str, certificate: tuple[Path, Path]) -> Iterator[int]:
    """The port of a server with TLS that hands on what it gets, as a reverse proxy does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.rpartition(":")

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True)

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_tls_before_the_server(
    server: Server, certificate: tuple[Path, Path], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_before(server.grpc_url if scheme == "grpcs" else server.http_url, certificate) as port:
        address = f"{scheme}://localhost:{port}"
        with Client(ClientConfig((address,), tries=1)) as client:  # nobody vouches for it
            assert not client.is_ready()
            with pytest.raises(ClientError):
                client.restore(PERSON, num_inference_steps=1)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        with Client(ClientConfig((address,), timeout=HANG)) as client:
            assert client.is_ready()
            assert client.restore(PERSON, num_inference_steps=1).image


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8001", ("grpc", False, "localhost", 8001, "localhost:8001")),
        ("grpc://10.0.0.1:8001", ("grpc", False, "10.0.0.1", 8001, "10.0.0.1:8001")),
        ("[::1]:8001", ("grpc", False, "::1", 8001, "[::1]:8001")),
        ("http://[fe80::1]:8000/", ("http", False, "fe80::1", 8000, "[fe80::1]:8000")),
        ("https://pictures.example.com", ("http", True, "pictures.example.com", 443, "pictures.example.com:443")),
        ("grpcs://h:9000", ("grpc", True, "h", 9000, "h:9000")),
    ],
)
def test_urls_of_servers(url: str, expected: tuple[str, bool, str, int, str]) -> None:
    found = parse(url)
    assert (found.protocol, found.tls, found.host, found.port, found.host_and_port) == expected


NO_ADDRESSES = ["", "localhost", ":8001", "localhost:", "localhost:x", "::1:8001", "h:99999"]
NO_SERVERS = ["ftp://h:1", "http://h:1/path", "http://u@h:1", "http://h"]


@pytest.mark.parametrize("url", [*NO_ADDRESSES, *NO_SERVERS])
def test_what_is_no_url_of_a_server_is_said(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL of a server; give one such as localhost:8001"):
        Client(ClientConfig((url,)))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.53", True), ("::1", True), ("0.0.0.0", True), ("10.0.0.1", False), ("h", False)],
)
def test_which_addresses_are_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
