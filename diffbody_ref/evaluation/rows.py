"""The results of an evaluation, one row per picture and method, kept on disk so that an interrupted run can resume."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbody_ref.ops.files import write_whole


@dataclass(frozen=True)
class Row:
    """The result of one method on one picture.

    Attributes:
        index: number of the picture in the data.
        method: name of the method.
        image: name of the picture in the data.
        content: checksum of the picture and its labels, see `Subjects.content`.
        identity: number of the person shown; None if it is not known.
        seed: seed of the noise.
        size: (H, W) of the picture.
        low_size: (h, w) of the degraded picture.
        seconds: time of the restoration; for a batch, its time divided by its size.
        values: measured values by name.
        notices: remarks of the method, for example that no person was found.
    """

    index: int
    method: str
    image: str
    content: str
    identity: int | None
    seed: int
    size: list[int]
    low_size: list[int]
    seconds: float
    values: dict[str, Any]
    notices: list[str] = field(default_factory=list)


class EvaluationRows:
    """The file `rows.jsonl`: the settings in the first line, then one row per line.

    If several rows are of the same picture and method, the last one counts.

    Attributes:
        path: the file; its folder is created if needed.
        rows: the rows by (index, method).

    Args:
        settings: everything that the results depend on; compared as JSON.

    Raises:
        ValueError: the file was written with other settings, or it is not a file of rows.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.rows: dict[tuple[int, str], Row] = {}
        settings = json.loads(json.dumps(settings))
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # an interrupted run may leave half a line
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"settings": settings}) + "\n")
            return
        try:
            head, *lines = [json.loads(line) for line in whole.splitlines()]
            before = dict(head["settings"])
            self._check(before, settings)
            rows = [Row(**line) for line in lines]
        except (json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
            reason = str(error)[:200]
            raise ValueError(f"{path}: not rows of an evaluation: {reason}; remove the file to start over") from None
        if whole != text:
            write_whole(path, whole)
        self.rows = {(row.index, row.method): row for row in rows}

    def _check(self, before: dict[str, Any], settings: dict[str, Any]) -> None:
        """Check that the file's settings are these."""
        changed = ", ".join(sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k)))
        if changed:
            raise ValueError(
                f"{self.path}: made with other settings ({changed}); choose another output folder or remove it"
            )

    def add(self, row: Row) -> None:
        """Append a row to the file and to `rows`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row), allow_nan=False) + "\n")
        self.rows[row.index, row.method] = row
