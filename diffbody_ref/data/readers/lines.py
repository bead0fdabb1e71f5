"""Files of JSON objects, one per line, such as metadata.jsonl with one line per picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METADATA = "metadata.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read all objects of a file; blank lines are skipped.

    Raises:
        ValueError: a line is not a JSON object; the message names the file and the line.
    """
    records = []
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    records.append(parse_record(line, f"{path}, line {number}"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text: {error.reason}") from None
    return records


def first_record(path: Path) -> dict[str, Any]:
    """The first object of a file, {} if there is no such file or object."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        line = next((line for line in lines if line.strip()), "{}")
    try:
        return parse_record(line, "")
    except ValueError:
        return {}


def parse_record(line: str, where: str) -> dict[str, Any]:
    """Parse a line that holds a JSON object.

    Args:
        line: the line.
        where: the file and the line number, for the error message.

    Raises:
        ValueError: the line is not a JSON object; the message begins with `where`.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be a JSON object, not {type(record).__name__}")
    return record
