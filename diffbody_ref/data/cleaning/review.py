"""Phase 4, inspection by eye: contact sheets, and review.tsv, in which a person marks pictures to drop."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diffbody_ref.data.readers.lines import first_record
from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.images import decode_levels

REVIEW = "review.tsv"
SHEETS = "sheets"
SHOWN = "cleaning/sheets.json"  # the pictures that each sheet shows
DECISIONS = KEEP, DROP = ("keep", "drop")
COLUMNS = ("number", "decision", "note", "file", "sheet", "visible", "score", "enlargement", "source")

COLUMNS_PER_SHEET, ROWS_PER_SHEET = 10, 4
PER_SHEET = COLUMNS_PER_SHEET * ROWS_PER_SHEET
CELL = 288  # height of a picture on a sheet in pixels
LABEL, GAP = 22, 6  # height of the number above a picture, and space between pictures, in pixels
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Decision:
    """A person's decision about a picture.

    Attributes:
        decision: "keep" or "drop".
        note: the reason, free text.
    """

    decision: str = KEEP
    note: str = ""


def sheet_name(position: int, count: int) -> str:
    """The path of the sheet that shows a picture; its name is the numbers of its first and last picture.

    Args:
        position: position of the picture in the list, from 0.
        count: number of pictures in the list.
    """
    first = position // PER_SHEET * PER_SHEET
    return f"{SHEETS}/{first + 1:06d}-{min(first + PER_SHEET, count):06d}.jpg"


def read_review(out: Path) -> dict[str, Decision]:
    """Read the decisions in review.tsv, by file; a picture that is not listed is kept.

    Raises:
        ValueError: a column is missing, or a decision is neither `keep` nor `drop`; the message names the file and the
            line.
    """
    path = out / REVIEW
    if not path.is_file():
        return {}
    decisions = {}
    try:
        # A spreadsheet may have added a byte order mark and quotes.
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), delimiter="\t")
        if missing := {"decision", "file"} - set(rows.fieldnames or ()):
            raise ValueError(f"{path}: has no column {min(missing)!r}; its columns must be separated by tabs")
        for row in rows:
            decision = (row["decision"] or "").strip().lower()
            if decision not in DECISIONS:
                raise ValueError(f"{path}, line {rows.line_num}: decision is {decision!r}; it must be keep or drop")
            decisions[row["file"]] = Decision(decision, (row.get("note") or "").strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of text: {error}") from None
    return decisions


def write_review(out: Path, kept: Sequence[dict[str, Any]], decisions: dict[str, Decision]) -> None:
    """Write review.tsv: all pictures that passed the first three phases, with the decisions so far."""
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n", extrasaction="ignore")
    rows.writeheader()
    for position, record in enumerate(kept):
        review = decisions.get(record["file"], Decision())
        columns = {
            "number": position + 1,
            "decision": review.decision,
            "note": review.note,
            "sheet": sheet_name(position, len(kept)),
        }
        rows.writerow({**record, **columns, "source": record["name"]})
    write_whole(out / REVIEW, text.getvalue())


def write_sheets(out: Path, kept: Sequence[dict[str, Any]]) -> None:
    """Write a JPEG for every `PER_SHEET` pictures, numbered as in the list; sheets of the same pictures stay."""
    (out / SHEETS).mkdir(exist_ok=True)
    sheets = {first: out / sheet_name(first, len(kept)) for first in range(0, len(kept), PER_SHEET)}
    index = out / SHOWN
    before = first_record(index)
    shown = {}
    for first, path in sheets.items():
        files = shown[path.name] = [record["file"] for record in kept[first : first + PER_SHEET]]
        if path.is_file() and before.get(path.name) == files:
            continue
        buffer = io.BytesIO()
        draw_sheet([out / file for file in files], first + 1).save(buffer, format="JPEG", quality=JPEG_QUALITY)
        write_whole(path, buffer.getvalue())
    index.parent.mkdir(exist_ok=True)
    write_whole(index, json.dumps(shown) + "\n")
    for path in (out / SHEETS).glob("*.jpg"):
        if path not in sheets.values():  # the last sheet of an earlier, shorter list
            path.unlink()


def draw_sheet(pictures: Sequence[Path], number: int) -> Image.Image:
    """Draw pictures of one size in rows, numbered from `number`."""
    font = ImageFont.load_default(size=LABEL - 6)
    height, width = decode_levels(pictures[0].read_bytes(), str(pictures[0])).shape[:2]
    width = round(CELL * width / height)
    columns = min(COLUMNS_PER_SHEET, len(pictures))
    rows = -(-len(pictures) // columns)
    step = (width + GAP, CELL + LABEL + GAP)
    sheet = Image.new("RGB", (columns * step[0] + GAP, rows * step[1] + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, path in enumerate(pictures):
        x, y = GAP + i % columns * step[0], GAP + i // columns * step[1]
        picture = Image.fromarray(decode_levels(path.read_bytes(), str(path)))
        sheet.paste(picture.resize((width, CELL), Image.Resampling.LANCZOS), (x, y + LABEL))
        draw.text((x, y), str(number + i), fill="black", font=font)
    return sheet
