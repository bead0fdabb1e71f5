"""`diffbody train`, `train-all`, `import` and `release`: from pictures, or public checkpoints, to a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from diffbody.cli.console import progress_bar


def train(
    stage: Annotated[
        str,
        typer.Argument(metavar="STAGE", help="`swinir`, `vae`, `pose`, `parts` or `diffusion`, as the file says too."),
    ],
    config: Annotated[
        Path, typer.Option(help="TOML file; diffbody_ref/training/configs holds nano's and the paper's.")
    ],
    stop_after: Annotated[
        int | None,
        typer.Option(help="Stop at this step with a checkpoint; the same command goes on.", show_default=False, min=1),
    ] = None,
) -> None:
    """Train one stage, from its newest checkpoint where there is one.

    The stages build on each other in this order: `swinir`, `vae`, `pose`, `parts`, `diffusion`. Trained networks are
    written to the pipeline folder that the file names; `diffbody restore --model FOLDER` uses it once all are there.

    Example:

    - `diffbody train swinir --config diffbody_ref/training/configs/nano/swinir.toml`
    """
    from diffbody_ref.training.config import load_config

    loaded = load_config(config)
    if loaded.stage != stage:
        raise ValueError(f"{config} configures the stage {loaded.stage!r}, not {stage!r}")
    from diffbody_ref.training.loop import train as train_stage

    folder = train_stage(loaded, stop_after)
    if os.environ.get("RANK", "0") == "0":  # one of a launcher's processes speaks
        print(f"trained {stage}: {folder}")


def train_all(
    config: Annotated[
        Path, typer.Option(help="Plan, a TOML file: diffbody_ref/training/configs/*/all.toml.", show_default=False)
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            help="For everything, over all calls: each stage has its share, and its learning rate falls within it. "
            "0: no limit. Default: the plan's.",
            show_default=False,
            min=0,
        ),
    ] = None,
    call_minutes: Annotated[
        float | None,
        typer.Option(help="End this call after so many; the same command goes on. Default: no end.", min=0),
    ] = None,
) -> None:
    """Render people, train every stage, release the model and evaluate it, unattended.

    Give the same command again to go on after an interruption: what is done is skipped.

    Examples:

    - `diffbody train-all --config diffbody_ref/training/configs/nano/all.toml` (two CPU cores, a day)

    - `diffbody train-all --config diffbody_ref/training/configs/nano_h100/all.toml --minutes 25`

    - `diffbody train-all --config diffbody_ref/training/configs/nano_h100/all.toml --call-minutes 9` (three times)
    """
    from diffbody_ref.training.everything import load_plan, train_everything

    plan, stages = load_plan(config, minutes)
    with progress_bar("starting") as show:
        for line in train_everything(plan, stages, show, *(() if call_minutes is None else (call_minutes,))):
            print(line, flush=True)


def _file(source: str) -> Any:
    return typer.Option(help=source, show_default=False)


def import_checkpoints(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The training runs' pipeline folder.")],
    stable_diffusion: Annotated[
        Path | None, _file("Stable Diffusion 2.1-base, a folder in diffusers' layout: unet, vae, text_encoder.")
    ] = None,
    control: Annotated[Path | None, _file("DiffBIR's ControlNet: v1_general.pth, or general_full_v1.ckpt.")] = None,
    swinir: Annotated[Path | None, _file("DiffBIR's SwinIR: general_swinir_v1.ckpt, or the full one.")] = None,
    parts: Annotated[Path | None, _file("BPBReID with HRNet-W32 or ResNet-50.")] = None,
    pose: Annotated[Path | None, _file("DWPose's or mmpose's RTMPose-l of 133 keypoints, 384x288, .pth.")] = None,
    pose_detector: Annotated[Path | None, _file("YOLOX-l, yolox_l.pth.")] = None,
) -> None:
    """Bring public checkpoints into a pipeline folder, to train from; files are loaded without running their code.

    Whatever is not given stays as it is in OUT; what is missing there is trained from nothing or must be trained first.

    Example:

    - `diffbody import runs/paper/pipeline --stable-diffusion stable-diffusion-2-1-base --control v1_general.pth`
    """
    files = {"control": control, "swinir": swinir, "parts": parts, "pose": pose, "pose_detector": pose_detector}
    given = {name: path for name, path in files.items() if path is not None}
    if stable_diffusion is None and not given:
        raise ValueError("nothing to import: give at least one checkpoint, see `diffbody import --help`")
    from diffbody_ref.weights.importers import import_file, import_stable_diffusion

    if stable_diffusion is not None:
        for name in import_stable_diffusion(stable_diffusion, out):
            print(f"imported {out / name}")
    for name, path in given.items():
        import_file(name, path, out)
        print(f"imported {out / name}")


def release(
    components: Annotated[Path, typer.Argument(metavar="COMPONENTS", help="The training runs' pipeline folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the model; one that is there is replaced.")],
    preset: Annotated[str, typer.Option(help="`nano` or `sd21`: base size and default settings.")] = "nano",
    runs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the training runs: draws their loss curves to OUT/losses.png.", show_default=False
        ),
    ] = None,
) -> None:
    """Make a model folder from trained components, in half precision: what `restore --model OUT` takes.

    LoRA weights among them are merged into the U-Net.

    Example:

    - `diffbody release runs/nano/pipeline models/mine --runs runs/nano`
    """
    from diffbody_ref.release import release as release_model

    print(f"released {release_model(components, out, preset, runs)}")
