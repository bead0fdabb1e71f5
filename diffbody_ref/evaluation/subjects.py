"""The pictures of an evaluation, from any folder that `diffbody_ref.data.readers` knows, with or without labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffbody_ref.data.datasets import PeopleFolder, Person, content_checksum
from diffbody_ref.ops.images import resize


@dataclass(frozen=True)
class Subject:
    """One clean picture.

    Attributes:
        pixels: float32 (H, W, 3) in [0, 1].
        person: its labels, in pixels of the picture before it was shrunk.
    """

    pixels: np.ndarray
    person: Person


class Subjects:
    """The pictures of one or more folders, read when they are requested.

    Attributes:
        people: the pictures with their labels.
        longest_side: see below.

    Args:
        folders: folders as `PeopleFolder` takes them.
        longest_side: size in pixels to which pictures with a longer side are shrunk; None shrinks none.

    Raises:
        FileNotFoundError: see `PeopleFolder`.
        ValueError: see `PeopleFolder`; or a folder's pictures are degraded as they are.
    """

    def __init__(self, folders: Iterable[str | Path], longest_side: int | None = None) -> None:
        self.people = PeopleFolder(folders)
        self.people.require_originals()
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
        """Check that the structure suite can be evaluated.

        Raises:
            ValueError: a folder lacks labels, or pictures would be shrunk, so that labels would not fit.
        """
        self.people.require(("keypoints", "box", "parts", "identity"), "the structure suite")
        if self.longest_side is not None:
            raise ValueError("longest_side: the structure suite measures labelled pictures at their own size")

    def captions(self) -> list[str]:
        """The captions of all pictures, without reading the pictures."""
        return [self.people.caption(i) for i in range(len(self))]

    def content(self, index: int) -> str:
        """A checksum of a picture and its labels, as 16 hexadecimal digits; without the picture's name."""
        return content_checksum(self.people.content(index))[:16]
