"""SHHQ-1.0 (Fu et al. 2022, arXiv:2204.11823): 1024×512 pictures of whole people in `no_segment/`, without labels.

Its `segments/` are silhouettes, not body parts, and are not read.
"""

from __future__ import annotations

from pathlib import Path

from diffbody_ref.data.readers.base import Entry, FilesReader, choose_split, picture_names

PICTURES = "no_segment"


class ShhqReader(FilesReader):
    """Reader of SHHQ-1.0."""

    format = "SHHQ"
    layout = f"{PICTURES}/*.png"

    def __init__(self, folder: Path, split: str | None = None) -> None:
        choose_split(folder, split, ())
        self.folder = folder
        self.entries = [Entry(f"{PICTURES}/{name}") for name in picture_names(folder / PICTURES)]

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return (folder / PICTURES).is_dir()
