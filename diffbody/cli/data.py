"""`diffbody synth`, `clean` and `caption`: data sets of people."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffbody.cli.console import BAD_INPUT, progress_bar
from diffbody_ref.loading import load_pipeline, model_folder
from diffbody_ref.ops.builtin import NANO_FOLDER

if TYPE_CHECKING:
    import numpy as np

    from diffbody_ref.data.cleaning.phases import FindPeople

FAILURES_SHOWN = 20


def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the training set; made, or gone on with.")],
    identities: Annotated[int, typer.Option(help="How many people, from 1.")],
    views: Annotated[int, typer.Option(help="Pictures of each, from 1.")] = 4,
    seed: Annotated[int, typer.Option(help="From 0. The same seed gives the same pictures.")] = 0,
    height: Annotated[int, typer.Option(help="Pixels; 256 for nano, 1024 for the paper's size.")] = 256,
    width: Annotated[int, typer.Option(help="Pixels; 128 for nano, 512 for the paper's size.")] = 128,
    first_identity: Annotated[int, typer.Option(help="Number of the first person; other numbers, other people.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a contact sheet, .png or .jpg: 24 pictures of the set, with their labels below them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Render synthetic people with ground truth: keypoints, part masks, identity, caption. Nothing is downloaded.

    An interrupted run goes on where it stopped.

    Examples:

    - `diffbody synth data/train --identities 2000`

    - `diffbody synth data/look --identities 24 --views 1 --sheet look.png` (to see what it makes)

    - `diffbody synth data/held-out --identities 50 --first-identity 100000` (people who are not in the first one)
    """
    from diffbody_ref.data.synthetic.dataset import check_sheet, contact_sheet, synthesize

    if sheet is not None:
        check_sheet(sheet)
    with progress_bar("pictures") as show:
        done = synthesize(out, identities, views, seed, height, width, first_identity, workers, show)
    rate = f" in {done.seconds:.1f} s, {done.pictures_per_second:.2f} pictures/s" if done.rendered else ""
    print(f"{out}: {done.pictures} pictures, {done.rendered} rendered now{rate}")
    if sheet is not None:
        contact_sheet(out, sheet, 24, scale=1)
        print(f"contact sheet: {sheet}")


def clean(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of pictures, parquet files, webdataset shards, SHHQ, DeepFashion In-shop or Market-1501; "
            "`FOLDER:SPLIT` takes one split, `FOLDER:all` all of them.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="Folder of the cleaned set; made, or gone on with.", show_default=False),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Only apply what review.tsv says: `diffbody clean --apply OUT`.")
    ] = False,
    height: Annotated[int, typer.Option(help="Pixels; 256 for nano, 1024 for the paper's size.")] = 256,
    width: Annotated[int, typer.Option(help="Pixels; 128 for nano, 512 for the paper's size.")] = 128,
    max_enlargement: Annotated[
        float, typer.Option(help="A crop may be enlarged this much; 1 drops whatever would have to be.")
    ] = 1.25,
    max_aspect: Annotated[float, typer.Option(help="Longer over shorter side of a picture, at most.")] = 4.0,
    min_score: Annotated[float, typer.Option(help="The detector's score of the person, at least.")] = 0.5,
    margin: Annotated[float, typer.Option(help="Space about the person, as a part of their box's sides.")] = 0.08,
    keypoint_score: Annotated[float, typer.Option(help="Score from which on a body joint counts as seen.")] = 0.3,
    min_visible: Annotated[
        float, typer.Option(help="Part of the 17 body joints seen in the crop: 0.6 half-length, 0.9 whole people.")
    ] = 0.6,
    format: Annotated[str, typer.Option(help="Of the written pictures: `png`, `jpg` or `webp`.")] = "png",
    bundle: Annotated[
        Path | None,
        typer.Option(help="Finds people with this bundle. Default: nano's, which is built in.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="`nano`, or a folder with a model_index.json: finds people with PyTorch, not a bundle.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="`auto` (a CUDA GPU if there is one), `cpu` or `cuda`.")] = "auto",
    workers: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 2,
) -> None:
    """Clean a set of pictures by the paper's protocol: screen, find the person, cut to the format, inspect.

    OUT is a folder that `diffbody train` takes. An interrupted run goes on where it stopped. To inspect, look at
    OUT/sheets, write `drop` on the lines of OUT/review.tsv that should go, and run the command again, or --apply.
    OUT/report.md says what was dropped and why.

    Examples:

    - `diffbody clean photos/ data/photos`

    - `diffbody clean SHHQ-1.0/ data/shhq --height 1024 --width 512 --model models/mine`

    - `diffbody clean --apply data/photos`
    """
    from diffbody_ref.data.cleaning.phases import CleanConfig
    from diffbody_ref.data.cleaning.protocol import apply_review
    from diffbody_ref.data.cleaning.protocol import clean as clean_source
    from diffbody_ref.data.readers import open_folder

    if apply:
        folder = out or Path(source)
        report = apply_review(folder)
    elif out is None:
        raise ValueError("OUT is missing: the folder of the cleaned set (or give --apply and a cleaned folder)")
    else:
        folder = out
        if bundle is not None and model is not None:
            raise ValueError("--model and --bundle: give one of them")
        config = CleanConfig(
            height=height,
            width=width,
            max_enlargement=max_enlargement,
            max_aspect=max_aspect,
            min_score=min_score,
            margin=margin,
            keypoint_score=keypoint_score,
            min_visible=min_visible,
            format=format,
        )
        reader = open_folder(source)
        print(f"{source}: {reader.format}, {len(reader)} pictures", file=sys.stderr)
        load = lambda: load_detector(bundle, model, device)  # noqa: E731
        with progress_bar("pictures") as show:
            report = clean_source(reader, source, folder, load, config, workers, show)
    for phase in report.phases:
        reasons = ", ".join(f"{count} {reason}" for reason, count in phase.reasons.items())
        print(f"{phase.phase}: {phase.left} of {phase.pictures} left{f' ({reasons})' if reasons else ''}")
    print(folder / "report.md")


def load_detector(bundle: Path | None, model: str | None, device: str) -> FindPeople:
    """What finds people and their keypoints: a bundle's graphs, or with `model` a pipeline's networks."""
    if model is None:
        from runtime.engines import EngineConfig
        from runtime.restore import Restorer

        return Restorer.open(bundle or NANO_FOLDER, EngineConfig(device=device, threads=1)).locate_people

    from diffbody_ref.models.pose import detect_people, estimate_pose

    pipeline = load_pipeline(model_folder(model), device)

    def find(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes = detect_people(pipeline.pose_detector, pixels)
        return boxes, estimate_pose(pipeline.pose, pixels, boxes)

    return find


def caption(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of pictures, such as one that `diffbody clean` made.")
    ],
    endpoint: Annotated[
        str, typer.Option(help="URL of an OpenAI-compatible API: `http://localhost:8000/v1`.", show_default=False)
    ] = "",
    model: Annotated[str, typer.Option(help="Name of the vision-language model there.", show_default=False)] = "",
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the API key, if it needs one.")
    ] = "DIFFBODY_CAPTION_API_KEY",
    concurrency: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 8,
    limit: Annotated[
        int | None, typer.Option(help="Caption this many pictures now, at most.", min=1, show_default=False)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Caption pictures again whose caption is not from this model.")
    ] = False,
    max_side: Annotated[int, typer.Option(help="Pixels; pictures are scaled down to this to be sent.")] = 768,
    response_format: Annotated[
        str, typer.Option(help="What the server holds the answer to: `schema`, `object` (any JSON) or `none`.")
    ] = "schema",
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 120.0,
    deadline: Annotated[float, typer.Option(help="Seconds for one picture, with all repetitions.")] = 600.0,
    retries: Annotated[int, typer.Option(help="Repetitions of a request that fails in passing.")] = 6,
    attempts: Annotated[int, typer.Option(help="Times the model is asked until its answer is valid.")] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the prompts and how many pictures they would go with; send none.")
    ] = False,
) -> None:
    """Caption pictures with a vision-language model: each field of the schema, from head to toe, as one sentence.

    Captions are written to FOLDER/metadata.jsonl, which `diffbody train` reads. Pictures that have one are left out, so
    that an interrupted run can just be started again. The exit code is 2 if any picture failed.

    Examples:

    - `diffbody caption data/photos --dry-run`

    - `diffbody caption data/photos --endpoint http://localhost:8000/v1 --model Qwen/Qwen2.5-VL-7B-Instruct`
    """
    from diffbody_ref.data.captioning.folder import caption_folder, pending
    from diffbody_ref.data.captioning.prompts import prompt

    if dry_run:
        print(prompt())
        print(f"{folder}: {len(pending(folder, model if overwrite else None)[:limit])} pictures to caption")
        return
    for name, value in (("--endpoint", endpoint), ("--model", model)):
        if not value:
            raise ValueError(f"{name} is missing; `--dry-run` does without")
    from diffbody_ref.data.captioning.endpoint import EndpointConfig

    config = EndpointConfig(
        endpoint,
        model,
        response_format,
        max_side,
        timeout=timeout,
        deadline=deadline,
        retries=retries,
        attempts=attempts,
    )
    api_key = os.environ.get(api_key_env, "")
    with progress_bar("pictures") as show:
        report = caption_folder(folder, config, api_key, concurrency, overwrite, limit, show)
    print(f"{folder}: captioned {report.written}, before {report.before}, failed {len(report.failed)}")
    for name, reason in list(report.failed.items())[:FAILURES_SHOWN]:
        print(f"diffbody: {name}: {reason}", file=sys.stderr)
    if report.failed:
        raise typer.Exit(BAD_INPUT)
