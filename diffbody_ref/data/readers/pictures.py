"""A plain folder of pictures.

Captions are either in text files of the same name (`a.jpg`, `a.txt`), or in a metadata.jsonl in the format of Hugging
Face's "imagefolder", {"file_name": "a.jpg", "text": "..."}, which may also contain an `identity`. If there is a
metadata.jsonl, it lists the pictures of the set; otherwise all pictures in the folder and its subfolders belong to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffbody_ref.data.readers.base import (
    Entry,
    FilesReader,
    caption_of,
    check_identity,
    check_inside,
    choose_split,
    identified,
    picture_names,
)
from diffbody_ref.data.readers.lines import METADATA, first_record, read_records


class PicturesReader(FilesReader):
    """Reader of plain picture folders."""

    format = "pictures"
    layout = "jpg, png, webp, bmp or tiff files, captions in .txt files of the same name or in metadata.jsonl"

    def __init__(self, folder: Path, split: str | None = None) -> None:
        choose_split(folder, split, ())
        self.folder = folder
        index = folder / METADATA
        if index.is_file():
            self.entries = [_listed(r, f"{index}, line {i}") for i, r in enumerate(read_records(index), 1)]
        else:
            self.entries = [Entry(name, _sidecar(folder / name)) for name in picture_names(folder)]
        self.labels = identified(self.identities())

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return "file_name" in first_record(folder / METADATA) or next(picture_names(folder), None) is not None


def _listed(record: dict[str, Any], where: str) -> Entry:
    """The entry of a line of metadata.jsonl; `where` names the line in error messages."""
    if "file_name" not in record:
        raise ValueError(f"{where}: has no 'file_name'")
    identity = check_identity(record.get("identity"), where)
    return Entry(check_inside(record["file_name"], where), caption_of(record), identity)


def _sidecar(picture: Path) -> str:
    """The text in the file beside a picture, on one line; "" if there is no such file."""
    path = picture.with_suffix(".txt")
    try:
        return " ".join(path.read_text(encoding="utf-8").split())
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason}") from None
