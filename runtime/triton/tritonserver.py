"""The installed Triton: where it is, how it is told what to do, and what its log says.

It is the binary in the `nvidia-pytriton` wheel, or one that is installed, as in NVIDIA's container.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime.triton.addresses import join
from runtime.triton.config import ServerConfig
from runtime.triton.contract import API_KEY_HEADER, MODEL

# Triton's services but for health and metrics. With an API key, they ask for it.
FOR_CLIENTS = ("inference", "model-config", "statistics", "metadata")
SHARED_MEMORY = "shared-memory"
# Nobody needs these on a server that loads its models once and writes its log where its launcher says: files can be
# written by them, and models changed.
NOT_FOR_CLIENTS = ("trace", "logging", "model-repository")
MIN_CALLS = 16
READY_SECONDS = 600.0  # the largest models take minutes to load
STOP_SECONDS = 20.0  # from the signal to stop until the server is killed


class ServerError(OSError):
    """The server cannot be started, or has stopped; the message is one line."""


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
        f"--backend-config=python,thread-pool-size={_calls_at_a_time(config.repository)}",
        *_access(config),
    ]
    version6 = ":" in config.host
    hosts = {"grpc": f"[{config.host}]" if version6 else config.host}
    for service, port in ports.items():
        # The HTTP library wants to be told of IPv6.
        host = hosts.get(service, f"ipv6:{config.host}" if version6 else config.host)
        found += [f"--{service}-port={port}", f"--{service}-address={host}"]
    if config.trace is not None:
        found += [
            f"--trace-config=triton,file={config.trace.resolve()}",
            "--trace-config=rate=1",
            "--trace-config=level=TIMESTAMPS",
        ]
    return found


def _calls_at_a_time(repository: Path) -> int:
    """How many calls of other models a model may have under way: the front one for each request at work.

    Triton makes as many threads for each model.
    """
    text = (repository / MODEL / "config.pbtxt").read_text(encoding="utf-8")
    found = re.search(r'key: "max_in_flight" value: { string_value: "(\d+)" }', text)
    return max(MIN_CALLS, int(found[1]) if found else 0)


def _access(config: ServerConfig) -> list[str]:
    """Arguments that restrict Triton's services: to whoever has the API key, or to nobody, by a key that nobody has."""
    off = NOT_FOR_CLIENTS + (SHARED_MEMORY,) * (not config.shared_memory)
    keys = {off: secrets.token_hex(32)}
    if config.api_key is not None:
        keys[FOR_CLIENTS + (SHARED_MEMORY,) * config.shared_memory] = config.api_key
    return [
        f"--{option}={','.join(services)}:{API_KEY_HEADER}={key}"
        for services, key in keys.items()
        for option in ("http-restricted-api", "grpc-restricted-protocol")
    ]


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


def knows_option(triton: Triton, name: str) -> bool:
    """Whether this Triton has an option, which later releases have."""
    environment = {**os.environ, **triton.environment}
    shown = subprocess.run([triton.binary, "--help"], env=environment, capture_output=True, text=True, check=False)
    return f"--{name}" in shown.stdout + shown.stderr


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
            listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((config.host, port))
                listener.listen()
            except (OSError, OverflowError) as error:
                raise ServerError(
                    f"the {service} port {join(config.host, port)} cannot be opened ({error}): does a server run there "
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
