"""`diffbody train`, `train-all`, `import` and `release`: from pictures, or public checkpoints, to a model."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffbody.cli.console import complain, progress_bar
from diffbody.cli.options import one_of
from diffbody_ref.ops.progress import silent

if TYPE_CHECKING:
    from diffbody_ref.training.config import TrainConfig
    from diffbody_ref.training.loop import TrainingResult

PresetName = Literal["sd21", "nano"]


def train(
    stage: Annotated[
        str,
        typer.Argument(metavar="STAGE", help="Stage to train: `swinir`, `vae`, `pose`, `parts` or `diffusion`."),
    ],
    config: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Configuration of the stage, a TOML file. The folder diffbody_ref/training/configs holds nano's and "
            "the paper's.",
        ),
    ],
    stop_after: Annotated[
        int | None,
        typer.Option(
            help="Step to stop after, with a checkpoint. The same command without this option goes on.",
            show_default="the last",
            metavar="<int>",
            min=1,
        ),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="Setting that may differ from that of the checkpoint, such as `learning_rate`, or `data` for other "
            "pictures. The run's result is then not that of one configuration, and its records say so. Give the "
            "option several times for several settings.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train one stage, from its newest checkpoint where there is one.

    The stages build on each other in this order: `swinir`, `vae`, `pose`, `parts`, `diffusion`. Trained networks are
    written to the pipeline folder that the file names. Once all are there, `diffbody release` makes a model of it,
    which is what `diffbody restore --model` takes.

    A run goes on only with the settings, the pictures and the networks that it began with. Only what does not change
    its result may differ: steps, minutes, accumulation, workers, and what is written when and where.

    Examples:

    - `diffbody train swinir --config diffbody_ref/training/configs/nano/swinir.toml`

    - `diffbody train swinir --config mine.toml --allow-change learning_rate` (goes on at another learning rate)
    """
    from diffbody_ref.training.config import load_config

    loaded = load_config(config)
    if loaded.stage != stage:
        raise ValueError(f"{config} configures the stage {loaded.stage!r}, not {stage!r}")
    from diffbody_ref.libraries import silence_libraries
    from diffbody_ref.training.loop import train as train_stage

    silence_libraries()
    speaks = os.environ.get("RANK", "0") == "0"  # one of a launcher's processes
    with progress_bar("training") if speaks else nullcontext(silent) as show:
        result = train_stage(loaded, stop_after, allowed=allow_change or (), progress=show)
    if speaks:
        _tell(result, loaded)


def _tell(result: TrainingResult, config: TrainConfig) -> None:
    """Say what a run has left, and what to do next."""
    from diffbody_ref.training.release import missing

    for notice in result.notices:
        complain(notice, "notice")
    if not result.finished:
        where = f"; its checkpoint is {result.checkpoint}" if result.checkpoint else ""
        print(
            f"stopped {config.stage} at step {result.step} of {config.steps}{where}. The same command without "
            f"--stop-after goes on; until the end nothing is written to {result.pipeline}"
        )
        return
    print(f"trained {config.stage}: {', '.join(str(result.pipeline / name) for name in result.trained)}")
    if lacking := missing(result.pipeline):
        print(f"{result.pipeline}: not there yet: {', '.join(lacking)}")
    else:
        print(f"{result.pipeline}: complete; `diffbody release {result.pipeline} OUT` makes a model of it")


def train_all(
    config: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Plan of the stages, a TOML file: all.toml of a folder in diffbody_ref/training/configs.",
        ),
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Minutes for everything, over all calls: each stage has a share of them, within which its learning "
            "rate falls. 0 sets no limit.",
            show_default="the plan's",
            metavar="<float>",
            min=0,
        ),
    ] = None,
    call_minutes: Annotated[
        float | None,
        typer.Option(
            help="Minutes after which this call ends. The same command goes on.",
            show_default="no end",
            metavar="<float>",
            min=0,
        ),
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


def release(
    components: Annotated[Path, typer.Argument(metavar="COMPONENTS", help="Pipeline folder of the training runs.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the model. One that exists is replaced.")],
    preset: Annotated[
        PresetName,
        typer.Option(help="Preset of the base size and of the default settings.", **one_of(PresetName)),
    ] = "nano",
    runs: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the training runs, whose loss curves are drawn to OUT/losses.png.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a model folder from trained components, in half precision: what `restore --model OUT` takes.

    LoRA weights among them are merged into the U-Net.

    Example:

    - `diffbody release runs/nano/pipeline models/mine --runs runs/nano`
    """
    from diffbody_ref.training.release import release as release_model
    from diffbody_ref.training.release import release_notices

    print(f"released {release_model(components, out, preset, runs)}")
    for notice in release_notices(components):
        complain(notice, "notice")
