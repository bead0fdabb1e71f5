"""Folders of pictures in the formats of the field: one file a format, found out from a folder's contents."""

from __future__ import annotations

from pathlib import Path

from diffbody_ref.data.readers.base import ALL, Entry, Reader
from diffbody_ref.data.readers.deepfashion import DeepFashionReader
from diffbody_ref.data.readers.market1501 import Market1501Reader
from diffbody_ref.data.readers.parquet import ParquetReader
from diffbody_ref.data.readers.pictures import PicturesReader
from diffbody_ref.data.readers.shhq import ShhqReader
from diffbody_ref.data.readers.synthetic import SyntheticReader
from diffbody_ref.data.readers.webdataset import WebDatasetReader

# The first that knows a folder reads it; the last takes any folder with pictures in it.
READERS: tuple[type[Reader], ...] = (
    SyntheticReader,
    Market1501Reader,
    DeepFashionReader,
    ShhqReader,
    WebDatasetReader,
    ParquetReader,
    PicturesReader,
)

__all__ = ["ALL", "READERS", "Entry", "Reader", "open_folder"]


def open_folder(source: str | Path) -> Reader:
    """The reader of a folder.

    Args:
        source: a folder, or "FOLDER:SPLIT": "data/market:query". Without a split, a format that has splits gives
            "train"; "FOLDER:all" gives them all.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no reader knows the folder, an unknown split, or broken lists or indices in it.
    """
    folder, split = Path(source), None
    if not folder.exists() and ":" in folder.name:
        name, _, split = str(source).rpartition(":")  # "FOLDER/:SPLIT" is meant so, too
        folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of pictures")
    for reader in READERS:
        if reader.detect(folder):
            return reader(folder, split)
    known = "; ".join(f"{reader.format} ({reader.layout})" for reader in READERS)
    raise ValueError(f"{folder}: holds no pictures in a known format; known are {known}")
