"""What every reader gives: the pictures of one folder, as encoded bytes, with the labels that its format has."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CAPTION_KEYS = ("text", "caption", "prompt", "description")
ALL = "all"
TRAIN = "train"


@dataclass(frozen=True)
class Entry:
    """What is known of one picture without decoding it; None is what the format does not tell.

    Attributes:
        name: unique in the folder; of a file, its path in the folder with "/".
        caption: a sentence; "" is none.
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
    """The pictures of a folder in one format. Nothing but an index is held in memory; may be pickled and forked.

    A subclass says what its format is called and how a folder of it looks, for messages, and which `Person` labels all
    of its pictures have.

    Args:
        folder: one that `detect` knows.
        split: None is "train" where the format has splits, else everything; "all" is everything.

    Raises:
        ValueError: an unknown split; lists or indices in the folder that cannot be read.
    """

    format: ClassVar[str]
    layout: ClassVar[str]
    labels: frozenset[str] = frozenset()

    @abstractmethod
    def __init__(self, folder: Path, split: str | None = None) -> None: ...

    @classmethod
    @abstractmethod
    def detect(cls, folder: Path) -> bool:
        """Whether the folder holds this format; looks at names, and at little more."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """What is known of a picture, without decoding it."""

    @abstractmethod
    def data(self, index: int) -> bytes:
        """The picture's file.

        Raises:
            OSError, ValueError: it cannot be read.
        """

    def parts(self, index: int) -> bytes | None:
        """The file of its part labels (`diffbody_ref.ops.parts.PART_LABELS`), None where there are none."""
        return None


class FilesReader(Reader):
    """A format of picture files: a subclass fills `entries`, whose names are paths in `folder`."""

    folder: Path
    entries: list[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, index: int) -> Entry:
        return self.entries[index]

    def data(self, index: int) -> bytes:
        return (self.folder / self.entries[index].name).read_bytes()


def picture_names(folder: Path) -> Iterator[str]:
    """Paths of all picture files in a folder and the folders in it, sorted folder by folder, without hidden ones."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield (Path(place) / name).relative_to(folder).as_posix()


def check_inside(name: Any, where: str) -> str:
    """A path that an index names.

    Raises:
        ValueError: not a relative path inside of the folder; `where` names the index and the line.
    """
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: {name!r} is not a path inside of the folder")
    return str(path)


def choose_split(folder: Path, split: str | None, known: tuple[str, ...]) -> str:
    """The split to read: the one asked for, else "train" where the format has it, else all of them.

    Raises:
        ValueError: the folder has no such split.
    """
    if split is None:
        return TRAIN if TRAIN in known else ALL
    if split not in (*known, ALL):
        raise ValueError(f"{folder}: has no split {split!r}; it has {', '.join((*known, ALL))}")
    return split


def caption_of(record: Mapping[str, Any]) -> str:
    """The first caption that a record of an index holds as text, "" if none does."""
    return next((record[key].strip() for key in CAPTION_KEYS if isinstance(record.get(key), str)), "")
