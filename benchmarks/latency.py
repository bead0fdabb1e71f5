"""How long the PyTorch reference takes for one picture: python -m benchmarks.latency

All settings take turns in every round, so that a change in the machine's load meets each alike; what counts is the
ratio to the default settings in the same run. The first round warms up and is not counted.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffbody_ref.loading import load_pipeline, model_folder
from runtime.console import progress_bars, user_errors

if TYPE_CHECKING:
    from diffbody_ref.pipeline import DiffBodyPipeline

RESULTS = Path(__file__).parent / "results"

# The first is what the others are compared with.
SETTINGS: dict[str, dict[str, Any]] = {
    "ddpm 50, guided": {},
    "ddpm 50, guided every 5th step": {"body_guidance_every": 5},
    "ddpm 50, unguided": {"body_guidance_scale": 0.0},
    "ddim 25, guided": {"sampler": "ddim", "num_inference_steps": 25},
    "dpm++ 15, guided": {"sampler": "dpm++", "num_inference_steps": 15},
    "dpm++ 15, unguided": {"sampler": "dpm++", "num_inference_steps": 15, "body_guidance_scale": 0.0},
}


@dataclass(frozen=True)
class Timing:
    """Seconds a picture of one setting in every counted round, and the median over rounds of its ratio to the first."""

    name: str
    options: dict[str, Any]
    seconds: list[float]
    ratio: float


def measure(
    restore: Callable[[dict[str, Any]], None],
    rounds: int,
    progress: Callable[[int], None] = lambda done: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time `restore(options)` for every one of `SETTINGS` in turns, `rounds` times after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for turn in range(rounds + 1):
        for place, (name, options) in enumerate(SETTINGS.items()):
            start = clock()
            restore(options)
            if turn:
                seconds[name].append(clock() - start)
            progress(turn * len(SETTINGS) + place + 1)
    first = seconds[next(iter(SETTINGS))]
    return [
        Timing(
            name, options, seconds[name], statistics.median(s / f for s, f in zip(seconds[name], first, strict=True))
        )
        for name, options in SETTINGS.items()
    ]


def restore_once(pipeline: DiffBodyPipeline, sample: Path, height: int, width: int) -> Callable[[dict[str, Any]], None]:
    """A function that restores the sample, brought to height × width, and waits for the device."""
    import torch

    from diffbody_ref.ops.images import read_image, resize

    picture = resize(read_image(sample).pixels, height, width).clip(0, 1)

    def restore(options: dict[str, Any]) -> None:
        pipeline(picture, output_type="np", **options)
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize()

    return restore


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import os

    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    packages = {package: version(package) for package in ("torch", "diffusers", "numpy")}
    return {"device": device, "name": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), **packages}


def plot(timings: list[Timing], title: str, path: Path) -> None:
    """Bars of the median seconds, with the ratio beside each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(timings) + 1.2), layout="constrained")
    axes = figure.subplots()
    medians = [statistics.median(timing.seconds) for timing in timings]
    bars = axes.barh([timing.name for timing in timings], medians, color="#3b7a57")
    axes.bar_label(bars, [f" {timing.ratio:.2f}×" for timing in timings])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="seconds a picture (median)", title=title)
    figure.savefig(path, dpi=120)


def main(
    model: Annotated[str, typer.Option(help="`nano`, or a model's folder.")] = "nano",
    sample: Annotated[Path, typer.Option(help="Picture to restore.")] = Path("samples/degraded/astronaut.jpg"),
    height: Annotated[int | None, typer.Option(help="Pixels. Default: the model's base size.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. Default: the model's base size.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds after the warm-up.", min=1)] = 5,
    device: Annotated[str, typer.Option(help="`auto`, `cpu` or `cuda`.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for latency-DEVICE.json and .png.")] = RESULTS,
) -> None:
    """Time the PyTorch reference at several settings, side by side."""
    from rich.console import Console
    from rich.table import Table

    pipeline = load_pipeline(model_folder(model), device)
    size = (height or pipeline.config.base_height, width or pipeline.config.base_width)
    with progress_bars() as bar:
        task = bar.add_task("restorations", total=(rounds + 1) * len(SETTINGS))
        timings = measure(restore_once(pipeline, sample, *size), rounds, lambda done: bar.update(task, completed=done))
    table = Table("setting", "seconds (median)", "ratio")
    for timing in timings:
        table.add_row(timing.name, f"{statistics.median(timing.seconds):.2f}", f"{timing.ratio:.2f}×")
    Console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"latency-{pipeline.device.type}"
    about = machine(pipeline.device.type)
    rows = [dataclasses.asdict(timing) for timing in timings]
    (out / f"{stem}.json").write_text(
        json.dumps({"model": model, "size": size, "machine": about, "timings": rows}, indent=1) + "\n"
    )
    plot(timings, f"{model}, {size[0]}×{size[1]}, {about['name']}", out / f"{stem}.png")
    print(out / f"{stem}.json")


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
