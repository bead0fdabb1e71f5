"""`diffbody import`: public checkpoints into a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffbody.cli.console import progress_bar
from diffbody.cli.options import FLAG, one_of

PredictionName = Literal["epsilon", "v", "v-zero-snr"]  # `weights.schedules.Prediction`, which imports PyTorch


def import_checkpoints(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Model folder. Components that are there and not given stay.")
    ],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE_OR_FOLDER...", help="Checkpoints, in any order; of a folder, all that it holds."),
    ],
    prediction: Annotated[
        PredictionName | None,
        typer.Option(
            help="What the U-Net predicts: noise, velocity, or velocity with a last step of pure noise.",
            show_default="what its file says, or the U-Net does",
            **one_of(PredictionName),
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Reads and checks all, shows the table, and writes nothing.", **FLAG)
    ] = False,
) -> None:
    """Bring public checkpoints into a model folder, to restore with, to release or to train from.

    Each is recognised by what it holds: Stable Diffusion 1.x and 2.x, DiffBIR, SwinIR, BPBReID, DWPose and RTMPose,
    YOLOX, tiny autoencoders, LoRA (which is merged), and DiffBody's own folders. No code in a file is run.

    Examples:

    - `diffbody import models/diffbir v2-1_512-ema-pruned.ckpt v1_general.pth general_swinir_v1.ckpt`

    - `diffbody import models/diffbir downloads/ --dry-run`
    """
    from diffbody_ref.weights import import_checkpoints as import_all
    from diffbody_ref.weights.provenance import as_table

    with progress_bar("components") as show:
        rows = import_all(out, files, prediction=prediction, dry_run=dry_run, progress=show)
    print(as_table(rows))
    if not dry_run:
        print(f"imported {out}")
