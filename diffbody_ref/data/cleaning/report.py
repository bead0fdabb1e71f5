"""The report of a cleaning: counts and reasons by phase, and the list of dropped pictures."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffbody_ref.data.cleaning.phases import INSPECT, PHASES
from diffbody_ref.data.cleaning.review import DROP, REVIEW, Decision
from diffbody_ref.ops.files import write_whole


@dataclass(frozen=True)
class PhaseCount:
    """How many pictures one phase dropped, and why.

    Attributes:
        phase: name of the phase.
        pictures: number of pictures that entered the phase.
        dropped: number of pictures that the phase dropped.
        reasons: number of dropped pictures by reason.
    """

    phase: str
    pictures: int
    dropped: int
    reasons: dict[str, int]

    @property
    def left(self) -> int:
        """Number of pictures that passed the phase."""
        return self.pictures - self.dropped


@dataclass(frozen=True)
class CleaningReport:
    """The report of a whole cleaning.

    Attributes:
        settings: the source's name ("source") and the fields of `CleanConfig`.
        phases: counts of each phase, in order.
        dropped: (name, phase, reason, detail) of each picture that is not kept.
    """

    settings: dict[str, Any]
    phases: tuple[PhaseCount, ...]
    dropped: tuple[tuple[str, str, str, str], ...]

    @property
    def pictures(self) -> int:
        """Number of pictures of the source."""
        return self.phases[0].pictures

    @property
    def kept(self) -> int:
        """Number of pictures that passed all phases."""
        return self.phases[-1].left

    def write(self, out: Path) -> None:
        """Write report.json, report.md and dropped.tsv to the folder `out`."""
        counts = {"pictures": self.pictures, "kept": self.kept, "settings": self.settings}
        phases = [{**asdict(phase), "left": phase.left} for phase in self.phases]
        write_whole(out / "report.json", json.dumps({**counts, "phases": phases}, indent=2) + "\n")
        write_whole(out / "report.md", self.as_markdown())
        text = io.StringIO(newline="")
        rows = csv.writer(text, delimiter="\t", lineterminator="\n")
        rows.writerow(("picture", "phase", "reason", "detail"))
        rows.writerows(self.dropped)
        write_whole(out / "dropped.tsv", text.getvalue())

    def as_markdown(self) -> str:
        """The text of report.md."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items() if key != "source")
        lines = [
            f"# Cleaning of {self.settings['source']}",
            "",
            f"{self.kept} of {self.pictures} pictures are kept ({_percent(self.kept, self.pictures)}). "
            "dropped.tsv lists the others.",
            "",
            "| phase | pictures | dropped | left |",
            "|---|---:|---:|---:|",
            *(f"| {p.phase} | {p.pictures} | {p.dropped} | {p.left} |" for p in self.phases),
            "",
            "| dropped by | because | pictures | of all |",
            "|---|---|---:|---:|",
            *(
                f"| {p.phase} | {reason.replace('|', '/')} | {count} | {_percent(count, self.pictures)} |"
                for p in self.phases
                for reason, count in p.reasons.items()
            ),
            "",
            f"Settings: {settings}.",
            "",
            f"To inspect the pictures: look at sheets/, write `drop` on the lines of unwanted pictures in {REVIEW}, "
            "and run `diffbody clean --apply` on this folder.",
        ]
        return "\n".join(lines) + "\n"


def summarise(
    records: list[dict[str, Any]], decisions: dict[str, Decision], settings: dict[str, Any]
) -> CleaningReport:
    """The report of a cleaning.

    Args:
        records: records of the journal.
        decisions: decisions of the inspection, by file.
        settings: see `CleaningReport`.
    """
    dropped = []
    for record in records:
        review = decisions.get(record.get("file", ""), Decision())
        if "phase" in record:
            dropped.append((record["name"], record["phase"], record["reason"], record["detail"]))
        elif review.decision == DROP:
            dropped.append((record["name"], INSPECT, review.note or "by eye", record["file"]))
    phases, left = [], len(records)
    for phase in PHASES:
        reasons = Counter(reason for _, where, reason, _ in dropped if where == phase)
        phases.append(PhaseCount(phase, left, reasons.total(), dict(reasons.most_common())))
        left -= reasons.total()
    return CleaningReport(settings, tuple(phases), tuple(dropped))


def _percent(part: int, whole: int) -> str:
    return f"{100.0 * part / max(whole, 1):.1f} %"
