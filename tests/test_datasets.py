"""Readers: files written by the format's own library (Pillow, tarfile, pyarrow) read back through one interface."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from diffbody_ref.data import datasets
from diffbody_ref.data.datasets import PeopleFolder, Person, fitted
from diffbody_ref.data.readers import READERS, open_folder
from diffbody_ref.ops.images import ImageError
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.stages import build_stage
from tests.people import write_people
from tests.waiting import HANG


def levels(seed: int, height: int = 40, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_pictures(folder: Path) -> Path:
    """Three pictures, two of one stem, in two folders; captions in text files."""
    save(folder / "a.png", levels(0))
    save(folder / "a" / "b.png", levels(1))
    Image.fromarray(levels(2)).save(folder / "c.webp", lossless=True)
    (folder / "a.txt").write_text("a man,\n red coat \n")
    (folder / "notes.md").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def write_imagefolder(folder: Path) -> Path:
    for i in range(3):
        save(folder / "x" / f"{i}.png", levels(i))
    rows = [{"file_name": f"x/{i}.png", "text": f"person {i}", "identity": f"id{i % 2}"} for i in (2, 0)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_shards(folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "s/0.png", png(levels(0)))
        add(tar, "s/0.txt", "a woman, größer".encode())
        add(tar, "s/1.json", json.dumps({"caption": "a boy", "identity": 5}).encode())
        add(tar, "s/1.PNG", png(levels(1)))
        add(tar, "s/only.txt", b"a caption without a picture")
    with tarfile.open(folder / "00001.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "long/" * 40 + "0.png", png(levels(2)))
    return folder


def write_parquet(folder: Path) -> Path:
    """As `datasets` writes them: a struct of bytes and path; small row groups; splits in the names."""
    (folder / "data").mkdir(parents=True)
    for split, numbers in (
        ("train-00000-of-00002", (0, 1, 2)),
        ("train-00001-of-00002", (3,)),
        ("test-00000-of-00001", (4,)),
    ):
        table = pa.table(
            {
                "image": pa.array([{"bytes": png(levels(i)), "path": f"{i}.png"} for i in numbers]),
                "text": pa.array([f"person {i}" for i in numbers]),
            }
        )
        pq.write_table(table, folder / "data" / f"{split}.parquet", row_group_size=2)
    return folder


def write_shhq(folder: Path) -> Path:
    save(folder / "no_segment" / "000001.png", levels(0))
    save(folder / "segments" / "000001.png", levels(9))
    return folder


def write_market(folder: Path) -> Path:
    save(folder / "bounding_box_train" / "0002_c1s1_000451_03.jpg", levels(0))
    save(folder / "bounding_box_train" / "0002_c3s1_000551_00.jpg", levels(1))
    save(folder / "bounding_box_train" / "0007_c6s4_001377_01.jpg", levels(2))
    save(folder / "query" / "0001_c1s1_001051_00.jpg", levels(3))
    for i, name in enumerate(("-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "0001_c2s1_000301_00.jpg")):
        save(folder / "bounding_box_test" / name, levels(4 + i))
    (folder / "bounding_box_test" / "Thumbs.db").write_bytes(b"as in the original archive")
    return folder


def write_deepfashion(folder: Path, pictures: str = "img") -> Path:
    rows = (
        ("WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("WOMEN/Dresses/id_00000002/02_3_back.jpg", "id_00000002", "train"),
        ("MEN/Denim/id_00000080/01_7_additional.jpg", "id_00000080", "query"),
    )
    for i, (name, _, _) in enumerate(rows):
        save(folder / pictures / name, levels(i))
    lines = [str(len(rows)), "image_name item_id evaluation_status", *(f"img/{a}    {b} {c}" for a, b, c in rows)]
    (folder / "Eval").mkdir()
    (folder / "Eval" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return folder


WRITERS = {
    "synthetic people": (write_people, 6),
    "Market-1501": (write_market, 3),
    "DeepFashion In-shop": (write_deepfashion, 2),
    "SHHQ": (write_shhq, 1),
    "webdataset": (write_shards, 3),
    "parquet": (write_parquet, 4),
    "pictures": (write_pictures, 3),
}


def test_every_format_has_a_case() -> None:
    assert list(WRITERS) == [reader.format for reader in READERS]


@pytest.mark.parametrize("format", WRITERS)
def test_format_is_found_out_and_read(format: str, tmp_path: Path) -> None:
    writer, count = WRITERS[format]
    reader = open_folder(writer(tmp_path / "data"))
    assert reader.format == format
    assert len(reader) == count
    names = [reader.entry(i).name for i in range(count)]
    assert len(set(names)) == count
    if format != "synthetic people":
        found = {np.asarray(Image.open(io.BytesIO(reader.data(i))).convert("RGB")).tobytes() for i in range(count)}
        assert found == {levels(i).tobytes() for i in range(count)}
    again = pickle.loads(pickle.dumps(reader))  # a worker process gets it so
    assert again.data(count - 1) == reader.data(count - 1)


def test_captions_beside_pictures(tmp_path: Path) -> None:
    reader = open_folder(write_pictures(tmp_path / "data"))
    assert [(e.name, e.caption) for e in map(reader.entry, range(3))] == [
        ("a.png", "a man, red coat"),
        ("c.webp", ""),
        ("a/b.png", ""),
    ]


def test_imagefolder_lists_its_pictures(tmp_path: Path) -> None:
    reader = open_folder(write_imagefolder(tmp_path / "data"))
    assert [(e.name, e.caption, e.identity) for e in map(reader.entry, range(2))] == [
        ("x/2.png", "person 2", "id0"),
        ("x/0.png", "person 0", "id0"),
    ]
    assert len(reader) == 2
    assert reader.labels == {"identity"}


def test_webdataset_labels(tmp_path: Path) -> None:
    reader = open_folder(write_shards(tmp_path / "data"))
    entries = [reader.entry(i) for i in range(3)]
    assert [e.caption for e in entries] == ["a woman, größer", "a boy", ""]
    assert [e.identity for e in entries] == [None, 5, None]
    assert entries[2].name.startswith("00001.tar/long/long/")


def test_parquet_splits_and_rows(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data")
    reader = open_folder(f"{folder}:all")
    assert sorted(reader.entry(i).caption for i in range(5)) == [f"person {i}" for i in range(5)]
    assert reader.entry(3).name == "data/train-00000-of-00002.parquet/2"  # the second group's row
    assert [open_folder(f"{folder}:test").entry(0).caption] == ["person 4"]


@pytest.mark.parametrize("column", ["jpg", "whatever"])
def test_parquet_of_bare_bytes(column: str, tmp_path: Path) -> None:
    table = pa.table({"caption": ["x"], column: pa.array([png(levels(0))], pa.large_binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    reader = open_folder(tmp_path)
    assert (reader.data(0), reader.entry(0).caption) == (png(levels(0)), "x")


def test_market_names_hold_the_labels(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "data")
    entries = [open_folder(folder).entry(i) for i in range(3)]
    assert [(e.identity, e.camera) for e in entries] == [(2, 1), (2, 3), (7, 6)]
    gallery = open_folder(f"{folder}:gallery")
    assert [gallery.entry(i).identity for i in range(3)] == [None, None, 1]
    assert "identity" not in gallery.labels
    assert len(open_folder(f"{folder}:all")) == len(open_folder(f"{folder}/:all")) == 7


def test_identities_of_some_pictures_are_kept(tmp_path: Path) -> None:
    """There are junk and distractors in Market-1501, records without an identity, and files without the column."""
    market = write_market(tmp_path / "m")
    gallery = PeopleFolder([f"{market}:gallery"])
    assert [gallery.identity(i) for i in range(3)] == [None, None, 0]
    whole = PeopleFolder([f"{market}:all"])
    assert [whole.identity(i) for i in range(7)] == [
        0,
        0,
        1,
        2,
        None,
        None,
        2,
    ]  # query and gallery show the same person
    splits = PeopleFolder([f"{market}:query", f"{market}:gallery", f"{market}/:train"])
    assert [splits.identity(i) for i in range(7)] == [0, None, None, 0, 1, 1, 2]
    shards = PeopleFolder([write_shards(tmp_path / "w")])
    assert [shards.identity(i) for i in range(3)] == [None, 0, None]
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"image": [png(levels(0))], "identity": [4]}), tmp_path / "p" / "a.parquet")
    pq.write_table(pa.table({"image": [png(levels(1))]}), tmp_path / "p" / "b.parquet")
    table = PeopleFolder([tmp_path / "p"])
    assert [table.identity(i) for i in range(2)] == [0, None]


def test_webdataset_with_an_identity_in_each_record_has_the_label(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i in range(4):
            add(tar, f"{i}.png", png(levels(i)))
            add(tar, f"{i}.json", json.dumps({"identity": i // 2}).encode())
    reader = open_folder(tmp_path)
    assert reader.labels == {"identity"}
    assert pickle.loads(pickle.dumps(reader)).labels == {"identity"}
    people = PeopleFolder([tmp_path])
    people.require(["identity"], "this test")
    assert [people[i].identity for i in range(4)] == [0, 0, 1, 1]


def test_an_identity_that_is_none_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "0.png", png(levels(0)))
        add(tar, "0.json", b'{"identity": {"a": 1}}')
    with pytest.raises(ValueError, match=r"0\.tar/0\.json: identity is .*; it must be a whole number or a name"):
        PeopleFolder([tmp_path])


def test_contents_are_the_same_under_other_names(tmp_path: Path) -> None:
    """And in other formats; each of the labels counts, and the picture."""
    for name in ("one", "two"):
        save(tmp_path / name / f"{name}.png", levels(0))
        (tmp_path / name / f"{name}.txt").write_text("a man")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "0.png", png(levels(0)))
        add(tar, "0.txt", b"a man")
    (tmp_path / "shards").mkdir()
    (tmp_path / "0.tar").rename(tmp_path / "shards" / "0.tar")
    one, two, shard = (PeopleFolder([tmp_path / name]).contents() for name in ("one", "two", "shards"))
    assert one == two == shard
    (tmp_path / "two" / "two.txt").write_text("a woman")
    (changed,) = PeopleFolder([tmp_path / "two"]).contents()
    assert (changed.picture, changed.labels) == (one[0].picture, changed.labels)
    assert changed.labels != one[0].labels
    save(tmp_path / "one" / "one.png", levels(1))
    (other,) = PeopleFolder([tmp_path / "one"]).contents()
    assert (other.labels, other.picture == one[0].picture) == (one[0].labels, False)


def test_a_shard_that_shrank_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data")
    reader = open_folder(folder)
    shard = folder / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:1600])
    with pytest.raises(ValueError, match=r"00001\.tar became shorter"):
        reader.data(2)


def test_deepfashion_items_and_high_resolution(tmp_path: Path) -> None:
    folder = write_deepfashion(tmp_path / "data", "img_highres")
    (folder / "img").mkdir()
    entries = [open_folder(folder).entry(i) for i in range(2)]
    assert [e.identity for e in entries] == ["id_00000002"] * 2
    assert [e.caption for e in entries] == ["a woman, seen from the front", "a woman, seen from behind"]
    assert entries[0].name == "img_highres/WOMEN/Dresses/id_00000002/02_1_front.jpg"
    assert open_folder(f"{folder}:query").entry(0).caption == "a man"


def test_folders_one_after_the_other(tmp_path: Path) -> None:
    market, fashion = write_market(tmp_path / "m"), write_deepfashion(tmp_path / "d")
    people = PeopleFolder([market, f"{fashion}:all", write_pictures(tmp_path / "p")])
    assert len(people) == 9
    assert [people.identity(i) for i in range(9)] == [0, 0, 1, 2, 2, 3, None, None, None]
    assert people.caption(6) == "a man, red coat"
    np.testing.assert_array_equal(people[5].picture, levels(2))
    assert people[5].parts is None


def test_a_full_cache_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CACHE_BYTES", levels(0).nbytes)
    people = PeopleFolder([write_imagefolder(tmp_path / "data")])
    for _ in range(2):
        np.testing.assert_array_equal(people[0].picture, levels(2))
        np.testing.assert_array_equal(people[1].picture, levels(0))
    assert people[0] is people[0]
    assert people[1] is not people[1]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1", "I;16", "RGBA"])
def test_colour_modes(mode: str, tmp_path: Path) -> None:
    grey = np.full((20, 30), 255, np.uint8)
    grey[:10] = 0
    picture = Image.fromarray(np.uint16(grey) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    read = PeopleFolder([tmp_path])[0].picture
    assert read.shape == (20, 30, 3)
    assert (read[:10].max(), read[10:].min()) == (0, 255)


def test_transparent_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert (PeopleFolder([tmp_path])[0].picture == 204).all()  # 255·(1 − 51/255)


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the right way up is 90° clockwise
    Image.fromarray(levels(0)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(PeopleFolder([tmp_path])[0].picture, np.rot90(levels(0), -1))


def test_fitted_moves_labels_with_the_pixels() -> None:
    """A bright dot at a keypoint is found at the keypoint afterwards, inside the box and on its part."""
    picture, parts = np.zeros((100, 200, 3), np.uint8), np.zeros((100, 200), np.uint8)
    picture[28:32, 118:122], parts[28:32, 118:122] = 255, 3
    keypoints = np.zeros((133, 3), np.float32)
    keypoints[0], keypoints[1] = (119.5, 29.5, 2), (3, 50, 2)
    box = np.array([100, 10, 139, 89], np.float32)
    person = fitted(Person("a", picture, "", None, parts, keypoints, box), 200, 100)
    assert person.picture.shape == (200, 100, 3)
    assert person.parts is not None
    assert person.keypoints is not None
    assert person.box is not None
    y, x = (np.average(axis, weights=person.picture[..., 0]) for axis in np.mgrid[:200, :100])
    # Twice as large is exact but for the filter's ringing, which is symmetric about the dot.
    assert (x, y) == pytest.approx(person.keypoints[0, :2], abs=0.01)
    assert person.keypoints[0, :2] == pytest.approx([49.5, 59.5])  # about the box's middle, which is in the middle
    assert person.parts[60, 50] == 3
    assert person.keypoints[:2, 2].tolist() == [2, 0]  # the other one was cut off
    assert person.box.tolist() == [10.5, 20.5, 88.5, 178.5]


@pytest.mark.parametrize("shape", [(17, 400), (400, 17), (256, 128), (31, 33), (1000, 501)])
def test_fitted_covers_the_format(shape: tuple[int, int]) -> None:
    person = fitted(Person("a", np.full((*shape, 3), 77, np.uint8)), 256, 128)
    assert person.picture.shape == (256, 128, 3)
    assert (person.picture == 77).all()


def test_unknown_folder_names_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="no pictures in a known format") as error:
        open_folder(tmp_path)
    assert all(format in str(error.value) for format in WRITERS)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_folder(tmp_path / "nowhere")


def write_bad(kind: str, folder: Path) -> Path:
    if kind == "market name":
        save(write_market(folder) / "bounding_box_train" / "holiday.jpg", levels(0))
    elif kind == "deepfashion count":
        listing = write_deepfashion(folder) / "Eval" / "list_eval_partition.txt"
        listing.write_text(listing.read_text().replace("3\n", "4\n", 1))
    elif kind == "truncated tar":
        shard = write_shards(folder) / "00000.tar"
        shard.write_bytes(shard.read_bytes()[:1500])
    elif kind == "gzipped tar":
        folder.mkdir()
        with tarfile.open(folder / "a.tar", "w:gz") as tar:
            add(tar, "0.png", png(levels(0)))
    elif kind == "parquet garbage":
        folder.mkdir()
        (folder / "a.parquet").write_bytes(b"PAR1 but not really")
    elif kind == "parquet without pictures":
        folder.mkdir()
        pq.write_table(pa.table({"text": ["x"]}), folder / "a.parquet")
    elif kind == "metadata not JSON":
        index = write_imagefolder(folder) / "metadata.jsonl"
        index.write_text(index.read_text() + "{oops\n")
    elif kind == "metadata outside":
        write_imagefolder(folder)
        (folder / "metadata.jsonl").write_text('{"file_name": "../secret.png"}\n')
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("market name", r"holiday\.jpg: not a name of Market-1501"),
        ("deepfashion count", r"list_eval_partition\.txt: has 3 pictures, its first line says '4'"),
        ("truncated tar", r"00000\.tar: not a whole, uncompressed tar"),
        ("gzipped tar", r"a\.tar: not a whole, uncompressed tar"),
        ("parquet garbage", r"a\.parquet: not a parquet file"),
        ("parquet without pictures", r"a\.parquet: no column of pictures' bytes; its columns are text"),
        ("metadata not JSON", r"metadata\.jsonl, line 3: not JSON"),
        ("metadata outside", r"line 1: '\.\./secret\.png' is not a path inside"),
    ],
)
def test_broken_folders_are_one_clear_line(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_folder(write_bad(kind, tmp_path / "data"))


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'val'; it has train, query, gallery, all"):
        open_folder(f"{write_market(tmp_path / 'data')}:val")


def test_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"GIF89a, not really")
    with pytest.raises(ImageError, match=r"a\.jpg: "):
        PeopleFolder([tmp_path])[0]


def stage_config(stage: str, tmp_path: Path, data: Path) -> TrainConfig:
    return TrainConfig(stage, "nano", str(tmp_path / "pipeline"), (str(data),), str(tmp_path / "run"), 1, 2, 1e-3)


@pytest.mark.parametrize(("stage", "missing"), [("pose", "keypoints and box"), ("parts", "parts and box")])
def test_stages_say_which_labels_a_folder_lacks(stage: str, missing: str, tmp_path: Path) -> None:
    market = write_market(tmp_path / "market")
    with pytest.raises(ValueError, match=f"market: the stage '{stage}' needs pictures with {missing}, which .*Market"):
        build_stage(stage_config(stage, tmp_path, market))


@pytest.mark.parametrize("stage", ["swinir", "vae"])
def test_unlabelled_pictures_train(stage: str, tmp_path: Path) -> None:
    """Pictures of all sizes come as one batch of the preset's format."""
    built = build_stage(stage_config(stage, tmp_path, write_pictures(tmp_path / "data")))
    items = [built.item(i, i) for i in range(3)]
    shapes = {value.shape for item in items for value in item.values() if value.ndim == 3 and value.shape[0] == 3}
    assert shapes == {(3, 256, 128)}


@pytest.mark.parametrize("writer", [write_parquet, write_shards])
def test_forked_workers_read_what_the_parent_has_open(writer: Callable[[Path], Path], tmp_path: Path) -> None:
    people = PeopleFolder([writer(tmp_path / "data")], size=(40, 24))
    expected = [people[i].picture for i in range(len(people))]
    people._kept.clear()
    pictures = _Pictures(people)
    loaded = DataLoader(pictures, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=HANG)
    for ours, theirs in zip(expected, loaded, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


class _Pictures(Dataset):
    def __init__(self, people: PeopleFolder) -> None:
        self.people = people

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.people[index].picture
