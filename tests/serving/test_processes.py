"""Servers that crash, hang, are killed and are stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.launched import COMMAND, Launched, children_of_all_threads, launch
from diffbody_ref.ops.images import decode_image, read_image
from runtime.restore import Restorer
from runtime.triton.client import Client, ClientConfig, UnavailableError
from runtime.triton.config import ServerConfig
from runtime.triton.contract import AT_WORK_METRIC, MODEL
from runtime.triton.probe import NotWellError, probe
from runtime.triton.request_notes import memory_folder
from runtime.triton.run_folder import RunFolder, sweep
from runtime.triton.server import Server
from runtime.triton.tritonserver import ServerError, choose_ports, find_triton
from tests.serving.common import ANY_PORTS, LONG, PERSON, SAMPLES, WOMAN, in_process, processes_of, read_metric, url
from tests.waiting import HANG, wait_until


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


def ends(launched: Launched) -> int:
    """The launcher's exit code; its Triton is gone, too."""
    code = launched.process.wait(HANG)
    wait_until(lambda: not children_of_all_threads(launched.process.pid))
    return code


def run_folder_of(launched: Launched) -> str:
    """The name of the folder of a launcher's server, which its shared memory bears, too."""
    command = Path(f"/proc/{launched.triton()}/cmdline").read_text()
    found = re.search(r"diffbody-serve-\d+-[0-9a-f]+", command)
    assert found
    return found[0]


def traces(name: str) -> set[str]:
    """What a server has in memory now: its folder and shared memory. Other tests may run servers meanwhile."""
    return {path.name for path in memory_folder().iterdir() if name in path.name}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("line", ["loading: sampler", "successfully loaded"])
def test_a_signal_ends_a_server_that_is_not_ready_yet(line: str, number: signal.Signals, code: int) -> None:
    with launch("--threads", "1", "-v") as launched:
        launched.wait_for(line)
        name = run_folder_of(launched)
        launched.process.send_signal(number)
        assert ends(launched) == code
    assert "stopped before the server was ready\n" in launched.lines
    assert not any("Traceback" in line for line in launched.lines)
    assert not traces(name)


def in_flight_somewhere(launched: Launched) -> bool:
    return read_metric(launched.metrics_url, AT_WORK_METRIC, f"{MODEL}(?:_stream)?") > 0


def test_a_launcher_that_is_killed_leaves_no_process_and_the_next_one_tidies_up() -> None:
    with launch("--threads", "1") as launched:
        Client(ClientConfig((launched.address,))).close()
        name = run_folder_of(launched)
        triton = launched.triton()
        models = children_of_all_threads(triton)
        assert models
        launched.process.kill()
        wait_until(lambda: not processes_of(triton))
    with RunFolder() as living:
        sweep()  # as another server's start may have done meanwhile
        assert living.path.is_dir()  # of a launcher that lives
    assert not traces(name)


def restores(address: str) -> bool:
    with Client(ClientConfig((address,), timeout=HANG, tries=1000)) as client:
        return bool(client.restore(PERSON, num_inference_steps=1).image)


def test_a_server_that_crashes_or_loses_a_model_is_started_again_until_it_is_too_much() -> None:
    with launch("--threads", "1", "--restarts", "2") as launched:
        assert restores(launched.address)
        triton = launched.triton()
        os.kill(triton, signal.SIGSEGV)
        launched.wait_for(
            r"error +Triton stopped by itself \(by the signal SIGSEGV\).*started again \(1 of 2 restarts\)"
        )
        launched.wait_for("the server is ready again")
        assert not processes_of(triton)
        assert restores(launched.address)  # at the address that clients know
        os.kill(children_of_all_threads(launched.triton())[0], signal.SIGKILL)
        launched.wait_for(r"a model's process \(\d+\) ended by itself.*started again in \d+ s \(2 of 2 restarts\)")
        launched.wait_for("the server is ready again", count=2)
        assert restores(launched.address)
        os.kill(launched.triton(), signal.SIGKILL)
        assert ends(launched) == 2
    launched.wait_for(r"diffbody: error: Triton stopped .*given up after 2 restarts within 15 minutes")


@pytest.mark.slow
def test_a_server_that_hangs_is_started_again() -> None:
    with launch("--threads", "1") as launched:
        address = launched.address
        probe(address)
        os.kill(launched.triton(), signal.SIGSTOP)  # its ports stay open
        with pytest.raises(NotWellError):
            probe(address, timeout=1.0)
        launched.wait_for(r"error +the server hangs \(.+\); it is started again")
        launched.wait_for("the server is ready again")
        assert restores(address)


@pytest.mark.slow
def test_a_model_that_hangs_is_found() -> None:
    """A model's process that works on one batch for longer than it may: here, as it is stopped."""
    with launch("--threads", "1", "--stall-seconds", "5") as launched:
        address = launched.address  # when all models are there
        models = children_of_all_threads(launched.triton())
        (restorer,) = (pid for pid in models if "/restorer/" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(restorer, signal.SIGSTOP)
        assert restores(address)  # tried again until the server is new
        launched.wait_for(r"error +the server hangs \(the model restorer has worked on one batch for .*started again")


def test_a_killed_server_is_reported(repository: Path) -> None:
    config = ServerConfig(repository, **ANY_PORTS)
    with Server(config) as server, Client(ClientConfig((server.grpc_url,), tries=1)) as client:
        assert server.process is not None
        assert client.restore(PERSON, num_inference_steps=1).image
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(HANG)
        with pytest.raises(ServerError, match="Triton stopped by itself"):
            server.check()
        with pytest.raises(UnavailableError, match="cannot be reached, or went away"):
            client.restore(PERSON, **LONG)


def restore_command(address: str, out: Path, *more: str) -> list[str]:
    return [*COMMAND, "restore", str(PERSON), str(WOMAN), "-o", str(out), "--url", address, *more]


def test_the_command_serves_and_restores(tmp_path: Path, restorer: Restorer) -> None:
    """`diffbody serve` and `diffbody restore --url`, as a user types them; Ctrl-C ends each, and leaves nothing."""
    with launch("--threads", "1") as serve:
        address = serve.address
        command = restore_command(address, tmp_path / "out", "--compare", "--steps", "2")
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for name in ("synthetic_1", "synthetic_2"):
            wanted = decode_image(in_process(restorer, read_image(SAMPLES / f"{name}.jpg"), num_inference_steps=2))
            found = read_image(tmp_path / "out" / f"{name}.restored.png")
            np.testing.assert_array_equal(found.pixels, wanted.pixels)
            assert (tmp_path / "out" / f"{name}.restored_before_after.png").is_file()
        # What servers have made with a bundle is what this program makes with it.
        here = [part for part in command if part not in ("--url", address)]
        done = subprocess.run(here, capture_output=True, text=True)
        assert "restored 0, skipped 2" in done.stdout, done.stderr
        interrupt(serve, address, tmp_path / "interrupted")
        serve.process.send_signal(signal.SIGINT)
        assert ends(serve) == 0
    assert not any("Traceback" in line for line in serve.lines)


def interrupt(serve: Launched, address: str, out: Path) -> None:
    """Ctrl-C to a command whose pictures a server restores."""
    command = restore_command(address, out, "--steps", "1000")
    restore = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: in_flight_somewhere(serve), while_true=lambda: restore.poll() is None)
    for _ in range(3):
        restore.send_signal(signal.SIGINT)
    _, errors = restore.communicate(timeout=HANG)
    assert restore.returncode == 130, errors
    assert "interrupted: 0 done, 2 left" in errors
    assert "Traceback" not in errors
    wait_until(lambda: not in_flight_somewhere(serve))  # the server does not go on with them


def test_a_command_over_http_says_nothing_of_its_connections(server: Server, tmp_path: Path) -> None:
    command = restore_command(f"http://{server.http_url}", tmp_path / "out", "--steps", "1")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "session" not in done.stderr.lower()


def test_no_server_there_is_one_line(tmp_path: Path) -> None:
    command = restore_command("127.0.0.1:1", tmp_path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "127.0.0.1:1: no server answers" in done.stderr
