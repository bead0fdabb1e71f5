"""What long commands leave on disk: a journal of what is done, and files that are there whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Journal:
    """JSON objects, one a line, appended as work is done; a context manager that one process at a time may hold.

    A process that is killed leaves at most an unfinished last line, which the next one cuts off.

    Attributes:
        records: the objects of all lines, in order.

    Raises:
        ValueError: another process holds it, or it is not a journal; names the file.
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
            raise ValueError(f"{self.path}: another process is at work there; wait for it to end") from None
        self._file.seek(0)
        lines = self._file.read()
        whole = lines.rfind(b"\n") + 1
        self._file.truncate(whole)
        try:
            self.records = [json.loads(line) for line in lines[:whole].splitlines()]
        except ValueError as error:
            self._file.close()
            raise ValueError(f"{self.path}: not a journal: {error}; remove it to begin anew") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        """Add a line; it outlives the process from here on."""
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.records.append(record)


def write_whole(path: Path, data: str | bytes) -> None:
    """Replace a file, all of it or nothing; a file that holds this already is left alone."""
    data = data.encode() if isinstance(data, str) else data
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map` by threads: results in the order of the items, and only a few of them ahead of who takes them."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True, wait=False)
