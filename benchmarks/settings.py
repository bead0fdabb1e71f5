"""How long the PyTorch reference takes for one picture at several settings: python -m benchmarks.settings"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.timing import RESULTS, SAMPLES, machine, measure, plot_bars, print_table, write_json
from diffbody.cli.console import progress_bar, user_errors
from diffbody_ref.loading import load_pipeline, model_folder

# The first is what the others are compared with.
SETTINGS: dict[str, dict[str, Any]] = {
    "ddpm 50, guided": {},
    "ddpm 50, guided every 5th step": {"body_guidance_every": 5},
    "ddpm 50, unguided": {"body_guidance_scale": 0.0},
    "ddim 25, guided": {"sampler": "ddim", "num_inference_steps": 25},
    "dpm++ 15, guided": {"sampler": "dpm++", "num_inference_steps": 15},
    "dpm++ 15, unguided": {"sampler": "dpm++", "num_inference_steps": 15, "body_guidance_scale": 0.0},
}


def main(
    model: Annotated[str, typer.Option(help="Model: nano, or a folder with a model_index.json.")] = "nano",
    sample: Annotated[Path, typer.Option(help="Picture to restore.")] = SAMPLES / "astronaut.jpg",
    height: Annotated[int | None, typer.Option(help="Height in pixels.", show_default="the model's")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.", show_default="the model's")] = None,
    rounds: Annotated[int, typer.Option(help="Number of rounds after the warm-up.", min=1)] = 5,
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for settings-DEVICE.json and settings-DEVICE.png.")] = RESULTS,
) -> None:
    """Time the PyTorch reference at several settings, side by side."""
    import torch

    from diffbody_ref.ops.images import read_image, resize

    pipeline = load_pipeline(model_folder(model), device)
    size = (height or pipeline.config.base_height, width or pipeline.config.base_width)
    picture = resize(read_image(sample).pixels, *size).clip(0, 1)

    def restore(options: dict[str, Any]) -> None:
        pipeline(picture, output_type="np", **options)
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize()

    def way(options: dict[str, Any]) -> Callable[[], None]:
        return lambda: restore(options)

    with progress_bar("restorations") as show:
        ways = {name: way(options) for name, options in SETTINGS.items()}
        timings = measure(ways, rounds, lambda done: show(done, (rounds + 1) * len(SETTINGS)))
    print_table(timings, "setting")
    about = machine(pipeline.device.type)
    stem = out / f"settings-{pipeline.device.type}"
    write_json(stem.with_suffix(".json"), {"model": model, "size": size, "machine": about}, timings)
    plot_bars(timings, f"{model}, {size[0]}×{size[1]}, {about['name']}", stem.with_suffix(".png"))
    print(stem.with_suffix(".json"))


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
