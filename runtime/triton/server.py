"""The server: finds Triton, starts it on a model repository, waits until it is ready, and stops it with its processes.

Triton is the binary in the `nvidia-pytriton` wheel, or one that is installed, as in NVIDIA's container.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from runtime.triton.config import ServerConfig
from runtime.triton.contract import API_KEY_HEADER, IN_FLIGHT_METRIC
from runtime.triton.request_notes import folder_of_server

# Triton's services that ask for the API key: all but health and metrics.
PROTECTED = "inference,model-config,statistics,trace,logging,shared-memory,model-repository,metadata"
READY_SECONDS = 600.0  # the largest models take minutes to load
STOP_SECONDS = 20.0  # from the signal to stop until the server is killed
STARTS = 3  # Triton 2.51 now and then crashes while it starts its models on a machine without a free processor
DRAIN_SECONDS = 60.0  # in which requests under way may finish
UNDER_WAY = rf"^(?:nv_inference_pending_request_count|{IN_FLIGHT_METRIC}){{[^}}]*}} (\S+)$"


class ServerError(OSError):
    """The server cannot be started, or has stopped; the message is one line."""


class ServerCrashError(ServerError):
    """A signal ended the server, so that starting it again may help."""


@dataclass(frozen=True)
class Triton:
    """An installed Triton.

    Attributes:
        binary: the program `tritonserver`.
        environment: variables that it needs.
        backends: folder of its backends; None is its own.
    """

    binary: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    backends: Path | None = None


class Server:
    """Triton as a context manager: ready on entry, stopped on exit, also by a signal that ends this process.

    Args:
        config: how it listens.
        on_log: called for each line of the server's log with its severity, "info", "warning" or "error", and its text.

    Raises:
        ServerError: on entry: there is no Triton, a port is busy, numpy is 2, or Triton stopped before it was ready.
    """

    def __init__(self, config: ServerConfig, on_log: Callable[[str, str], None] = lambda severity, line: None) -> None:
        self.config, self.on_log = config, on_log
        self.ports: dict[str, int] = {}
        self.process: subprocess.Popen[str] | None = None
        self._shared_memory = f"diffbody-{secrets.token_hex(8)}-"
        self._scratch: Path | None = None
        self._model_processes: set[int] = set()
        self.last_error = ""

    @property
    def http_url(self) -> str:
        """The address of HTTP, "host:port"."""
        return f"{self.config.host}:{self.ports['http']}"

    @property
    def grpc_url(self) -> str:
        """The address of gRPC, "host:port", as clients take it."""
        return f"{self.config.host}:{self.ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        """The URL of the Prometheus metrics."""
        return f"http://{self.config.host}:{self.ports['metrics']}/metrics"

    def __enter__(self) -> Self:
        for left in reversed(range(STARTS)):
            self._scratch = Path(tempfile.mkdtemp(prefix="diffbody-serve-"))
            try:
                self._start(find_triton(self._scratch))
                self._wait_until_ready()
                break
            except BaseException as error:
                self.stop()
                if not (isinstance(error, ServerCrashError) and left):
                    raise
                self.on_log("warning", f"{error}; the server is started again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Raise if the server cannot answer requests any more.

        Raises:
            ServerError: the server has stopped, or a model's process has: Triton goes on without that, and every
                request fails.
        """
        assert self.process is not None
        if (code := self.process.poll()) is not None:
            raise ServerError(f"Triton stopped by itself with exit code {code}: {self.last_error}")
        if lost := self._model_processes - _children(self.process.pid):
            raise ServerError(f"a model's process ({min(lost)}) ended by itself, perhaps for lack of memory")

    def requests_under_way(self) -> int:
        """Number of requests in the models' queues and in the sampler; 0 if the server does not tell."""
        try:
            with urllib.request.urlopen(self.metrics_url, timeout=2) as answer:
                text = answer.read().decode()
        except OSError:
            return 0
        return int(sum(float(value) for value in re.findall(UNDER_WAY, text, re.MULTILINE)))

    def stop(self) -> None:
        """Stop the server and the processes of its models, and remove what they left in shared memory."""
        if self.process is not None:
            self.process.terminate()  # the server ends its models
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.on_log("warning", f"the server did not stop within {STOP_SECONDS:.0f} s and is killed")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # the models as well, should any be left
            self.process.wait()
            # A server that was killed could not remove these itself.
            shutil.rmtree(folder_of_server(self.process.pid), ignore_errors=True)
            for region in Path("/dev/shm").glob(f"{self._shared_memory}*"):
                region.unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(self, triton: Triton) -> None:
        self.ports = choose_ports(self.config)
        command = [str(triton.binary), *arguments(self.config, self.ports, self._shared_memory)]
        if triton.backends is not None:
            command += ["--backend-directory", str(triton.backends)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **triton.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self._scratch,  # an empty folder: Python imports what lies in its working folder before anything else
            start_new_session=True,  # so that Ctrl-C reaches the launcher only
            preexec_fn=_end_with_parent,
        )
        threading.Thread(target=self._read_log, args=(self.process,), daemon=True).start()

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if (parsed := parse_log_line(line)) is not None:
                if parsed[0] == "error":
                    self.last_error = parsed[1]
                self.on_log(*parsed)

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                time.sleep(0.2)  # until the rest of its log is read
                kind = ServerCrashError if code < 0 else ServerError
                raise kind(f"Triton stopped with exit code {code} before it was ready: {self.last_error}")
            if is_ready(self.http_url):
                self._model_processes = _children(self.process.pid)
                return
            time.sleep(0.1)
        raise ServerError(f"Triton was not ready after {READY_SECONDS:.0f} s: {self.last_error}")


def run_until_stopped(config: ServerConfig, show_log: Callable[[str, str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; print the addresses when the server is ready.

    Requests under way are finished first, for `DRAIN_SECONDS` at most; a second signal stops the server at once.

    Args:
        config: how the server listens.
        show_log: called for each line of the server's log with its severity and its text.

    Raises:
        ServerError: the server cannot start, has stopped by itself, or has lost the process of a model.
    """
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    with Server(config, show_log) as server:
        key = " (with the API key)" if config.api_key is not None else ""
        print(f"ready: gRPC {server.grpc_url}, HTTP http://{server.http_url}{key}, metrics {server.metrics_url}")
        print(f"try:   diffbody restore photo.jpg --url {server.grpc_url}", flush=True)
        while not signals:
            time.sleep(0.2)
            server.check()
        print("stopping: requests under way are finished first; press Ctrl-C again to stop at once", flush=True)
        deadline = time.monotonic() + DRAIN_SECONDS
        while len(signals) == 1 and time.monotonic() < deadline and server.requests_under_way():
            time.sleep(0.2)


def is_ready(http_url: str) -> bool:
    """Whether the server at this address, "host:port", and all its models can answer."""
    try:
        with urllib.request.urlopen(f"http://{http_url}/v2/health/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def arguments(config: ServerConfig, ports: Mapping[str, int], shared_memory: str) -> list[str]:
    """Triton's arguments, without the folder of its backends.

    Args:
        config: how the server listens.
        ports: of the services "http", "grpc" and "metrics".
        shared_memory: prefix of the names of its shared memory regions.
    """
    found = [
        f"--model-repository={config.repository.resolve()}",
        "--model-control-mode=none",
        "--strict-readiness=true",
        "--disable-auto-complete-config",
        "--allow-metrics=true",
        # An idle connection that is kept alive must not delay the end.
        f"--exit-timeout-secs={STOP_SECONDS / 2:.0f}",
        f"--log-verbose={config.verbose}",
        # A large model takes minutes to load.
        f"--backend-config=python,stub-timeout-seconds={READY_SECONDS:.0f}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory}",
    ]
    for service, port in ports.items():
        found += [f"--{service}-port={port}", f"--{service}-address={config.host}"]
    if config.api_key is not None:
        found += [
            f"--http-restricted-api={PROTECTED}:{API_KEY_HEADER}={config.api_key}",
            f"--grpc-restricted-protocol={PROTECTED}:{API_KEY_HEADER}={config.api_key}",
        ]
    if config.trace is not None:
        found += [
            f"--trace-config=triton,file={config.trace.resolve()}",
            "--trace-config=rate=1",
            "--trace-config=level=TIMESTAMPS",
        ]
    return found


def find_triton(scratch: Path) -> Triton:
    """The installed Triton: the one on the PATH or of NVIDIA's container, else the one in nvidia-pytriton.

    Args:
        scratch: a folder for links to nvidia-pytriton's backends, which need the stub of this Python beside them.

    Raises:
        ServerError: there is no Triton, or its Python backend cannot run in this Python.
    """
    check_numpy()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    installed = shutil.which("tritonserver") or shutil.which("/opt/tritonserver/bin/tritonserver")
    if installed is not None:
        return Triton(Path(installed), {"PATH": path})
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError("Triton Inference Server is not installed; install DiffBody with its extra 'serve'")
    wheel = Path(spec.origin).parent / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerError(f"nvidia-pytriton has no Python backend for Python {version}; use 3.11 or 3.12")
    backends = scratch / "backends"
    (backends / "python").mkdir(parents=True)
    for file in (*(wheel / "backends" / "python").glob("*.*"), stub):
        (backends / "python" / file.name).symlink_to(file)
    libraries = [wheel.parents[1] / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR") or "")]
    libraries_path = os.pathsep.join([*map(str, libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return Triton(wheel / "bin" / "tritonserver", {"PATH": path, "LD_LIBRARY_PATH": libraries_path}, backends)


def check_numpy() -> None:
    """Raise if Triton's Python backend cannot work with this numpy.

    Raises:
        ServerError: numpy is 2 or later, with which that backend passes empty tensors.
    """
    import numpy

    if int(numpy.__version__.partition(".")[0]) >= 2:
        raise ServerError(
            f"Triton's Python backend needs numpy below 2, but numpy {numpy.__version__} is installed; "
            "install numpy 1.26 (Python 3.11 or 3.12)"
        )


def choose_ports(config: ServerConfig) -> dict[str, int]:
    """The port of each service, "http", "grpc" and "metrics", which was free a moment ago.

    Raises:
        ServerError: a port is taken or asked for twice, or the address is not this machine's.
    """
    wanted = {"http": config.http_port, "grpc": config.grpc_port, "metrics": config.metrics_port}
    sockets, ports = [], {}
    try:
        for service, port in wanted.items():
            listener = socket.socket()
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((config.host, port))
                listener.listen()
            except (OSError, OverflowError) as error:
                raise ServerError(
                    f"the {service} port {config.host}:{port} cannot be opened ({error}): does a server run there "
                    f"already? Choose another port with --{service}-port; 0 takes a free one"
                ) from None
            ports[service] = listener.getsockname()[1]
    finally:
        for listener in sockets:
            listener.close()
    return ports


def parse_log_line(line: str) -> tuple[str, str] | None:
    """Severity and text of one line of Triton's log; None for lines that tell a reader nothing."""
    line = line.rstrip()
    if found := re.match(r"([IWEF])\d{4} [\d:.]+ \d+ \S+\] ?(.*)", line):
        severity = {"I": "info", "W": "warning"}.get(found[1], "error")
        text = found[2].strip().strip('"').replace("\\n", "\n").partition("\n")[0].strip()
        # Triton warns of these on every machine without a GPU.
        if re.search(r"CUDA|Cuda|DCGM|NVML|pinned memory", text):
            severity = "info"
        return (severity, text) if text else None
    if not line.strip(" +-|=") or line.startswith(("|", "Error: Failed to initialize NVML")):
        return None
    return "info", line.strip()


def _children(pid: int) -> set[int]:
    """The IDs of the living processes that a process has started (Linux)."""
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.add(int(folder.name))
    return found


def _end_with_parent() -> None:
    """Have this process ended when the launcher dies, in whatever way (Linux); called in the child."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
