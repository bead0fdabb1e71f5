"""`diffbody export`, `plan` and `parity`: from a model to a bundle of engines."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import typer

from diffbody.cli.console import complain, progress_bar
from diffbody.cli.options import Model, Precision, PrecisionName, Precisions, engine_option, file_option, one_of
from diffbody_ref.loading import model_folder
from diffbody_ref.ops.results import lack_notices
from runtime.engines.config import EngineConfig

Flavour = Literal["tensorrt", "tensorrt_rtx"]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `diffbody export` made.")]


def export(
    out: Annotated[
        Path,
        file_option(
            "Folder of the bundle. One that exists is replaced when the new one is complete.",
            "--out",
            "-o",
            metavar="FOLDER",
        ),
    ],
    model: Model = "nano",
    precision: Annotated[
        list[Precisions],
        engine_option(
            "Number format that the graphs compute in. Give the option several times to make graphs for several.",
            **one_of(PrecisionName),
        ),
    ] = [EngineConfig.precision],  # noqa: B006, typer copies it
) -> None:
    """Turn a model into a bundle: an ONNX graph of each stage, which `restore --bundle` runs without PyTorch.

    An interrupted export goes on where it stopped.

    Examples:

    - `diffbody export --model models/mine -o bundles/mine`

    - `diffbody export -o bundles/nano --precision float32 --precision float16`
    """
    folder = model_folder(model)
    from export.bundle import export_bundle
    from runtime.bundle import Bundle

    # A line for each stage: at full size, each takes minutes.
    with resumable("the stages that are done stay beside the bundle"), progress_bar("stages", seconds=0.0) as show:
        export_bundle(folder, out, tuple(str(name) for name in precision), show)
    print(f"exported {out}")
    for notice in lack_notices(Bundle.open(out, verify=False).manifest.lacking):
        complain(notice, "notice")


@contextmanager
def resumable(what_stays: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command with a line which says that the same command goes on.

    Args:
        what_stays: of the work so far, in words.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        complain(f"{what_stays}; the same command goes on from there", "interrupted")
        sys.stdout.flush()
        os._exit(128 + number)  # a network may take minutes to return

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def plan(
    bundle: BundleArgument,
    compute_capability: Annotated[
        list[str] | None,
        engine_option(
            "Compute capability of the GPU to build for, such as 8.9. With TensorRT-RTX, give the option several times "
            "to build for several GPUs.",
            metavar="MAJOR.MINOR",
            show_default="this machine's",
        ),
    ] = None,
    precision: Precision = EngineConfig.precision,
    tensorrt_flavour: Annotated[
        Flavour | None,
        engine_option("Kind of TensorRT that builds the plans.", show_default="what is installed", **one_of(Flavour)),
    ] = None,
) -> None:
    """Build TensorRT plans of a bundle's graphs into it, for `restore --engine tensorrt`.

    A plan runs on the GPUs and the version of TensorRT that it was built for. TensorRT-RTX builds for GPUs that are
    not in this machine, too.

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


def parity(bundle: BundleArgument, model: Model = "nano", precision: Precision = EngineConfig.precision) -> None:
    """Compare a bundle's stages, and a restoration, with the PyTorch reference. `export` does so as well.

    The exit code is 2 if a stage is beyond its tolerance.

    Example:

    - `diffbody parity bundles/mine --model models/mine`
    """
    folder = model_folder(model)
    from export.parity import parity as compare
    from export.source import Source
    from runtime.bundle import Bundle

    with progress_bar("stages") as show:
        report = compare(Source.open(folder), Bundle.open(bundle), precision, progress=show)
    print(report.as_markdown())
    if report.failures:
        raise ValueError(f"{bundle}: {len(report.failures)} beyond tolerance: {report.failures[0]}")
