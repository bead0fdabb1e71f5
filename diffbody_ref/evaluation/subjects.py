"""The pictures of an evaluation: any folder that `diffbody_ref.data.readers` knows, labelled or plain photographs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffbody_ref.data.datasets import PeopleFolder, Person
from diffbody_ref.ops.images import resize


@dataclass(frozen=True)
class Subject:
    """One clean picture.

    Attributes:
        pixels: float32 (H, W, 3) in [0, 1].
        person: what is known of it; labels are in pixels of this picture, if it was not shrunk.
    """

    pixels: np.ndarray
    person: Person


class Subjects:
    """The pictures of some folders, read when asked for.

    Args:
        folders: as `PeopleFolder` takes them.
        longest_side: pictures with a longer side are shrunk to it, in pixels.

    Raises:
        FileNotFoundError, ValueError: see `PeopleFolder`.
    """

    def __init__(self, folders: Iterable[str | Path], longest_side: int | None = None) -> None:
        self.people = PeopleFolder(folders)
        self.longest_side = longest_side

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> Subject:
        person = self.people[index]
        pixels = person.picture.astype(np.float32) / np.float32(255)
        longest = max(pixels.shape[:2])
        if self.longest_side is not None and longest > self.longest_side:
            height, width = (max(16, round(side * self.longest_side / longest)) for side in pixels.shape[:2])
            pixels = np.clip(resize(pixels, height, width, "area"), 0.0, 1.0)
        return Subject(pixels, person)

    def require_labels(self) -> None:
        """Make sure that structure can be measured.

        Raises:
            ValueError: a folder lacks labels, or the pictures would be shrunk away from them.
        """
        self.people.require(("keypoints", "box", "parts", "identity"), "the structure suite")
        if self.longest_side is not None:
            raise ValueError("longest_side: the structure suite measures labelled pictures at their own size")

    def captions(self) -> list[str]:
        """All captions, without reading the pictures."""
        return [self.people.caption(i) for i in range(len(self))]

    def checksum(self) -> str:
        """CRC-32 of all names, captions and identities, as hexadecimal: tells other data apart."""
        entries = [self.people.entry(i) for i in range(len(self))]
        return f"{zlib.crc32(json.dumps([(e.name, e.caption, e.identity) for e in entries]).encode()):08x}"
