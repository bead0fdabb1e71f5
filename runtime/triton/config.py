"""What can be said of a server: which models it has, how it listens. Without numpy, so that the command starts fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROFILES = ("cpu", "gpu")


@dataclass(frozen=True)
class RepositoryConfig:
    """What the models are told.

    Attributes:
        bundle: folder. profile: one of `PROFILES`.
        precision: of the bundle's graphs.
        guidance: "engine" or "torch", what runs the gradient of eq. 6; None is torch on a GPU, where it has xformers.
        threads: of an operator on the CPU; 0 is all cores.
        max_in_flight: requests that are sampled at a time; to more, the server answers "unavailable".
        max_queue: requests that wait for one model; to more, as well.
        join_at_steps: newcomers join the running batch at its next step. False: they wait until it is done, which is
            slower; to compare.
        max_pixels: of a picture at work. max_seconds: after which a request is given up.
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
    join_at_steps: bool = True

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"unknown profile {self.profile!r}, choose one of {', '.join(PROFILES)}")
        for name in ("max_in_flight", "max_queue", "max_pixels", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.guidance not in (None, "engine", "torch"):
            raise ValueError(f"unknown guidance {self.guidance!r}, choose one of engine, torch")
        if self.threads < 0:
            raise ValueError(f"threads must be 0, for all cores, or more, got {self.threads}")


@dataclass(frozen=True)
class ServerConfig:
    """How the server listens and what it says.

    Attributes:
        repository: of `runtime.triton.repository.render`.
        host: the address it binds; only this machine can reach the default.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        api_key: clients must send it as the header "x-api-key" (gRPC: "triton-grpc-protocol-x-api-key"); only health
            and metrics are open without.
        trace: a file for Triton's traces of requests.
        verbose: Triton's verbose log level.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    api_key: str | None = None
    trace: Path | None = None
    verbose: int = 0
