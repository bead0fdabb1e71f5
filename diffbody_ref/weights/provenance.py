"""Where a model's components come from: a row each, for people and for `model_index.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.found import Found, Imported

HASHED_AT_ONCE = 1 << 24  # bytes


@dataclass(frozen=True)
class Row:
    """What was imported as a component, or merged into one.

    Attributes:
        component: name of the component.
        source: name of the public project or layout.
        file: name of the file or folder that it was read from.
        what: what was recognised.
        parameters: number of its parameters; 0 of what has none.
        sha256: of the file, or of the files of a folder's weights one after another.
        licence: of the public weights.
        ignored: number of the file's tensors, or the folder's folders, that are not used, by reason.
    """

    component: str
    source: str
    file: str
    what: str
    parameters: int
    sha256: str
    licence: str
    ignored: dict[str, int]


class Provenance:
    """Makes rows; hashes every file once."""

    def __init__(self) -> None:
        self._hashes: dict[tuple[Path, ...], str] = {}

    def row(self, source: str, checkpoint: Checkpoint, found: Found, read: Imported) -> Row:
        """The row of a component that was read."""
        files = read.files or (checkpoint.path,)
        if files not in self._hashes:
            self._hashes[files] = sha256(files)
        reasons = list(read.ignored.values())
        return Row(
            found.component,
            source,
            checkpoint.path.name,
            found.what,
            parameter_count(read.network),
            self._hashes[files],
            read.licence,
            {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        )


def sha256(files: Iterable[Path]) -> str:
    """SHA-256 of files' contents, one after another."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(HASHED_AT_ONCE):
                digest.update(chunk)
    return digest.hexdigest()


def parameter_count(network: Any) -> int:
    """Number of a network's parameters; 0 of what is none."""
    return sum(p.numel() for p in network.parameters()) if hasattr(network, "parameters") else 0


def as_table(rows: Sequence[Row]) -> str:
    """The rows for people: a line a component, then what is not used of each file."""
    head = ("component", "source", "file", "recognised", "parameters", "sha256", "licence")
    cells = [
        (r.component, r.source, r.file, r.what, f"{r.parameters:,}" if r.parameters else "", r.sha256[:12], r.licence)
        for r in rows
    ]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (head, *cells)]
    unused = [
        f"not used of {row.file} for {row.component}: {count}, each {reason}"
        for row in rows
        for reason, count in row.ignored.items()
    ]
    return "\n".join(line.rstrip() for line in (*lines, *unused))
