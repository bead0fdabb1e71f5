"""The record of a folder of outputs: what each was made from, so that only what is the same counts as done.

It is a file of its own, `.diffbody.jsonl` beside the outputs, with a JSON object a line, and not a field in the
pictures: so it holds the hash of a picture's own bytes, which tells a picture that somebody changed from one of ours;
it is the same for every format, also without metadata; and it knows the side pictures.

A line is appended at once and before the picture gets its name. So whatever a killed process leaves, a picture that has
a name has a line, and a line whose picture is missing means nothing. Several processes may append; an unfinished line,
which a full disk or a killed process can leave, is passed over.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import operator
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffbody.files.names import absolute
from diffbody_ref.ops.formats import ImageError

RECORD = ".diffbody.jsonl"


@dataclass(frozen=True)
class Recipe:
    """What a result depends on beside its source.

    Attributes:
        settings: by name, values that JSON can hold.
        model: what restored, such as a hash of the model.
        version: of this package.
    """

    settings: Mapping[str, Any]
    model: str
    version: str

    def difference(self, other: Recipe) -> str | None:
        """In what the other differs, in a few words; None if in nothing."""
        names = {**self.settings, **other.settings}
        changed = [name for name in names if self.settings.get(name) != other.settings.get(name)]
        if changed:
            return f"other settings ({', '.join(sorted(changed))})"
        if self.model != other.model:
            return "another model"
        return None if self.version == other.version else f"version {self.version}"


@dataclass(frozen=True)
class Entry:
    """What an output was made from.

    Attributes:
        output: name of the file in the folder.
        sha256: of the file.
        source: path of the source, seen from the folder.
        source_sha256: of the source.
        recipe: the rest of what the output depends on.
        side_pictures: SHA-256 of the side pictures by name; None for one that there was nothing to draw of.
    """

    output: str
    sha256: str
    source: str
    source_sha256: str
    recipe: Recipe
    side_pictures: Mapping[str, str | None]


class Record:
    """The record of one folder; may be used from several threads.

    Raises:
        ImageError: the file cannot be read, or is a link or no file: what it points to is not ours to write to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / RECORD
        self._entries: dict[str, list[Entry]] = {}
        self._read = 0  # bytes
        self._lock = threading.Lock()

    def origin(self, source: Path) -> str:
        """The path of a source as entries name it: seen from the folder, so that both can be moved together."""
        try:
            return os.path.relpath(absolute(source), absolute(self.folder))
        except ValueError:  # another drive of Windows
            return absolute(source)

    def newest(self) -> list[Entry]:
        """The newest entry of each output."""
        self._catch_up()
        return [entries[-1] for entries in self._entries.values()]

    def history(self, output: Path) -> list[Entry]:
        """The entries of a file in the folder, newest first: a killed process leaves an entry before its file."""
        self._catch_up()
        return self._entries.get(output.name, [])[::-1]

    def ours(self, output: Path) -> Entry | None:
        """The entry of a file in the folder whose bytes are those that were written; None where there is none."""
        if not (entries := self.history(output)):
            return None
        sha256 = sha256_of(output)
        return next((entry for entry in entries if entry.sha256 == sha256), None)

    def _catch_up(self) -> None:
        """Read what was appended since, also by other processes."""
        with self._lock:
            try:
                with os.fdopen(self._open(os.O_RDONLY), "rb") as file:
                    file.seek(self._read)
                    lines = file.read()
            except FileNotFoundError:
                return
            except OSError as error:
                raise ImageError(f"{self.path}: cannot be read: {error.strerror or error}") from None
            whole = lines.rfind(b"\n") + 1
            self._read += whole
            for line in lines[:whole].splitlines():
                if (entry := _entry(line)) is not None:
                    self._entries.setdefault(entry.output, []).append(entry)

    def append(self, entry: Entry) -> None:
        """Add a line; it survives a crash from here on.

        Raises:
            OSError: it cannot be written.
        """
        # In ASCII: names that are no UTF-8 come as escaped surrogates.
        line = json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"
        with self._lock:
            handle = self._open(os.O_RDWR | os.O_APPEND | os.O_CREAT)
            with os.fdopen(handle, "r+b", buffering=0) as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line
                if file.write(line) != len(line):  # there was room for its beginning only
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.path))
                os.fsync(handle)

    def _open(self, flags: int) -> int:
        """The file's descriptor.

        A folder that somebody else made may hold a link of this name, to a file that runs what is appended to it.
        """
        special = [getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC")]
        try:
            handle = os.open(self.path, flags | functools.reduce(operator.or_, special), 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ImageError(f"{self.path}: is a link; remove it") from None
            raise
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ImageError(f"{self.path}: is no file; remove it")
        return handle


def sha256_of(path: Path) -> str | None:
    """A file's SHA-256 as hexadecimal; None where there is no such file.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None


def _entry(line: bytes) -> Entry | None:
    """The entry in a line; None where the line holds none."""
    try:
        values = json.loads(line)
        recipe = values.pop("recipe")
        entry = Entry(**values, recipe=Recipe(**recipe))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    texts = (entry.output, entry.sha256, entry.source, entry.source_sha256, entry.recipe.version)
    mappings = (entry.recipe.settings, entry.side_pictures)
    known = all(isinstance(text, str) for text in texts) and all(isinstance(each, dict) for each in mappings)
    return entry if known and Path(entry.output).name == entry.output else None
