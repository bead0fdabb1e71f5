"""The pictures of an evaluation: people with labels, or a plain folder of photographs."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffbody_ref.data.datasets import PeopleFolder, Person
from diffbody_ref.ops.images import read_image, resize

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Subject:
    """One clean picture.

    Attributes:
        name: of its file.
        pixels: float32 (H, W, 3) in [0, 1].
        caption: may be empty.
        person: labels, in pixels of the picture; None for a plain photograph.
    """

    name: str
    pixels: np.ndarray
    caption: str
    person: Person | None


class Subjects:
    """The pictures of folders, read when asked for.

    A folder with a `metadata.jsonl` is what `diffbody synth` writes; in any other, every picture is a photograph, and a
    text file of the same name its caption.

    Args:
        longest_side: photographs with a longer side are shrunk to it, in pixels; labelled pictures stay as they are.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
    """

    def __init__(self, folders: list[Path], longest_side: int | None = None) -> None:
        self.folders = folders
        self.longest_side = longest_side
        labelled = [folder for folder in folders if (folder / "metadata.jsonl").is_file()]
        self.people = PeopleFolder(labelled) if labelled else None
        self.photos = [path for folder in folders if folder not in labelled for path in _pictures(folder)]

    def __len__(self) -> int:
        return self._people_count + len(self.photos)

    def __getitem__(self, index: int) -> Subject:
        if self.people is not None and index < self._people_count:
            person = self.people[index]
            name = str(self.people.records[index][1]["image"])
            return Subject(name, person.picture.astype(np.float32) / np.float32(255), person.caption, person)
        path = self.photos[index - self._people_count]
        pixels = read_image(path).pixels
        longest = max(pixels.shape[:2])
        if self.longest_side is not None and longest > self.longest_side:
            height, width = (max(16, round(side * self.longest_side / longest)) for side in pixels.shape[:2])
            pixels = np.clip(resize(pixels, height, width, "area"), 0.0, 1.0)
        return Subject(path.name, pixels, _caption(path), None)

    def captions(self) -> list[str]:
        """All captions, without reading the pictures."""
        known = [] if self.people is None else [self.people.caption(i) for i in range(len(self.people))]
        return [*known, *map(_caption, self.photos)]

    def checksum(self) -> str:
        """CRC-32 of the labels and of the photographs' files, as hexadecimal: tells changed data apart."""
        records = [] if self.people is None else [record for _, record in self.people.records]
        checksum = zlib.crc32(json.dumps(records, sort_keys=True).encode())
        for path in self.photos:
            checksum = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), checksum))
        return f"{checksum:08x}"

    @property
    def _people_count(self) -> int:
        return 0 if self.people is None else len(self.people)


def _caption(photo: Path) -> str:
    text = photo.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else ""


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{folder}: neither a metadata.jsonl of `diffbody synth` nor a picture in there")
    return found
