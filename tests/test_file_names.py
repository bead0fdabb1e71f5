"""Which files are taken, what is left out, and what outputs are called."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from diffbody.files import (
    FAILED,
    RESTORED,
    SKIPPED,
    Job,
    collect,
    left_out_lines,
    plan,
    run,
)
from diffbody.files.names import LONGEST_NAME, folder_name, output_name
from diffbody_ref.ops.images import ImageError, write_image
from tests.runs import RECIPE, contents, load_invert, names, never, restore_all

# Names.


def test_our_own_outputs_are_no_inputs(photo: Path) -> None:
    restore_all([photo], side_pictures=["before_after"])
    assert photo.with_name("photo.restored_before_after.png").is_file()
    assert [source.path for source in collect([photo.parent]).sources] == [photo]


def test_outputs_go_to_a_folder_that_is_made(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er"
    planned = plan([album], out)
    assert not out.exists()
    run(planned, load_invert, lambda: RECIPE)
    assert sorted(contents(out)) == ["a.restored.png", "d.restored.png"]


def test_pictures_that_differ_in_suffix_only_all_have_a_place(photo: Path, pixels: np.ndarray) -> None:
    write_image(photo.with_suffix(".jpg"), pixels)
    jobs = {job.source.name: job.target.name for job in plan([photo.parent]).jobs}
    assert jobs == {"photo.jpg": "photo.jpg.restored.png", "photo.png": "photo.png.restored.png"}
    write_image(photo.with_name("photo.jpg.png"), pixels)
    write_image(photo.with_name("PHOTO.jpg"), pixels)
    targets = [job.target.name for job in plan([photo.parent]).jobs]
    # Also where case does not count, as on Windows and macOS.
    assert len({target.casefold() for target in targets}) == 4


def test_an_output_never_takes_the_name_of_an_input(photo: Path, pixels: np.ndarray) -> None:
    other = photo.with_name("photo.restored.png")
    write_image(other, pixels)
    planned = plan([photo, other])
    assert {job.target for job in planned.jobs}.isdisjoint({photo, other})


def test_a_picture_keeps_the_name_of_its_output(album: Path, pixels: np.ndarray) -> None:
    restore_all([album])
    write_image(album / "a.jpg", pixels / 2)
    summary = restore_all([album])
    assert names(summary, SKIPPED) == ["a.png", "d.webp"]
    assert [result.output for result in summary.of(RESTORED)] == [album / "a.jpg.restored.png"]


NAMES = [
    "Ünïcödé фото 写真 😀.png",
    "it's [bold]red[bold] %s {x}.png",
    "C:\\photos\\me.png",
    "dot..png",
    "new\nline.png",
    "CON.png",
    "aux .png",
    os.fsdecode(b"latin1_\xe9.png"),
    "l" * 251 + ".png",
    "é" * 125 + ".png",
]
RESERVED = re.compile(r'[\x00-\x1f<>:"/\\|?*]')


def test_any_name_is_restored(tmp_path: Path, photo: Path) -> None:
    folder, out = tmp_path / "odd", tmp_path / "out"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "link.png").symlink_to(photo)
    summary = restore_all([folder], out, side_pictures=["before_after"])
    assert len(summary.of(RESTORED)) == len(NAMES) + 1
    assert summary.of(FAILED) == []
    written = sorted(contents(out))
    assert len(written) == 2 * (len(NAMES) + 1)
    for name in written:
        # What any system can hold: UTF-8, no reserved character, no name of a device.
        assert len(name.encode()) <= LONGEST_NAME
        assert not RESERVED.search(name)
        assert name.partition(".")[0].strip().upper() not in ("CON", "AUX")
    assert len(restore_all([folder], out, side_pictures=["before_after"], load=never).of(SKIPPED)) == len(NAMES) + 1


def test_a_name_is_no_longer_than_the_file_system_allows() -> None:
    for longest in (143, 255):  # 143 is eCryptfs's
        for level in (0, 1, 2):
            name = output_name("写" * 80 + ".jpg", level, ".webp", longest)
            side = name.removesuffix(".webp") + "_before_after.png"
            assert max(len(name.encode()), len(side.encode())) <= longest
    assert folder_name("a:b") != folder_name("a_b") == "a_b"


def test_an_input_named_twice_is_done_once(photo: Path) -> None:
    inside = photo.parent / ".." / photo.parent.name / photo.name
    assert [job.source for job in plan([photo, photo.parent, inside]).jobs] == [photo]


def test_one_picture_may_be_given_its_output_file(photo: Path, tmp_path: Path) -> None:
    assert plan([photo], tmp_path / "x.jpg").jobs == [Job(photo, tmp_path / "x.jpg")]


# What is found, and what is left out.


@pytest.fixture
def nest(tmp_path: Path, pixels: np.ndarray) -> Path:
    """A folder of one picture, and one thing of every kind that is left out."""
    folder = tmp_path / "nest"
    (folder / "sub" / "a:b").mkdir(parents=True)
    write_image(folder / "top.png", pixels)
    write_image(folder / "sub" / "inner.png", pixels)
    write_image(folder / "sub" / "a:b" / "deep.png", pixels)
    (folder / "download").write_bytes((folder / "top.png").read_bytes())
    write_image(folder / "old.restored.png", pixels)
    write_image(folder / ".hidden.png", pixels)
    (folder / "notes.txt").write_text("no picture")
    (folder / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "circle").symlink_to(folder)
    return folder


def test_what_is_left_out_is_counted_by_kind(nest: Path) -> None:
    found = collect([nest])
    assert [source.path.name for source in found.sources] == ["top.png"]
    assert left_out_lines(found.left_out) == [
        "1 sub-folder (--recursive takes them in)",
        "1 link to a folder (a folder that is named is taken)",
        "1 picture of an unknown suffix: no suffix (a file that is named is taken)",
        "1 dead link",
        "1 hidden file or folder",
        "1 output of an earlier run",
        "1 file that is no picture: .txt",
    ]


def test_sub_folders_are_taken_where_that_is_asked_for(nest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = restore_all([nest], out, recursive=True)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert found == [f"sub/{folder_name('a:b')}/deep.restored.png", "sub/inner.restored.png", "top.restored.png"]
    assert len(summary.of(RESTORED)) == 3
    assert len(restore_all([nest], out, recursive=True, load=never).of(SKIPPED)) == 3
    # Beside the inputs, and in a folder among them.
    assert len(restore_all([nest], recursive=True).of(RESTORED)) == 3
    assert len(restore_all([nest], nest / "made", recursive=True).of(RESTORED)) == 3
    assert len(restore_all([nest], nest / "made", recursive=True, load=never).of(SKIPPED)) == 3


def test_of_several_inputs_the_bad_ones_fail_alone(album: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    dead = tmp_path / "dead.png"
    dead.symlink_to(tmp_path / "nowhere")
    summary = restore_all([tmp_path / "missing.png", empty, dead, album / "a.png"], tmp_path / "out")
    assert names(summary, FAILED) == ["missing.png", "empty", "dead.png"]
    assert names(summary, RESTORED) == ["a.png"]
    with pytest.raises(ImageError, match="no such file"):
        plan([tmp_path / "missing.png", empty])
