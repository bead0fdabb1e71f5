"""Parquet as Hugging Face's `datasets` writes it: a column of pictures (bytes, or a struct with bytes), and captions.

Files with names such as `train-00000-of-00004.parquet` belong to the split in their name, other files to all splits.
Rows are read one row group at a time, and the last group is kept in memory: reading pictures in random order needs
small groups (`datasets` writes 100 rows per group).
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbody_ref.data.readers.base import ALL, CAPTION_KEYS, Entry, Reader, check_identity, choose_split, identified

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

SPLIT = re.compile(r"([a-z]\w*)-\d+-of-\d+")
PICTURE_KEYS = ("image", "img", "picture", "jpg", "png", "bytes", "image_bytes")
IDENTITY = "identity"


class ParquetReader(Reader):
    """Reader of parquet files."""

    format = "parquet"
    layout = ".parquet files with a column of pictures' bytes and a column `text` or `caption`"

    def __init__(self, folder: Path, split: str | None = None) -> None:
        files = _files(folder)
        splits = {path: found[1] if (found := SPLIT.match(path.name)) else None for path in files}
        known = tuple(dict.fromkeys(name for name in splits.values() if name is not None))
        chosen = choose_split(folder, split, known)
        self.files = [path for path in files if chosen == ALL or splits[path] in (None, chosen)]
        self._names = [path.relative_to(folder).as_posix() for path in self.files]
        groups = [(i, g, n) for i, path in enumerate(self.files) for g, n in enumerate(_group_sizes(path))]
        self._groups = np.array(groups, np.int64).reshape(-1, 3)  # file, row group in the file, number of rows
        self._ends = np.cumsum(self._groups[:, 2])
        schemas = [_open(path, os.getpid()).schema_arrow for path in self.files]
        self._picture = [_picture_column(s, path) for s, path in zip(schemas, self.files, strict=True)]
        self._columns = [[key for key in (*CAPTION_KEYS, IDENTITY) if key in schema.names] for schema in schemas]
        self.labels = identified(self.identities())

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return bool(_files(folder))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def entry(self, index: int) -> Entry:
        file, group, row = self._place(index)
        columns = _read(self.files[file], group, tuple(self._columns[file]), os.getpid())
        record = {name: columns[name][row].as_py() for name in self._columns[file]}
        caption = next((record[key].strip() for key in CAPTION_KEYS if isinstance(record.get(key), str)), "")
        name = f"{self._names[file]}/{self._first(file, group) + row}"
        return Entry(name, caption, check_identity(record.get(IDENTITY), name))

    def identities(self) -> list[int | str | None]:
        found: list[int | str | None] = []
        for file, group, rows in self._groups.tolist():
            if IDENTITY not in self._columns[file]:
                found += [None] * rows
                continue
            values = _read(self.files[file], group, (IDENTITY,), os.getpid())[IDENTITY].to_pylist()
            found += [check_identity(value, self._names[file]) for value in values]
        return found

    def data(self, index: int) -> bytes:
        file, group, row = self._place(index)
        column = self._picture[file]
        value = _read(self.files[file], group, (column,), os.getpid())[column][row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise ValueError(f"{self._names[file]}: row {self._first(file, group) + row} holds no picture")
        return data

    def _place(self, index: int) -> tuple[int, int, int]:
        """(file, row group in the file, row in the group) of a picture."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        file, group, rows = (int(value) for value in self._groups[number])
        return file, group, index - (int(self._ends[number]) - rows)

    def _first(self, file: int, group: int) -> int:
        """The first row of a group, counted from the beginning of its file."""
        groups = self._groups[self._groups[:, 0] == file]
        return int(groups[:group, 2].sum())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in (*folder.glob("*.parquet"), *folder.glob("*/*.parquet")) if path.is_file())


def _group_sizes(path: Path) -> list[int]:
    metadata = _open(path, os.getpid()).metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


# The process is part of the keys: a file handle must not be shared with a forked worker.
@lru_cache(16)
def _open(path: Path, process: int) -> pyarrow.parquet.ParquetFile:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file: {str(error)[:200]}") from None


@lru_cache(2)  # a group's captions and its pictures
def _read(path: Path, group: int, columns: tuple[str, ...], process: int) -> pyarrow.Table:
    import pyarrow

    try:
        return _open(path, process).read_row_group(group, columns=list(columns), use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: row group {group} cannot be read: {str(error)[:200]}") from None


def _picture_column(schema: Any, path: Path) -> str:
    """The name of the column that holds the pictures.

    Raises:
        ValueError: no column holds bytes.
    """
    import pyarrow

    binary_types = (pyarrow.types.is_binary, pyarrow.types.is_large_binary)
    is_binary = {
        field.name: any(has_type(kind) for has_type in binary_types)
        for field in schema
        for kind in [_bytes_of(field.type) or field.type]
    }
    candidates = [name for name in (*PICTURE_KEYS, *schema.names) if is_binary.get(name)]
    if not candidates:
        raise ValueError(f"{path}: no column of pictures' bytes; its columns are {', '.join(schema.names)}")
    return candidates[0]


def _bytes_of(kind: Any) -> Any:
    """The type of the field `bytes` of a struct type, None for any other type."""
    import pyarrow

    if not pyarrow.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return None
    return kind.field("bytes").type
