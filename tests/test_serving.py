"""DiffBody behind the real Triton server: same pictures, batching in flight, bad requests, cancellation, kill -9."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import Picture, decode_image, encode_image, read_image
from runtime.engines import EngineConfig
from runtime.restore import Restorer
from runtime.triton.client import (
    AccessError,
    Answer,
    AsyncClient,
    Client,
    ClientConfig,
    DeadlineError,
    InvalidRequestError,
    SamplingProgress,
    UnavailableError,
)
from runtime.triton.config import RepositoryConfig, ServerConfig
from runtime.triton.repository import render
from runtime.triton.server import Server, ServerError, choose_ports, find_triton
from tests.waiting import HANG, wait_until

SAMPLES = Path(__file__).parent.parent / "samples" / "degraded"
PERSON, WOMAN = SAMPLES / "synthetic_1.jpg", SAMPLES / "synthetic_2.jpg"
ANY_PORTS: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
LONG: dict[str, Any] = {"num_inference_steps": 1000, "strength": 1.0}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "models"
    return render(RepositoryConfig(NANO_FOLDER, threads=1, max_in_flight=8), folder)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(ServerConfig(repository, **ANY_PORTS)) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(ClientConfig((url(server, request.param),), timeout=HANG)) as client:
        yield client


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.open(NANO_FOLDER, EngineConfig(threads=1))


def url(server: Server, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"


def in_process(restorer: Restorer, picture: Picture, output_format: str = "png", **call: Any) -> bytes:
    restored = restorer.restore(picture, **call)
    return encode_image(restored.pixels, format=output_format, metadata=restored.metadata)


def metric(server: Server, name: str) -> float:
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    (value,) = re.findall(rf'^{name}{{model="sampler"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return float(value)


def wait_in_flight(server: Server, count: int) -> None:
    wait_until(lambda: metric(server, "diffbody_in_flight") == count)


@pytest.mark.parametrize(
    "call",
    [
        {"num_inference_steps": 3},
        {"num_inference_steps": 4, "sampler": "dpm++", "guidance_scale": 2.0, "strength": 0.8, "seed": 2**64 - 1},
        {
            "num_inference_steps": 3,
            "sampler": "ddim",
            "prompt": "a woman, Übergröße",
            "negative_prompt": "blurred",
            "guidance_scale": 1.5,
            "upscale": 1.25,
            "colour_fix": "adain",
            "body_guidance_every": 2,
            "body_guidance_start": 900,
            "body_guidance_stop": 10,
            "tile_size": 128,
            "output_format": "webp",
        },
        {
            "num_inference_steps": 2,
            "body_guidance_scale": 0.0,
            "use_structure": False,
            "use_residual": False,
            "output_format": "jpg",
        },
    ],
    ids=["defaults", "dpm++", "everything", "DiffBIR"],
)
def test_a_served_picture_is_the_one_restored_in_process(
    client: Client, restorer: Restorer, call: dict[str, Any]
) -> None:
    answer = client.restore(PERSON, **call)
    assert answer.image == in_process(restorer, read_image(PERSON), **call)
    spans = answer.report.spans
    assert set(spans) >= {"preprocess", "restorer", "pose", "parts", "text_encoder", "vae_encoder", "sampler"}
    assert all(0 <= start <= end for start, end in spans.values())
    assert spans["restorer"][1] <= spans["sampler"][0]
    assert answer.report.people == (1 if call.get("use_structure", True) else 0)


def test_pixels_and_transparency(client: Client, restorer: Restorer) -> None:
    pixels = np.asarray(Image.open(WOMAN).convert("RGB"))
    answer = client.restore(pixels, num_inference_steps=2)
    assert answer.image == in_process(restorer, read_image(WOMAN), num_inference_steps=2)
    file = io.BytesIO()
    alpha = np.tile(np.linspace(0, 255, pixels.shape[1]).astype(np.uint8), (pixels.shape[0], 1))
    Image.fromarray(np.dstack([pixels, alpha])).save(file, "PNG")
    found = client.restore(file.getvalue(), num_inference_steps=2).picture
    assert found.alpha is not None
    assert found.alpha[:, 0].max() < 0.05 < 0.95 < found.alpha[:, -1].min()
    np.testing.assert_array_equal(found.pixels, answer.picture.pixels)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_shared_memory_gives_the_same(server: Server, protocol: str) -> None:
    with Client(ClientConfig((url(server, protocol),), shared_memory=True)) as client:
        shared = client.restore(PERSON, num_inference_steps=2).image
        assert client.restore(np.asarray(Image.open(PERSON)), num_inference_steps=2).image
    with Client(ClientConfig((url(server, protocol),))) as client:
        assert client.restore(PERSON, num_inference_steps=2).image == shared


def test_nobody_in_the_picture_is_said(client: Client) -> None:
    answer = client.restore(np.full((64, 64, 3), 128, np.uint8), num_inference_steps=2)
    assert answer.report.people == 0
    assert "no person found" in answer.report.notices[0]
    assert answer.report.loss_curve == []


def test_metadata_and_notices_come_back(client: Client) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    frames = [Image.new("RGBA", (64, 32), (200, 90, 60, alpha)) for alpha in (255, 128)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], exif=exif.tobytes(), xmp=b"<x:xmpmeta/>")
    answer = client.restore(file.getvalue(), num_inference_steps=2, output_format="jpg")
    with Image.open(io.BytesIO(answer.image)) as image:
        assert image.getexif()[0x010F] == "Maker"
        assert 0x0112 not in image.getexif()
        assert image.info["xmp"] == b"<x:xmpmeta/>"
        assert image.width < image.height
    assert answer.report.notices[0] == "the file holds several frames or pages: the first of 2 is taken"
    assert answer.report.notices[-1] == "JPEG holds no transparency: laid over white"


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
        answers = client.restore_many([PERSON] * 8, num_inference_steps=20, strength=1.0)
        assert all(isinstance(answer, Answer) for answer in answers)
    assert metric(server, "diffbody_steps_total") - before == 160


def mixed(number: int) -> tuple[Path, dict[str, Any]]:
    """Another request for each number: size, steps, sampler, prompt, guidance, seed."""
    call = {
        "num_inference_steps": 2 + number % 5,
        "sampler": ("ddpm", "ddim", "dpm++")[number % 3],
        "seed": number,
        "guidance_scale": 1.0 + number % 2,
        "body_guidance_scale": 100.0 * (number % 4 > 0),
        "prompt": f"person {number}",
        "strength": (0.3, 1.0)[number % 2],
    }
    return (PERSON, WOMAN, SAMPLES / "astronaut.jpg")[number % 3], call


def test_sixteen_clients_with_mixed_requests_get_what_they_get_alone(server: Server, restorer: Restorer) -> None:
    def one(number: int) -> bytes:
        picture, call = mixed(number)
        # More than the eight in flight: some are told to retry, and do, until their turn comes.
        config = ClientConfig((url(server, ("grpc", "http")[number % 2]),), timeout=HANG, tries=1000)
        with Client(config) as client:
            return client.restore(picture, **call).image

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(16)))
    for number, image in enumerate(found):
        picture, call = mixed(number)
        alone = restorer.restore(read_image(picture), **call).pixels
        # float32 sums run in another order in a batch: at most 1e-3, and then the rounding to 8 bits.
        assert np.abs(decode_image(image).pixels - alone).max() <= 1e-3 + 0.5 / 255 + 1e-6, number
    assert metric(server, "diffbody_in_flight") == 0


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
        (PERSON, {"strength": 1.5}, "strength must be above 0 and at most 1"),
        (PERSON, {"sampler": "euler"}, "unknown sampler 'euler'"),
        (PERSON, {"prompt": "x" * 10_000_000}, "PROMPT has 10,000,000 characters"),
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
    assert metric(server, "diffbody_in_flight") == 0


def test_a_streamed_bad_request_is_refused_as_well(server: Server) -> None:
    with Client(ClientConfig((server.grpc_url,))) as client:
        with pytest.raises(InvalidRequestError, match="IMAGE: not a picture"):
            client.restore(b"garbage", on_progress=lambda progress: None)
        assert client.restore(PERSON, num_inference_steps=1).image  # the server is well


def post(server: Server, body: dict[str, Any]) -> tuple[int, str]:
    """A plain HTTP request, as anyone may send it: status and body."""
    address = f"http://{server.http_url}/v2/models/diffbody/infer"
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=HANG) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


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


def test_a_plain_http_request_needs_the_picture_only(server: Server) -> None:
    pixels = np.asarray(Image.open(PERSON).convert("RGB"))
    inputs = [tensor("PIXELS", "UINT8", list(pixels.shape), pixels.ravel().tolist())]
    inputs.append(tensor("NUM_INFERENCE_STEPS", "INT64", [1], [1]))
    status, body = post(server, {"inputs": inputs, "outputs": [{"name": "REPORT"}]})
    assert status == 200, body
    (output,) = json.loads(body)["outputs"]
    assert json.loads(output["data"][0])["steps"] == 1


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
    """Eight may be in flight: of twelve long ones four are refused, while the eight go on."""

    async def ask_all() -> list[Any]:
        async with AsyncClient(ClientConfig((server.grpc_url,), tries=1)) as client:
            going = {asyncio.ensure_future(client.restore(PERSON, **LONG)) for _ in range(12)}
            refused: set[asyncio.Future[Answer]] = set()
            while len(refused) < 4:
                done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
            await asyncio.to_thread(wait_in_flight, server, 8)
            for task in going:
                task.cancel()
            await asyncio.wait(going)
            return [task.exception() for task in refused]

    errors = asyncio.run(ask_all())
    assert len(errors) == 4
    assert all(isinstance(error, UnavailableError) and "retry later" in str(error) for error in errors), errors
    wait_in_flight(server, 0)


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


def processes_of(group: int) -> list[Path]:
    """The /proc folders of a process group."""

    def group_of(folder: Path) -> int:
        try:
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # gone meanwhile; no process
            return 0
        return 0 if state == "Z" else int(group)

    return [folder for folder in Path("/proc").iterdir() if group_of(folder) == group]


def test_a_triton_that_crashes_at_its_start_is_started_again(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_triton(tmp_path)
    crashed = tmp_path / "crashed"
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\n[ -e {crashed} ] || {{ touch {crashed}; kill -ABRT $$; }}\n"
        f"export LD_LIBRARY_PATH={real.environment['LD_LIBRARY_PATH']}\n"
        f'exec {real.binary} "$@" --backend-directory {real.backends}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    log: list[tuple[str, str]] = []
    started = Server(ServerConfig(repository, **ANY_PORTS), lambda *line: log.append(line))
    with started as server, Client(ClientConfig((url(server, "grpc"),))) as client:
        assert client.is_ready()
    assert [line for severity, line in log if severity == "warning" and "started again" in line]


def test_a_busy_port_is_said(server: Server, repository: Path) -> None:
    with pytest.raises(ServerError, match=r"the http port \S+ cannot be opened"):
        choose_ports(ServerConfig(repository, http_port=server.ports["http"]))


def test_a_killed_server_is_reported_and_comes_back(repository: Path) -> None:
    config = ServerConfig(repository, **ANY_PORTS)
    with Server(config) as server, Client(ClientConfig((server.grpc_url,), tries=1)) as client:
        assert server.process is not None
        pid = server.process.pid
        with ThreadPoolExecutor(1) as pool:
            restoration = pool.submit(client.restore, PERSON, **LONG)
            wait_until(lambda: metric(server, "diffbody_in_flight") == 1, while_true=lambda: not restoration.done())
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(UnavailableError, match="cannot be reached, or went away"):
                restoration.result()
        ports: dict[str, Any] = {f"{service}_port": port for service, port in server.ports.items()}
    wait_until(lambda: not processes_of(pid))
    again = ServerConfig(repository, **ports)
    with Server(again) as server, Client(ClientConfig((server.grpc_url,))) as client:
        assert client.restore(PERSON, num_inference_steps=1).image


def test_an_api_key_is_asked_for(repository: Path) -> None:
    with Server(ServerConfig(repository, **ANY_PORTS, api_key="secret")) as server:
        for protocol in ("grpc", "http"):
            for key in (None, "wrong"):
                with (
                    Client(ClientConfig((url(server, protocol),), api_key=key)) as client,
                    pytest.raises(AccessError, match="API key"),
                ):
                    client.restore(PERSON, num_inference_steps=1)
            with Client(ClientConfig((url(server, protocol),), api_key="secret")) as client:
                assert client.is_ready()
                assert client.restore(PERSON, num_inference_steps=1).image


def test_the_command_serves_and_restores(tmp_path: Path, restorer: Restorer) -> None:
    """`diffbody serve` and `diffbody restore --url`, as a user types them; Ctrl-C leaves nothing running."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "diffbody"]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    serve = subprocess.Popen(
        [*command, "serve", *ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert serve.stdout is not None
        line = serve.stdout.readline()
        address = re.search(r"gRPC (\S+),", line)
        assert address, line
        arguments = [*command, "restore", str(PERSON), str(WOMAN), "-o", str(tmp_path / "out"), "--compare"]
        done = subprocess.run(
            [*arguments, "--url", address[1], "--steps", "2"], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        for name in ("synthetic_1", "synthetic_2"):
            wanted = decode_image(in_process(restorer, read_image(SAMPLES / f"{name}.jpg"), num_inference_steps=2))
            found = read_image(tmp_path / "out" / f"{name}.restored.png")
            np.testing.assert_array_equal(found.pixels, wanted.pixels)
            assert (tmp_path / "out" / f"{name}.restored_before_after.png").is_file()
    finally:
        serve.send_signal(signal.SIGINT)
        _, errors = serve.communicate(timeout=HANG)
    assert serve.returncode == 0, errors
    assert "Traceback" not in errors


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
