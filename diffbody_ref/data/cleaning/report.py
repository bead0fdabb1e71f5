"""What a cleaning did: counts by phase, reasons, and the list of what was dropped."""

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
from diffbody_ref.data.journal import write_whole


@dataclass(frozen=True)
class PhaseCount:
    """Pictures that came into a phase, those that it dropped, and why: reason → pictures."""

    phase: str
    pictures: int
    dropped: int
    reasons: dict[str, int]

    @property
    def left(self) -> int:
        return self.pictures - self.dropped


@dataclass(frozen=True)
class Report:
    """Of a whole cleaning; `dropped` has a row of (name, phase, reason, detail) for each picture that is not kept."""

    settings: dict[str, Any]
    phases: tuple[PhaseCount, ...]
    dropped: tuple[tuple[str, str, str, str], ...]

    @property
    def pictures(self) -> int:
        return self.phases[0].pictures

    @property
    def kept(self) -> int:
        return self.phases[-1].left

    def write(self, out: Path) -> None:
        """report.json, report.md and dropped.tsv."""
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
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items() if key != "source")
        lines = [
            f"# Cleaning of {self.settings['source']}",
            "",
            f"{self.kept} of {self.pictures} pictures are kept ({_percent(self.kept, self.pictures)}). "
            "dropped.tsv names every other one.",
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
            f"To inspect: look at sheets/, write `drop` on the pictures' lines in {REVIEW}, and run `diffbody clean "
            "--apply` on this folder.",
        ]
        return "\n".join(lines) + "\n"


def summarise(records: list[dict[str, Any]], decisions: dict[str, Decision], settings: dict[str, Any]) -> Report:
    """
    Args:
        records: the journal's.
        decisions: by file, of the inspection.
    """
    dropped = []
    for record in records:
        said = decisions.get(record.get("file", ""), Decision())
        if "phase" in record:
            dropped.append((record["name"], record["phase"], record["reason"], record["detail"]))
        elif said.decision == DROP:
            dropped.append((record["name"], INSPECT, said.note or "by eye", record["file"]))
    phases, left = [], len(records)
    for phase in PHASES:
        reasons = Counter(reason for _, where, reason, _ in dropped if where == phase)
        phases.append(PhaseCount(phase, left, reasons.total(), dict(reasons.most_common())))
        left -= reasons.total()
    return Report(settings, tuple(phases), tuple(dropped))


def _percent(part: int, whole: int) -> str:
    return f"{100.0 * part / max(whole, 1):.1f} %"
