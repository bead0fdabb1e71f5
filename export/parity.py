"""How near a bundle's graphs are to the PyTorch reference: stage by stage and end to end, as a report in the bundle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffbody_ref.ops.images import Picture, read_image
from diffbody_ref.pipeline import DiffBodyPipeline
from export.stages import Stage, stages
from runtime.bundle import GRAPH, Bundle, read_sizes

REPORT_JSON, REPORT_PAGE = "parity.json", "parity.md"
SAMPLE = Path(__file__).parent.parent / "samples" / "degraded" / "synthetic_1.jpg"
END_TO_END_STEPS = 6
LEAST_PSNR = {GRAPH: 45.0}  # dB, end to end

# Sizes to try beside those of the sample run; a name that a stage lacks is passed over.
SIZES: tuple[dict[str, int], ...] = (
    {"batch": 1, "people": 1, "height": 1, "width": 1},
    {"batch": 3, "people": 2, "height": 5, "width": 3},
    {"batch": 4, "people": 4, "height": 7, "width": 9},
)

Progress = Callable[[int, int, str], None]
"""(stages done, stages in all, the one at work)."""


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

    @property
    def passed(self) -> bool:
        """Whether the relative error is within the stage's tolerance."""
        return self.relative_l2 <= self.tolerance


@dataclass(frozen=True)
class Report:
    """Rows of all stages, and the PSNR between both restorations of the sample in dB."""

    graph: str
    rows: list[Row]
    psnr: float

    @property
    def failures(self) -> list[str]:
        """What is beyond its tolerance, one line each."""
        lines = [
            f"{row.stage}.{row.output} ({row.inputs}, {row.sizes}): relative error {row.relative_l2:.2g}, "
            f"at most {row.tolerance:g}"
            for row in self.rows
            if not row.passed
        ]
        least = LEAST_PSNR[self.graph]
        return lines + ([f"end to end: {self.psnr:.1f} dB, at least {least:g}"] if self.psnr < least else [])

    def as_json(self) -> str:
        """What parity.json holds."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def as_markdown(self) -> str:
        """What parity.md holds: the worst of every stage's outputs."""
        lines = [
            f"# Parity of {self.graph}",
            "",
            "Against the PyTorch reference in float32; the worst of all runs. End to end on a sample: "
            f"{self.psnr:.1f} dB (at least {LEAST_PSNR[self.graph]:g}).",
            "",
            "| stage | output | runs | max abs | relative L2 | tolerance | 1 − cosine |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for stage, output in dict.fromkeys((row.stage, row.output) for row in self.rows):
            rows = [row for row in self.rows if (row.stage, row.output) == (stage, output)]
            worst = [max(getattr(row, name) for row in rows) for name in ("max_abs", "relative_l2", "cosine")]
            lines.append(
                f"| {stage} | {output} | {len(rows)} | {worst[0]:.2g} | {worst[1]:.2g} | {rows[0].tolerance:g} | "
                f"{worst[2]:.2g} |"
            )
        return "\n".join(lines) + "\n"


def parity(
    pipeline: DiffBodyPipeline, bundle: Bundle, sample: Path = SAMPLE, progress: Progress | None = None
) -> Report:
    """Compare every stage of the bundle with its module, on random inputs and on those of restoring the sample.

    Raises:
        ImageError: the sample cannot be read.
    """
    picture = read_image(sample)
    psnr, recorded = _end_to_end(pipeline, bundle, picture)
    restorer = bundle.restorer()
    todo = stages(pipeline)
    rows: list[Row] = []
    for done, stage in enumerate(todo):
        if progress is not None:
            progress(done, len(todo), stage.name)
        for kind, feed in _feeds(stage, recorded.get(stage.name, [])):
            found, wanted = restorer.infer(stage.name, feed), stage.reference(feed)
            rows.extend(_row(stage, name, kind, feed, found[name], wanted[name]) for name in wanted)
    return Report(GRAPH, rows, psnr)


def write_report(report: Report, folder: Path) -> None:
    """parity.json and parity.md in `folder`."""
    (folder / REPORT_JSON).write_text(report.as_json(), encoding="utf-8")
    (folder / REPORT_PAGE).write_text(report.as_markdown(), encoding="utf-8")


def _end_to_end(
    pipeline: DiffBodyPipeline, bundle: Bundle, picture: Picture
) -> tuple[float, dict[str, list[dict[str, np.ndarray]]]]:
    """PSNR between both restorations, and the first and last feed of every stage on the way."""
    recorded: dict[str, list[dict[str, np.ndarray]]] = {}
    restorer = bundle.restorer()
    infer = restorer.infer

    def recording(stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds = recorded.setdefault(stage, [])
        feeds[1:] = [feed]
        return infer(stage, feed)

    restorer.infer = recording
    call = {"num_inference_steps": END_TO_END_STEPS, "seed": 0}
    found = restorer.restore(picture, **call).pixels  # type: ignore[arg-type]
    (wanted,) = pipeline(picture, **call, output_type="np").images
    return float(-10.0 * np.log10(max(np.square(found - wanted).mean(), 1e-20))), recorded


def _feeds(stage: Stage, recorded: list[dict[str, np.ndarray]]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for seed, sizes in enumerate(SIZES):
        fitting = {name: max(size, stage.ranges[name].least) for name, size in sizes.items() if name in stage.ranges}
        yield "random", stage.example(fitting, seed)
    for feed in recorded:
        yield "sample run", feed


def _row(
    stage: Stage, output: str, kind: str, feed: dict[str, np.ndarray], found: np.ndarray, wanted: np.ndarray
) -> Row:
    a, b = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    size = float(np.linalg.norm(b))
    relative = float(np.linalg.norm(a - b)) / max(size, 1e-6)
    cosine = 1.0 - float(a @ b) / max(float(np.linalg.norm(a)) * size, 1e-12) if size > 1e-6 else 0.0
    most = float(np.abs(a - b).max(initial=0.0))
    return Row(stage.name, output, kind, read_sizes(stage.inputs, feed), most, relative, cosine, stage.tolerance)
