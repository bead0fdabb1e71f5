"""`diffbody triton-repo` and `serve`: a bundle behind Triton Inference Server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffbody.cli.options import (
    FLAG,
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
        server_option("Number of requests that are worked on at a time. A request beyond it waits."),
    ] = RepositoryConfig.max_in_flight,
    max_queue: Annotated[
        int,
        server_option(
            "Number of requests that may wait. A request beyond it is refused as unavailable, and the client tries "
            "again later."
        ),
    ] = RepositoryConfig.max_queue,
    max_pixels: Annotated[
        int, server_option("Largest number of pixels that a picture may have once it is upscaled and padded.")
    ] = RepositoryConfig.max_pixels,
    max_seconds: Annotated[
        float,
        server_option("Seconds after which a request is given up, unless its client gives it up earlier."),
    ] = RepositoryConfig.max_seconds,
    stall_seconds: Annotated[
        float,
        server_option(
            "Seconds after which a model that still works on the same step is taken for hanging, and the server is "
            "started again. It has to be longer than any step takes."
        ),
    ] = RepositoryConfig.stall_seconds,
) -> RepositoryConfig:
    """What the server's models are told."""
    limits = ("max_in_flight", "max_queue", "max_pixels", "max_seconds", "stall_seconds")
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
            stall_seconds,
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
            "Key that clients must send. Other users of this machine can read it in the list of processes, where "
            "Triton gets it.",
            envvar="DIFFBODY_API_KEY",
            metavar="KEY",
            show_default=False,
        ),
    ] = ServerConfig.api_key,
    shared_memory: Annotated[
        bool,
        server_option(
            "Lets clients on this machine hand pictures over in shared memory. Triton 2.51 lets them read and change "
            "other clients' pictures then.",
            "--shared-memory",
            **FLAG,
        ),
    ] = ServerConfig.shared_memory,
    restarts: Annotated[
        int,
        server_option(
            "How often within 15 minutes a server that crashed, or hangs, is started again before this command gives "
            "up.",
            min=0,
        ),
    ] = ServerConfig.restarts,
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
    from runtime.triton.launcher import StopRequest, until_stopped
    from runtime.triton.launcher import serve as run_server
    from runtime.triton.repository import render
    from runtime.triton.run_folder import RunFolder, sweep

    show_log = log_line if verbose else log_warning
    with until_stopped() as stopping:
        try:
            for left in sweep():
                log_line("warning", f"removed {left}, which a server that was killed has left")
            with RunFolder() as folder:
                models = render(repository, folder.path / "models")
                ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
                config = ServerConfig(
                    models,
                    host,
                    **ports,
                    api_key=api_key,
                    shared_memory=shared_memory,
                    restarts=restarts,
                    trace=trace,
                    verbose=max(0, verbose - 1),
                )
                run_server(config, folder, show_log, stopping)
        except StopRequest as signal:
            print("stopped before the server was ready", file=sys.stderr)
            raise typer.Exit(128 + signal.number) from None


def log_line(severity: str, line: str) -> None:
    """Print a line of the server's log to stderr."""
    print(f"{severity:7s} {line}", file=sys.stderr)


def log_warning(severity: str, line: str) -> None:
    """Print a line of the server's log to stderr if it is a warning or an error."""
    if severity != "info":
        log_line(severity, line)
