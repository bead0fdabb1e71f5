"""Market-1501 (Zheng et al. 2015): 128×64 pictures of people for re-identification; file names hold the labels.

`0002_c1s1_000451_03.jpg` is person 2, camera 1, sequence 1, frame 451, box 3. Person -1 marks a bad detection and
person 0 a distractor: these pictures are in the gallery and have no identity.
"""

from __future__ import annotations

import re
from pathlib import Path

from diffbody_ref.data.readers.base import Entry, FilesReader, choose_split, identified, picture_names

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
NAME = re.compile(r"(-1|\d{4})_c(\d)s\d_\d{6}_\d{2}")


class Market1501Reader(FilesReader):
    """Reader of Market-1501."""

    format = "Market-1501"
    originals = False  # crops of a surveillance camera, enlarged to 64×128
    layout = "bounding_box_train/, query/ and bounding_box_test/ with files such as 0002_c1s1_000451_03.jpg"

    def __init__(self, folder: Path, split: str | None = None) -> None:
        self.folder = folder
        known = tuple(name for name, subfolder in FOLDERS.items() if (folder / subfolder).is_dir())
        chosen = choose_split(folder, split, known)
        self.entries = [
            _entry(folder, f"{FOLDERS[name]}/{file}")
            for name in (known if chosen == "all" else (chosen,))
            for file in picture_names(folder / FOLDERS[name])
        ]
        self.labels = identified(self.identities())

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return any((folder / FOLDERS[split]).is_dir() for split in ("train", "gallery"))


def _entry(folder: Path, name: str) -> Entry:
    found = NAME.match(Path(name).name)
    if found is None:
        raise ValueError(f"{folder / name}: not a name of Market-1501, such as 0002_c1s1_000451_03.jpg")
    identity = int(found[1])
    return Entry(name, identity=identity if identity > 0 else None, camera=int(found[2]))
