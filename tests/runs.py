"""Runs over files with a cheap way to restore, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffbody.files import Job, Output, Recipe, RestoreFile, Settings, Summary, plan, run
from diffbody.files.record import RECORD
from diffbody_ref.ops.images import Picture

RECIPE = Recipe({"steps": 50}, "model", "1.0")


def invert(picture: Picture, job: Job) -> Output:
    """A cheap way to restore, whose result can be told from the input."""
    pixels = 1.0 - picture.pixels
    return Output(Picture(pixels, picture.alpha), {"before_after": picture.pixels, "pose": pixels})


def load_invert() -> RestoreFile:
    return invert


def never() -> RestoreFile:
    raise AssertionError("nothing was left to restore, so nothing should be loaded")


def restore_all(
    inputs: Sequence[Path],
    out: Path | None = None,
    *,
    load: Any = load_invert,
    recipe: Recipe = RECIPE,
    recursive: bool = False,
    format: str = "png",
    **settings: Any,
) -> Summary:
    """Plan and run."""
    planned = plan(inputs, out, recursive=recursive, format=format)
    return run(planned, load, lambda: recipe, Settings(**settings))


def names(summary: Summary, status: str) -> list[str]:
    return [result.source.name for result in summary.of(status)]


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder but the record."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != RECORD}
