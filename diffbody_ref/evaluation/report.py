"""Reports of an evaluation: Markdown for reading, CSV and JSON for further computations, and figures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from diffbody_ref.data.degradations import DegradationConfig
from diffbody_ref.data.recipes import describe
from diffbody_ref.evaluation import figures
from diffbody_ref.evaluation.identity import identity_table
from diffbody_ref.evaluation.methods import METHODS
from diffbody_ref.evaluation.metrics import METRICS, Metric
from diffbody_ref.evaluation.rows import Row
from diffbody_ref.evaluation.structure import FRACTIONS, KEYPOINT_GROUPS, summarise
from diffbody_ref.evaluation.suites import FULL, SUITES
from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.parts import PART_LABELS

Table = list[list[str]]
"""The row of column names, then rows of cells."""

NO_NUMBER = "n/a"  # in tables for reading; a footnote says why. Cells of CSV files are then empty


@dataclass(frozen=True)
class EvaluationReport(ABC):
    """The rows of an evaluation and their summary.

    Attributes:
        suite: name of the suite in `SUITES`.
        settings: everything that the results depend on.
        versions: versions of software by name.
        methods: names of the methods in the order of the tables; every picture has a row of each method.
        rows: the rows that are summarised.
        absent: methods and metrics that this machine lacks, and the reasons.
        notices: what whoever reads the report should know.
    """

    suite: str
    settings: dict[str, Any]
    versions: dict[str, str]
    methods: list[str]
    rows: list[Row]
    absent: dict[str, str]
    notices: list[str] = field(default_factory=list)

    def of(self, method: str) -> list[Row]:
        """The rows of a method, in the order of the pictures."""
        return [row for row in self.rows if row.method == method]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of pictures, of people (as far as known), and of pictures with a notice from any method."""
        return {
            "pictures": len({row.index for row in self.rows}),
            "identities": len({row.identity for row in self.rows if row.identity is not None}),
            "with_notices": len({row.index for row in self.rows if row.notices}),
        }

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """The summary of the rows for report.json."""

    @abstractmethod
    def tables(self) -> Iterator[tuple[str, Table, str]]:
        """Headings, tables and footnotes ("" for none) for report.md."""

    def identity(self) -> Iterator[tuple[str, Table, str]]:
        """The table of identity distances, if a method has any."""
        table = identity_table({name: [row.values for row in self.of(name)] for name in self.methods})
        if len(table) > 1:
            yield (
                "Identity: distance (eq. 6) of each person in the result from the one in the regression result; "
                "docs/evaluation.md says what a distance means.",
                table,
                "",
            )

    @abstractmethod
    def csv_tables(self) -> dict[str, Table]:
        """Tables of numbers alone for other programs, by name of their file; a cell without a number is empty."""

    def as_dict(self) -> dict[str, Any]:
        """The contents of report.json."""
        known = {"suite": self.suite, "settings": self.settings, "versions": self.versions, "counts": self.counts}
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {**known, "notices": self.notices, "absent": self.absent, **self.numbers(), "rows": rows}

    def as_markdown(self) -> str:
        """The contents of report.md: the settings in a few lines, and the tables."""
        settings, counts = self.settings, self.counts
        model, data = settings["model"], settings["data"]
        people = f" of {counts['identities']} people" if counts["identities"] else ""
        captions = "each picture's caption" if settings["use_captions"] else "empty"
        lines = [
            f"# Evaluation: {SUITES[self.suite].about}",
            "",
            f"Model `{model['name']}` (weights {model['weights']}), data {', '.join(data['folders'])}: "
            f"{counts['pictures']} pictures{people} (contents {data['checksum']}), seed {settings['seed']}. "
            f"Prompt: {captions}. {counts['with_notices']} pictures with a notice (such as no person found).",
            "",
            self._degradation_line(),
            "",
            "Options: " + ", ".join(f"{name} {value}" for name, value in settings["options"].items()) + ".",
            "",
        ]
        lines += [line for notice in self.notices for line in (f"**Notice:** {notice}.", "")]
        for heading, table, footnote in self.tables():
            lines += [heading, "", *markdown_table(table), "", *([footnote, ""] if footnote else [])]
        lines += ["Methods: " + "; ".join(f"{name}: {METHODS[name].about}" for name in self.methods) + ".", ""]
        if FULL in self.methods and settings["options"].get("use_residual"):
            lines += [f"Of {FULL} the residual is a part; `without-residual` is what the diffusion does alone.", ""]
        if left_out := {name: why for name, why in self.absent.items() if name in METHODS}:
            lines += ["Left out: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()) + ".", ""]
        lines += ["Versions: " + ", ".join(f"{name} {number}" for name, number in self.versions.items()) + "."]
        return "\n".join(lines) + "\n"

    def _degradation_line(self) -> str:
        """How the pictures were degraded, and whose recipe that is."""
        values = self.settings["degradation"]
        ranges = DegradationConfig(
            **{name: values[name] for name in (f.name for f in dataclasses.fields(DegradationConfig))}
        )
        return f"Degradation `{values['name']}` ({values['origin']}): {describe(ranges)}."

    def write(self, out: Path, shown: Sequence[int]) -> None:
        """Write report.json, report.md, the tables in CSV, rows.csv and the figures of this kind of report.

        Args:
            out: folder of the report.
            shown: indices of the pictures whose restored versions were kept for the figures.
        """
        write_whole(out / "report.json", json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")
        write_whole(out / "report.md", self.as_markdown())
        for name, table in self.csv_tables().items():
            write_whole(out / name, csv_text(table))
        write_whole(out / "rows.csv", csv_text(self.row_table()))
        self.draw(out, shown)

    def row_table(self) -> Table:
        """The contents of rows.csv: a line per picture and method."""
        fixed = ("index", "image", "identity", "method", "seconds")
        names = [name for name in self.rows[0].values if isinstance(self.rows[0].values[name], int | float)]
        values = ([*(getattr(row, name) for name in fixed), *map(row.values.get, names)] for row in self.rows)
        return [[*fixed, *names], *([_csv_cell(value) for value in line] for line in values)]

    def draw(self, out: Path, shown: Sequence[int]) -> None:  # noqa: B027, a kind of report may have no figures
        """Write the figures of this kind of report; see `write` for the arguments."""


class Estimate(NamedTuple):
    """A mean over pictures.

    Attributes:
        mean: the mean.
        standard_error: its standard error; None for a single picture.
    """

    mean: float
    standard_error: float | None


class QualityReport(EvaluationReport):
    """A report on how near the restored pictures are to the originals, and how good they look."""

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that every row contains."""
        return [metric for name, metric in METRICS.items() if all(name in row.values for row in self.rows)]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The suite's pairs whose methods were both evaluated."""
        return [pair for pair in SUITES[self.suite].pairs if set(pair) <= set(self.methods)]

    def estimate(self, method: str, metric: str, minus: str | None = None) -> Estimate:
        """The estimate of a metric for a method; with `minus`, of the paired difference from another method."""
        values = np.array([row.values[metric] for row in self.of(method)])
        if minus is not None:
            values -= [row.values[metric] for row in self.of(minus)]
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        return Estimate(float(values.mean()), error)

    def numbers(self) -> dict[str, Any]:
        """Means and paired differences."""
        names = [metric.name for metric in self.metrics]
        methods = {m: {k: self.estimate(m, k)._asdict() for k in names} for m in self.methods}
        pairs = {f"{a} - {b}": {k: self.estimate(a, k, b)._asdict() for k in names} for a, b in self.pairs}
        return {"methods": methods, "differences": pairs}

    def tables(self) -> Iterator[tuple[str, Table, str]]:
        """Table 1 and the differences, with a footnote on metrics that this machine lacks."""
        notes = (
            "Mean ± standard error. Sharpness is the energy of the finest details over the original's: 1 is as sharp, "
            "less is over-smoothed. Detail error is the detail energy missing or too much per 8×8 block, over the "
            "original's: 0 is best; it rises where noise passes for sharpness. Feature distance is how far apart the "
            "pictures are to a network that learnt from photographs: 0 is best."
        )
        head = [metric.heading for metric in METRICS.values()]
        means = [[name, *self._cells("", name)] for name in self.methods]
        lacking = [metric for metric in METRICS.values() if metric not in self.metrics]
        footnote = _footnote({metric.label: self._why_not(metric) for metric in lacking})
        yield notes, [["Method", *head], *means], footnote
        yield from self.identity()
        differences = [[f"{a} − {b}", *self._cells("+", a, b)] for a, b in self.pairs]
        if differences:
            yield "Differences, picture by picture:", [["Pair", *head], *differences], footnote

    def csv_tables(self) -> dict[str, Table]:
        """table.csv and differences.csv: mean, standard error and number of pictures of every metric."""
        names = [f"{metric}_{kind}" for metric in METRICS for kind in ("mean", "standard_error", "n")]
        means = [[name, *self._csv_cells(name)] for name in self.methods]
        differences = [[f"{a} - {b}", *self._csv_cells(a, b)] for a, b in self.pairs]
        return {"table.csv": [["method", *names], *means], "differences.csv": [["pair", *names], *differences]}

    def _csv_cells(self, method: str, minus: str | None = None) -> Iterator[str]:
        for metric in METRICS.values():
            if metric in self.metrics:
                yield from map(_csv_cell, (*self.estimate(method, metric.name, minus), len(self.of(method))))
            else:
                yield from ("", "", "")

    def _why_not(self, metric: Metric) -> str:
        return self.absent.get(metric.name, "not every picture was measured by it")

    def _cells(self, sign: str, method: str, minus: str | None = None) -> Iterator[str]:
        for metric in METRICS.values():
            if metric not in self.metrics:
                yield NO_NUMBER
                continue
            mean, error = self.estimate(method, metric.name, minus)
            rounded = round(mean, metric.digits) + 0.0  # no "-0.00"
            yield f"{rounded:{sign}.{metric.digits}f}" + ("" if error is None else f" ± {error:.{metric.digits}f}")

    def draw(self, out: Path, shown: Sequence[int]) -> None:
        """Write grid.png, good_and_bad.png, and the suite's figures of ablations, in pictures and in metrics."""
        if not shown:
            return
        figures.draw_grid(out / "grid.png", out, shown, [*self.methods, "original"])
        if {FULL, "swinir"} <= set(self.methods):
            whole = [name for name in self.methods if not name.startswith("without-")]
            figures.draw_grid(out / "good_and_bad.png", out, self._extremes(shown), [*whole, "original"])
        for name, (title, methods) in SUITES[self.suite].figures.items():
            *others, full = methods
            others = [other for other in others if other in self.methods]
            if not others or full not in self.methods:
                continue
            differences = {m.heading: [self.estimate(o, m.name, full) for o in others] for m in self.metrics}
            beside = ["bicubic"] if "bicubic" in self.methods else []
            figures.draw_ablation(out / f"{name}.png", title, out, shown, others, full, differences, beside)

    def _extremes(self, indices: Sequence[int]) -> list[int]:
        """The two pictures that the diffusion improves most over the regression, and the two that it harms most."""
        present = {metric.name for metric in self.metrics}
        metric = METRICS[next(name for name in ("lpips", "feature_distance", "psnr") if name in present)]
        sign = -1 if metric.larger_is_better else 1

        def gain(index: int) -> float:
            full, regression = (
                next(row.values[metric.name] for row in self.of(name) if row.index == index)
                for name in (FULL, "swinir")
            )
            return sign * (full - regression)

        order = sorted(indices, key=gain)
        return list(dict.fromkeys([*order[:2], *order[-2:]]))


class StructureReport(EvaluationReport):
    """A report on what the structure networks find in the pictures.

    Attributes:
        COLUMNS: heading and columns of each table, and why a column may have no number.
    """

    COLUMNS: ClassVar[tuple[tuple[str, list[str], str], ...]] = (
        (
            "Keypoints: share of people detected, and share of labelled keypoints (hidden ones too) within a "
            "fraction of the longer side of the person's box; the mean is over groups.",
            [
                "detected",
                *(f"pck@{FRACTIONS[0]} {group}" for group in (*KEYPOINT_GROUPS, "mean")),
                *(f"pck@{fraction} mean" for fraction in FRACTIONS[1:]),
            ],
            "no such keypoint is labelled inside the pictures",
        ),
        (
            "Body parts: intersection over union, of all pictures' pixels; the mean is over parts.",
            [f"iou {part}" for part in (*PART_LABELS[1:], "background", "mean")],
            "the model's parts are not those of the labels, or no picture shows this one",
        ),
        (
            "Identity: each picture is used to find its person among all other clean pictures.",
            ["rank-1", "mAP"],
            "no person has two pictures here, or the method `original` is not among these",
        ),
    )

    def numbers(self) -> dict[str, Any]:
        """The numbers of each method by column. Without the originals there is no gallery and thus no ReID."""
        clean = self.of("original")
        summaries = {}
        for name in self.methods:
            rows = self.of(name)
            identities = [row.identity or 0 for row in rows]
            summaries[name] = summarise([r.values for r in rows], identities, [r.values for r in clean])
        return {"methods": summaries}

    def tables(self) -> Iterator[tuple[str, Table, str]]:
        """The tables of keypoints, body parts and identity."""
        summaries = self.numbers()["methods"]
        for heading, columns, why in self.COLUMNS:
            cells = [[name, *(_cell(summaries[name].get(column)) for column in columns)] for name in self.methods]
            lacking = [column for column in columns if any(summaries[m].get(column) is None for m in self.methods)]
            yield heading, [["Method", *columns], *cells], _footnote(dict.fromkeys(lacking, why))
        yield from self.identity()

    def csv_tables(self) -> dict[str, Table]:
        """table.csv: all numbers of every method, and the number of pictures."""
        summaries = self.numbers()["methods"]
        columns = [column for _, columns, _ in self.COLUMNS for column in columns]
        lines = [
            [name, str(len(self.of(name))), *(_csv_cell(summaries[name].get(column)) for column in columns)]
            for name in self.methods
        ]
        return {"table.csv": [["method", "n", *columns], *lines]}

    def draw(self, out: Path, shown: Sequence[int]) -> None:
        """Write structure.png with bars of the main numbers."""
        columns = {
            "people detected": "detected",
            f"PCK@{FRACTIONS[0]}": f"pck@{FRACTIONS[0]} mean",
            f"PCK@{FRACTIONS[1]}": f"pck@{FRACTIONS[1]} mean",
            "part mIoU": "iou mean",
            "ReID rank-1": "rank-1",
            "ReID mAP": "mAP",
        }
        summaries = self.numbers()["methods"]
        bars = {name: [summaries[name].get(column) for column in columns.values()] for name in self.methods}
        figures.draw_bars(out / "structure.png", list(columns), bars)


def _cell(number: float | None) -> str:
    return NO_NUMBER if number is None else f"{number:.3f}"


def _csv_cell(value: Any) -> str:
    """A value in a CSV file, a number in full; empty for None."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _footnote(reasons: Mapping[str, str]) -> str:
    """Why columns have no numbers, one reason after the other; "" if all have."""
    columns: dict[str, list[str]] = {}
    for column, why in reasons.items():
        columns.setdefault(why, []).append(column)
    listed = "; ".join(f"{', '.join(names)}: {why}" for why, names in columns.items())
    return f"{NO_NUMBER}: {listed}." if listed else ""


def markdown_table(table: Table) -> list[str]:
    """The lines of a Markdown table."""
    head, *lines = table
    rule = "|---|" + "---:|" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)]


def csv_text(table: Table) -> str:
    """A table as CSV (RFC 4180)."""
    text = io.StringIO()
    csv.writer(text).writerows(table)
    return text.getvalue()
