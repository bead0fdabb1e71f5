"""What is done for one picture: nothing where it is done already, else all its files, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffbody.files.plan import STORAGE_ERRORS, Job, StorageError
from diffbody.files.record import Entry, Recipe, Record, sha256_of
from diffbody.lines import one_line
from diffbody.side_pictures import BEFORE_AFTER, SIDE_PICTURES, before_after
from diffbody_ref.ops.files import whole_file
from diffbody_ref.ops.images import ImageError, ImageExistsError, Picture, encode_image, lost_in_encoding, read_image

RESTORED, SKIPPED, FAILED, LEFT_OUT = "restored", "skipped", "failed", "left out"


@dataclass(frozen=True)
class Output:
    """What is written for one picture, and said of it.

    Attributes:
        picture: the restored picture.
        side_pictures: by name, float (H, W, 3) in [0, 1]; the report is the bytes of its file.
        notices: what the person who asked should know, a line each.
    """

    picture: Picture
    side_pictures: Mapping[str, np.ndarray | bytes] = field(default_factory=dict)
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Settings:
    """How a run treats its pictures.

    Attributes:
        overwrite: do pictures again whose output exists, and replace files that are in the way.
        side_pictures: names of the side pictures to write, of those that the function which restores gives.
        quality: of formats that are not lossless, 1 to 100; None is the format's own.
        strip_metadata: leave out what the source says besides its pixels.
        workers: pictures at a time; the function that restores is then called from as many threads.
    """

    overwrite: bool = False
    side_pictures: Sequence[str] = ()
    quality: int | None = None
    strip_metadata: bool = False
    workers: int = 1


@dataclass(frozen=True)
class Result:
    """What became of one picture.

    Attributes:
        source: the picture file, or the input that could not be read.
        status: `RESTORED`, `SKIPPED` (done before), `FAILED` or `LEFT_OUT`.
        output: the restored picture, where there is one.
        side_pictures: files that were written beside it, by name.
        seconds: that it took.
        notices: what the person who asked should know, a line each.
        reason: why it failed, was left out, or was restored again, in one line; None where there is nothing to say.
    """

    source: Path
    status: str
    output: Path | None = None
    side_pictures: Mapping[str, Path] = field(default_factory=dict)
    seconds: float = 0.0
    notices: Sequence[str] = ()
    reason: str | None = None


class Task:
    """One picture and the files that are made of it.

    Args:
        job: the picture.
        record: of the folder of its output.
        recipe: what the result depends on beside the source; None keeps no record.
        settings: of the run.
        writing: held while files get their names.

    Raises:
        ImageError: the picture cannot be read.
    """

    def __init__(
        self, job: Job, record: Record, recipe: Recipe | None, settings: Settings, writing: threading.Lock
    ) -> None:
        self.job, self.record, self.recipe, self.settings, self.writing = job, record, recipe, settings, writing
        self.origin = record.origin(job.source)
        sha256 = sha256_of(job.source)
        if sha256 is None:
            raise ImageError(f"{job.source}: no such file")
        self.source_sha256 = sha256
        self.again: str | None = None  # why it is restored again
        self._ours: set[Path] = set()  # files that may be replaced

    def done(self) -> Result | None:
        """What becomes of the picture without restoring it; None where it has to be restored.

        Where only the comparison of before and after is missing, it is drawn of the files.

        Raises:
            ImageError: a file is in the way.
        """
        if self.settings.overwrite:
            return None
        entry = self._own()
        self._check_side_pictures()
        if entry is None:
            return None
        self.again = self._difference(entry)
        if self.again is not None:
            return None
        missing = [name for name in self.settings.side_pictures if self._is_missing(name, entry)]
        if not missing:
            return Result(self.job.source, SKIPPED, self.job.target)
        self.again = f"side pictures were missing ({', '.join(missing)})"
        return self._compare(entry) if missing == [BEFORE_AFTER] else None

    def write(self, source: Picture, output: Output) -> Result:
        """Write what was restored.

        Args:
            source: the picture that it was restored from.
            output: what was restored of it.

        Raises:
            ImageError: a picture cannot be encoded, or a file that is not ours appeared meanwhile.
            OSError: the files cannot be written.
        """
        drawn = {name: output.side_pictures.get(name) for name in self.settings.side_pictures}
        made = {
            name: side if isinstance(side, bytes) else encode_image(side)
            for name, side in drawn.items()
            if side is not None
        }
        picture, suffix = output.picture, self.job.target.suffix
        metadata = None if self.settings.strip_metadata else source.metadata
        restored = encode_image(picture.pixels, picture.alpha, suffix, quality=self.settings.quality, metadata=metadata)
        told = (*source.notices, *output.notices, *lost_in_encoding(suffix, picture.alpha, metadata))
        hashes = {name: hashlib.sha256(made[name]).hexdigest() if name in made else None for name in drawn}
        entry = self._entry(hashlib.sha256(restored).hexdigest(), hashes)
        files = {self.job.target: restored} | {self.job.side_picture(name): data for name, data in made.items()}
        try:
            self._write(files, entry)
        except FileExistsError:
            now = self.record.ours(self.job.target)
            if now is None or self._difference(now) is not None:
                raise _in_the_way(self.job.target) from None
            return Result(self.job.source, SKIPPED, self.job.target, reason="another run restored it meanwhile")
        written = {name: self.job.side_picture(name) for name in made}
        notices = tuple(dict.fromkeys(told))
        return Result(self.job.source, RESTORED, self.job.target, written, notices=notices, reason=self.again)

    def _own(self) -> Entry | None:
        """The entry of the output, None where there is no output.

        Raises:
            ImageError: what has the output's name is not ours, or another picture's.
        """
        target = self.job.target
        if not os.path.lexists(target):
            return None
        entry = self.record.ours(target)
        if entry is None:
            known = self.record.history(target)
            why = "was changed since it was written" if known else "is not known to be made from this picture"
            raise _in_the_way(target, f"exists already and {why}")
        if entry.source != self.origin and entry.source_sha256 != self.source_sha256:
            raise _in_the_way(target, f"exists already and was made from {entry.source}")
        self._ours.add(target)
        return entry

    def _check_side_pictures(self) -> None:
        """
        Raises:
            ImageExistsError: a file that is not ours has the name of a side picture.
        """
        for name in self.settings.side_pictures:
            path = self.job.side_picture(name)
            if self._is_our_side_picture(name):
                self._ours.add(path)
            elif os.path.lexists(path):
                raise _in_the_way(path)

    def _is_our_side_picture(self, name: str) -> bool:
        hashes = {entry.side_pictures.get(name) for entry in self.record.history(self.job.target)} - {None}
        return bool(hashes) and sha256_of(self.job.side_picture(name)) in hashes

    def _difference(self, entry: Entry) -> str | None:
        """Why what an entry tells of is not the same as what is to be made; None if it is."""
        if entry.source_sha256 != self.source_sha256:
            return "the picture changed"
        return None if self.recipe is None else entry.recipe.difference(self.recipe)

    def _is_missing(self, name: str, entry: Entry) -> bool:
        known = name in entry.side_pictures
        drawn = entry.side_pictures.get(name) is not None
        return not known or (drawn and not self.job.side_picture(name).exists())

    def _compare(self, entry: Entry) -> Result:
        """Draw the comparison of before and after."""
        path = self.job.side_picture(BEFORE_AFTER)
        data = encode_image(before_after(read_image(self.job.source).pixels, read_image(self.job.target).pixels))
        hashes = {**entry.side_pictures, BEFORE_AFTER: hashlib.sha256(data).hexdigest()}
        self._write({path: data}, self._entry(entry.sha256, hashes))
        return Result(self.job.source, RESTORED, self.job.target, {BEFORE_AFTER: path}, reason=self.again)

    def _entry(self, sha256: str, side_pictures: Mapping[str, str | None]) -> Entry | None:
        if self.recipe is None:
            return None
        return Entry(self.job.target.name, sha256, self.origin, self.source_sha256, self.recipe, side_pictures)

    def _write(self, files: Mapping[Path, bytes], entry: Entry | None) -> None:
        """Write files beside their names, then the entry, then give them their names: the first one last.

        Side pictures of an earlier result, which nobody asked for this time, are removed: they show another picture.
        """
        with self.writing:
            stale = [
                self.job.side_picture(name)
                for name in SIDE_PICTURES
                if entry is not None and name not in entry.side_pictures and self._is_our_side_picture(name)
            ]
            self.job.target.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                for path, data in files.items():
                    overwrite = self.settings.overwrite or path in self._ours
                    stack.enter_context(whole_file(path, overwrite=overwrite)).write_bytes(data)
                if entry is not None:
                    self.record.append(entry)
            for path in stale:
                path.unlink(missing_ok=True)


def failure(job: Job, error: BaseException) -> Result:
    """A picture that failed.

    Raises:
        StorageError: as nothing can be written any more.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRORS:
            raise StorageError(one_line(f"{job.target}: cannot be written: {cause.strerror}")) from error
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, StorageError):
        raise error
    text = str(error) or type(error).__name__
    return Result(
        job.source, FAILED, reason=one_line(text if isinstance(error, ImageError) else f"{job.source}: {text}")
    )


def check_absent(paths: Sequence[Path]) -> None:
    """
    Raises:
        ImageExistsError: one of the paths exists.
    """
    for path in paths:
        if os.path.lexists(path):
            raise _in_the_way(path)


def _in_the_way(path: Path, why: str = "exists already") -> ImageExistsError:
    return ImageExistsError(f"{path}: {why}; give --overwrite to replace it, or choose another output")
