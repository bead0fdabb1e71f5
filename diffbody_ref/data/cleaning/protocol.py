"""Cleaning of a source of pictures, from the first phase to a folder that `diffbody_ref.data.readers` can read.

OUT/metadata.jsonl         the cleaned set: the pictures that passed all phases, with caption and identity if known
OUT/images/                the crops, including those that review.tsv drops
OUT/review.tsv, sheets/    for inspection: see `review`
OUT/report.md, report.json, dropped.tsv    which pictures were dropped, and why
OUT/cleaning/              the settings, and the journal with one line per processed picture of the source
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffbody_ref.data.cleaning.phases import SCREEN, CleanConfig, Dropped, FindPeople, Kept, digest, examine
from diffbody_ref.data.cleaning.report import CleaningReport, summarise
from diffbody_ref.data.cleaning.review import DROP, SHEETS, Decision, read_review, write_review, write_sheets
from diffbody_ref.data.journal import Journal
from diffbody_ref.data.parallel import map_in_order
from diffbody_ref.data.readers import Entry, Reader
from diffbody_ref.data.readers.lines import METADATA, read_records
from diffbody_ref.ops.files import remove_leftovers, write_whole
from diffbody_ref.ops.progress import Progress

DUPLICATE = "duplicate"  # reason for dropping a picture
SETTINGS, LOG, IMAGES = "cleaning/settings.json", "cleaning/log.jsonl", "images"


def clean(
    source: Reader,
    name: str,
    out: Path,
    load: Callable[[], FindPeople],
    config: CleanConfig,
    workers: int = 2,
    progress: Progress | None = None,
) -> CleaningReport:
    """Run the protocol.

    A second run resumes where an earlier one stopped, processes pictures of the source that are new or not the same any
    more, and applies the current decisions in review.tsv. A decision about a picture is not taken for another one under
    its name. The result does not depend on how often the run is interrupted.

    Args:
        source: the pictures.
        name: name of the source for the report.
        out: folder of the cleaned set; created if needed.
        load: returns the function that finds people; called only if a picture needs it.
        config: which pictures are kept, and how they are cropped.
        workers: number of threads.
        progress: called with (processed pictures, all pictures, name of the picture).

    Raises:
        ValueError: the source is empty, the folder holds the cleaning of another source or with other settings, or
            review.tsv cannot be read.
    """
    if not len(source):
        raise ValueError(f"{name}: the source holds no pictures")
    read_review(out)  # report a mistake in it now and not after hours
    _prepare(out, name, config)
    with Journal(out / LOG) as journal:
        for folder in (out, out / IMAGES, out / SHEETS, (out / LOG).parent):
            remove_leftovers(folder)
        done = _still_so(source, latest(journal.records), workers)
        seen = {record["digest"] for record in done.values() if "digest" in record}
        missing = [i for i in range(len(source)) if source.entry(i).name not in done]
        finished = len(source) - len(missing)
        find_people = load() if missing else None
        for entry, data, result in _examine_all(source, missing, find_people, config, workers):
            journal.append(_record(out, entry, data, result, seen, config))
            finished += 1
            if progress is not None:
                progress(finished, len(source), entry.name)
        return _finish(out, journal.records)


def latest(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The journal's last line about each picture, by name, in the order in which the pictures came first."""
    return {record["name"]: record for record in records}


def _still_so(source: Reader, records: dict[str, dict[str, Any]], workers: int) -> dict[str, dict[str, Any]]:
    """The records that hold: all but those of pictures that have other contents now, or are no duplicates any more."""
    indices = [index for index in range(len(source)) if source.entry(index).name in records]
    now = map_in_order(lambda index: (source.entry(index).name, _digest_of(source, index)), indices, workers)
    changed = {name for name, found in now if records[name].get("digest") != found}
    held = {name: record for name, record in records.items() if name not in changed}
    firsts = {record.get("digest") for record in held.values() if record.get("reason") != DUPLICATE}
    return {n: r for n, r in held.items() if r.get("reason") != DUPLICATE or r["digest"] in firsts}


def _digest_of(source: Reader, index: int) -> str | None:
    """The digest of a picture's file; None if it cannot be read."""
    try:
        data = source.data(index)
    except (OSError, ValueError):
        return None
    return digest(data) if data else None


def apply_review(out: Path) -> CleaningReport:
    """Update metadata.jsonl and the report of a cleaned folder with the current decisions in review.tsv.

    Raises:
        FileNotFoundError: the folder was not made by `clean`.
        ValueError: review.tsv cannot be read, or another process is cleaning into the folder.
    """
    if not (out / LOG).is_file():
        raise FileNotFoundError(f"{out}: not a folder made by `diffbody clean`: it has no {LOG}")
    with Journal(out / LOG) as journal:
        return _finish(out, journal.records)


def _prepare(out: Path, name: str, config: CleanConfig) -> None:
    """Check that `out` is new or holds the same cleaning, and create its folders."""
    settings = {"source": name, **dataclasses.asdict(config)}
    path = out / SETTINGS
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{key} {old.get(key)} (now {settings[key]})" for key in settings if old.get(key) != settings[key]]
        if changed:
            raise ValueError(f"{out}: holds another cleaning: {', '.join(changed)}; choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty and was not made by `diffbody clean`; choose another folder")
    for folder in (out / IMAGES, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=2) + "\n")
    if not (out / METADATA).is_file():  # until the run ends the set is empty, whatever images/ holds
        write_whole(out / METADATA, "")


Examined = tuple[Entry, bytes, Kept | Dropped]
"""A picture of the source, the contents of its file, and the result of the phases."""


def _examine_all(
    source: Reader, indices: list[int], find_people: FindPeople | None, config: CleanConfig, workers: int
) -> Iterator[Examined]:
    """Run the phases on pictures of the source, by threads; results in the order of the indices."""

    def examine_one(index: int) -> Examined:
        entry = source.entry(index)
        try:
            data = source.data(index)
        except (OSError, ValueError) as error:
            return entry, b"", Dropped(SCREEN, "unreadable", str(error))
        assert find_people is not None
        return entry, data, examine(data, find_people, config)

    return map_in_order(examine_one, indices, workers)


def _record(
    out: Path, entry: Entry, data: bytes, result: Kept | Dropped, seen: set[str], config: CleanConfig
) -> dict[str, Any]:
    """The journal's line for a picture; the crop of a kept picture is written first."""
    hashed = digest(data)
    if data and hashed in seen:
        result = Dropped(SCREEN, DUPLICATE, "the same file came before under another name")
    seen.add(hashed)
    source = {"name": entry.name, **({"digest": hashed} if data else {})}
    if isinstance(result, Dropped):
        return {**source, **dataclasses.asdict(result)}
    file = f"{IMAGES}/{file_name(entry.name, hashed)}.{config.format}"
    write_whole(out / file, result.data)
    crop = {key: value for key, value in dataclasses.asdict(result).items() if key != "data"}
    labels = {"text": entry.caption, "identity": entry.identity, "camera": entry.camera}
    return {**source, "file": file, **crop, **{key: value for key, value in labels.items() if value not in ("", None)}}


def file_name(name: str, hashed: str) -> str:
    """A readable file name without folders for a picture of the source, different for different pictures.

    Args:
        name: name of the picture.
        hashed: its `digest`: what is known of a picture's file, such as a caption, does not pass to another picture.
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "_", name.rpartition(".")[0] or name).strip("_")[-60:]
    return f"{readable}-{hashlib.sha256(f'{name} {hashed}'.encode()).hexdigest()[:8]}"


def _finish(out: Path, records: list[dict[str, Any]]) -> CleaningReport:
    """Write contact sheets, review.tsv, metadata.jsonl and the report from the journal's records."""
    replaced = {record["file"] for record in records if "file" in record}
    records = list(latest(records).values())
    kept = [record for record in records if "file" in record]
    decisions = read_review(out)
    write_sheets(out, kept)
    write_review(out, kept, decisions)
    chosen = [record for record in kept if decisions.get(record["file"], Decision()).decision != DROP]
    write_whole(out / METADATA, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in _rows(out, chosen)))
    settings = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    report = summarise(records, decisions, settings)
    report.write(out)
    for file in replaced - {record["file"] for record in kept}:
        (out / file).unlink(missing_ok=True)
    return report


def _rows(out: Path, chosen: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of metadata.jsonl. Values that a line already has (captions added meanwhile) stay."""
    before = {record.get("file_name"): record for record in read_records(out / METADATA)}
    for record in chosen:
        labels: dict[str, Any] = {key: record[key] for key in ("text", "identity", "camera", "box") if key in record}
        yield {"file_name": record["file"], "source": record["name"], **labels, **before.get(record["file"], {})}
