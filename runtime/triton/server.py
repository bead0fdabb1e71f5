"""The server: starts Triton on a model repository, waits until it is ready, and stops it with its processes."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from runtime.triton import addresses
from runtime.triton.config import ServerConfig
from runtime.triton.contract import AT_WORK_METRIC, WAITING_METRIC
from runtime.triton.guardian import Guardian
from runtime.triton.probe import probe
from runtime.triton.request_notes import FOLDER_VARIABLE
from runtime.triton.run_folder import RunFolder, sweep
from runtime.triton.tritonserver import (
    READY_SECONDS,
    STOP_SECONDS,
    ServerError,
    Triton,
    arguments,
    choose_ports,
    find_triton,
    knows_option,
    parse_log_line,
)

STARTS = 3  # Triton 2.51 now and then crashes while it starts its models on a machine without a free processor
UNDER_WAY = rf"^(?:{AT_WORK_METRIC}|{WAITING_METRIC}){{[^}}]*}} (\S+)$"


class ServerCrashError(ServerError):
    """A signal ended the server, so that starting it again may help."""


class Server:
    """Triton as a context manager: ready on entry, stopped on exit, also by a signal that ends this process.

    Args:
        config: how it listens.
        on_log: called for each line of the server's log with its severity, "info", "warning" or "error", and its text.
        run_folder: the server's, which stays; None makes one that goes with the server.

    Raises:
        ServerError: on entry: there is no Triton, a port is busy, numpy is 2, or Triton stopped before it was ready.
    """

    def __init__(
        self,
        config: ServerConfig,
        on_log: Callable[[str, str], None] = lambda severity, line: None,
        run_folder: RunFolder | None = None,
    ) -> None:
        self.config, self.on_log = config, on_log
        self.ports: dict[str, int] = {}
        self.process: subprocess.Popen[str] | None = None
        self.last_error = ""
        self._run_folder, self._leave_run_folder = run_folder, run_folder is not None
        self._ready = False
        self._guardian: Guardian | None = None
        self._model_processes: set[int] = set()

    @property
    def http_url(self) -> str:
        """The address of HTTP, "host:port"."""
        return self._address("http")

    @property
    def grpc_url(self) -> str:
        """The address of gRPC, "host:port", as clients take it."""
        return self._address("grpc")

    @property
    def metrics_url(self) -> str:
        """The URL of the Prometheus metrics."""
        return f"http://{self._address('metrics')}/metrics"

    def __enter__(self) -> Self:
        if self._run_folder is None:
            sweep()
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._run_folder is not None and not self._leave_run_folder:
            self._run_folder.remove()

    def start(self) -> None:
        """Start Triton and wait until it is ready; where it ran before, on the same ports."""
        if self._run_folder is None:
            self._run_folder = RunFolder()
        for left in reversed(range(STARTS)):
            try:
                self._start(self._run_folder)
                self._wait_until_ready()
                break
            except BaseException as error:
                self.stop()
                if not (isinstance(error, ServerCrashError) and left):
                    raise
                self.on_log("warning", f"{error}; the server is started again")

    def stop(self) -> None:
        """Stop Triton and the processes of its models, and remove what they left in shared memory."""
        if self.process is None or self._run_folder is None:
            return
        if self._ready:
            self.process.terminate()  # the server ends its models
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.on_log("warning", f"the server did not stop within {STOP_SECONDS:.0f} s and is killed")
        self.kill()

    def kill(self) -> None:
        """End Triton and the processes of its models at once: it may be deaf, while it starts or when it hangs."""
        assert self.process is not None
        assert self._run_folder is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the models as well, should any be left
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None
        self.process.wait()
        self._ready = False
        self._run_folder.remove_shared_memory()
        shutil.rmtree(self._run_folder.folder("notes"), ignore_errors=True)

    def check(self) -> None:
        """Raise if the server cannot answer requests any more.

        Raises:
            ServerError: the server has stopped, or a model's process has: Triton goes on without that, and every
                request fails.
        """
        assert self.process is not None
        if (code := self.process.poll()) is not None:
            raise ServerError(f"Triton stopped by itself ({_ending(code)}): {self.last_error or 'without a word'}")
        if lost := self._model_processes - _children(self.process.pid):
            raise ServerError(f"a model's process ({min(lost)}) ended by itself, perhaps for lack of memory")

    def probe(self) -> None:
        """Send a request through the server; see `runtime.triton.probe`.

        Raises:
            NotWellError: it does not answer, or says what hangs.
        """
        probe(self.grpc_url, self.config.api_key)

    def requests_under_way(self) -> int:
        """Number of requests that wait or are worked on; 0 if the server does not tell."""
        try:
            text = addresses.fetch_here(self.metrics_url, timeout=2).decode()
        except OSError:
            return 0
        return int(sum(float(value) for value in re.findall(UNDER_WAY, text, re.MULTILINE)))

    def _address(self, service: str) -> str:
        return addresses.join(addresses.reachable(self.config.host), self.ports[service])

    def _start(self, run_folder: RunFolder) -> None:
        self._ready, self.last_error = False, ""
        if not self.ports:
            self.ports = choose_ports(self.config)
        shutil.rmtree(run_folder.folder("triton"))
        triton = find_triton(run_folder.folder("triton"))
        command = [str(triton.binary), *arguments(self.config, self.ports, run_folder.shared_memory_prefix)]
        if self.config.shared_memory and knows_option(triton, "allow-client-shm"):
            command.append("--allow-client-shm=true")
        if triton.backends is not None:
            command += ["--backend-directory", str(triton.backends)]
        self.process = subprocess.Popen(
            command,
            env=_environment(triton, run_folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # An empty folder: Python imports what lies in its working folder before anything else.
            cwd=run_folder.folder("empty"),
            start_new_session=True,  # so that Ctrl-C reaches the launcher only
            preexec_fn=_prepare_child,
        )
        self._guardian = Guardian(self.process.pid)
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
        assert self._run_folder is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                time.sleep(0.2)  # until the rest of its log is read
                kind = ServerCrashError if code < 0 else ServerError
                raise kind(f"Triton stopped before it was ready ({_ending(code)}): {self.last_error}")
            ready = is_ready(self.http_url)
            self._run_folder.keep_shared_memory_private()
            if ready:
                self._model_processes = _children(self.process.pid)
                self._ready = True
                return
            time.sleep(0.1)
        raise ServerError(f"Triton was not ready after {READY_SECONDS:.0f} s: {self.last_error}")


def is_ready(http_url: str) -> bool:
    """Whether the server at this address of this machine, "host:port", and all its models can answer."""
    try:
        addresses.fetch_here(f"http://{http_url}/v2/health/ready", timeout=2)
    except OSError:
        return False
    return True


def _environment(triton: Triton, run_folder: RunFolder) -> dict[str, str]:
    return {**os.environ, **triton.environment, FOLDER_VARIABLE: str(run_folder.folder("notes"))}


def _ending(code: int) -> str:
    """A process's exit code in words."""
    return f"exit code {code}" if code >= 0 else f"by the signal {signal.Signals(-code).name}"


def _children(pid: int) -> set[int]:
    """The IDs of the living processes that a process has started (Linux)."""
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.add(int(folder.name))
    return found


def _prepare_child() -> None:
    """Called in the child. A crash writes no core file: it would hold the pictures of clients, and gigabytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
