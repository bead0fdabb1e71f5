"""How long one restoration takes on each engine, and where the time goes: python -m benchmarks.engines"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.timing import RESULTS, SAMPLES, machine, measure, plot_bars, print_table, write_json
from diffbody.cli.console import progress_bar, user_errors
from diffbody_ref.loading import load_pipeline, model_folder
from diffbody_ref.ops.images import read_image, resize
from diffbody_ref.ops.options import RestoreOptions
from runtime.bundle import MANIFEST, Bundle
from runtime.engines import EngineConfig
from runtime.restore import Restorer

WAYS = ("PyTorch, eager", "PyTorch, compiled", "ONNX Runtime, PyTorch guidance", "ONNX Runtime")


def main(
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle of the model, which is exported first if it is not there.",
            show_default="the model's folder if it is a bundle, else out/bundle",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Model: nano, or a folder with a model_index.json.")] = "nano",
    sample: Annotated[Path, typer.Option(help="Picture to restore.")] = SAMPLES / "astronaut.jpg",
    steps: Annotated[int, typer.Option(help="Number of denoising steps.")] = RestoreOptions.num_inference_steps,
    rounds: Annotated[int, typer.Option(help="Number of rounds after the warm-up.", min=1)] = 5,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for engines-cpu.json, engines-cpu.png and stages-cpu.png.")
    ] = RESULTS,
) -> None:
    """Time a restoration on PyTorch and ONNX Runtime, side by side, and in its stages."""
    folder = model_folder(model)
    if bundle is None:
        bundle = folder if (folder / MANIFEST).is_file() else Path("out/bundle")
    with progress_bar("restorations") as show:
        if not bundle.exists():
            from export.bundle import export_bundle

            export_bundle(folder, bundle, ("float32",), show)
        report(run(folder, bundle, sample, steps, rounds, out, show))


def run(
    model: Path, bundle: Path, sample: Path, steps: int, rounds: int, out: Path, progress: Callable[[int, int], None]
) -> list[Path]:
    """Time all ways, print the table, write engines-cpu.json, engines-cpu.png and stages-cpu.png to `out`.

    Returns:
        The files written.
    """
    from export.parity import agreement  # not above: it brings PyTorch, and the processes that measure memory read this

    opened = Bundle.open(bundle)
    settings = opened.manifest.settings
    size = (settings.base_height, settings.base_width)
    picture = np.clip(resize(read_image(sample).pixels, *size), 0, 1)
    options = {"num_inference_steps": steps, "seed": 0}
    ways = {name: way(name, model, bundle, picture, options) for name in WAYS}
    timings = measure(ways, rounds, lambda done: progress(done, (rounds + 1) * len(ways)))
    print_table(timings, "engine")
    results = {name: restore() for name, restore in ways.items()}
    about: dict[str, Any] = {
        "model": model.name,
        "size": size,
        "steps": steps,
        "machine": machine("cpu"),
        "psnr_to_the_first": {name: round(agreement(pixels, results[WAYS[0]]), 1) for name, pixels in results.items()},
        "peak_memory_mb": {name: peak_memory(name, model, bundle, sample, steps) for name in WAYS},
        "stages": stage_seconds(opened, picture, options),
    }
    stem = out / "engines-cpu"
    write_json(stem.with_suffix(".json"), about, timings)
    title = f"{model.name}, {size[0]}×{size[1]}, {steps} steps, {about['machine']['name']}"
    plot_bars(timings, title, stem.with_suffix(".png"))
    plot_stages(about["stages"], title, out / "stages-cpu.png")
    return [stem.with_suffix(".json"), stem.with_suffix(".png"), out / "stages-cpu.png"]


def way(name: str, model: Path, bundle: Path, picture: np.ndarray, options: dict[str, Any]) -> Callable[[], np.ndarray]:
    """A function that restores the picture in the way of that name."""
    if name.startswith("ONNX"):
        restorer = Restorer.open(bundle, EngineConfig(guidance="torch" if "guidance" in name else "engine"))
        return lambda: restorer.restore(picture, **options).pixels
    pipeline = load_pipeline(model, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    if "compiled" in name:
        import torch

        for component in ("swinir", "unet", "control", "parts"):
            setattr(pipeline, component, torch.compile(getattr(pipeline, component)))
        pipeline.vae.decoder = torch.compile(pipeline.vae.decoder)
    return lambda: pipeline(picture, output_type="np", **options).images[0]


def stage_seconds(bundle: Bundle, picture: np.ndarray, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Every call of a stage in one restoration after a warm-up: stage, start and seconds from the beginning."""
    calls: list[dict[str, Any]] = []

    def note(stage: str, feed: dict[str, np.ndarray], outputs: dict[str, np.ndarray], seconds: float) -> None:
        calls.append({"stage": stage, "start": time.perf_counter() - seconds, "seconds": seconds})

    restorer = Restorer.open(bundle, observers=[note])
    restorer.restore(picture, **options)
    calls.clear()
    begin = time.perf_counter()
    restorer.restore(picture, **options)
    whole = {"stage": "whole", "start": 0.0, "seconds": time.perf_counter() - begin}
    return [whole, *({**call, "start": call["start"] - begin} for call in calls)]


def peak_memory(name: str, model: Path, bundle: Path, sample: Path, steps: int) -> float:
    """Peak resident megabytes of a process of its own that restores once."""
    script = (
        "import re; from pathlib import Path\n"
        "from benchmarks.engines import way\n"
        "from diffbody_ref.ops.images import read_image\n"
        f"picture = read_image({str(sample)!r}).pixels\n"
        f"way({name!r}, Path({str(model)!r}), Path({str(bundle)!r}), picture, "
        f"{{'num_inference_steps': {steps}, 'seed': 0}})()\n"
        # Of this program alone: getrusage also counts the process that started it.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1000)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    return round(float(done.stdout.split()[-1]), 1)


def plot_stages(calls: list[dict[str, Any]], title: str, path: Path) -> None:
    """A waterfall: one line a stage, in the order of their first calls, with the share of the whole beside it."""
    from matplotlib.figure import Figure

    whole, *rest = calls
    names = list(dict.fromkeys(call["stage"] for call in rest))
    figure = Figure(figsize=(9, 0.45 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        own = [(call["start"], call["seconds"]) for call in rest if call["stage"] == name]
        axes.broken_barh(own, (place - 0.4, 0.8), color="#3b7a57")
        share = sum(seconds for _, seconds in own) / whole["seconds"]
        axes.text(whole["seconds"] * 1.01, place, f"{share:.1%}, {len(own)}×", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, whole["seconds"] * 1.15)
    axes.axvline(whole["seconds"], color="#c9c9c9")
    axes.set(xlabel="seconds from the beginning", title=title)
    figure.savefig(path, dpi=120)


def report(paths: list[Path]) -> None:
    """Print the files, and how near the results are to one another."""
    values = json.loads(paths[0].read_text())
    for name, psnr in values["psnr_to_the_first"].items():
        print(f"{name}: {psnr} dB to the first, peak memory {values['peak_memory_mb'][name]:.0f} MB")
    for path in paths:
        print(path)


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
