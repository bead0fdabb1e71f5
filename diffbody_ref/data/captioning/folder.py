"""Captioning of all pictures of a folder, several at a time; captions go to the folder's metadata.jsonl.

Every caption is appended to a journal, captions.jsonl, as soon as it arrives. metadata.jsonl is rewritten from the
journal when the run ends or is interrupted; if the process was killed, the next run does so when it starts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbody_ref.data.captioning.endpoint import Endpoint, EndpointConfig, EndpointError
from diffbody_ref.data.datasets import READING_THREADS
from diffbody_ref.data.journal import Journal
from diffbody_ref.data.parallel import map_in_order
from diffbody_ref.data.readers import open_folder
from diffbody_ref.data.readers.lines import METADATA, read_records
from diffbody_ref.data.readers.pictures import PicturesReader
from diffbody_ref.ops.captions import Caption
from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.images import decode_levels
from diffbody_ref.ops.progress import Progress

JOURNAL = "captions.jsonl"
GIVE_UP_AFTER = 8  # failures without a success: the cause is then not the pictures


@dataclass
class CaptionReport:
    """The result of captioning a folder.

    Attributes:
        written: number of pictures captioned by this run.
        before: number of pictures that had a caption before this run.
        failed: reason for a missing caption, by name of the picture.
    """

    written: int = 0
    before: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def open_captionable(folder: Path) -> PicturesReader:
    """Open a folder whose pictures can get captions.

    Raises:
        ValueError: the folder's format cannot hold new captions.
    """
    reader = open_folder(folder)
    if not isinstance(reader, PicturesReader):
        raise ValueError(
            f"{folder}: captions are written beside picture files, but this folder has another format "
            f"({reader.format}); convert it to picture files with `diffbody clean`"
        )
    return reader


def pending(folder: Path, model: str | None = None) -> list[int]:
    """Indices of the pictures without a caption; with `model`, of those without a caption from this model.

    A caption that this module wrote counts for the picture that it was written for, not for another one of its name.
    """
    reader = open_captionable(folder)
    rows = _current_rows(folder)

    def is_pending(index: int) -> bool:
        entry = reader.entry(index)
        row = rows.get(entry.name, {})
        if not entry.caption or (model is not None and row.get("model", "") != model):
            return True
        return "digest" in row and row["digest"] != _digest_of(reader, index)

    return [index for index, asked in enumerate(map_in_order(is_pending, range(len(reader)), READING_THREADS)) if asked]


def _digest_of(reader: PicturesReader, index: int) -> str:
    """SHA-256 of a picture's file, shortened; "" if it cannot be read."""
    try:
        return hashlib.sha256(reader.data(index)).hexdigest()[:32]
    except (OSError, ValueError):
        return ""


def caption_folder(
    folder: Path,
    config: EndpointConfig,
    api_key: str = "",
    concurrency: int = 8,
    overwrite: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
) -> CaptionReport:
    """Caption the pictures of a folder that have no caption yet.

    Args:
        folder: the folder.
        config: where the model runs, and how it is queried.
        api_key: key of the endpoint; "" if it needs none.
        concurrency: number of pictures that are captioned at the same time.
        overwrite: also caption pictures whose caption is from another model.
        limit: largest number of pictures to caption in this run; None is no limit.
        progress: called with (processed pictures, pictures of this run, name of the picture).

    Raises:
        ValueError: the folder cannot hold new captions, or the endpoint refuses every request (`EndpointError`).
    """
    reader = open_captionable(folder)
    with Journal(folder / JOURNAL) as journal:
        _merge(folder, reader, journal)  # captions of a run that was killed
        missing = pending(folder, config.model if overwrite else None)
        report = CaptionReport(before=len(reader) - len(missing))
        missing = missing[:limit]
        run = _Run(reader, journal, report, config.model, progress, len(missing))
        try:
            asyncio.run(run.caption_all(missing, config, api_key, concurrency))
        finally:
            _merge(folder, reader, journal)
    (folder / JOURNAL).unlink()  # metadata.jsonl contains all of it
    return report


@dataclass
class _Run:
    """A run in progress; the arguments of `caption_folder` and what it has done so far."""

    reader: PicturesReader
    journal: Journal
    report: CaptionReport
    model: str
    progress: Progress | None
    total: int

    async def caption_all(self, indices: list[int], config: EndpointConfig, api_key: str, concurrency: int) -> None:
        """Caption the pictures with these indices, `concurrency` of them at a time."""
        queue: Iterator[int] = iter(indices)
        async with Endpoint(config, api_key, concurrency) as endpoint:

            async def work() -> None:
                for index in queue:  # shared by the workers: each picture goes to the next free one
                    await self._caption_one(index, endpoint)

            workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(indices)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _caption_one(self, index: int, endpoint: Endpoint) -> None:
        name = self.reader.entry(index).name
        try:
            digest = await asyncio.to_thread(_digest_of, self.reader, index)
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
            record["digest"] = digest
            self.journal.append(record)
            self.report.written += 1
        if self.progress is not None:
            self.progress(self.report.written + len(self.report.failed), self.total, name)


def _current_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The objects of metadata.jsonl by picture name; empty if there is no such file."""
    path = folder / METADATA
    return {str(row.get("file_name")): row for row in read_records(path)} if path.is_file() else {}


def _merge(folder: Path, reader: PicturesReader, journal: Journal) -> None:
    """Write the journal's captions to metadata.jsonl, which lists all pictures of the folder: it defines the set."""
    if not journal.records:
        return
    rows = _current_rows(folder)
    for entry in map(reader.entry, range(len(reader))):
        rows.setdefault(entry.name, {"file_name": entry.name, **({"text": entry.caption} if entry.caption else {})})
    for record in journal.records:
        sentence = Caption(**record["caption"]).sentence()
        rows[record["file_name"]] = {**rows.get(record["file_name"], {}), **record, "text": sentence}
    write_whole(folder / METADATA, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows.values()))
