"""Runs over files: what is taken, where it goes, what is skipped, and that one failure does not stop the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer

from diffbody.cli.console import report
from diffbody.files import Job, Output, RestoreFile, Summary, collect, plan, run
from diffbody.side_pictures import attention_overlay, before_after, loss_chart
from diffbody_ref.ops.images import ImageError, Picture, read_image, write_image


def invert(picture: Picture, job: Job) -> Output:
    """A cheap way to restore, whose result can be told from the input."""
    return Output(Picture(1.0 - picture.pixels, picture.alpha), {"before_after": picture.pixels})


def load_invert() -> RestoreFile:
    return invert


def never() -> RestoreFile:
    raise AssertionError("nothing was left to restore, so nothing should be loaded")


@pytest.fixture
def album(tmp_path: Path, pixels: np.ndarray) -> Path:
    """A folder of two good pictures, a truncated one and a text file with a picture's suffix."""
    folder = tmp_path / "album"
    folder.mkdir()
    write_image(folder / "a.png", pixels)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:1000])
    (folder / "c.jpg").write_text("not a picture")
    write_image(folder / "d.webp", pixels)
    (folder / "notes.txt").write_text("not meant to be a picture")
    return folder


def test_a_failure_does_not_stop_the_others(album: Path) -> None:
    summary = run(plan([album]), load_invert)
    assert [job.source.name for job in summary.written] == ["a.png", "d.webp"]
    assert [failure.source.name for failure in summary.failed] == ["b.png", "c.jpg"]
    assert all(str(failure.source) in failure.reason and "\n" not in failure.reason for failure in summary.failed)
    assert sorted(p.name for p in album.glob("*.restored*")) == ["a.restored.png", "d.restored.png"]


def test_the_output_is_what_restore_returned(photo: Path, pixels: np.ndarray) -> None:
    run(plan([photo]), load_invert)
    # 1 - level/255 is a whole level too; float32 leaves far less than half a level.
    np.testing.assert_allclose(read_image(photo.with_name("photo.restored.png")).pixels, 1 - pixels, atol=1e-3)


def test_a_second_run_skips_what_is_done_and_loads_nothing(album: Path) -> None:
    run(plan([album]), load_invert)
    before = {path: path.stat().st_mtime_ns for path in album.iterdir()}
    summary = run(plan([album]), never)
    assert [job.source.name for job in summary.skipped] == ["a.png", "d.webp"]
    assert len(summary.failed) == 2
    assert {path: path.stat().st_mtime_ns for path in album.iterdir()} == before


def test_overwrite_does_them_again(photo: Path, pixels: np.ndarray) -> None:
    target = photo.with_name("photo.restored.png")
    target.write_text("old")
    assert len(run(plan([photo]), load_invert, overwrite=True).written) == 1
    np.testing.assert_allclose(read_image(target).pixels, 1 - pixels, atol=1e-3)


def test_the_way_to_restore_is_loaded_once(album: Path) -> None:
    loads = []

    def load() -> RestoreFile:
        loads.append(1)
        return invert

    run(plan([album]), load)
    assert loads == [1]


@pytest.mark.parametrize("error", [ValueError("two\nlines"), OSError("disk"), MemoryError(), RuntimeError("CUDA")])
def test_an_error_while_restoring_fails_that_picture_only(album: Path, error: Exception) -> None:
    calls = []

    def fail_first(picture: Picture, job: Job) -> Output:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return invert(picture, job)

    summary = run(plan([album / "a.png", album / "d.webp"]), lambda: fail_first)
    assert [failure.source.name for failure in summary.failed] == ["a.png"]
    assert "\n" not in summary.failed[0].reason
    assert [job.source.name for job in summary.written] == ["d.webp"]
    assert not (album / "a.restored.png").exists()


def test_a_mistake_in_the_program_and_a_failed_load_end_the_run(photo: Path) -> None:
    def broken(picture: Picture, job: Job) -> Output:
        raise TypeError("a mistake")

    def no_model() -> RestoreFile:
        raise ValueError("no such model")

    with pytest.raises(TypeError, match="a mistake"):
        run(plan([photo]), lambda: broken)
    with pytest.raises(ValueError, match="no such model"):
        run(plan([photo]), no_model)


def test_our_own_outputs_are_no_inputs(photo: Path) -> None:
    run(plan([photo]), load_invert, side_pictures=["before_after"])
    assert photo.with_name("photo.restored_before_after.png").is_file()
    assert collect([photo.parent]) == [photo]


def test_an_existing_side_picture_is_not_replaced(photo: Path) -> None:
    existing = photo.with_name("photo.restored_before_after.png")
    existing.write_text("precious")
    summary = run(plan([photo]), never, side_pictures=["before_after"])
    assert "--overwrite" in summary.failed[0].reason
    assert existing.read_text() == "precious"
    assert not photo.with_name("photo.restored.png").exists()


def test_a_failed_write_leaves_nothing(photo: Path) -> None:
    def not_finite(picture: Picture, job: Job) -> Output:
        return Output(Picture(picture.pixels * np.nan), {"before_after": picture.pixels})

    summary = run(plan([photo]), lambda: not_finite, side_pictures=["before_after"])
    assert len(summary.failed) == 1
    assert list(photo.parent.iterdir()) == [photo]


def test_alpha_reaches_the_file(tmp_path: Path, pixels: np.ndarray) -> None:
    alpha = np.zeros(pixels.shape[:2], np.float32)
    alpha[:10] = 1.0
    write_image(tmp_path / "cut.png", pixels, alpha)
    run(plan([tmp_path / "cut.png"]), load_invert)
    found = read_image(tmp_path / "cut.restored.png").alpha
    assert found is not None
    np.testing.assert_array_equal(found, alpha)


def test_outputs_go_to_a_folder_that_is_made(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er"
    jobs = plan([album], out)
    assert not out.exists()
    run(jobs, load_invert)
    assert sorted(p.name for p in out.iterdir()) == ["a.restored.png", "d.restored.png"]


def test_pictures_that_differ_in_suffix_only_both_have_a_place(photo: Path, pixels: np.ndarray) -> None:
    write_image(photo.with_suffix(".jpg"), pixels)
    names = {job.source.name: job.target.name for job in plan([photo.parent])}
    assert names == {"photo.jpg": "photo.jpg.restored.png", "photo.png": "photo.png.restored.png"}


def test_two_folders_cannot_share_an_output(photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.png").write_bytes(photo.read_bytes())
    with pytest.raises(ImageError, match="so would"):
        plan([photo.parent, other], tmp_path / "out")


def test_an_input_named_twice_is_done_once(photo: Path) -> None:
    assert [job.source for job in plan([photo, photo.parent])] == [photo]


def test_one_picture_may_be_given_its_output_file(photo: Path, tmp_path: Path) -> None:
    assert plan([photo], tmp_path / "x.jpg") == [Job(photo, tmp_path / "x.jpg")]


def test_report_names_what_failed(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(plan([album]), load_invert)
    with pytest.raises(typer.Exit) as stop:
        report(summary)
    printed = capsys.readouterr()
    assert stop.value.exit_code == 2
    assert "restored 2, failed 2" in printed.out
    lines = printed.err.splitlines()
    assert all(sum(str(failure.source) in line for line in lines) == 1 for failure in summary.failed)


def test_report_counts_what_was_skipped(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = plan([album / "a.png", album / "d.webp"])
    run(jobs[:1], load_invert)
    report(run(jobs, load_invert))
    printed = capsys.readouterr()
    assert "restored 1, skipped 1" in printed.out
    assert printed.err == ""


def test_report_shows_notices(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(Summary(written=plan([photo]), notices={photo: ["no person found"]}), single=True)
    assert capsys.readouterr().err == f"diffbody: notice: {photo}: no person found\n"


def test_before_after_shows_both(pixels: np.ndarray) -> None:
    after = np.repeat(np.repeat(1 - pixels, 2, axis=0), 2, axis=1)
    sheet = before_after(pixels, after)
    height, width = after.shape[:2]
    corner = sheet.shape[0] - height, sheet.shape[1] - width
    found = [
        (y, x)
        for y in range(corner[0] + 1)
        for x in range(corner[1] + 1)
        if np.allclose(sheet[y : y + height, x : x + width], after, atol=1e-6)
    ]
    assert len(found) == 1
    assert found[0][1] >= width  # the right half


def test_attention_overlay_colours_the_parts_only(pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    attention = np.zeros((6, height, width), np.float32)
    attention[0, :10] = attention[5, :10] = 1.0
    overlay = attention_overlay(pixels, attention)
    np.testing.assert_array_equal(overlay[10:], pixels[10:])
    # The first hue is red: red rises towards 1, green and blue keep 30 %.
    np.testing.assert_allclose(overlay[:10, :, 1:], 0.3 * pixels[:10, :, 1:], atol=1e-6)
    assert (overlay[:10, :, 0] >= 0.7 - 1e-6).all()


def test_loss_chart_falls_with_the_loss() -> None:
    chart = loss_chart([(999, 1.0), (500, 0.5), (0, 0.0)])
    red = (chart[:, :, 0] > 0.7) & (chart[:, :, 1] < 0.4)
    heights = [np.flatnonzero(red[:, x]).mean() for x in np.flatnonzero(red.any(axis=0))]
    assert len(heights) > 400  # most of the 640 columns
    # Lines go down; a pixel of play for the joint of two segments.
    assert (np.diff(heights) >= -1.0).all()
    assert heights[-1] - heights[0] > 200
