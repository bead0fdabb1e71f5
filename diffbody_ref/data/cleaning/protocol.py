"""A source of pictures through all phases, into a folder that `diffbody_ref.data.readers` reads.

OUT/metadata.jsonl         the set: pictures that came through all phases, with caption and identity where known
OUT/images/                the cut pictures, also those that review.tsv drops
OUT/review.tsv, sheets/    for inspection: see `review`
OUT/report.md, report.json, dropped.tsv    what was dropped and why
OUT/cleaning/              settings, and the journal: one line for each picture of the source that is done
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
from diffbody_ref.data.cleaning.report import Report, summarise
from diffbody_ref.data.cleaning.review import DROP, Decision, read_review, write_review, write_sheets
from diffbody_ref.data.journal import Journal, in_order, write_whole
from diffbody_ref.data.readers import Entry, Reader
from diffbody_ref.data.readers.lines import METADATA, read_records

SETTINGS, LOG, IMAGES = "cleaning/settings.json", "cleaning/log.jsonl", "images"


def clean(
    source: Reader,
    name: str,
    out: Path,
    load: Callable[[], FindPeople],
    config: CleanConfig,
    workers: int = 2,
    progress: Callable[..., None] | None = None,
) -> Report:
    """Run the protocol. A second run goes on where an earlier one stopped, takes pictures that are new in the source,
    and applies what review.tsv says by then. However often it is interrupted, the result is the same.

    Args:
        name: of the source, for the report.
        load: gives the function that finds people; called when the first picture needs it.
        workers: threads.
        progress: called with (pictures done, pictures in all, name of the picture).

    Raises:
        ValueError: the folder holds the cleaning of another source or with other settings; review.tsv cannot be read.
    """
    if not len(source):
        raise ValueError(f"{name}: holds no pictures")
    read_review(out)  # a mistake in it is told now and not after hours
    _prepare(out, name, config)
    with Journal(out / LOG) as journal:
        done = {record["name"] for record in journal.records}
        seen = {record["digest"] for record in journal.records if "digest" in record}
        missing = [i for i in range(len(source)) if source.entry(i).name not in done]
        finished = len(source) - len(missing)
        find_people = load() if missing else None
        for entry, data, result in _examined(source, missing, find_people, config, workers):
            journal.append(_record(out, entry, data, result, seen, config))
            finished += 1
            if progress is not None:
                progress(finished, len(source), entry.name)
        return _finish(out, journal.records)


def apply_review(out: Path) -> Report:
    """Bring a cleaned folder's metadata.jsonl and report up to what review.tsv says now.

    Raises:
        FileNotFoundError: not a folder that `clean` made.
        ValueError: review.tsv cannot be read, or a cleaning is at work there.
    """
    if not (out / LOG).is_file():
        raise FileNotFoundError(f"{out}: not a folder that `diffbody clean` made: it has no {LOG}")
    with Journal(out / LOG) as journal:
        return _finish(out, journal.records)


def _prepare(out: Path, name: str, config: CleanConfig) -> None:
    settings = {"source": name, **dataclasses.asdict(config)}
    path = out / SETTINGS
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{key} {old.get(key)} (now {settings[key]})" for key in settings if old.get(key) != settings[key]]
        if changed:
            raise ValueError(f"{out}: holds another cleaning: {', '.join(changed)}; choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty, and not a folder that `diffbody clean` made; choose another folder")
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=2) + "\n")
    if not (out / METADATA).is_file():  # until all is done the set is empty, whatever images/ holds
        write_whole(out / METADATA, "")


Examined = tuple[Entry, bytes, Kept | Dropped]


def _examined(
    source: Reader, indices: list[int], find_people: FindPeople | None, config: CleanConfig, workers: int
) -> Iterator[Examined]:
    def one(index: int) -> Examined:
        entry = source.entry(index)
        try:
            data = source.data(index)
        except (OSError, ValueError) as error:
            return entry, b"", Dropped(SCREEN, "unreadable", str(error))
        assert find_people is not None
        return entry, data, examine(data, find_people, config)

    return in_order(one, indices, workers)


def _record(
    out: Path, entry: Entry, data: bytes, result: Kept | Dropped, seen: set[str], config: CleanConfig
) -> dict[str, Any]:
    """A line of the journal; a picture that is kept is on disk before."""
    same = digest(data)
    if data and same in seen:
        result = Dropped(SCREEN, "duplicate", "the same file came before under another name")
    seen.add(same)
    known = {"name": entry.name, **({"digest": same} if data else {})}
    if isinstance(result, Dropped):
        return {**known, **dataclasses.asdict(result)}
    file = f"{IMAGES}/{file_name(entry.name)}.{config.format}"
    write_whole(out / file, result.data)
    found = {key: value for key, value in dataclasses.asdict(result).items() if key != "data"}
    labels = {"text": entry.caption, "identity": entry.identity, "camera": entry.camera}
    return {**known, "file": file, **found, **{key: value for key, value in labels.items() if value not in ("", None)}}


def file_name(name: str) -> str:
    """A flat name for a picture of the source: readable, and another one for every name of the source."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", name.rpartition(".")[0] or name).strip("_")[-60:]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _finish(out: Path, records: list[dict[str, Any]]) -> Report:
    """Sheets, list, set and report of what the journal holds."""
    kept = [record for record in records if "file" in record]
    decisions = read_review(out)
    write_sheets(out, kept)
    write_review(out, kept, decisions)
    chosen = [record for record in kept if decisions.get(record["file"], Decision()).decision != DROP]
    write_whole(out / METADATA, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in _rows(out, chosen)))
    settings = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    report = summarise(records, decisions, settings)
    report.write(out)
    return report


def _rows(out: Path, chosen: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lines of metadata.jsonl. What a line holds already (captions that were added) stays."""
    before = {record.get("file_name"): record for record in read_records(out / METADATA)}
    for record in chosen:
        labels: dict[str, Any] = {key: record[key] for key in ("text", "identity", "camera", "box") if key in record}
        yield {"file_name": record["file"], "source": record["name"], **labels, **before.get(record["file"], {})}
