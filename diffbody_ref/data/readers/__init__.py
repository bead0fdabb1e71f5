"""Readers of the field's picture formats, one file per format; a folder's format is detected from its contents."""

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

# The first reader that detects its format reads the folder; the last one accepts any folder with pictures in it.
READERS: tuple[type[Reader], ...] = (
    SyntheticReader,
    Market1501Reader,
    DeepFashionReader,
    ShhqReader,
    WebDatasetReader,
    ParquetReader,
    PicturesReader,
)

__all__ = ["ALL", "READERS", "Entry", "Reader", "folder_of", "open_folder"]


def folder_of(source: str | Path) -> tuple[Path, str | None]:
    """The folder and the split, if one is named, of a source such as "data/market:query"."""
    folder = Path(source)
    if folder.exists() or ":" not in folder.name:
        return folder, None
    name, _, split = str(source).rpartition(":")  # "FOLDER/:SPLIT" means the same
    return Path(name), split


def open_folder(source: str | Path) -> Reader:
    """Open a folder with the reader of its format.

    Args:
        source: a folder, or "FOLDER:SPLIT", for example "data/market:query". Without a split, formats with splits give
            their "train" split; "FOLDER:all" gives all splits.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the folder's format or the split is unknown, or an index in the folder is broken.
    """
    folder, split = folder_of(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of pictures")
    for reader in READERS:
        if reader.detect(folder):
            return reader(folder, split)
    known = "; ".join(f"{reader.format} ({reader.layout})" for reader in READERS)
    raise ValueError(f"{folder}: holds no pictures in a known format; known formats are {known}")
