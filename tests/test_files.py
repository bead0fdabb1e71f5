"""Runs over files: that one failure does not stop the others, what is done already, and whose files are replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbody.files import (
    FAILED,
    RESTORED,
    SKIPPED,
    Job,
    Output,
    Recipe,
    RestoreFile,
)
from diffbody.files.record import RECORD
from diffbody_ref.ops.images import ImageError, Picture, read_image, write_image
from tests.runs import contents, invert, names, never, restore_all


@pytest.fixture
def pair(tmp_path: Path, pixels: np.ndarray) -> list[Path]:
    """Two folders, each with another picture of the same name."""
    folders = [tmp_path / "x", tmp_path / "y"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        write_image(folder / "IMG_0001.png", pixels * np.float32(0.5 * number))
    return folders


# One picture fails, the others go on.


def test_a_failure_does_not_stop_the_others(album: Path) -> None:
    summary = restore_all([album])
    assert names(summary, RESTORED) == ["a.png", "d.webp"]
    assert names(summary, FAILED) == ["b.png", "c.jpg"]
    for failure in summary.of(FAILED):
        assert str(failure.source) in (failure.reason or "")
        assert "\n" not in (failure.reason or "")
    assert sorted(p.name for p in album.glob("*.restored*")) == ["a.restored.png", "d.restored.png"]


def test_the_output_is_what_restore_returned(photo: Path, pixels: np.ndarray) -> None:
    restore_all([photo])
    # 1 - level/255 is a whole level too; float32 leaves far less than half a level.
    np.testing.assert_allclose(read_image(photo.with_name("photo.restored.png")).pixels, 1 - pixels, atol=1e-3)


def test_one_picture_alone_leaves_its_output_only(photo: Path) -> None:
    restore_all([photo])
    assert sorted(contents(photo.parent)) == ["photo.png", "photo.restored.png"]
    assert not (photo.parent / RECORD).exists()


def test_one_picture_alone_is_added_to_a_record_that_is_there(album: Path) -> None:
    restore_all([album])
    restore_all([album / "a.png"], overwrite=True, recipe=Recipe({"steps": 20}, "model", "1.0"))
    summary = restore_all([album], recipe=Recipe({"steps": 20}, "model", "1.0"))
    assert names(summary, SKIPPED) == ["a.png"]
    assert [result.reason for result in summary.of(RESTORED)] == ["other settings (steps)"]


def test_overwrite_does_them_again(photo: Path, pixels: np.ndarray) -> None:
    target = photo.with_name("photo.restored.png")
    target.write_text("old")
    assert len(restore_all([photo], overwrite=True).of(RESTORED)) == 1
    np.testing.assert_allclose(read_image(target).pixels, 1 - pixels, atol=1e-3)


def test_the_way_to_restore_is_loaded_once(album: Path) -> None:
    loads = []

    def load() -> RestoreFile:
        loads.append(1)
        return invert

    restore_all([album], load=load, workers=2)
    assert loads == [1]


@pytest.mark.parametrize("error", [ValueError("two\nlines"), OSError("disk"), MemoryError(), RuntimeError("x" * 10**5)])
def test_an_error_while_restoring_fails_that_picture_only(album: Path, error: Exception) -> None:
    calls = []

    def fail_first(picture: Picture, job: Job) -> Output:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return invert(picture, job)

    summary = restore_all([album / "a.png", album / "d.webp"], load=lambda: fail_first)
    assert names(summary, FAILED) == ["a.png"]
    (failure,) = summary.of(FAILED)
    assert "\n" not in (failure.reason or "")
    assert len(failure.reason or "") <= 1000
    assert names(summary, RESTORED) == ["d.webp"]
    assert not (album / "a.restored.png").exists()


def test_a_mistake_in_the_program_and_a_failed_load_end_the_run(photo: Path) -> None:
    def broken(picture: Picture, job: Job) -> Output:
        raise TypeError("a mistake")

    def no_model() -> RestoreFile:
        raise ValueError("no such model")

    with pytest.raises(TypeError, match="a mistake"):
        restore_all([photo], load=lambda: broken)
    with pytest.raises(ValueError, match="no such model"):
        restore_all([photo], load=no_model)


def test_a_failed_write_leaves_nothing(photo: Path) -> None:
    def not_finite(picture: Picture, job: Job) -> Output:
        return Output(Picture(picture.pixels * np.nan), {"before_after": picture.pixels})

    summary = restore_all([photo], load=lambda: not_finite, side_pictures=["before_after"])
    assert len(summary.of(FAILED)) == 1
    assert list(photo.parent.iterdir()) == [photo]


def test_alpha_reaches_the_file(tmp_path: Path, pixels: np.ndarray) -> None:
    alpha = np.zeros(pixels.shape[:2], np.float32)
    alpha[:10] = 1.0
    write_image(tmp_path / "cut.png", pixels, alpha)
    restore_all([tmp_path / "cut.png"])
    found = read_image(tmp_path / "cut.restored.png").alpha
    assert found is not None
    np.testing.assert_array_equal(found, alpha)


def test_metadata_reaches_the_file_unless_it_is_stripped(tmp_path: Path, pixels: np.ndarray) -> None:
    source = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray((pixels * 255).astype(np.uint8)).save(source, exif=exif)
    for strip, found in ((False, "Maker"), (True, None)):
        restore_all([source], tmp_path / f"{strip}.jpg", strip_metadata=strip)
        with Image.open(tmp_path / f"{strip}.jpg") as written:
            assert written.getexif().get(0x010F) == found


def test_format_and_quality(album: Path, tmp_path: Path) -> None:
    sizes = []
    for quality in (20, 90):
        out = tmp_path / str(quality)
        restore_all([album], out, format="jpg", quality=quality)
        assert sorted(contents(out)) == ["a.restored.jpg", "d.restored.jpg"]
        with Image.open(out / "a.restored.jpg") as written:
            assert written.format == "JPEG"
        sizes.append((out / "a.restored.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


def test_what_a_picture_lost_is_a_notice(tmp_path: Path, pixels: np.ndarray) -> None:
    source = tmp_path / "cut.png"
    write_image(source, pixels, np.ones(pixels.shape[:2], np.float32) / 2)
    (result,) = restore_all([source], tmp_path / "out.jpg").of(RESTORED)
    assert ["transparency" in notice for notice in result.notices] == [True]


# What is the same is skipped, what is not is done again, and nobody else's file is replaced.


def test_a_second_run_skips_what_is_done_and_loads_nothing(album: Path) -> None:
    restore_all([album])
    before = contents(album)
    summary = restore_all([album], load=never)
    assert names(summary, SKIPPED) == ["a.png", "d.webp"]
    assert len(summary.of(FAILED)) == 2
    assert contents(album) == before


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Recipe({"steps": 20}, "model", "1.0"), "other settings (steps)"),
        (Recipe({"steps": 50, "prompt": "a"}, "model", "1.0"), "other settings (prompt)"),
        (Recipe({"steps": 50}, "other", "1.0"), "another model"),
        (Recipe({"steps": 50}, "model", "2.0"), "version 1.0"),
    ],
)
def test_what_was_made_by_another_recipe_is_done_again(album: Path, recipe: Recipe, reason: str) -> None:
    restore_all([album])
    again = restore_all([album], recipe=recipe).of(RESTORED)
    assert [result.reason for result in again] == [reason, reason]
    assert names(restore_all([album], recipe=recipe, load=never), SKIPPED) == ["a.png", "d.webp"]


def test_a_picture_that_changed_is_done_again(album: Path, pixels: np.ndarray) -> None:
    restore_all([album])
    write_image(album / "a.png", pixels / 2, overwrite=True)
    summary = restore_all([album])
    assert [(result.source.name, result.reason) for result in summary.of(RESTORED)] == [
        ("a.png", "the picture changed")
    ]
    np.testing.assert_allclose(read_image(album / "a.restored.png").pixels, 1 - pixels / 2, atol=0.51 / 255)


def test_a_moved_folder_is_still_done(album: Path, tmp_path: Path) -> None:
    restore_all([album])
    moved = album.rename(tmp_path / "moved")
    assert names(restore_all([moved], load=never), SKIPPED) == ["a.png", "d.webp"]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_file_that_is_not_ours_stays(recorded: bool, album: Path) -> None:
    if recorded:
        restore_all([album])
    (album / "a.restored.png").write_text("precious")
    summary = restore_all([album])
    assert names(summary, FAILED) == ["a.png", "b.png", "c.jpg"]
    reason = summary.of(FAILED)[0].reason or ""
    assert ("was changed since" if recorded else "not known to be made from this picture") in reason
    assert "--overwrite" in reason
    assert (album / "a.restored.png").read_text() == "precious"


def test_pictures_of_one_name_from_two_folders_both_have_an_output(pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    together = restore_all(pair, out)
    assert len({result.output for result in together.of(RESTORED)}) == 2
    assert names(restore_all(pair[::-1], out, load=never), SKIPPED) == ["IMG_0001.png"] * 2

    apart = tmp_path / "apart"
    for folder in pair:
        (result,) = restore_all([folder], apart).of(RESTORED)
        assert result.output is not None
        found, source = read_image(result.output).pixels, read_image(folder / "IMG_0001.png").pixels
        np.testing.assert_allclose(found, 1 - source, atol=0.51 / 255)
    before = contents(apart)
    for folder in pair:
        assert names(restore_all([folder], apart, load=never), SKIPPED) == ["IMG_0001.png"]
    assert contents(apart) == before


def test_side_pictures_that_are_missing_are_made(album: Path) -> None:
    restore_all([album])
    # Of both files, without restoring.
    summary = restore_all([album], side_pictures=["before_after"], load=never)
    assert names(summary, RESTORED) == ["a.png", "d.webp"]
    assert (album / "a.restored_before_after.png").is_file()
    before = contents(album)
    summary = restore_all([album], side_pictures=["before_after", "pose"])
    assert [result.reason for result in summary.of(RESTORED)] == ["side pictures were missing (pose)"] * 2
    after = contents(album)
    assert after["a.restored.png"] == before["a.restored.png"]
    assert "a.restored_pose.png" in after
    (album / "a.restored_pose.png").unlink()
    summary = restore_all([album], side_pictures=["before_after", "pose"])
    assert (names(summary, RESTORED), names(summary, SKIPPED)) == (["a.png"], ["d.webp"])


def test_a_side_picture_that_cannot_be_drawn_is_not_missing(album: Path) -> None:
    restore_all([album], side_pictures=["loss"])
    assert names(restore_all([album], side_pictures=["loss"], load=never), SKIPPED) == ["a.png", "d.webp"]


def test_side_pictures_of_another_result_are_removed(album: Path) -> None:
    restore_all([album], side_pictures=["before_after", "pose"])
    (album / "d.restored_pose.png").write_text("precious")
    restore_all([album], recipe=Recipe({"steps": 20}, "model", "1.0"))
    assert sorted(p.name for p in album.glob("*.restored_*")) == ["d.restored_pose.png"]
    assert (album / "d.restored_pose.png").read_text() == "precious"


def test_an_existing_side_picture_is_not_replaced(album: Path) -> None:
    existing = album / "a.restored_before_after.png"
    existing.write_text("precious")
    summary = restore_all([album], side_pictures=["before_after"])
    assert names(summary, FAILED) == ["a.png", "b.png", "c.jpg"]
    assert "--overwrite" in (summary.of(FAILED)[0].reason or "")
    assert existing.read_text() == "precious"
    assert not (album / "a.restored.png").exists()


def test_a_broken_record_is_passed_over_line_by_line(album: Path) -> None:
    restore_all([album])
    record = album / RECORD
    lines = record.read_bytes().splitlines(keepends=True)
    nonsense = b'\xff\n[1]\n{"output": "../a.png"}\n' + b"[" * 100_000 + b"\n"
    # The unfinished last line is what a killed process leaves.
    record.write_bytes(nonsense + lines[0] + nonsense + lines[1] + b'{"output": "d.rest')
    assert names(restore_all([album], load=never), SKIPPED) == ["a.png", "d.webp"]
    (album / "d.restored.png").unlink()
    restore_all([album])
    assert names(restore_all([album], load=never), SKIPPED) == ["a.png", "d.webp"]


def test_a_record_that_is_a_link_is_not_written_to(album: Path, tmp_path: Path) -> None:
    """Somebody else's folder may hold a link to a file that runs what is appended to it."""
    precious = tmp_path / "profile"
    precious.write_text("precious\n")
    (album / RECORD).symlink_to(precious)
    with pytest.raises(ImageError, match="is a link"):
        restore_all([album])
    assert precious.read_text() == "precious\n"
