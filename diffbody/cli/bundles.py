"""`diffbody export`, `plan` and `parity`: from a model to a bundle of engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffbody.cli.console import progress_bar
from diffbody.cli.options import Model, Precision
from diffbody_ref.loading import load_pipeline, model_folder


def export(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the bundle; one that is there is replaced when it is done.")
    ],
    model: Model = "nano",
    precision: Annotated[
        list[str],
        typer.Option(help="Of the graphs: `float32`, `float16` or `bfloat16`; give it again for several."),
    ] = ["float32"],  # noqa: B006, typer copies it
) -> None:
    """Turn a model into a bundle: an ONNX graph of each stage, which `restore --bundle` runs without PyTorch.

    An interrupted export goes on where it stopped.

    Examples:

    - `diffbody export --model models/mine -o bundles/mine`

    - `diffbody export -o bundles/nano --precision float32 --precision float16`
    """
    folder = model_folder(model)
    from export.bundle import export_bundle

    with progress_bar("stages") as show:
        export_bundle(folder, out, tuple(precision), show)
    print(f"exported {out}")


def plan(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `diffbody export` made.")],
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the GPU, such as 8.9; TensorRT-RTX takes several. Default: this machine's.", show_default=False
        ),
    ] = None,
    precision: Precision = "float32",
    tensorrt_flavour: Annotated[
        str | None, typer.Option(help="`tensorrt` or `tensorrt_rtx`. Default: what is installed.", show_default=False)
    ] = None,
) -> None:
    """Build TensorRT plans of a bundle's graphs into it, for `restore --engine tensorrt`.

    A plan runs on the GPUs and the version of TensorRT that it was built for. TensorRT-RTX builds for GPUs that are
    not in this machine.

    Examples:

    - `diffbody plan bundles/nano --precision float16`

    - `diffbody plan bundles/nano --compute-capability 8.6 --compute-capability 12.0`
    """
    from export.tensorrt import add_plans
    from runtime.bundle import PlanTarget
    from runtime.engines.cuda import compute_capability as this_machines
    from runtime.engines.tensorrt import import_tensorrt, installed_flavour

    flavour = tensorrt_flavour or installed_flavour()
    version = import_tensorrt(flavour).__version__
    capabilities = compute_capability or [capability for capability in [this_machines()] if capability]
    if not capabilities:
        raise ValueError("there is no GPU here to build for; name one by --compute-capability")
    with progress_bar("stages") as show:
        print(f"built {add_plans(bundle, PlanTarget(flavour, version, tuple(capabilities), precision), show)}")


def parity(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `diffbody export` made.")],
    model: Model = "nano",
    precision: Precision = "float32",
) -> None:
    """Compare a bundle's stages, and a restoration, with the PyTorch reference; `export` does so as well.

    The exit code is 2 if a stage is beyond its tolerance.

    Example:

    - `diffbody parity bundles/mine --model models/mine`
    """
    folder = model_folder(model)
    from export.parity import parity as compare
    from runtime.bundle import Bundle

    with progress_bar("stages") as show:
        report = compare(load_pipeline(folder, "cpu"), Bundle.open(bundle), precision, progress=show)
    print(report.as_markdown())
    if report.failures:
        raise ValueError(f"{bundle}: {len(report.failures)} beyond tolerance: {report.failures[0]}")
