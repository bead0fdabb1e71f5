"""All pictures of a folder to captions in its metadata.jsonl, some at a time, resumable.

Every caption goes to a journal, captions.jsonl, when it comes. metadata.jsonl is written anew from it when the run
ends, also when it is interrupted, and at the start of the next one where the process was killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbody_ref.data.captioning.endpoint import Endpoint, EndpointConfig, EndpointError
from diffbody_ref.data.journal import Journal, write_whole
from diffbody_ref.data.readers import open_folder
from diffbody_ref.data.readers.lines import METADATA, read_records
from diffbody_ref.data.readers.pictures import PicturesReader
from diffbody_ref.ops.captions import Caption
from diffbody_ref.ops.images import decode_levels

JOURNAL = "captions.jsonl"
GIVE_UP_AFTER = 8  # failures without a success: then it is not the pictures


@dataclass
class CaptionReport:
    """Pictures captioned now and before, and why others have no caption, by name."""

    written: int = 0
    before: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def open_captionable(folder: Path) -> PicturesReader:
    """The folder's reader.

    Raises:
        ValueError: a format that cannot take captions.
    """
    reader = open_folder(folder)
    if not isinstance(reader, PicturesReader):
        raise ValueError(
            f"{folder}: captions are written beside picture files, and this folder is of another format "
            f"({reader.format}); make picture files of it with `diffbody clean`"
        )
    return reader


def pending(folder: Path, model: str | None = None) -> list[int]:
    """Indices of the pictures that have no caption; with a model, of those that have none from it."""
    reader = open_captionable(folder)
    models = {name: row.get("model", "") for name, row in _rows_before(folder).items()}
    entries = [reader.entry(i) for i in range(len(reader))]
    return [i for i, e in enumerate(entries) if not e.caption or (model is not None and models.get(e.name) != model)]


def caption_folder(
    folder: Path,
    config: EndpointConfig,
    api_key: str = "",
    concurrency: int = 8,
    overwrite: bool = False,
    limit: int | None = None,
    progress: Callable[..., None] | None = None,
) -> CaptionReport:
    """Caption the pictures of a folder that have no caption yet.

    Args:
        api_key: of the endpoint; "" is none.
        concurrency: pictures at a time.
        overwrite: caption pictures again whose caption is not from this model.
        limit: pictures to caption now, at most.
        progress: called with (pictures done, pictures in all, name of the picture).

    Raises:
        ValueError: a folder that cannot take captions, or an endpoint that refuses everyone (`EndpointError`).
    """
    reader = open_captionable(folder)
    with Journal(folder / JOURNAL) as journal:
        _merge(folder, reader, journal)  # of a run that was killed
        missing = pending(folder, config.model if overwrite else None)
        report = CaptionReport(before=len(reader) - len(missing))
        missing = missing[:limit]
        run = _Run(reader, journal, report, config.model, progress, len(missing))
        try:
            asyncio.run(run.all(missing, config, api_key, concurrency))
        finally:
            _merge(folder, reader, journal)
    (folder / JOURNAL).unlink()  # all of it is in metadata.jsonl
    return report


@dataclass
class _Run:
    reader: PicturesReader
    journal: Journal
    report: CaptionReport
    model: str
    progress: Callable[..., None] | None
    total: int

    async def all(self, indices: list[int], config: EndpointConfig, api_key: str, concurrency: int) -> None:
        queue: Iterator[int] = iter(indices)
        async with Endpoint(config, api_key, concurrency) as endpoint:

            async def work() -> None:
                for index in queue:  # shared: each picture goes to whoever is free
                    await self._one(index, endpoint)

            workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(indices)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _one(self, index: int, endpoint: Endpoint) -> None:
        name = self.reader.entry(index).name
        try:
            picture = await asyncio.to_thread(lambda: decode_levels(self.reader.data(index), name))
            caption = await endpoint.caption(picture)
        except EndpointError:
            raise
        except (ValueError, OSError) as error:
            self.report.failed[name] = str(error)
            if self.report.written == 0 and len(self.report.failed) >= GIVE_UP_AFTER:
                raise EndpointError(f"the first {GIVE_UP_AFTER} pictures all failed, the last by: {error}") from None
        else:
            record = {"file_name": name, "caption": dataclasses.asdict(caption), "model": self.model}
            self.journal.append(record)
            self.report.written += 1
        if self.progress is not None:
            self.progress(self.report.written + len(self.report.failed), self.total, name)


def _rows_before(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / METADATA
    return {str(row.get("file_name")): row for row in read_records(path)} if path.is_file() else {}


def _merge(folder: Path, reader: PicturesReader, journal: Journal) -> None:
    """metadata.jsonl with all pictures of the folder: it says which belong to the set."""
    if not journal.records:
        return
    rows = _rows_before(folder)
    for entry in map(reader.entry, range(len(reader))):
        rows.setdefault(entry.name, {"file_name": entry.name, **({"text": entry.caption} if entry.caption else {})})
    for record in journal.records:
        sentence = Caption(**record["caption"]).sentence()
        rows[record["file_name"]] = {**rows.get(record["file_name"], {}), **record, "text": sentence}
    write_whole(folder / METADATA, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows.values()))
