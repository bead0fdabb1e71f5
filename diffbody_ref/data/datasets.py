"""Pictures of people with their labels, from folders of any format that `diffbody_ref.data.readers` knows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffbody_ref.data.parallel import map_in_order
from diffbody_ref.data.readers import Entry, folder_of, open_folder
from diffbody_ref.ops.images import decode_labels, decode_levels
from diffbody_ref.ops.progress import Progress, silent

READING_THREADS = 4
CACHE_BYTES = 2**31  # decoded pictures that a process keeps in memory


@dataclass(frozen=True)
class Person:
    """One picture of a person; None marks labels that are not known.

    Attributes:
        name: name of the picture, unique in its folder.
        picture: uint8 (H, W, 3), RGB.
        caption: one sentence, "" if there is none.
        identity: number of the person, the same in all of their pictures, from 0.
        parts: uint8 (H, W), labels of `diffbody_ref.ops.parts.PART_LABELS`.
        keypoints: float32 (133, 3): x, y in pixels and visibility (0 unlabelled, 1 hidden, 2 visible).
        box: float32 (4,): x0, y0, x1, y1 of the visible person in pixels.
    """

    name: str
    picture: np.ndarray
    caption: str = ""
    identity: int | None = None
    parts: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    box: np.ndarray | None = None


class Content(NamedTuple):
    """SHA-256, as hexadecimal, of what a folder holds of a picture, whatever the picture is called.

    Attributes:
        picture: of the picture's file, and of the person's box, by which the picture is cut.
        labels: of caption, identity, keypoints and part mask.
    """

    picture: str
    labels: str


def content_checksum(contents: Iterable[str]) -> str:
    """One SHA-256 of many, in their order."""
    return hashlib.sha256(" ".join(contents).encode()).hexdigest()


class PeopleFolder:
    """The pictures of one or more folders, one folder after the other.

    Decoded pictures are kept in memory up to `CACHE_BYTES`. Beyond that the first ones stay: pictures are read in
    random order, for which keeping the latest ones would be no better.

    Attributes:
        folders: the folders.
        size: (height, width) of all pictures, or None.
        identities: number of each identity by (folder without its split, identity in the folder).

    Args:
        folders: folders as `diffbody_ref.data.readers.open_folder` takes them, for example "data/market:query".
        size: (height, width) to which every picture is scaled and cut, see `fitted`; None leaves pictures as they are.

    Raises:
        FileNotFoundError: see `open_folder`.
        ValueError: see `open_folder`; or a folder holds no pictures.
    """

    def __init__(self, folders: Iterable[str | Path], size: tuple[int, int] | None = None) -> None:
        self.folders = list(folders)
        self.size = size
        self._readers = [open_folder(folder) for folder in self.folders]
        for folder, reader in zip(self.folders, self._readers, strict=True):
            if not len(reader):
                raise ValueError(f"{folder}: the folder ({reader.format}) holds no pictures")
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self._kept: dict[int, Person] = {}
        self._kept_bytes = 0
        self.identities: dict[tuple[Path, int | str], int] = {}
        self._identity = [number for folder in range(len(self.folders)) for number in self._identity_numbers(folder)]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def sizes(self) -> list[int]:
        """The number of pictures of each folder."""
        return [len(reader) for reader in self._readers]

    def require(self, labels: Sequence[str], purpose: str) -> None:
        """Check that all pictures have these labels.

        Args:
            labels: fields of `Person`.
            purpose: what the labels are needed for, for the error message.

        Raises:
            ValueError: a folder's pictures lack labels; the message names the folder, the labels and the purpose.
        """
        for folder, reader in zip(self.folders, self._readers, strict=True):
            if missing := [label for label in labels if label not in reader.labels]:
                raise ValueError(
                    f"{folder}: {purpose} needs pictures with {' and '.join(missing)}, which not all pictures of this "
                    f"folder ({reader.format}) have; `diffbody synth` makes pictures with all labels"
                )

    def require_originals(self) -> None:
        """Check that the pictures can stand for the truth in an evaluation.

        Raises:
            ValueError: a folder's pictures are degraded as they are.
        """
        for folder, reader in zip(self.folders, self._readers, strict=True):
            if not reader.originals:
                raise ValueError(
                    f"{folder}: {reader.format} holds small, blurred pictures as cameras took them, so nothing can be "
                    "measured against them; see them restored by `diffbody restore`, and evaluate on sharp pictures"
                )

    def entry(self, index: int) -> Entry:
        """What its folder says about a picture, without decoding it."""
        number, inside = self._place(index)
        return self._readers[number].entry(inside)

    def identity(self, index: int) -> int | None:
        """The number of the picture's identity, 0 to len(identities) − 1, or None, without reading the picture."""
        return self._identity[index]

    def caption(self, index: int) -> str:
        """The picture's caption, without reading the picture."""
        return self.entry(index).caption

    def content(self, index: int) -> Content:
        """Checksums of what the folder holds of a picture; the picture is read, but not decoded.

        Raises:
            OSError: a file cannot be read.
            ValueError: the folder is broken; the message names the file.
        """
        number, inside = self._place(index)
        reader = self._readers[number]
        entry = reader.entry(inside)
        arrays = [None if value is None else value.tolist() for value in (entry.box, entry.keypoints)]
        known = [entry.caption, self._identity[index], arrays[1]]
        return Content(
            _sha256(reader.data(inside), json.dumps(arrays[0]).encode()),
            _sha256(reader.parts(inside) or b"", json.dumps(known).encode()),
        )

    def contents(self, progress: Progress = silent) -> list[Content]:
        """`content` of every picture, read by threads.

        Args:
            progress: called with (pictures done, all pictures, "reading pictures").

        Raises:
            OSError: see `content`.
            ValueError: see `content`.
        """
        found = []
        for content in map_in_order(self.content, range(len(self)), READING_THREADS):
            found.append(content)
            progress(len(found), len(self), "reading pictures")
        return found

    def __getitem__(self, index: int) -> Person:
        """Read a picture, or take it from memory.

        Raises:
            OSError: the picture's file cannot be read.
            ValueError: the picture cannot be decoded; the message names the folder and the picture.
        """
        if index in self._kept:
            return self._kept[index]
        person = self._read(index)
        if self.size is not None:
            person = fitted(person, *self.size)
        used = person.picture.nbytes + (0 if person.parts is None else person.parts.nbytes)
        if self._kept_bytes + used <= CACHE_BYTES:
            self._kept[index], self._kept_bytes = person, self._kept_bytes + used
        return person

    def _read(self, index: int) -> Person:
        number, inside = self._place(index)
        reader, folder = self._readers[number], self.folders[number]
        entry = reader.entry(inside)
        picture = decode_levels(reader.data(inside), f"{folder}/{entry.name}")
        mask = reader.parts(inside)
        parts = None if mask is None else decode_labels(mask, f"{folder}/{entry.name}: its part mask")
        if parts is not None and parts.shape != picture.shape[:2]:
            raise ValueError(
                f"{folder}/{entry.name}: the part mask is {parts.shape}, the picture {picture.shape[:2]} (H, W)"
            )
        return Person(entry.name, picture, entry.caption, self._identity[index], parts, entry.keypoints, entry.box)

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the folder, index in the folder) of a picture."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number]) - len(self._readers[number]))

    def _identity_numbers(self, number: int) -> Iterable[int | None]:
        """The numbers of a folder's identities, each assigned at its first picture; splits share their people."""
        folder = folder_of(self.folders[number])[0].resolve()
        for identity in self._readers[number].identities():
            yield None if identity is None else self.identities.setdefault((folder, identity), len(self.identities))


def _sha256(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def fitted(person: Person, height: int, width: int) -> Person:
    """Scale a person's picture and labels so that they cover height × width pixels, then cut them to that size.

    The window is centred on the person's box if it is known, else on the picture. Keypoints outside the window become
    unlabelled (visibility 0).
    """
    old_height, old_width = person.picture.shape[:2]
    if (old_height, old_width) == (height, width):
        return person
    scale = max(height / old_height, width / old_width)
    size = (max(width, round(old_width * scale)), max(height, round(old_height * scale)))
    ratio = np.array([size[0] / old_width, size[1] / old_height], np.float32)
    middle = np.array(size) / 2
    if person.box is not None:
        middle = ((person.box[:2] + person.box[2:]) / 2 + 0.5) * ratio  # pixel centres are at integers
    left, top = (
        int(np.clip(round(float(m) - side / 2), 0, whole - side))
        for m, side, whole in zip(middle, (width, height), size, strict=True)
    )
    window = slice(top, top + height), slice(left, left + width)
    corner = np.array([left, top], np.float32)
    picture = np.asarray(Image.fromarray(person.picture).resize(size, Image.Resampling.LANCZOS))[window]
    parts = keypoints = box = None
    if person.parts is not None:
        parts = np.asarray(Image.fromarray(person.parts).resize(size, Image.Resampling.NEAREST))[window]
    if person.keypoints is not None:
        keypoints = person.keypoints.copy()
        keypoints[:, :2] = (keypoints[:, :2] + 0.5) * ratio - 0.5 - corner
        inside = ((keypoints[:, :2] > -0.5) & (keypoints[:, :2] < np.array([width, height]) - 0.5)).all(axis=1)
        keypoints[~inside, 2] = 0
    if person.box is not None:
        corners = (person.box.reshape(2, 2) + 0.5) * ratio - 0.5 - corner
        box = np.clip(corners, 0, np.array([width - 1, height - 1])).reshape(4).astype(np.float32)
    return Person(person.name, np.ascontiguousarray(picture), person.caption, person.identity, parts, keypoints, box)
