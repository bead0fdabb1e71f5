"""DeepFashion's In-shop Clothes Retrieval (Liu et al. 2016).

Pictures such as `img/WOMEN/Dresses/id_00000002/02_1_front.jpg`, and `list_eval_partition.txt` (in `Eval/` or beside it)
with lines of picture, item and split. If there is a folder `img_highres/`, its pictures are read instead. An identity
is an *item* here: one garment, mostly worn by one person; the same person in another garment has another identity.
"""

from __future__ import annotations

from pathlib import Path

from diffbody_ref.data.readers.base import Entry, FilesReader, check_inside, choose_split
from diffbody_ref.ops.captions import Caption

LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
PICTURES = ("img_highres", "Img/img_highres", "img", "Img/img")
SPLITS = ("train", "query", "gallery")
LISTED_FOLDER = "img/"  # folder of all pictures in the list
LOOKS = {"WOMEN": "a woman", "MEN": "a man"}
POSES = {"front": "seen from the front", "side": "seen from the side", "back": "seen from behind"}


class DeepFashionReader(FilesReader):
    """Reader of DeepFashion In-shop."""

    format = "DeepFashion In-shop"
    layout = "img/ or img_highres/, and Eval/list_eval_partition.txt"
    labels = frozenset({"identity"})

    def __init__(self, folder: Path, split: str | None = None) -> None:
        self.folder = folder
        chosen = choose_split(folder, split, SPLITS)
        pictures = next(name for name in PICTURES if (folder / name).is_dir())
        self.entries = [
            _entry(pictures, name, item)
            for name, item, listed_split in _partition(_list_of(folder))
            if chosen in (listed_split, "all")
        ]

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return _list_of(folder).is_file() and any((folder / name).is_dir() for name in PICTURES)


def _list_of(folder: Path) -> Path:
    """The path of the folder's list, which may not exist."""
    return next((folder / name for name in LISTS if (folder / name).is_file()), folder / LISTS[0])


def _partition(path: Path) -> list[tuple[str, str, str]]:
    """(picture, item, split) of each line of the list; its first two lines are a count and a heading."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines[2:], 3):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or fields[2] not in SPLITS or not fields[0].startswith(LISTED_FOLDER):
            raise ValueError(f"{path}, line {number}: must be a picture in img/, an item and a split, not {line!r}")
        check_inside(fields[0], f"{path}, line {number}")
        rows.append((fields[0], fields[1], fields[2]))
    if not lines or lines[0].strip() != str(len(rows)):
        raise ValueError(f"{path}: has {len(rows)} pictures, its first line says {lines[0] if lines else 'nothing'!r}")
    return rows


def _entry(pictures: str, name: str, item: str) -> Entry:
    """A picture's entry; its caption is made of what the name says: whom the garment is for, and the view."""
    path = name.removeprefix(LISTED_FOLDER)
    view = Path(path).stem.rpartition("_")[2]
    caption = Caption(look=LOOKS.get(path.split("/")[0], ""), pose=POSES.get(view, ""))
    return Entry(f"{pictures}/{path}", caption.sentence(), identity=item)
