"""`diffbody synth`, `clean` and `caption`: data sets of people."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffbody.cli.console import BAD_INPUT, progress_bar
from diffbody.cli.options import (
    BUILT_IN,
    FLAG,
    Device,
    engine_option,
    file_option,
    one_of,
    quality_option,
    server_option,
)
from diffbody_ref.loading import load_pipeline, model_folder
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.results import OPTIONAL_STAGES
from runtime.engines.config import EngineConfig

if TYPE_CHECKING:
    import numpy as np

    from diffbody_ref.data.cleaning.phases import FindPeople

FAILURES_SHOWN = 20

PictureFormat = Literal["png", "jpg", "webp"]
ResponseFormat = Literal["schema", "object", "none"]

# The format of a training set's pictures.
Height = Annotated[int, quality_option("Height of the pictures in pixels: 256 for nano, 1024 for the paper's size.")]
Width = Annotated[int, quality_option("Width of the pictures in pixels: 128 for nano, 512 for the paper's size.")]


def synth(
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder of the training set. A set that is there already is continued."),
    ],
    identities: Annotated[int, file_option("Number of people, from 1.")],
    views: Annotated[int, file_option("Number of pictures of each person, from 1.")] = 4,
    first_identity: Annotated[
        int, file_option("Number of the first person, from 0. Other numbers are other people.")
    ] = 0,
    seed: Annotated[int, file_option("Seed of the people, from 0. The same seed gives the same pictures.")] = 0,
    sheet: Annotated[
        Path | None,
        file_option(
            "Also writes a contact sheet to this file (png, jpg): 24 pictures of the set above their labels.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    height: Height = 256,
    width: Width = 128,
    workers: Annotated[int, engine_option("Number of processes that render.")] = 2,
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
            help="Folder of pictures, parquet files, webdataset shards, SHHQ, DeepFashion In-shop or Market-1501. "
            "`FOLDER:SPLIT` takes one split of it, and `FOLDER:all` all of them.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="Folder of the cleaned set. A set that is there already is continued.",
            show_default=False,
        ),
    ] = None,
    apply: Annotated[
        bool,
        file_option(
            "Only drops what review.tsv says to drop, from the folder given: `diffbody clean --apply OUT`.",
            "--apply",
            **FLAG,
        ),
    ] = False,
    format: Annotated[
        PictureFormat, file_option("File format of the pictures that are written.", **one_of(PictureFormat))
    ] = "png",
    height: Height = 256,
    width: Width = 128,
    max_enlargement: Annotated[
        float,
        quality_option(
            "Largest factor by which a crop may be enlarged. 1 drops every picture that would have to be enlarged."
        ),
    ] = 1.25,
    max_aspect: Annotated[
        float, quality_option("Largest ratio of the longer to the shorter side that a picture may have.")
    ] = 4.0,
    min_score: Annotated[float, quality_option("Lowest score that the detector may give the person.")] = 0.5,
    margin: Annotated[
        float, quality_option("Space that is left around the person, as a share of the sides of their box.")
    ] = 0.08,
    keypoint_score: Annotated[float, quality_option("Lowest score at which a body joint counts as seen.")] = 0.3,
    min_visible: Annotated[
        float,
        quality_option(
            "Smallest share of the 17 body joints that the crop must show: 0.6 keeps half-length portraits, 0.9 whole "
            "people only."
        ),
    ] = 0.6,
    bundle: Annotated[
        Path | None,
        engine_option("Bundle that finds the people.", metavar="FOLDER", show_default=BUILT_IN),
    ] = None,
    model: Annotated[
        str | None,
        engine_option(
            "Model whose networks find the people with PyTorch, in place of a bundle: `nano`, or a folder with a "
            "model_index.json.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    device: Device = EngineConfig.device,
    workers: Annotated[
        int, engine_option("Number of pictures that are processed at a time.", metavar="<int>", min=1)
    ] = 2,
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
    """What finds people and their keypoints: a bundle's graphs, or with `model` a pipeline's networks.

    Raises:
        ValueError: the model has no person detector or no pose network.
    """
    if model is None:
        from runtime.restore import Restorer

        restorer = Restorer.open(bundle or NANO_FOLDER, EngineConfig(device=device, threads=1))
        _check_finders(bundle, restorer.manifest.lacking)
        return restorer.locate_people

    from diffbody_ref.models.pose import detect_people, estimate_pose

    pipeline = load_pipeline(model_folder(model), device)
    _check_finders(model, pipeline.lacking)

    def find(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes = detect_people(pipeline.pose_detector, pixels)
        return boxes, estimate_pose(pipeline.pose, pixels, boxes)

    return find


def _check_finders(model: object, lacking: Sequence[str]) -> None:
    if absent := [OPTIONAL_STAGES[stage] for stage in ("pose_detector", "pose") if stage in lacking]:
        raise ValueError(f"{model}: the model has no {' and no '.join(absent)}, by which pictures are cleaned")


def caption(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of pictures, such as one that `diffbody clean` made.")
    ],
    limit: Annotated[
        int | None,
        file_option("Largest number of pictures to caption in this call.", metavar="<int>", min=1, show_default="all"),
    ] = None,
    overwrite: Annotated[
        bool,
        file_option("Also captions pictures whose caption is not from this model, again.", "--overwrite", **FLAG),
    ] = False,
    dry_run: Annotated[
        bool,
        file_option("Prints the prompts and the number of pictures, and sends nothing.", "--dry-run", **FLAG),
    ] = False,
    max_side: Annotated[
        int, quality_option("Longest side in pixels at which pictures are sent. Larger ones are shrunk.")
    ] = 768,
    response_format: Annotated[
        ResponseFormat,
        quality_option(
            "Form that the server is told to hold the answer to: `schema` is the captions' JSON schema, `object` any "
            "JSON.",
            **one_of(ResponseFormat),
        ),
    ] = "schema",
    attempts: Annotated[int, quality_option("Number of times that the model is asked until its answer is valid.")] = 3,
    endpoint: Annotated[
        str,
        server_option(
            "URL of an OpenAI-compatible API, such as `http://localhost:8000/v1`.", metavar="URL", show_default=False
        ),
    ] = "",
    model: Annotated[
        str, server_option("Name of the vision-language model there.", metavar="NAME", show_default=False)
    ] = "",
    api_key_env: Annotated[
        str, server_option("Environment variable that holds the API key, if the API needs one.", metavar="NAME")
    ] = "DIFFBODY_CAPTION_API_KEY",
    concurrency: Annotated[
        int, server_option("Number of pictures that are captioned at a time.", metavar="<int>", min=1)
    ] = 8,
    timeout: Annotated[float, server_option("Seconds to wait for one request.")] = 120.0,
    deadline: Annotated[
        float, server_option("Seconds to wait for one picture, with all requests that it takes.")
    ] = 600.0,
    retries: Annotated[
        int, server_option("Number of times that a request is sent again when the server is busy or fails.")
    ] = 6,
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
