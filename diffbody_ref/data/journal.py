"""A journal on disk of the work that is done, so that an interrupted command can resume."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """A file of JSON objects, one per line, appended as work is done; a context manager.

    Only one process at a time can hold a journal. A process that is killed leaves at most an unfinished last line,
    which the next process cuts off.

    Attributes:
        path: the file; its folder is created if needed.
        records: the objects of all lines, in order.

    Raises:
        ValueError: another process holds the journal, or the file is not a journal; the message names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"{self.path}: another process is working in this folder; wait until it ends") from None
        self._file.seek(0)
        lines = self._file.read()
        whole = lines.rfind(b"\n") + 1
        self._file.truncate(whole)
        try:
            self.records = [json.loads(line) for line in lines[:whole].splitlines()]
        except ValueError as error:
            self._file.close()
            raise ValueError(f"{self.path}: not a journal: {error}; remove the file to start over") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        """Add a line; it survives a crash of this process from here on."""
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.records.append(record)
