"""The settings of a server and of its clients. Free of numpy, so that the command starts fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROFILES = ("cpu", "gpu")


@dataclass(frozen=True)
class RepositoryConfig:
    """The settings of the models, written into the model repository; checked when made.

    Attributes:
        bundle: folder of the bundle that is served.
        profile: one of `PROFILES`; "cpu" runs on ONNX Runtime, "gpu" on the bundle's TensorRT plans.
        precision: of the bundle's graphs.
        guidance: "engine" or "torch", what runs the gradient of eq. 6. None is torch on a GPU, where it has xformers,
            and the engine elsewhere.
        threads: number of CPU threads per operator; 0 is all cores.
        max_in_flight: number of requests that are worked on at a time; further ones wait.
        max_queue: number of requests that wait; further ones are answered "unavailable".
        max_pixels: largest picture at the working size.
        max_seconds: seconds after which a request is given up, if its client does not give it up earlier.
        stall_seconds: seconds after which a model that still works on the same batch is taken for hanging.
        join_at_steps: whether newcomers join the running batch at its next step. False lets them wait until it is done,
            which is slower; for comparisons.

    Raises:
        ValueError: a value out of its range; names it.
    """

    bundle: Path
    profile: str = "cpu"
    precision: str = "float32"
    guidance: str | None = None
    threads: int = 0
    max_in_flight: int = 16
    max_queue: int = 64
    max_pixels: int = 4_000_000
    max_seconds: float = 600.0
    stall_seconds: float = 300.0
    join_at_steps: bool = True

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"unknown profile {self.profile!r}, choose one of {', '.join(PROFILES)}")
        for name in ("max_in_flight", "max_queue", "max_pixels", "max_seconds", "stall_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.guidance not in (None, "engine", "torch"):
            raise ValueError(f"unknown guidance {self.guidance!r}, choose one of engine, torch")
        if self.threads < 0:
            raise ValueError(f"threads must be 0, for all cores, or more, got {self.threads}")


@dataclass(frozen=True)
class ServerConfig:
    """How the server listens and what it logs.

    Attributes:
        repository: folder that `runtime.triton.repository.render` wrote.
        host: the address to listen on; the default can be reached from this machine only.
        http_port: port of HTTP; 0 takes a free one.
        grpc_port: port of gRPC; 0 takes a free one.
        metrics_port: port of the Prometheus metrics; 0 takes a free one.
        api_key: what clients must send as the header "x-api-key" (gRPC: "triton-grpc-protocol-x-api-key"). Health and
            metrics are open without it. None asks for none.
        shared_memory: let clients on this machine hand pictures over in shared memory. Triton 2.51 lets them name any
            region then, those of its models included.
        restarts: how often within `runtime.triton.launcher.WINDOW_SECONDS` the launcher starts a server again that has
            crashed, or hangs, before it gives up.
        trace: file for Triton's traces of requests.
        verbose: Triton's verbose log level; 0 is off.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    api_key: str | None = None
    shared_memory: bool = False
    restarts: int = 10
    trace: Path | None = None
    verbose: int = 0


@dataclass(frozen=True)
class ClientConfig:
    """Which servers a client uses, and how long it waits for them.

    Attributes:
        urls: "host:port" and "grpc://host:port" are gRPC (port 8001), "http://host:port" is HTTP (port 8000), and
            "grpcs://host" and "https://host" are the same with TLS (port 443). Of several, each restoration takes the
            next one, and leaves out those that do not answer.
        timeout: seconds for one restoration with all its tries.
        tries: number of tries of one restoration, while servers are busy or cannot be reached.
        concurrency: number of restorations that `restore_many` runs at a time.
        api_key: the key that the server was started with.
        shared_memory: hand pictures over in shared memory, to a server on this machine.

    Raises:
        ValueError: there is no URL, or a number is not above 0.
    """

    urls: tuple[str, ...] = ("localhost:8001",)
    timeout: float = 600.0
    tries: int = 6
    concurrency: int = 4
    api_key: str | None = None
    shared_memory: bool = False

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("give the URL of a server, such as localhost:8001 or http://localhost:8000")
        for name in ("timeout", "tries", "concurrency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
