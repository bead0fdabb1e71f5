"""How near a bundle's graphs are to the PyTorch reference: stage by stage and end to end, as a report in the bundle."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffbody_ref.ops.images import Picture, read_image
from diffbody_ref.pipeline import DiffBodyPipeline
from export.stages import Progress, Stage, stages
from runtime.bundle import Bundle, read_sizes
from runtime.restore import Restorer

REPORT_JSON, REPORT_PAGE = "parity.json", "parity.md"
SAMPLE = Path(__file__).parent.parent / "samples" / "degraded" / "synthetic_1.jpg"
END_TO_END_STEPS = 6
LEAST_PSNR = {"float32": 45.0, "float16": 35.0, "bfloat16": 25.0}  # dB, end to end

# Sizes to try beside those of the sample run; a name that a stage lacks is passed over.
SIZES: tuple[dict[str, int], ...] = (
    {"batch": 1, "people": 1, "height": 1, "width": 1},
    {"batch": 3, "people": 2, "height": 5, "width": 3},
    {"batch": 4, "people": 4, "height": 7, "width": 9},
)


@dataclass(frozen=True)
class Row:
    """One output of one run of a stage.

    Attributes:
        inputs: "random" or "sample run". sizes: the dynamic sizes.
        max_abs, relative_l2, cosine: |a − b| at most, ‖a − b‖/‖b‖, and 1 − cos(a, b).
    """

    stage: str
    output: str
    inputs: str
    sizes: dict[str, int]
    max_abs: float
    relative_l2: float
    cosine: float
    tolerance: float
    worst: float


@dataclass(frozen=True)
class Report:
    """Rows of all stages, and the PSNR between both restorations of the sample in dB."""

    precision: str
    rows: list[Row]
    psnr: float

    @property
    def failures(self) -> list[str]:
        """What is beyond its tolerance, one line each."""
        lines = []
        for name, rows in self.by_output().items():
            errors = [row.relative_l2 for row in rows]
            if (median := statistics.median(errors)) > rows[0].tolerance:
                lines.append(f"{name}: median relative error {median:.2g}, at most {rows[0].tolerance:g}")
            if max(errors) > rows[0].worst:
                lines.append(f"{name}: largest relative error {max(errors):.2g}, at most {rows[0].worst:g}")
        least = LEAST_PSNR[self.precision]
        return lines + ([f"end to end: {self.psnr:.1f} dB, at least {least:g}"] if self.psnr < least else [])

    def by_output(self) -> dict[str, list[Row]]:
        """The rows of each output, by "stage.output"."""
        names = dict.fromkeys(f"{row.stage}.{row.output}" for row in self.rows)
        return {name: [row for row in self.rows if f"{row.stage}.{row.output}" == name] for name in names}

    def as_markdown(self) -> str:
        """The largest errors of every output."""
        lines = [
            f"## Graphs in {self.precision}",
            "",
            "Against the PyTorch reference in float32. End to end on a sample: "
            f"{self.psnr:.1f} dB (at least {LEAST_PSNR[self.precision]:g}).",
            "",
            "| output | runs | max abs | 1 − cosine | relative L2 | at most | its median | at most |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, rows in self.by_output().items():
            most = [max(getattr(row, column) for row in rows) for column in ("max_abs", "cosine", "relative_l2")]
            median = statistics.median(row.relative_l2 for row in rows)
            lines.append(
                f"| {name} | {len(rows)} | {most[0]:.2g} | {most[1]:.2g} | {most[2]:.2g} | {rows[0].worst:g} | "
                f"{median:.2g} | {rows[0].tolerance:g} |"
            )
        return "\n".join(lines) + "\n"


def parity(
    pipeline: DiffBodyPipeline,
    bundle: Bundle,
    precision: str = "float32",
    sample: Path = SAMPLE,
    progress: Progress | None = None,
) -> Report:
    """Compare every stage of the bundle with its module, on random inputs and on those of restoring the sample.

    Args:
        pipeline: in float32.
        precision: of the graphs.

    Raises:
        ImageError: the sample cannot be read.
    """
    picture = read_image(sample)
    restorer = bundle.restorer(precision=precision)
    psnr, recorded = _end_to_end(pipeline, restorer, picture)
    todo = stages(pipeline)
    rows: list[Row] = []
    for done, stage in enumerate(todo):
        if progress is not None:
            progress(done, len(todo), stage.name)
        for kind, feed in _feeds(stage, recorded.get(stage.name, [])):
            found, wanted = restorer.infer(stage.name, feed), stage.reference(feed)
            rows.extend(_row(stage, name, kind, feed, found[name], wanted[name], precision) for name in wanted)
    return Report(precision, rows, psnr)


def write_reports(reports: list[Report], folder: Path) -> None:
    """parity.json and parity.md in `folder`."""
    values = [dataclasses.asdict(report) for report in reports]
    (folder / REPORT_JSON).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    pages = ["# Parity with the PyTorch reference\n", *(report.as_markdown() for report in reports)]
    (folder / REPORT_PAGE).write_text("\n".join(pages), encoding="utf-8")


def _end_to_end(
    pipeline: DiffBodyPipeline, restorer: Restorer, picture: Picture
) -> tuple[float, dict[str, list[dict[str, np.ndarray]]]]:
    """PSNR between both restorations, and the first and last feed of every stage on the way."""
    recorded: dict[str, list[dict[str, np.ndarray]]] = {}
    infer = restorer.infer

    def recording(stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds = recorded.setdefault(stage, [])
        feeds[1:] = [feed]
        return infer(stage, feed)

    restorer.infer = recording
    call = {"num_inference_steps": END_TO_END_STEPS, "seed": 0}
    found = restorer.restore(picture, **call).pixels  # type: ignore[arg-type]
    restorer.infer = infer
    (wanted,) = pipeline(picture, **call, output_type="np").images
    return agreement(found, wanted), recorded


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """PSNR in dB of two results in [0, 1], 200 where they are the same: JSON has no infinity."""
    return float(-10.0 * np.log10(max(np.square(found - wanted).mean(), 1e-20)))


def _feeds(stage: Stage, recorded: list[dict[str, np.ndarray]]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for seed, sizes in enumerate(SIZES):
        fitting = {name: max(size, stage.ranges[name].least) for name, size in sizes.items() if name in stage.ranges}
        yield "random", stage.example(fitting, seed)
    for feed in recorded:
        yield "sample run", feed


def _row(
    stage: Stage,
    output: str,
    kind: str,
    feed: dict[str, np.ndarray],
    found: np.ndarray,
    wanted: np.ndarray,
    precision: str,
) -> Row:
    a, b = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    size = float(np.linalg.norm(b))
    relative = float(np.linalg.norm(a - b)) / max(size, 1e-6)
    cosine = 1.0 - float(a @ b) / max(float(np.linalg.norm(a)) * size, 1e-12) if size > 1e-6 else 0.0
    most = float(np.abs(a - b).max(initial=0.0))
    sizes = read_sizes(stage.inputs, feed)
    tolerance, worst = stage.tolerance[precision], stage.worst[precision]
    return Row(stage.name, output, kind, sizes, most, relative, cosine, tolerance, worst)
