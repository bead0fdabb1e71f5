"""Folders written by `diffbody synth`: pictures, part masks, and a metadata.jsonl with the other labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffbody_ref.data.readers.base import Entry, FilesReader, check_inside, choose_split
from diffbody_ref.data.readers.lines import METADATA, first_record, read_records


class SyntheticReader(FilesReader):
    """Reader of synthetic people, with keypoints, box, identity, caption and part masks."""

    format = "synthetic people"
    layout = "metadata.jsonl with `image` and `parts`, from `diffbody synth`"
    labels = frozenset({"parts", "keypoints", "box", "identity"})

    def __init__(self, folder: Path, split: str | None = None) -> None:
        choose_split(folder, split, ())
        self.folder = folder
        index = folder / METADATA
        self.entries, self._masks = [], []
        for number, record in enumerate(read_records(index), 1):
            where = f"{index}, line {number}"
            try:
                self.entries.append(_entry(record, where))
                self._masks.append(check_inside(record["parts"], where))
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where}: not a line of `diffbody synth`: {error}") from None

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return {"image", "parts"} <= first_record(folder / METADATA).keys()

    def parts(self, index: int) -> bytes:
        return (self.folder / self._masks[index]).read_bytes()


def _entry(record: dict[str, Any], where: str) -> Entry:
    return Entry(
        name=check_inside(record["image"], where),
        caption=record["caption"],
        identity=record["identity"],
        keypoints=np.asarray(record["keypoints"], np.float32),
        box=np.asarray(record["box"], np.float32),
    )
