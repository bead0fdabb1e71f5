"""`diffbody bench` and `bench serve`: what the engines and the server take, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffbody.cli.bundles import export
from diffbody.cli.console import progress_bar
from diffbody.cli.options import Model, ServedBundle, Steps
from diffbody_ref.loading import model_folder
from diffbody_ref.ops.builtin import NANO_FOLDER

bench_commands = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode="markdown")


@bench_commands.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="A bundle of the model, exported first if it is not there. Default: the model's folder, if it is one.",
            show_default=False,
        ),
    ] = None,
    model: Model = "nano",
    sample: Annotated[Path, typer.Option(help="Picture to restore.")] = Path("samples/degraded/astronaut.jpg"),
    steps: Steps = 50,
    rounds: Annotated[int, typer.Option(help="Rounds after the warm-up.", min=1)] = 5,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for engines-cpu.json, engines-cpu.png, stages-cpu.png.")
    ] = Path("benchmarks/results"),
) -> None:
    """Time a restoration on PyTorch and ONNX Runtime, side by side, and in its stages; `serve` times the server.

    Example:

    - `diffbody bench --steps 20 --rounds 3 -o out/bench`
    """
    if context.invoked_subcommand is not None:
        return
    folder = model_folder(model)
    from benchmarks.engines import report as report_engines
    from benchmarks.engines import run
    from runtime.bundle import MANIFEST

    if bundle is None:
        bundle = folder if (folder / MANIFEST).is_file() else Path("out/bundle")
    if not bundle.exists():
        export(bundle, model, ["float32"])
    with progress_bar("restorations") as show:
        report_engines(run(folder, bundle, sample, steps, rounds, out, show))


@bench_commands.command("serve")
def bench_serve(
    bundle: ServedBundle = None,
    sample: Annotated[Path, typer.Option(help="Picture to restore.")] = Path("samples/degraded/synthetic_1.jpg"),
    rounds: Annotated[int, typer.Option(help="Rounds of in-process against server, after the warm-up.", min=1)] = 5,
    pictures: Annotated[int, typer.Option(help="Of each load.", min=8)] = 24,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for serving-cpu.json and serving-cpu.png.")] = Path(
        "benchmarks/results"
    ),
) -> None:
    """Time the server against in-process, and at 1 to 8 clients with and without batching in flight.

    Example:

    - `diffbody bench serve --pictures 16 -o out/bench`
    """
    from benchmarks.serving import run

    with progress_bar("restorations") as show:
        for path in run(bundle or NANO_FOLDER, sample, rounds, pictures, out, show):
            print(path)
