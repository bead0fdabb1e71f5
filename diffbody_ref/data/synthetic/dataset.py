"""Folders of synthetic people for training.

DIR/dataset.json    version, seed, sizes, the range of identities, part names
DIR/metadata.jsonl  one line a picture, sorted by identity and view
DIR/images/000012_0.png, DIR/parts/000012_0.png
DIR/labels/000012.json  the identity's lines of metadata.jsonl, written once all of its pictures are
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diffbody_ref.ops import keypoints as kp
from diffbody_ref.ops.files import whole_file, write_whole
from diffbody_ref.ops.images import decode_labels, decode_levels
from diffbody_ref.ops.parts import PART_LABELS
from diffbody_ref.ops.progress import Progress

INDEX = "dataset.json"
VERSION = 2  # version of the pictures; increase it if the same seed gives other pictures


@dataclass(frozen=True)
class SynthesisReport:
    """The result of `synthesize`.

    Attributes:
        pictures: number of pictures in the folder.
        rendered: number of pictures rendered by this run.
        seconds: time of this run.
        pictures_per_second: rate of this run; 0 if nothing was rendered.
    """

    pictures: int
    rendered: int
    seconds: float
    pictures_per_second: float


@dataclass(frozen=True)
class _Job:
    """One identity to render; see `synthesize`."""

    out: Path
    identity: int
    views: int
    seed: int
    height: int
    width: int


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=4)


def _set_up_worker() -> None:
    import torch

    torch.set_num_threads(1)


def _render_identity(job: _Job) -> int:
    """Render all pictures of an identity and write its labels; returns the number of the identity."""
    from diffbody_ref.data.synthetic.render import render

    lines = []
    for view in range(job.views):
        picture = render(job.seed, job.identity, view, job.height, job.width)
        name = f"{job.identity:06d}_{view}.png"
        _write_picture(job.out / "images" / name, picture.image)
        _write_picture(job.out / "parts" / name, picture.parts)
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
    write_whole(job.out / "labels" / f"{job.identity:06d}.json", "\n".join(lines) + "\n")
    return job.identity


def check_set(out: Path, seed: int, height: int, width: int, views: int, first_identity: int) -> None:
    """Check that a rendered set in a folder, if there is one, is of these settings; it may have fewer or more people.

    Raises:
        ValueError: the folder holds another set; the message names what differs.
    """
    index = out / INDEX
    if not index.is_file():
        return
    try:
        old = dict(json.loads(index.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{index}: not the index of a rendered set: {error}; choose another folder") from None
    new = _header(seed, height, width, views, first_identity)
    changed = [f"{key} {old.get(key)} (now {new[key]})" for key in new if old.get(key) != new[key]]
    if changed:
        raise ValueError(f"{out} holds another set: {', '.join(changed)}; choose another folder")


def _header(seed: int, height: int, width: int, views: int, first_identity: int) -> dict[str, object]:
    """What all pictures of a set depend on."""
    header: dict[str, object] = {"version": VERSION, "seed": seed, "height": height, "width": width, "views": views}
    return header | {"first_identity": first_identity, "parts": list(PART_LABELS)}


def synthesize(
    out: Path,
    identities: int,
    views: int,
    seed: int,
    height: int = 256,
    width: int = 128,
    first_identity: int = 0,
    workers: int = 2,
    progress: Progress | None = None,
) -> SynthesisReport:
    """Render people into a folder; a second run resumes where an earlier one stopped, or adds identities.

    A picture depends only on (seed, identity, view) and the size, not on the number of workers.

    Args:
        out: the folder, created if needed.
        identities: number of people.
        views: number of pictures of each person.
        seed: seed of everything random.
        height: height of the pictures in pixels.
        width: width of the pictures in pixels.
        first_identity: number of the first person; the others have the following numbers.
        workers: number of processes; 1 renders in this process. More are spawned, so a script that calls this function
            needs the usual `if __name__ == "__main__":`.
        progress: called with (rendered pictures, all pictures, person that was rendered last).

    Raises:
        ValueError: a count is below 1, the first identity or the seed is negative, a size is below 16 pixels, or the
            folder contains a set with other settings.
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
    common = {"seed": seed, "height": height, "width": width, "views": views, "first_identity": first_identity}
    check_set(out, **common)
    _require_packages()  # before there is a folder
    for folder in ("images", "parts", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_whole(out / INDEX, json.dumps({**_header(**common), "identities": identities}, indent=2) + "\n")
    numbers = range(first_identity, first_identity + identities)
    missing = [n for n in numbers if not (out / "labels" / f"{n:06d}.json").is_file()]
    jobs = [_Job(out, n, views, seed, height, width) for n in missing]
    start = time.perf_counter()
    done, total = (identities - len(jobs)) * views, identities * views
    for identity in _run(jobs, workers):
        done += views
        if progress is not None:
            progress(done, total, f"person {identity}")
    seconds = time.perf_counter() - start
    write_whole(out / "metadata.jsonl", "".join((out / "labels" / f"{n:06d}.json").read_text() for n in numbers))
    rendered = len(jobs) * views
    return SynthesisReport(total, rendered, seconds, rendered / seconds if rendered else 0.0)


def _require_packages() -> None:
    """Check that what renders is installed.

    Raises:
        ModuleNotFoundError: a package is missing.
    """
    for package in ("anny", "warp", "scipy"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"the package {package} is not installed", name=package)


def _run(jobs: list[_Job], workers: int) -> Iterator[int]:
    """Render the identities by `workers` processes, and yield their numbers as they are done."""
    if workers == 1 or len(jobs) < 2:
        yield from map(_render_identity, jobs)
        return
    # The first job runs in this process: anny and warp fill their caches on disk, which otherwise all workers would do.
    yield _render_identity(jobs[0])
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs) - 1), _set_up_worker) as pool:
        yield from pool.imap_unordered(_render_identity, jobs[1:])


_PART_COLOURS = np.array([(0, 0, 0), (230, 60, 60), (60, 200, 60), (80, 90, 250), (240, 220, 60), (230, 60, 230)])


def check_sheet(path: Path) -> None:
    """Check that a contact sheet can be written.

    Raises:
        ValueError: its name ends in neither .png nor .jpg, or its folder does not exist.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"contact sheet {path}: its name must end in .png or .jpg")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"contact sheet {path}: there is no folder {path.absolute().parent}")


def contact_sheet(dataset_dir: Path, out: Path, count: int, scale: int = 2, columns: int = 8) -> None:
    """Write a sheet of pictures spread evenly over a set, with their labels below them.

    Parts are coloured. Keypoints are filled if they are visible, red on the person's left and blue on their right.

    Args:
        dataset_dir: folder of the set.
        out: file of the sheet, .png or .jpg.
        count: number of pictures; fewer if the set has fewer.
        scale: enlargement of the pictures.
        columns: pictures per row.

    Raises:
        ValueError: count is below 1, or see `check_sheet`.
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
    with whole_file(out) as temporary:
        sheet.save(temporary, format="PNG" if out.suffix.lower() == ".png" else "JPEG", quality=80)


def _tile(folder: Path, record: dict, scale: int) -> Image.Image:
    """A picture of the sheet, with its labels below it."""
    image = Image.fromarray(decode_levels((folder / record["image"]).read_bytes(), f"{folder}/{record['image']}"))
    parts = decode_labels((folder / record["parts"]).read_bytes(), f"{folder}/{record['parts']}")
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
