"""Folders of synthetic people for training.

DIR/dataset.json    version, seed, sizes, the range of identities, part names
DIR/metadata.jsonl  one line a picture, sorted by identity and view
DIR/images/000012_0.png, DIR/parts/000012_0.png
DIR/labels/000012.json  the identity's lines of metadata.jsonl; there once all of its pictures are
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diffbody_ref.ops import keypoints as kp
from diffbody_ref.ops.parts import PART_LABELS

VERSION = 2  # of the pictures: raise it where the same seed gives others


@dataclass(frozen=True)
class SynthesisReport:
    """What `synthesize` did: pictures in the folder, how many were rendered now, in what time, and the rate."""

    pictures: int
    rendered: int
    seconds: float
    pictures_per_second: float


@dataclass(frozen=True)
class _Job:
    out: Path
    identity: int
    views: int
    seed: int
    height: int
    width: int


def _write(path: Path, text: str) -> None:
    """All of the file or none of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)


def _save_picture(path: Path, pixels: np.ndarray) -> None:
    scratch = path.with_name(f".{path.name}")
    Image.fromarray(pixels).save(scratch, format="PNG", compress_level=4)
    scratch.replace(path)


def _setup() -> None:
    import torch

    torch.set_num_threads(1)


def _render_identity(job: _Job) -> int:
    from diffbody_ref.data.synthetic.render import render

    lines = []
    for view in range(job.views):
        picture = render(job.seed, job.identity, view, job.height, job.width)
        name = f"{job.identity:06d}_{view}.png"
        _save_picture(job.out / "images" / name, picture.image)
        _save_picture(job.out / "parts" / name, picture.parts)
        record = {
            "image": f"images/{name}",
            "parts": f"parts/{name}",
            "identity": job.identity,
            "view": view,
            "caption": picture.caption,
            "keypoints": [[round(float(x), 2), round(float(y), 2), int(v)] for x, y, v in picture.keypoints],
            "box": [float(side) for side in picture.box],
        }
        lines.append(json.dumps(record))
    _write(job.out / "labels" / f"{job.identity:06d}.json", "\n".join(lines) + "\n")
    return job.views


def _prepare(out: Path, header: dict[str, object]) -> None:
    for folder in ("images", "parts", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    index = out / "dataset.json"
    if index.is_file():
        old = json.loads(index.read_text())
        same = [key for key in header if key != "identities"]  # a set may grow
        changed = [f"{key} {old.get(key)} (now {header[key]})" for key in same if old.get(key) != header[key]]
        if changed:
            raise ValueError(f"{out} holds another set: {', '.join(changed)}; choose another folder")
    _write(index, json.dumps(header, indent=2) + "\n")


def synthesize(
    out: Path,
    identities: int,
    views: int,
    seed: int,
    height: int = 256,
    width: int = 128,
    first_identity: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> SynthesisReport:
    """Render people into a folder; a second run goes on where an earlier one stopped, or adds identities.

    A picture depends on (seed, identity, view) and the size only, whatever the number of workers.

    Args:
        out: the folder, made if need be.
        identities, views: how many people, numbered from `first_identity`, and pictures of each.
        workers: processes; 1 renders in this one. More are spawned, so a script that calls this needs the usual
            `if __name__ == "__main__":`.
        progress: called with (pictures done, pictures in all).

    Raises:
        ValueError: a count below 1, a negative first identity or seed, a size below 16 pixels, or a folder with a
            set of other settings.
    """
    for name, value, low in (
        ("identities", identities, 1),
        ("views", views, 1),
        ("workers", workers, 1),
        ("height", height, 16),
        ("width", width, 16),
        ("first_identity", first_identity, 0),
        ("seed", seed, 0),
    ):
        if value < low:
            raise ValueError(f"{name} is {value}; it must be at least {low}")
    header: dict[str, object] = {"version": VERSION, "seed": seed, "height": height, "width": width, "views": views}
    header |= {"first_identity": first_identity, "identities": identities, "parts": list(PART_LABELS)}
    _prepare(out, header)
    numbers = range(first_identity, first_identity + identities)
    missing = [n for n in numbers if not (out / "labels" / f"{n:06d}.json").is_file()]
    jobs = [_Job(out, n, views, seed, height, width) for n in missing]
    start = time.perf_counter()
    done, total = (identities - len(jobs)) * views, identities * views
    for count in _run(jobs, workers):
        done += count
        if progress is not None:
            progress(done, total)
    seconds = time.perf_counter() - start
    _write(out / "metadata.jsonl", "".join((out / "labels" / f"{n:06d}.json").read_text() for n in numbers))
    rendered = len(jobs) * views
    return SynthesisReport(total, rendered, seconds, rendered / seconds if rendered else 0.0)


def _run(jobs: list[_Job], workers: int) -> Iterator[int]:
    if workers == 1 or len(jobs) < 2:
        yield from map(_render_identity, jobs)
        return
    # The first one here: anny and warp fill their caches on disk, which several processes at once would all do.
    yield _render_identity(jobs[0])
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs) - 1), _setup) as pool:
        yield from pool.imap_unordered(_render_identity, jobs[1:])


_PART_COLOURS = np.array([(0, 0, 0), (230, 60, 60), (60, 200, 60), (80, 90, 250), (240, 220, 60), (230, 60, 230)])


def check_sheet(path: Path) -> None:
    """Raises ValueError where a contact sheet cannot be written: its name ends in neither .png nor .jpg."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"contact sheet {path}: its name must end in .png or .jpg")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"contact sheet {path}: there is no folder {path.absolute().parent}")


def contact_sheet(dataset_dir: Path, out: Path, count: int, scale: int = 2, columns: int = 8) -> None:
    """Pictures spread over a folder with their labels below them: parts in colours, keypoints filled where visible
    (red: the person's left, blue: right). Fewer than `count` where the folder has fewer.

    Raises:
        ValueError: count below 1, or see `check_sheet`.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    check_sheet(out)
    records = [json.loads(line) for line in (dataset_dir / "metadata.jsonl").read_text().splitlines()]
    chosen = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, count).astype(int))]
    tiles = [_tile(dataset_dir, record, scale) for record in chosen]
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    scratch = out.with_name(f".{out.name}")
    sheet.save(scratch, format="PNG" if out.suffix.lower() == ".png" else "JPEG", quality=80)
    scratch.replace(out)


def _tile(folder: Path, record: dict, scale: int) -> Image.Image:
    image = Image.open(folder / record["image"]).convert("RGB")
    parts = np.asarray(Image.open(folder / record["parts"]))
    width, height = image.width * scale, image.height * scale
    tinted = Image.fromarray((0.5 * np.asarray(image) + 0.5 * _PART_COLOURS[parts]).astype(np.uint8))
    labels = tinted.resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(labels)
    for name, (x, y, seen) in zip(kp.NAMES, record["keypoints"], strict=True):
        colour = "red" if name.startswith("left") else "blue" if name.startswith("right") else "white"
        radius = 1 if "face" in name or name[-1].isdigit() else 3
        spot = [
            (x + 0.5) * scale - radius,
            (y + 0.5) * scale - radius,
            (x + 0.5) * scale + radius,
            (y + 0.5) * scale + radius,
        ]
        if seen:
            draw.ellipse(spot, fill=colour if seen == 2 else None, outline=colour)
    tile = Image.new("RGB", (width, 2 * height))
    tile.paste(image.resize((width, height), Image.Resampling.LANCZOS), (0, 0))
    tile.paste(labels, (0, height))
    return tile
