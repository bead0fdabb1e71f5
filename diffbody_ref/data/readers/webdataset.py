"""WebDataset: tar shards in which adjacent files with the same base name are a sample: 0001.jpg, 0001.txt, 0001.json.

The caption is the .txt file, else the `caption` or `text` in the .json file; an `identity` in the .json file is read
too. The tar headers are read once; pictures and captions stay on disk and are read when they are requested.
"""

from __future__ import annotations

import tarfile
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffbody_ref.data.readers.base import Entry, Reader, caption_of, check_identity, choose_split, identified
from diffbody_ref.data.readers.lines import parse_record
from diffbody_ref.ops.formats import INPUT_SUFFIXES

TEXT, RECORD = ".txt", ".json"


class Span(NamedTuple):
    """Position of a file in its shard.

    Attributes:
        start: first byte.
        size: number of bytes; 0 if there is no such file.
    """

    start: int = 0
    size: int = 0


class WebDatasetReader(Reader):
    """Reader of WebDataset shards."""

    format = "webdataset"
    layout = ".tar shards of jpg, png or webp files with .txt or .json files of the same name"

    def __init__(self, folder: Path, split: str | None = None) -> None:
        choose_split(folder, split, ())
        self.shards = _shards(folder)
        self._names: list[str] = []
        rows: list[tuple[int, ...]] = []
        for number, shard in enumerate(self.shards):
            for key, (picture, text, record) in _samples(shard):
                self._names.append(f"{shard.relative_to(folder).as_posix()}/{key}")
                rows.append((number, *picture, *text, *record))
        self._index = np.array(rows, np.int64).reshape(-1, 7)

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return bool(_shards(folder))

    def __len__(self) -> int:
        return len(self._index)

    @cached_property
    def labels(self) -> frozenset[str]:  # type: ignore[override]
        """Known once the records are read, which a folder without any need not do."""
        return identified(self.identities())

    def identities(self) -> list[int | str | None]:
        if not self._index[:, 6].any():
            return [None] * len(self)
        return super().identities()

    def entry(self, index: int) -> Entry:
        text, data = self._file(index, 3), self._file(index, 5)
        record = parse_record(data.decode("utf-8", errors="replace"), f"{self._names[index]}{RECORD}") if data else {}
        caption = text.decode("utf-8", errors="replace") if text else caption_of(record)
        identity = check_identity(record.get("identity"), f"{self._names[index]}{RECORD}")
        return Entry(self._names[index], " ".join(caption.split()), identity)

    def data(self, index: int) -> bytes:
        return self._file(index, 1)

    def _file(self, index: int, column: int) -> bytes:
        """The contents of the file whose start is in this column of the index; b"" if there is no such file."""
        shard, start, size = (int(value) for value in self._index[index, [0, column, column + 1]])
        if size == 0:
            return b""
        with self.shards[shard].open("rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{self._names[index]}: its shard {self.shards[shard]} became shorter since it was opened")
        return data


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in (*folder.glob("*.tar"), *folder.glob("*/*.tar")) if path.is_file())


def _samples(shard: Path) -> list[tuple[str, tuple[Span, Span, Span]]]:
    """(key, spans of picture, text and record) of each sample that has a picture, in the shard's order.

    Raises:
        ValueError: the shard is not a tar file, is compressed or truncated, or has two pictures in one sample.
    """
    samples: list[tuple[str, tuple[Span, Span, Span]]] = []
    key, spans = "", [Span(), Span(), Span()]
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                # The key ends at the first dot of the base name, as in the webdataset library.
                parent, slash, base = member.name.rpartition("/")
                stem, dot, rest = base.partition(".")
                suffix = (dot + rest).lower()
                if parent + slash + stem != key:
                    samples += [(key, (spans[0], spans[1], spans[2]))] if spans[0].size else []
                    key, spans = parent + slash + stem, [Span(), Span(), Span()]
                kind = {TEXT: 1, RECORD: 2}.get(suffix, 0 if suffix in INPUT_SUFFIXES else None)
                if kind == 0 and spans[0].size:
                    raise ValueError(f"{shard}: two pictures of one sample, {member.name!r} and the one before it")
                if kind is not None:
                    spans[kind] = Span(member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: not a whole, uncompressed tar file: {error}") from None
    return samples + ([(key, (spans[0], spans[1], spans[2]))] if spans[0].size else [])
