"""Picture files through any way to restore: which files, where to, what is done already, and what failed.

A restored `NAME.jpg` is called `NAME.restored.png`. Side pictures, such as one of before and after, are named after it:
`NAME.restored_before_after.png`. Names of this form are our own outputs and never taken as inputs from a folder.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffbody_ref.ops.images import ImageError, ImageExistsError, Picture, read_image, write_image

INPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
OUTPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MARK = ".restored"

# What can be wrong with one picture while the others go on: its file, its size (memory, also a GPU's, which comes as a
# RuntimeError), a value. Anything else is a mistake in the program and ends the run.
PICTURE_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Job:
    """One picture to restore. A job is done when its target exists."""

    source: Path
    target: Path

    def side_picture(self, name: str) -> Path:
        """`photo.restored.png` → `photo.restored_NAME.png`."""
        return self.target.with_name(f"{self.target.stem}_{name}.png")


@dataclass(frozen=True)
class Output:
    """What is written for one picture, and said of it.

    Attributes:
        picture: the restored picture.
        side_pictures: by name, float (H, W, 3) in [0, 1].
        notices: what the person who asked should know, a line each.
    """

    picture: Picture
    side_pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Failure:
    """A picture that could not be restored, and why, in one line that names the file."""

    source: Path
    reason: str


@dataclass
class Summary:
    """What became of the jobs, each list in the order of the inputs.

    Attributes:
        written: jobs whose target was written.
        skipped: jobs whose target existed.
        failed: pictures that could not be restored.
        notices: by source.
    """

    written: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    notices: dict[Path, Sequence[str]] = field(default_factory=dict)


RestoreFile = Callable[[Picture, Job], Output]


def collect(inputs: Sequence[Path]) -> list[Path]:
    """The picture files that the inputs name, without repetition.

    A file is taken as it is, whatever its suffix; of a folder, the pictures directly in it, by name, without hidden
    files and our own outputs.

    Raises:
        ImageError: an input does not exist, or a folder holds no pictures.
    """
    found: dict[Path, None] = {}
    for path in inputs:
        if not path.is_dir():
            if not path.exists():
                raise ImageError(f"{path}: no such file or folder")
            found[path] = None
            continue
        pictures = sorted(file for file in path.iterdir() if _is_input(file))
        if not pictures:
            raise ImageError(f"{path}: no pictures in this folder (looked for {', '.join(INPUT_SUFFIXES)})")
        found.update(dict.fromkeys(pictures))
    return list(found)


def _is_input(file: Path) -> bool:
    own = file.stem.endswith(MARK) or f"{MARK}_" in file.stem
    return file.suffix.lower() in INPUT_SUFFIXES and not file.name.startswith(".") and not own and file.is_file()


def plan(inputs: Sequence[Path], out: Path | None = None) -> list[Job]:
    """A job for each picture that `collect` finds.

    Args:
        inputs: files and folders.
        out: None writes beside each input; a path with a suffix is the output file of a single input file; anything
            else is a folder, made when the first picture is written.

    Raises:
        ImageError: as `collect`; an output of an unknown suffix, one file for several pictures, two pictures with the
            same output, an output that would replace its input, or a place that cannot be written to.
    """
    sources = collect(inputs)
    if out is not None and not out.is_dir() and (out.suffix or out.exists()):
        jobs = [Job(sources[0], _single_output(inputs, out))]
    else:
        names = Counter(_target(source, out) for source in sources)
        jobs = [
            # photo.jpg and photo.png keep their suffix in the name, so that both have a place.
            Job(source, target if names[target] == 1 else target.with_name(f"{source.name}{MARK}.png"))
            for source, target in ((source, _target(source, out)) for source in sources)
        ]
    _check_targets(jobs)
    for folder in {job.target.parent for job in jobs}:
        check_writable(folder)
    return jobs


def _target(source: Path, out: Path | None) -> Path:
    return (source.parent if out is None else out) / f"{source.stem}{MARK}.png"


def _single_output(inputs: Sequence[Path], out: Path) -> Path:
    if len(inputs) > 1 or inputs[0].is_dir():
        raise ImageError(f"{out}: is one file, but several pictures may be written; name a folder")
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ImageError(f"{out}: unknown suffix {out.suffix!r}, supported are {', '.join(OUTPUT_SUFFIXES)}")
    return out


def _check_targets(jobs: Sequence[Job]) -> None:
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.target.exists() and job.target.samefile(job.source):
            raise ImageError(f"{job.target}: is the input itself; choose another output")
        if job.target in taken:
            raise ImageError(f"{job.source}: would be written to {job.target}, and so would {taken[job.target]}")
        taken[job.target] = job.source


def check_writable(folder: Path) -> None:
    """Make sure that files can be written to a folder, or that it can be made; leaves nothing there.

    Raises:
        ImageError: it cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        # Asking for permission bits would miss a read-only file system and what root may not do.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ImageError(f"{folder}: cannot be written to: {error.strerror or error}") from None


def run(
    jobs: Sequence[Job],
    load: Callable[[], RestoreFile],
    *,
    overwrite: bool = False,
    side_pictures: Sequence[str] = (),
    progress: Callable[[int, Job], None] | None = None,
    workers: int = 1,
) -> Summary:
    """Restore pictures one after the other, or some at a time. One that fails does not stop the others.

    Args:
        load: gives the function that restores; called once, when the first picture is decoded. So nothing slow is
            loaded where every picture is done already or broken. Its own errors end the run.
        overwrite: do pictures again whose target exists; else those are skipped.
        side_pictures: names of the side pictures to write, of those that the function gives.
        progress: called with (index, job) before each job; with several workers, when what is before it is done.
        workers: pictures at a time; the function that restores is then called from as many threads.

    Returns:
        What became of each job. Files are written whole or not at all, a target after its side pictures.
    """
    restore = _OnceLoaded(load)
    restore_job = lambda job: _restore_job(job, restore, side_pictures, overwrite)  # noqa: E731
    summary = Summary()
    with ThreadPoolExecutor(workers) as pool:
        outcomes = map(restore_job, jobs) if workers == 1 else pool.map(restore_job, jobs)
        try:
            for index, job in enumerate(jobs):
                if progress is not None:
                    progress(index, job)
                outcome = next(outcomes)
                if outcome is None:
                    summary.skipped.append(job)
                elif isinstance(outcome, Failure):
                    summary.failed.append(outcome)
                else:
                    summary.written.append(job)
                    if outcome.notices:
                        summary.notices[job.source] = outcome.notices
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise
    return summary


class _OnceLoaded:
    """A function that is loaded by whoever calls it first."""

    def __init__(self, load: Callable[[], RestoreFile]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._restore: RestoreFile | None = None

    def get(self) -> RestoreFile:
        with self._lock:
            self._restore = self._restore or self._load()
        return self._restore


def _restore_job(
    job: Job, restore: _OnceLoaded, side_pictures: Sequence[str], overwrite: bool
) -> Output | Failure | None:
    """What became of one job; None is skipped."""
    if job.target.exists() and not overwrite:
        return None
    try:
        picture = read_image(job.source)
        if not overwrite:
            check_absent([job.side_picture(name) for name in side_pictures])
    except ImageError as error:
        return Failure(job.source, str(error))
    restore_file = restore.get()
    try:
        output = restore_file(picture, job)
        _write(job, output, side_pictures, overwrite)
    except PICTURE_ERRORS as error:
        return Failure(job.source, _reason(job, error))
    return output


def check_absent(paths: Sequence[Path]) -> None:
    """
    Raises:
        ImageExistsError: one of the paths exists.
    """
    for path in paths:
        if path.exists():
            raise ImageExistsError(f"{path}: exists already; give --overwrite to replace it, or choose another output")


def _write(job: Job, output: Output, side_pictures: Sequence[str], overwrite: bool) -> None:
    job.target.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name in (name for name in side_pictures if name in output.side_pictures):
            write_image(job.side_picture(name), output.side_pictures[name], overwrite=overwrite)
            written.append(job.side_picture(name))
        write_image(job.target, output.picture.pixels, output.picture.alpha, overwrite=overwrite)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _reason(job: Job, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ImageError) else f"{job.source}: {text}"
