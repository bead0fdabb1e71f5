"""Pictures of people for training, read from the folder that `diffbody synth` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Person:
    """One labelled picture.

    Attributes:
        picture: uint8 (H, W, 3), RGB.
        parts: uint8 (H, W), labels of `diffbody_ref.ops.parts.PART_LABELS`.
        keypoints: float32 (133, 3): x, y in pixels and visibility (0 unlabelled, 1 hidden, 2 visible).
        box: float32 (4,): x0, y0, x1, y1 of the visible person in pixels.
        identity: number of the person, the same in all of their pictures.
        caption: one sentence.
    """

    picture: np.ndarray
    parts: np.ndarray
    keypoints: np.ndarray
    box: np.ndarray
    identity: int
    caption: str


class PeopleFolder:
    """The pictures of one or more synthetic folders, kept in memory as bytes once read.

    Raises:
        FileNotFoundError: a folder without `metadata.jsonl`.
    """

    def __init__(self, folders: list[Path]) -> None:
        self.records: list[tuple[Path, dict]] = []
        for folder in folders:
            index = folder / "metadata.jsonl"
            if not index.is_file():
                raise FileNotFoundError(
                    f"{folder}: no metadata.jsonl there; write a training set with `diffbody synth`"
                )
            with index.open() as lines:
                self.records += [(folder, json.loads(line)) for line in lines]
        self._pixels: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.identities = {key: i for i, key in enumerate(sorted({(str(f), r["identity"]) for f, r in self.records}))}

    def __len__(self) -> int:
        return len(self.records)

    def identity(self, index: int) -> int:
        """The identity's number, 0 to len(identities) − 1, without reading the picture."""
        folder, record = self.records[index]
        return self.identities[str(folder), record["identity"]]

    def caption(self, index: int) -> str:
        """The caption, without reading the picture."""
        return self.records[index][1]["caption"]

    def __getitem__(self, index: int) -> Person:
        folder, record = self.records[index]
        if index not in self._pixels:
            picture = np.asarray(Image.open(folder / record["image"]).convert("RGB"))
            self._pixels[index] = picture, np.asarray(Image.open(folder / record["parts"]))
        picture, parts = self._pixels[index]
        return Person(
            picture=picture,
            parts=parts,
            keypoints=np.asarray(record["keypoints"], np.float32),
            box=np.asarray(record["box"], np.float32),
            identity=self.identity(index),
            caption=record["caption"],
        )
