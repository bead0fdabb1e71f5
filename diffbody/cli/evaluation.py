"""`diffbody evaluate`: how well a model restores, beside other methods and without its own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffbody.cli.console import complain, progress_bar
from diffbody.cli.options import (
    Device,
    Model,
    check_options,
    engine_option,
    file_option,
    one_of,
    quality_option,
    restore_settings,
    takes,
)
from diffbody_ref.loading import load_pipeline, model_folder
from runtime.engines.config import EngineConfig

SuiteName = Literal["stages", "paper", "structure"]
DegradationName = Literal["model", "nano", "paper"]


@takes(settings=restore_settings)
def evaluate(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA",
            help="Folders that `diffbody synth` wrote and that were not trained on, or folders of sharp photographs.",
        ),
    ],
    out: Annotated[
        Path,
        file_option(
            "Folder for report.md, table.csv, report.json, grid.png and the figures.",
            "--out",
            "-o",
            metavar="FOLDER",
        ),
    ],
    model: Model = "nano",
    suite: Annotated[
        SuiteName,
        file_option(
            "Set of methods to compare: `stages` shows what each stage adds; `paper` makes table 1 and figures 7 to 9; "
            "`structure` compares keypoints, parts and identity, and needs labels.",
            **one_of(SuiteName),
        ),
    ] = "stages",
    method: Annotated[
        list[str] | None,
        file_option(
            "Method to compare, in place of the suite's; docs/evaluation.md lists them. Give the option several times "
            "for several methods.",
            metavar="NAME",
            show_default="the suite's",
        ),
    ] = None,
    count: Annotated[
        int | None,
        file_option(
            "Number of pictures, which are drawn at random. A larger number continues a smaller one.",
            show_default="all",
        ),
    ] = None,
    degradation: Annotated[
        DegradationName,
        file_option(
            "Degradation of the pictures: `model` is the one that the model was trained to undo, `nano` is for "
            "256x128, `paper` for 1024x512.",
            **one_of(DegradationName),
        ),
    ] = "model",
    longest_side: Annotated[
        int | None,
        file_option(
            "Longest side in pixels. A picture that is larger is shrunk first.",
            show_default="no limit",
            metavar="<int>",
            min=32,
        ),
    ] = None,
    no_captions: Annotated[
        bool, file_option("Leaves out the pictures' captions, which are the prompts.", "--no-captions", metavar="")
    ] = False,
    grid_rows: Annotated[int, file_option("Number of pictures that grid.png shows.")] = 8,
    seed: Annotated[int, quality_option("Seed of the choice of pictures, of the degradations and of the noise.")] = 0,
    *,
    settings: dict[str, Any],
    device: Device = EngineConfig.device,
    batch_size: Annotated[int, engine_option("Number of pictures that are restored at once.")] = 1,
) -> None:
    """Measure how well a model restores people it was not trained on, beside other methods and without its own parts.

    Each picture is degraded by a seeded draw, restored by every method and compared with the original. Results are
    kept picture by picture and method by method, so an interrupted run can just be started again; a picture that is
    not the same any more is measured again. Methods and metrics that are not installed are left out, and the report
    says so.

    Examples:

    - `diffbody synth data/held-out --identities 50 --first-identity 100000`

    - `diffbody evaluate data/held-out -o out/paper --suite paper --count 100`

    - `diffbody evaluate data/held-out -o out/structure --suite structure`

    - `diffbody evaluate samples/clean -o out/photos --suite paper --longest-side 256`
    """
    check_options(settings, seed)
    folder = model_folder(model)
    from diffbody_ref.evaluation.subjects import Subjects

    subjects = Subjects(data, longest_side)
    from diffbody_ref.evaluation.run import EvaluateConfig
    from diffbody_ref.evaluation.run import evaluate as evaluate_pipeline

    config = EvaluateConfig(
        suite=suite,
        methods=tuple(method) if method else None,
        count=count,
        seed=seed,
        degradation=degradation,
        use_captions=not no_captions,
        batch_size=batch_size,
        grid_rows=grid_rows,
        **settings,
    )
    with progress_bar("restorations") as show:
        report = evaluate_pipeline(
            load_pipeline(folder, device),
            subjects,
            config,
            out,
            lambda done, total, at_work: show(done, total, at_work or "restorations"),
        )
    for notice in report.notices:
        complain(notice, "notice")
    print(out / "report.md")
