"""Results kept picture by picture and method by method, so that a run which was cut goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One picture restored by one method.

    Attributes:
        index, image: number and name of the picture in the data.
        identity: who it shows; None where nobody said.
        seed: of the noise.
        low_size: (h, w) of the degraded picture.
        seconds: what the restoration took, its share of a batch.
        values: by name, what was measured.
        notices: the method's, such as that nobody was found.
    """

    index: int
    method: str
    image: str
    identity: int | None
    seed: int
    low_size: list[int]
    seconds: float
    values: dict[str, Any]
    notices: list[str] = field(default_factory=list)


class Journal:
    """The file `rows.jsonl`: settings in the first line, then a row a line; of rows for the same, the last counts.

    Args:
        settings: what all results depend on; compared as JSON.

    Raises:
        ValueError: the file is of other settings, or not such a file.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.rows: dict[tuple[int, str], Row] = {}
        settings = json.loads(json.dumps(settings))
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a run that was cut may leave half a line
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"settings": settings}) + "\n")
            return
        try:
            head, *lines = [json.loads(line) for line in whole.splitlines()]
            before, rows = head["settings"], [Row(**line) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not rows of an evaluation: {error}") from None
        if before != settings:
            changed = ", ".join(sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k)))
            raise ValueError(f"{path}: made with other settings ({changed}); choose another output folder or remove it")
        if whole != text:
            write_whole(path, whole)
        self.rows = {(row.index, row.method): row for row in rows}

    def add(self, row: Row) -> None:
        """Keep a row, on disk at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row), allow_nan=False) + "\n")
        self.rows[row.index, row.method] = row


def write_whole(path: Path, text: str) -> None:
    """A reader, or a run that is cut, never meets half a file."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
