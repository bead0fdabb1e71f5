"""Where outputs go: a job for each picture, each with an output of its own."""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffbody.files.inputs import Failure, LeftOut, Source, collect
from diffbody.files.names import absolute, folder_name, key, longest_name, output_name
from diffbody.files.record import Entry, Record, sha256_of
from diffbody.side_pictures import REPORT
from diffbody_ref.ops.formats import OUTPUT_SUFFIXES, ImageError, output_format

MOST_DISTINCT = 2  # level of `output_name`
PROBE = bytes(4096)  # a block, the least that a file takes

# Nothing can be written any more, to no file: what is left would be restored in vain.
STORAGE_ERRORS = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}


class StorageError(ImageError):
    """The disk is full, or cannot be written to at all; the message is one line."""


@dataclass(frozen=True)
class Job:
    """One picture to restore.

    Attributes:
        source: the picture file.
        target: the file that the restored picture is written to.
    """

    source: Path
    target: Path

    def side_picture(self, name: str) -> Path:
        """`photo.restored.png` → `photo.restored_NAME.png`; the report is a JSON file."""
        return self.target.with_name(f"{self.target.stem}_{name}{'.json' if name == REPORT else '.png'}")


@dataclass
class Plan:
    """What a run is to do.

    Attributes:
        jobs: the pictures, no two with the same output.
        single: whether the input is one file, and not a folder or several files.
        records: of each folder of outputs.
        left_out: what of folders is not restored.
        failures: inputs that cannot be read, and pictures whose output cannot be written.
    """

    jobs: list[Job]
    single: bool
    records: dict[Path, Record]
    left_out: list[LeftOut] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def plan(inputs: Sequence[Path], out: Path | None = None, *, format: str = "png", recursive: bool = False) -> Plan:
    """A job for each picture that `collect` finds.

    In a run over folders or several files, an output keeps the name that the record of its folder has for its source.
    Where several sources want one name, or another source has it, each gets a name that tells them apart.

    Args:
        inputs: files and folders.
        out: None writes beside each input; a path with a suffix is the output file of a single input file; anything
            else is a folder, made when the first picture is written, with sub-folders where the inputs have them.
        format: of outputs that are not named, one that `output_format` knows.
        recursive: take the pictures in sub-folders, too.

    Raises:
        ImageError: as `collect`; an output of an unknown suffix, one file for several pictures, an output that would
            replace its input, or places none of which can be written to.
    """
    suffix = output_format(format).suffixes[0]
    found = collect(inputs, recursive)
    single = len(inputs) == 1 and not inputs[0].is_dir()
    if out is not None and not out.is_dir() and (out.suffix or out.exists()):
        jobs = [Job(found.sources[0].path, _single_output(out, single))]
    elif single:
        folder = _folder(found.sources[0], out)
        name = output_name(inputs[0].name, 0, suffix, longest_name(folder))
        jobs = [Job(inputs[0], folder / name)]
    else:
        jobs = _name_outputs(found.sources, out, suffix)
    if single and jobs[0].target.exists() and jobs[0].target.samefile(jobs[0].source):
        raise ImageError(f"{jobs[0].target}: is the input itself; choose another output")
    records = {folder: Record(folder) for folder in dict.fromkeys(job.target.parent for job in jobs)}
    made = Plan(jobs, single, records, found.left_out, found.failures)
    _leave_out_unwritable(made)
    return made


def _folder(source: Source, out: Path | None) -> Path:
    return source.path.parent if out is None else out.joinpath(*map(folder_name, source.folder.parts))


def _single_output(out: Path, single: bool) -> Path:
    if not single:
        raise ImageError(f"{out}: is one file, but several pictures may be written; name a folder")
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ImageError(f"{out}: unknown suffix {out.suffix!r}, supported are {', '.join(OUTPUT_SUFFIXES)}")
    return out


def _name_outputs(sources: Sequence[Source], out: Path | None, suffix: str) -> list[Job]:
    """Jobs with names that tell their sources apart."""
    folders: dict[Path, list[Path]] = {}
    for source in sources:
        folders.setdefault(_folder(source, out), []).append(source.path)
    inputs = {absolute(source.path) for source in sources}
    targets: dict[Path, Path] = {}
    for folder, paths in folders.items():
        record = Record(folder)
        entries = [
            entry
            for entry in record.newest()
            if absolute(folder / entry.output) not in inputs and (folder / entry.output).exists()
        ]
        names = _Names(record, entries, suffix, inputs)
        targets |= {path: folder / name for path, name in names.choose(paths).items()}
    return [Job(source.path, targets[source.path]) for source in sources]


class _Names:
    """Names of the outputs in one folder.

    Args:
        record: of the folder.
        entries: those of outputs that are there.
        suffix: of the outputs.
        inputs: absolute paths of all inputs, which no output may replace.
    """

    def __init__(self, record: Record, entries: Sequence[Entry], suffix: str, inputs: set[str]) -> None:
        self.record, self.suffix, self.inputs = record, suffix, inputs
        self.by_source = {entry.source: entry for entry in entries if Path(entry.output).suffix == suffix}
        self.by_name = {key(entry.output): entry for entry in entries}

    def choose(self, sources: Sequence[Path]) -> dict[Path, str]:
        """A name for each source."""
        origins = {source: self.record.origin(source) for source in sources}
        kept = {source: self.by_source[origin].output for source, origin in origins.items() if origin in self.by_source}
        levels = {source: 0 for source in sources if source not in kept}
        longest = longest_name(self.record.folder)
        while True:
            wanted = {
                source: output_name(origins[source], level, self.suffix, longest) for source, level in levels.items()
            }
            named = kept | wanted
            wishes = Counter(map(key, named.values()))
            crowded = [
                source
                for source, name in wanted.items()
                if levels[source] < MOST_DISTINCT
                and (wishes[key(name)] > 1 or self._is_taken(name, source, origins[source]))
            ]
            if not crowded:
                return named
            for source in crowded:
                levels[source] += 1

    def _is_taken(self, name: str, source: Path, origin: str) -> bool:
        """Whether a name is an input's, or that of another source's output; a copy of a picture is no other source."""
        if absolute(self.record.folder / name) in self.inputs:
            return True
        entry = self.by_name.get(key(name))
        if entry is None or entry.source == origin:
            return False
        try:
            return entry.source_sha256 != sha256_of(source)
        except ImageError:
            return True


def _leave_out_unwritable(made: Plan) -> None:
    """Turn jobs whose folder cannot be written to into failures.

    Raises:
        ImageError: none of the folders can.
    """
    errors: dict[Path, ImageError] = {}
    folders = dict.fromkeys(job.target.parent for job in made.jobs)
    for folder in folders:
        try:
            check_writable(folder)
        except ImageError as error:
            errors[folder] = error
    if len(errors) == len(folders):
        raise next(iter(errors.values()))
    made.failures += [
        Failure(job.source, f"{job.source}: {errors[job.target.parent]}")
        for job in made.jobs
        if job.target.parent in errors
    ]
    made.jobs = [job for job in made.jobs if job.target.parent not in errors]


def check_writable(folder: Path) -> None:
    """Make sure that files can be written to a folder, or that it can be made; leaves nothing there.

    Raises:
        StorageError: the disk is full, or read-only.
        ImageError: it cannot be written to for another reason.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        # Asking for permission bits would miss a read-only file system and what root may not do.
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(PROBE)
            file.flush()
    except OSError as error:
        kind = StorageError if error.errno in STORAGE_ERRORS else ImageError
        raise kind(f"{folder}: cannot be written to: {error.strerror or error}") from None
