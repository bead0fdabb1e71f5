"""`diffbody evaluate`: how well a model restores, beside other methods and without its own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffbody.cli.console import progress_bar
from diffbody.cli.options import (
    BodyGuidance,
    Colour,
    Device,
    Guidance,
    Model,
    Residual,
    Sampler,
    Steps,
    Strength,
    check_options,
    given,
)
from diffbody_ref.loading import load_pipeline, model_folder


def evaluate(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA", help="Folders that `diffbody synth` wrote, not used to train; or of sharp photographs."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.md, table.csv, report.json, grid.png and figures.")
    ],
    model: Model = "nano",
    suite: Annotated[
        str,
        typer.Option(
            help="`stages`: what each stage adds; `paper`: table 1 and figures 7 to 9; `structure`: keypoints, parts "
            "and identity found (needs labels)."
        ),
    ] = "stages",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method, instead of the suite's (docs/evaluation.md lists them); give it again for several.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Pictures, drawn at random; a larger count continues. Default: all.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw, the degradations and the noise.")] = 0,
    degradation: Annotated[str, typer.Option(help="`nano` (for 256x128) or `paper` (for 1024x512).")] = "nano",
    longest_side: Annotated[
        int | None,
        typer.Option(help="Pixels: larger pictures are shrunk to it first.", show_default=False, min=32),
    ] = None,
    steps: Steps = 50,
    guidance_scale: Guidance = None,
    body_guidance_scale: BodyGuidance = None,
    strength: Strength = None,
    sampler: Sampler = "ddpm",
    colour_fix: Colour = "wavelet",
    use_residual: Residual = None,
    captions: Annotated[bool, typer.Option(help="Use each picture's caption as its prompt.")] = True,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.")] = 1,
    grid_rows: Annotated[int, typer.Option(help="Pictures that grid.png shows.")] = 8,
    device: Device = "auto",
) -> None:
    """Measure how well a model restores people it was not trained on, beside other methods and without its own parts.

    Each picture is degraded by a seeded draw, restored by every method and compared with the original. Results are
    kept picture by picture and method by method, so an interrupted run can just be started again. Methods and metrics
    that are not installed are left out, and the report says so.

    Examples:

    - `diffbody synth data/held-out --identities 50 --first-identity 100000`

    - `diffbody evaluate data/held-out -o out/paper --suite paper --count 100`

    - `diffbody evaluate data/held-out -o out/structure --suite structure`

    - `diffbody evaluate samples/clean -o out/photos --suite paper --longest-side 256`
    """
    settings = given(
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        body_guidance_scale=body_guidance_scale,
        strength=strength,
        sampler=sampler,
        colour_fix=colour_fix,
        use_residual=use_residual,
    )
    check_options(settings, seed, device)
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
        use_captions=captions,
        batch_size=batch_size,
        grid_rows=grid_rows,
        **settings,
    )
    with progress_bar("restorations") as show:
        evaluate_pipeline(
            load_pipeline(folder, device),
            subjects,
            config,
            out,
            lambda done, total, at_work: show(done, total, at_work or "restorations"),
        )
    print(out / "report.md")
