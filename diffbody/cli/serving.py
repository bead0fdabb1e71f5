"""`diffbody triton-repo` and `serve`: a bundle behind Triton Inference Server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from diffbody.cli.options import (
    Bundle,
    GuidanceName,
    Precision,
    engine_option,
    file_option,
    flags_for,
    one_of,
    server_option,
    takes,
)
from diffbody_ref.ops.builtin import NANO_FOLDER
from runtime.triton.config import PROFILES, RepositoryConfig, ServerConfig

if TYPE_CHECKING:
    ProfileName = str
else:
    ProfileName = Literal[tuple(PROFILES)]


def repository_config(
    bundle: Bundle = None,
    profile: Annotated[
        ProfileName,
        engine_option(
            "Hardware that the server runs on: `cpu` (ONNX Runtime) or `gpu` (TensorRT plans).", **one_of(ProfileName)
        ),
    ] = RepositoryConfig.profile,
    precision: Precision = RepositoryConfig.precision,
    body_guidance_engine: Annotated[
        GuidanceName | None,
        engine_option(
            "Runs body guidance: `engine` as the other stages, or `torch` on PyTorch.",
            show_default="torch on a GPU, engine on a CPU",
            **one_of(GuidanceName),
        ),
    ] = RepositoryConfig.guidance,
    threads: Annotated[
        int, engine_option("Number of CPU threads per operator, from 0. 0 takes all cores.")
    ] = RepositoryConfig.threads,
    max_in_flight: Annotated[
        int,
        server_option(
            "Number of requests that are sampled at a time. A request beyond it is refused as unavailable, and the "
            "client tries again later."
        ),
    ] = RepositoryConfig.max_in_flight,
    max_queue: Annotated[
        int,
        server_option(
            "Number of requests that may wait for each model. A request beyond it is refused as unavailable."
        ),
    ] = RepositoryConfig.max_queue,
    max_pixels: Annotated[
        int, server_option("Largest number of pixels that a picture may have once it is upscaled and padded.")
    ] = RepositoryConfig.max_pixels,
    max_seconds: Annotated[
        float, server_option("Seconds after which a request is given up.")
    ] = RepositoryConfig.max_seconds,
) -> RepositoryConfig:
    """What the server's models are told."""
    limits = ("max_in_flight", "max_queue", "max_pixels", "max_seconds")
    with flags_for("profile", "precision", "threads", *limits, guidance="--body-guidance-engine"):
        return RepositoryConfig(
            bundle or NANO_FOLDER,
            profile,
            precision,
            body_guidance_engine,
            threads,
            max_in_flight,
            max_queue,
            max_pixels,
            max_seconds,
        )


@takes(repository=repository_config)
def triton_repo(
    out: Annotated[
        Path,
        file_option("Folder of the model repository. One that exists is replaced.", "--out", "-o", metavar="FOLDER"),
    ],
    *,
    repository: RepositoryConfig,
) -> None:
    """Write the model repository that Triton Inference Server runs, for a server of your own.

    Example:

    - `diffbody triton-repo --bundle bundles/mine --profile gpu --precision float16 -o models`
    """
    from runtime.triton.repository import render

    print(f"wrote {render(repository, out)}")


@takes(repository=repository_config)
def serve(
    *,
    repository: RepositoryConfig,
    host: Annotated[
        str,
        server_option("Address to listen on. The default is reached from this machine only.", metavar="ADDRESS"),
    ] = ServerConfig.host,
    http_port: Annotated[int, server_option("Port for HTTP. 0 takes a free one.")] = ServerConfig.http_port,
    grpc_port: Annotated[
        int, server_option("Port for gRPC, which `diffbody restore --url` takes. 0 takes a free one.")
    ] = ServerConfig.grpc_port,
    metrics_port: Annotated[
        int, server_option("Port for Prometheus metrics. 0 takes a free one.")
    ] = ServerConfig.metrics_port,
    api_key: Annotated[
        str | None,
        server_option(
            "Key that clients must send. Other users of this machine can read it in the list of processes, unless it "
            "comes by the environment variable.",
            envvar="DIFFBODY_API_KEY",
            metavar="KEY",
            show_default=False,
        ),
    ] = ServerConfig.api_key,
    trace: Annotated[
        Path | None,
        server_option("File to write Triton's traces of requests to.", metavar="FILE", show_default=False),
    ] = ServerConfig.trace,
    verbose: Annotated[
        int,
        server_option(
            "Shows Triton's log; given twice, shows more of it.",
            "--verbose",
            "-v",
            count=True,
            metavar="",
            show_default=False,
        ),
    ] = 0,
) -> None:
    """Serve a bundle with Triton Inference Server, until Ctrl-C.

    Examples:

    - `diffbody serve`, and in another terminal `diffbody restore photo.jpg --url localhost:8001`

    - `DIFFBODY_API_KEY=SECRET diffbody serve --bundle bundles/mine --host 0.0.0.0`
    """
    import tempfile

    from runtime.triton.repository import render
    from runtime.triton.server import run_until_stopped

    with tempfile.TemporaryDirectory(prefix="diffbody-models-") as folder:
        models = render(repository, Path(folder) / "models")
        ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
        config = ServerConfig(models, host, **ports, api_key=api_key, trace=trace, verbose=max(0, verbose - 1))
        run_until_stopped(config, show_log=log_line if verbose else log_warning)


def log_line(severity: str, line: str) -> None:
    """Print a line of the server's log to stderr."""
    print(f"{severity:7s} {line}", file=sys.stderr)


def log_warning(severity: str, line: str) -> None:
    """Print a line of the server's log to stderr if it is a warning or an error."""
    if severity != "info":
        log_line(severity, line)
