"""`diffbody triton-repo` and `serve`: a bundle behind Triton Inference Server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from diffbody.cli.options import Precision, ServedBundle, given
from diffbody_ref.ops.builtin import NANO_FOLDER
from runtime.triton.config import RepositoryConfig, ServerConfig

# How a bundle is served; shared by the commands that make a model repository.
Profile = Annotated[str, typer.Option(help="`cpu` (ONNX Runtime) or `gpu` (TensorRT plans).")]
Threads = Annotated[int, typer.Option(help="Of an operator on the CPU; 0 is all cores.")]
ServedGuidance = Annotated[
    str | None,
    typer.Option(help="What runs body guidance: `engine` or `torch`. Default: torch on a GPU.", show_default=False),
]
InFlight = Annotated[int, typer.Option(help="Requests sampled at a time; to more, the answer is: unavailable, retry.")]
Queue = Annotated[int, typer.Option(help="Requests that wait for one model; to more, the same.")]
MaxPixels = Annotated[int, typer.Option(help="Of a picture at work, from its upscaling or padding.")]
MaxSeconds = Annotated[float, typer.Option(help="After which a request is given up.")]


def triton_repo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model repository; one there is replaced.")],
    bundle: ServedBundle = None,
    profile: Profile = "cpu",
    precision: Precision = "float32",
    guidance: ServedGuidance = None,
    threads: Threads = 0,
    max_in_flight: InFlight = RepositoryConfig.max_in_flight,
    max_queue: Queue = RepositoryConfig.max_queue,
    max_pixels: MaxPixels = RepositoryConfig.max_pixels,
    max_seconds: MaxSeconds = RepositoryConfig.max_seconds,
) -> None:
    """Write the model repository that Triton Inference Server runs, for a server of your own.

    Example:

    - `diffbody triton-repo --bundle bundles/mine --profile gpu --precision float16 -o models`
    """
    from runtime.triton.repository import render

    asked = given(guidance=guidance)
    config = RepositoryConfig(
        bundle or NANO_FOLDER,
        profile,
        precision,
        threads=threads,
        max_in_flight=max_in_flight,
        max_queue=max_queue,
        max_pixels=max_pixels,
        max_seconds=max_seconds,
        **asked,
    )
    print(f"wrote {render(config, out)}")


def serve(
    bundle: ServedBundle = None,
    profile: Profile = "cpu",
    precision: Precision = "float32",
    guidance: ServedGuidance = None,
    threads: Threads = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is reached from here only.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0 takes a free one, as for the others.")] = ServerConfig.http_port,
    grpc_port: Annotated[int, typer.Option(help="What --url of `restore` takes.")] = ServerConfig.grpc_port,
    metrics_port: Annotated[int, typer.Option(help="Of Prometheus's metrics.")] = ServerConfig.metrics_port,
    api_key: Annotated[
        str | None,
        typer.Option(help="Clients must send it. Better as variable.", envvar="DIFFBODY_API_KEY", show_default=False),
    ] = None,
    max_in_flight: InFlight = RepositoryConfig.max_in_flight,
    max_queue: Queue = RepositoryConfig.max_queue,
    max_pixels: MaxPixels = RepositoryConfig.max_pixels,
    max_seconds: MaxSeconds = RepositoryConfig.max_seconds,
    trace: Annotated[Path | None, typer.Option(help="File for Triton's traces.", show_default=False)] = None,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Triton's log; twice for more.")] = 0,
) -> None:
    """Serve a bundle with Triton Inference Server, until Ctrl-C.

    Examples:

    - `diffbody serve`, and in another terminal `diffbody restore photo.jpg --url localhost:8001`

    - `diffbody serve --bundle bundles/mine --host 0.0.0.0 --api-key SECRET`
    """
    import tempfile

    from runtime.triton.repository import render
    from runtime.triton.server import run_until_stopped

    limits = {"max_in_flight": max_in_flight, "max_queue": max_queue, "max_pixels": max_pixels}
    asked = given(guidance=guidance, max_seconds=max_seconds, threads=threads, **limits)
    with tempfile.TemporaryDirectory(prefix="diffbody-models-") as folder:
        repository = render(
            RepositoryConfig(bundle or NANO_FOLDER, profile, precision, **asked), Path(folder) / "models"
        )
        ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
        config = ServerConfig(repository, host, **ports, api_key=api_key, trace=trace, verbose=max(0, verbose - 1))
        run_until_stopped(config, show_log=log_line if verbose else log_warning)


def log_line(severity: str, line: str) -> None:
    """A line of the server's log, on stderr."""
    print(f"{severity:7s} {line}", file=sys.stderr)


def log_warning(severity: str, line: str) -> None:
    """The same, of warnings and errors."""
    if severity != "info":
        log_line(severity, line)
