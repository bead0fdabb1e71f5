"""The cleaning protocol: each phase alone, the folder it leaves, interruption, and inspection."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbody import cli
from diffbody_ref.data.cleaning.phases import (
    CleanConfig,
    Dropped,
    Kept,
    crop_person,
    crop_window,
    detect,
    examine,
    screen,
)
from diffbody_ref.data.cleaning.protocol import apply_review, clean
from diffbody_ref.data.cleaning.review import CELL, PER_SHEET, draw_sheet, sheet_name
from diffbody_ref.data.datasets import PeopleFolder
from diffbody_ref.data.journal import Journal
from diffbody_ref.data.parallel import map_in_order
from diffbody_ref.data.readers import open_folder
from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.images import decode_levels
from diffbody_ref.ops.keypoints import BODY
from tests.test_datasets import png, save
from tests.waiting import HANG, wait_until

SAMPLES = Path(__file__).parent.parent / "samples" / "clean"
CONFIG = CleanConfig()


def figure(height: int = 400, width: int = 300, left: int = 120, top: int = 80, tall: int = 240) -> np.ndarray:
    """A white person-sized bar on noise of its own (so that no two are equal)."""
    rng = np.random.default_rng([height, width, left, top, tall])
    picture = rng.integers(0, 60, (height, width, 3), np.uint8)
    picture[top : top + tall, left : left + tall // 4] = 255
    return picture


def find_figure(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the bar of `figure`: a true detector, so that sizes and places are those of the pixels that it is given."""
    rows, columns = np.nonzero(pixels.min(axis=2) > 0.6)
    if not len(rows):
        return np.zeros((0, 5), np.float32), np.zeros((0, 133, 3), np.float32)
    box = [columns.min(), rows.min(), columns.max(), rows.max(), 0.9]
    keypoints = np.ones((1, 133, 3), np.float32)
    keypoints[0, BODY, 0] = (box[0] + box[2]) / 2
    keypoints[0, BODY, 1] = np.linspace(box[1], box[3], 17)
    return np.array([box], np.float32), keypoints


def write_source(folder: Path) -> Path:
    """Pictures of all fates, with names that repeat."""
    for i in range(3):
        save(folder / "a" / f"{i}.png", figure(left=100 + 10 * i))
        save(folder / "b" / f"{i}.png", figure(top=60 + 10 * i))
    Image.fromarray(figure(left=50)).save(folder / "a" / "0.jpg")  # a stem that is there already
    save(folder / "copy.png", figure(left=100))
    save(folder / "empty.png", np.zeros((300, 300, 3), np.uint8))
    save(folder / "far.png", figure(tall=60))
    (folder / "broken.png").write_bytes(png(figure())[:3000])
    (folder / "a" / "2.txt").write_text("a white bar")
    return folder


def run(source: Path, out: Path, **more: object) -> list[str]:
    """Clean, and the names that are kept."""
    report = clean(open_folder(source), str(source), out, lambda: find_figure, CONFIG, **more)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert report.kept == len(rows)
    return [row["source"] for row in rows]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("box", "whole"),
    [
        ((100, 100, 159, 299), True),  # in the middle of much room
        ((0, 0, 59, 199), True),  # in a corner
        ((339, 179, 399, 299), True),  # in the other one
        ((10, 150, 389, 199), False),  # wider than a window can be here
        ((50, 0, 350, 299), False),  # as high as the picture, and wide
    ],
)
def test_window_has_the_format_and_lies_inside(box: tuple[int, ...], whole: bool) -> None:
    window = crop_window(np.array(box, np.float32), (300, 400), CONFIG)
    assert window.height == pytest.approx(2 * window.width)
    assert window.left >= 0
    assert window.top >= 0
    assert window.left + window.width <= 400 + 1e-6
    assert window.top + window.height <= 300 + 1e-6
    holds = (
        window.left <= box[0]
        and window.top <= box[1]
        and window.left + window.width > box[2]
        and window.top + window.height > box[3]
    )
    assert holds == whole


def test_window_has_the_person_in_its_middle() -> None:
    window = crop_window(np.array([480, 400, 519, 599], np.float32), (1000, 1000), CONFIG)
    assert window.height == pytest.approx(200 * 1.16)  # the box is 200 pixels high, 8 % margin on both sides
    assert (window.left + window.width / 2, window.top + window.height / 2) == pytest.approx((500, 500))


def test_window_keeps_the_head_where_not_all_fits() -> None:
    """A person who leans far to the side is wider than high: the window is cut at the picture's height."""
    window = crop_window(np.array([0, 100, 299, 999], np.float32), (1000, 300), CONFIG)
    assert window.height == 600  # of the width 300
    assert window.top == pytest.approx(100 - 0.08 * 900)


def test_the_box_is_where_the_person_is_in_the_result() -> None:
    picture = figure(800, 900, 400, 200, 480)
    kept = examine(png(picture), find_figure, CONFIG)
    assert isinstance(kept, Kept)
    result = decode_levels(kept.data, "result")
    assert result.shape == (256, 128, 3)
    boxes, _ = find_figure(result.astype(np.float32) / 255)
    # The filter smears the bar's edges by up to a pixel.
    assert boxes[0, :4] == pytest.approx(kept.box, abs=1.0)
    assert (kept.box[0] + kept.box[2]) / 2 == pytest.approx(63.5, abs=0.6)
    assert kept.size == (800, 900)
    assert kept.enlargement == pytest.approx(256 / (480 * 1.16), abs=0.001)


def test_large_pictures_are_searched_small_and_cut_large() -> None:
    sides = []

    def find(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sides.append(max(pixels.shape))
        return find_figure(pixels)

    picture = figure(5000, 4000, 2000, 1000, 2400)
    found = detect(picture, find, CONFIG)
    assert not isinstance(found, Dropped)
    assert sides == [1024]
    # One pixel of the small picture is five of the large one.
    assert found[0][:4] == pytest.approx([2000, 1000, 2599, 3399], abs=5)


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be large, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "unreadable", "not a picture"),
        (b"<html>", "unreadable", "not a picture"),
        (png(figure())[:3000], "unreadable", "truncated"),
        (bomb(60_000, 60_000), "unreadable", "too large"),
        (png(np.zeros((400, 90, 3), np.uint8)), "too narrow", "90x400"),
        (png(np.zeros((200, 300, 3), np.uint8)), "too small", "enlarged 1.28 times"),  # 256 / 200
        (png(np.zeros((400, 100, 3), np.uint8)), "too small", "enlarged 1.28 times"),  # 128 / 100
    ],
)
def test_screen_drops(data: bytes, reason: str, detail: str) -> None:
    dropped = screen(data, CONFIG)
    assert isinstance(dropped, Dropped)
    assert (dropped.phase, dropped.reason) == ("screen", reason)
    assert detail in dropped.detail


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "RGBA", "1"])
def test_screen_takes_every_colour_mode(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(figure()).convert(mode).save(path)
    screened = screen(path.read_bytes(), CONFIG)
    assert isinstance(screened, np.ndarray)
    assert screened.shape == (400, 300, 3)


def test_a_turned_picture_is_cut_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(figure())).save(tmp_path / "a.png", exif=exif)
    turned = examine((tmp_path / "a.png").read_bytes(), find_figure, CONFIG)
    upright = examine(png(figure()), find_figure, CONFIG)
    assert isinstance(turned, Kept)
    assert turned == upright


def test_too_little_of_the_person() -> None:
    picture = figure()
    boxes, keypoints = find_figure(picture.astype(np.float32) / 255)
    keypoints[0, 10:17, 2] = 0.1  # seven of 17 are not seen: 10 are fewer than 0.6·17
    dropped = crop_person(picture, boxes[0], keypoints[0], CONFIG)
    assert dropped == Dropped("crop", "too little of the person", "10 of 17 body joints seen")
    keypoints[0, 10, 2] = 0.3
    assert isinstance(crop_person(picture, boxes[0], keypoints[0], CONFIG), Kept)


def test_a_whole_set(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    assert run(source, out) == ["copy.png", "a/0.jpg", "a/1.png", "a/2.png", "b/0.png", "b/1.png"]
    report = json.loads((out / "report.json").read_text())
    counts = {phase["phase"]: (phase["pictures"], phase["reasons"]) for phase in report["phases"]}
    assert counts["screen"] == (11, {"duplicate": 2, "unreadable": 1})
    assert counts["detect"] == (8, {"nobody": 1})
    assert counts["crop"] == (7, {"person too small": 1})
    assert counts["inspect"] == (6, {})
    assert "| screen | 11 | 3 | 8 |" in (out / "report.md").read_text()
    with (out / "dropped.tsv").open() as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == 5
    people = PeopleFolder([out])
    assert len(people) == 6
    assert {people[i].picture.shape for i in range(6)} == {(256, 128, 3)}
    assert [people.caption(i) for i in range(6)].count("a white bar") == 1


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    run(source, tmp_path / "one", workers=1)
    run(source, tmp_path / "four", workers=4)
    assert tree(tmp_path / "one") == tree(tmp_path / "four")


def test_a_second_run_does_nothing_again_and_takes_what_is_new(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    names, before = run(source, out), tree(out)

    def never() -> None:
        raise AssertionError("nobody is looked for where nothing is new")

    clean(open_folder(source), str(source), out, never, CONFIG)  # type: ignore[arg-type]
    assert tree(out) == before
    save(source / "a" / "00.png", figure(left=10))  # in the middle of the order
    assert run(source, out) == [*names, "a/00.png"]
    sheets = [path.name for path in (out / "sheets").iterdir()]
    assert sheets == ["000001-000007.jpg"]  # the one of six pictures is gone


def test_another_picture_under_the_same_name_is_examined_anew(tmp_path: Path) -> None:
    """It gets a file of its own, so that a decision about the one before, or its caption, does not pass to it."""
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    names = run(source, out)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    old = next(row["file_name"] for row in lines if row["source"] == "copy.png")
    edit(out, {"copy.png": "blurred"})
    sheet = (out / "sheets" / "000001-000006.jpg").read_bytes()
    assert "copy.png" not in run(source, out)
    save(source / "copy.png", figure(left=30))
    assert sorted(run(source, out)) == sorted([*names, "a/0.png"])  # no duplicate of it any more
    assert not (out / old).exists()
    assert len(PeopleFolder([out])) == 7
    assert (out / "sheets" / "000001-000007.jpg").read_bytes() != sheet
    before = tree(out)
    save(source / "copy.png", figure(left=30, top=90))
    run(source, out)
    assert (out / "sheets" / "000001-000007.jpg").read_bytes() != before["sheets/000001-000007.jpg"]


def test_labels_come_with_the_pictures(tmp_path: Path) -> None:
    save(tmp_path / "m" / "bounding_box_train" / "0002_c1s1_000451_03.jpg", figure())
    save(tmp_path / "m" / "bounding_box_train" / "0009_c4s1_000451_03.jpg", figure(left=50))
    run(tmp_path / "m", tmp_path / "out")
    reader = open_folder(tmp_path / "out")
    assert [reader.entry(i).identity for i in range(2)] == [2, 9]
    assert reader.labels == {"identity"}


def edit(out: Path, drop: dict[str, str], style: str = "plain") -> None:
    """What a person does to review.tsv: `drop` is note by source."""
    with (out / "review.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        if row["source"] in drop:
            row["decision"], row["note"] = "Drop ", drop[row["source"]]
    encoding, end = ("utf-8-sig", "\r\n") if style == "spreadsheet" else ("utf-8", "\n")
    quoting = csv.QUOTE_ALL if style == "spreadsheet" else csv.QUOTE_MINIMAL
    with (out / "review.tsv").open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t", lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("style", ["plain", "spreadsheet"])
def test_inspection(style: str, tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    names = run(source, out)
    rows = [json.loads(line) | {"text": "added later"} for line in (out / "metadata.jsonl").read_text().splitlines()]
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    edit(out, {"a/1.png": 'a "bar"', "b/0.png": ""}, style)
    report = apply_review(out)
    assert report.phases[-1].reasons == {'a "bar"': 1, "by eye": 1}
    assert run(source, out) == [name for name in names if name not in ("a/1.png", "b/0.png")]
    people = PeopleFolder([out])
    assert {people.caption(i) for i in range(len(people))} == {"added later"}  # captions are not lost
    text = (out / "review.tsv").read_text()
    assert text.count("\tdrop\t") == 2  # decisions stay in the list
    (out / "review.tsv").write_text(text.replace("drop\t", "keep\t"))
    apply_review(out)
    assert len(PeopleFolder([out])) == len(names)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep\t", "maybe\t", r"review\.tsv, line 2: decision is 'maybe'; it must be keep or drop"),
        ("decision", "what", r"review\.tsv: has no column 'decision'"),
        ("\t", ";", r"review\.tsv: has no column '\w+'; its columns must be separated by tabs"),
    ],
)
def test_mistakes_in_the_list_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    run(source, out)
    (out / "review.tsv").write_text((out / "review.tsv").read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        apply_review(out)


def test_other_settings_and_other_folders_are_refused(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    run(source, out)
    with pytest.raises(ValueError, match=r"holds another cleaning: margin 0\.08 \(now 0\.2\); choose another"):
        clean(open_folder(source), str(source), out, lambda: find_figure, CleanConfig(margin=0.2))
    with pytest.raises(ValueError, match="source: is not empty"):
        run(source, source)
    with pytest.raises(FileNotFoundError, match="not a folder made by `diffbody clean`"):
        apply_review(source)


def test_an_unfinished_set_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"

    def stop(done: int, total: int, name: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, out, progress=stop)
    assert any((out / "images").iterdir())
    with pytest.raises(ValueError, match="holds no pictures"):
        PeopleFolder([out])
    run(source, out)
    run(source, tmp_path / "straight")
    assert tree(out) == tree(tmp_path / "straight")


def test_sheets_are_named_by_their_numbers(tmp_path: Path) -> None:
    assert sheet_name(0, 3) == "sheets/000001-000003.jpg"
    assert sheet_name(PER_SHEET, 2 * PER_SHEET) == f"sheets/{PER_SHEET + 1:06d}-{2 * PER_SHEET:06d}.jpg"
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (128, 256), colour).save(path)
    sheet = np.asarray(draw_sheet(paths, 1))
    places = [np.nonzero((sheet == colour).all(axis=2)) for colour in colours]
    assert [len(rows) for rows, _ in places] == [CELL * CELL // 2] * 3  # each whole
    assert [columns.min() for _, columns in places] == sorted(columns.min() for _, columns in places)


def test_a_journal_survives_a_cut_and_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": "\xc3')
    with Journal(path) as journal:
        assert journal.records == [{"a": 1}, {"a": 2}]
        journal.append({"a": "ü"})
        with pytest.raises(ValueError, match="another process is working"), Journal(path):
            pass
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": "ü"}\n'
    path.write_text("not JSON\n")
    with pytest.raises(ValueError, match="not a journal"), Journal(path):
        pass


def test_write_whole_leaves_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "b.txt", "one")
    write_whole(tmp_path / "b.txt", b"two")
    assert tree(tmp_path) == {"b.txt": b"two"}


def test_map_in_order_is_lazy_and_ordered() -> None:
    """Of each two items the second is done first."""
    taken = []
    done = [threading.Event() for _ in range(100)]

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        assert i % 2 or done[i + 1].wait(HANG)
        done[i].set()
        return i

    results = map_in_order(work, items(), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) <= 3 + 2 * 2 + 1
    assert list(results) == list(range(3, 100))


def write_people_pictures(folder: Path, count: int) -> Path:
    """Pictures of one synthetic person, each moved by some pixels, on grey."""
    person = Image.open(SAMPLES / "synthetic_1.jpg").resize((192, 384))
    folder.mkdir()
    for i in range(count):
        picture = Image.new("RGB", (320, 400), (90, 95, 100))
        picture.paste(person, (10 + 2 * i, 5))
        picture.save(folder / f"{i:03d}.png")
    return folder


def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """The command with nano's networks: kill -9 in the middle, run again; the same files as without."""
    source, out = write_people_pictures(tmp_path / "source", 50), tmp_path / "out"
    command = [sys.executable, "-m", "diffbody", "clean", str(source), str(out)]
    log = out / "cleaning" / "log.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: log.is_file() and log.read_bytes().count(b"\n") >= 3, while_true=lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = log.read_bytes().count(b"\n")
    assert 3 <= done < 50
    with log.open("ab") as file:
        file.write(b'{"name": "half a li')  # what a kill in the middle of a line leaves
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    straight = [sys.executable, "-m", "diffbody", "clean", str(source), str(tmp_path / "straight"), "--workers", "1"]
    subprocess.run(straight, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert tree(out) == tree(tmp_path / "straight")
    assert len(PeopleFolder([out])) > 20  # nano knows this person wherever they stand


def test_networks_and_graphs_keep_the_same_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_people_pictures(tmp_path / "source", 1)
    boxes = []
    for name, how in (("graphs", []), ("networks", ["--model", "nano", "--device", "cpu"])):
        with pytest.raises(SystemExit) as stop:
            cli.main(["clean", str(source), str(tmp_path / name), *how])
        assert stop.value.code == 0
        boxes.append(json.loads((tmp_path / name / "metadata.jsonl").read_text())["box"])
    # Graphs and networks differ in the order of sums; a box is written to a tenth of a pixel.
    assert boxes[0] == pytest.approx(boxes[1], abs=0.2)
    assert "inspect: 1 of 1 left" in capsys.readouterr().out


def test_command_line_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_people_pictures(tmp_path / "source", 1)
    for arguments, message in (
        ([source], "OUT is missing"),
        ([source, tmp_path / "out", "--height", "3"], "height is 3; it must be 16 to 8192"),
        ([source, tmp_path / "out", "--format", "gif"], "'gif' is not one of 'png', 'jpg', 'webp'"),
        ([tmp_path / "none", tmp_path / "out"], "none: no such folder of pictures"),
        (["--apply", source], "not a folder made by `diffbody clean`"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["clean", *map(str, arguments)])
        error = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2
        assert message in error
