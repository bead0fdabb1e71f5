"""The interface of all readers: the pictures of one folder, as encoded bytes, with the labels of its format."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from diffbody_ref.ops.formats import INPUT_SUFFIXES

CAPTION_KEYS = ("text", "caption", "prompt", "description")
ALL = "all"
TRAIN = "train"


@dataclass(frozen=True)
class Entry:
    """What is known about one picture without decoding it; None marks what the format does not contain.

    Attributes:
        name: name of the picture, unique in the folder; for a file, its path in the folder with "/".
        caption: a sentence; "" if there is none.
        identity: number or name of the person, the same in all of their pictures.
        camera: number of the camera.
        keypoints: float32 (133, 3): x, y in pixels and visibility (0 unlabelled, 1 hidden, 2 visible).
        box: float32 (4,): x0, y0, x1, y1 of the visible person in pixels.
    """

    name: str
    caption: str = ""
    identity: int | str | None = None
    camera: int | None = None
    keypoints: np.ndarray | None = None
    box: np.ndarray | None = None


class Reader(ABC):
    """The pictures of a folder in one format. Only an index is held in memory; a reader can be pickled and forked.

    Attributes:
        format: name of the format, for messages.
        layout: how a folder of the format looks, for messages.
        labels: fields of `Person` that all pictures of the folder have.
        originals: whether the format's pictures are sharp enough to stand for the truth in an evaluation.

    Args:
        folder: a folder for which `detect` is true.
        split: name of a split, or "all"; None is "train" if the format has splits, else everything.

    Raises:
        ValueError: the split is unknown, or an index in the folder cannot be read.
    """

    format: ClassVar[str]
    layout: ClassVar[str]
    labels: frozenset[str] = frozenset()
    originals: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, folder: Path, split: str | None = None) -> None: ...

    @classmethod
    @abstractmethod
    def detect(cls, folder: Path) -> bool:
        """Whether the folder has this format; judged by file names and little more."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """What is known about a picture, without decoding it."""

    @abstractmethod
    def data(self, index: int) -> bytes:
        """The contents of the picture's file.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file holds no picture.
        """

    def identities(self) -> list[int | str | None]:
        """The identity of every picture; None where it is not known."""
        return [self.entry(index).identity for index in range(len(self))]

    def parts(self, index: int) -> bytes | None:
        """The contents of the file with a picture's part labels (`diffbody_ref.ops.parts.PART_LABELS`), or None."""
        return None


class FilesReader(Reader):
    """A format of picture files. A subclass sets `folder`, and `entries`, whose names are paths in `folder`."""

    folder: Path
    entries: list[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, index: int) -> Entry:
        return self.entries[index]

    def data(self, index: int) -> bytes:
        return (self.folder / self.entries[index].name).read_bytes()


def picture_names(folder: Path) -> Iterator[str]:
    """Paths of all picture files in a folder and its subfolders, sorted folder by folder, without hidden ones."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(INPUT_SUFFIXES):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def check_inside(name: Any, where: str) -> str:
    """Check and return a path from an index.

    Args:
        name: the value in the index.
        where: the index and the line, for the error message.

    Raises:
        ValueError: the value is not a relative path inside the folder.
    """
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: {name!r} is not a path inside the folder")
    return str(path)


def choose_split(folder: Path, split: str | None, known: tuple[str, ...]) -> str:
    """The split to read: the requested one, else "train" if it exists, else "all".

    Args:
        folder: the folder, for the error message.
        split: the requested split, or None.
        known: the folder's splits.

    Raises:
        ValueError: the folder has no such split.
    """
    if split is None:
        return TRAIN if TRAIN in known else ALL
    if split not in (*known, ALL):
        raise ValueError(f"{folder}: has no split {split!r}; it has {', '.join((*known, ALL))}")
    return split


def check_identity(value: Any, where: str) -> int | str | None:
    """Check and return an identity from an index.

    Args:
        value: the value in the index; None if there is none.
        where: the index and the line, for the error message.

    Raises:
        ValueError: the value is neither a number nor a name.
    """
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{where}: identity is {str(value)[:60]!r}; it must be a whole number or a name")


def identified(identities: Sequence[int | str | None]) -> frozenset[str]:
    """The labels of a folder with these identities and no other label: "identity" if every picture has one."""
    return frozenset({"identity"} if identities and None not in identities else ())


def caption_of(record: Mapping[str, Any]) -> str:
    """The first caption in an index's record, "" if there is none."""
    return next((record[key].strip() for key in CAPTION_KEYS if isinstance(record.get(key), str)), "")
