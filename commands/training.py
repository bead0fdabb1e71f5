"""`diffbody train-all`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runtime.console import progress_bar


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("train-all", no_args_is_help=True)(train_all)


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
