"""What `diffbody restore` says of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from diffbody.cli.options import Verbosity
from diffbody.cli.report import Report
from diffbody.files import (
    FAILED,
    Job,
    Output,
    Plan,
    Settings,
    Summary,
    plan,
    run,
)
from diffbody_ref.ops.images import Picture
from tests.runs import RECIPE, load_invert, never, restore_all


def shown(planned: Plan, summary: Summary, **verbosity: bool) -> int:
    """Report a run; the exit code."""
    report = Report(Verbosity(**verbosity), planned.single)
    report.left_out(planned.left_out)
    for result in summary.results:
        report.result(result)
    try:
        report.end(summary, planned.left_out)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def test_report_names_what_failed(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan([album])
    summary = run(planned, load_invert, lambda: RECIPE)
    assert shown(planned, summary) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        str(album / "a.restored.png"),
        str(album / "d.restored.png"),
        "restored 2, failed 2",
    ]
    lines = printed.err.splitlines()
    assert all(sum(str(failure.source) in line for line in lines) == 1 for failure in summary.of(FAILED))


def test_report_counts_what_was_skipped(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [album / "a.png", album / "d.webp"]
    restore_all([album / "a.png", album / "missing.png"])
    planned = plan(inputs)
    assert shown(planned, run(planned, load_invert, lambda: RECIPE)) == 0
    printed = capsys.readouterr()
    assert "restored 1, skipped 1" in printed.out
    assert printed.err == ""


def test_report_shows_each_notice_once(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def restore(picture: Picture, job: Job) -> Output:
        return Output(picture, notices=["no person found"])

    for inputs, line in (([album / "a.png"], "a.png"), ([album / "a.png", album / "d.webp"], "a.png (and 1 more)")):
        planned = plan(inputs)
        shown(planned, run(planned, lambda: restore, lambda: RECIPE, Settings(overwrite=True)))
        assert capsys.readouterr().err == f"diffbody: notice: {album}/{line}: no person found\n"


def test_quiet_says_errors_only(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan([album])
    assert shown(planned, run(planned, load_invert, lambda: RECIPE), quiet=True) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.partition(" ")[0] for line in printed.err.splitlines()] == ["diffbody:"] * 2


def test_a_name_cannot_speak_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "\x1b[31mred"
    folder.mkdir()
    for name in ("a.png", "b\x1b[2J.png"):
        (folder / name).write_text("no picture")
    planned = plan([folder])
    assert shown(planned, run(planned, never, lambda: RECIPE)) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_json_says_all_of_each_picture(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def restore(picture: Picture, job: Job) -> Output:
        return Output(picture, {"before_after": picture.pixels}, ["no person found"])

    (album / "sub").mkdir()
    planned = plan([album])
    settings = Settings(side_pictures=["before_after"])
    assert shown(planned, run(planned, lambda: restore, lambda: RECIPE, settings), as_json=True) == 2
    printed = capsys.readouterr()
    assert printed.err == ""
    objects = {Path(each["source"]).name: each for each in map(json.loads, printed.out.splitlines())}
    assert {name: each["status"] for name, each in objects.items()} == {
        "sub": "left out",
        "notes.txt": "left out",
        "a.png": "restored",
        "d.webp": "restored",
        "b.png": "failed",
        "c.jpg": "failed",
    }
    assert objects["sub"]["reason"] == "sub-folder"
    restored = objects["a.png"]
    assert restored["output"] == str(album / "a.restored.png")
    assert restored["side_pictures"] == {"before_after": str(album / "a.restored_before_after.png")}
    assert restored["notices"] == ["no person found"]
    assert restored["error"] is None
    assert restored["seconds"] >= 0
    assert objects["b.png"]["output"] is None
    assert str(album / "b.png") in objects["b.png"]["error"]
