"""How near a bundle's graphs are to the PyTorch reference: stage by stage and end to end, as a report in the bundle."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffbody_ref.ops.images import read_image
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.ops.tensors import read_sizes
from diffbody_ref.stages import BoundStage
from export.source import Source
from runtime.bundle import Bundle
from runtime.engines import EngineConfig
from runtime.engines.pool import EnginePool
from runtime.restore import Restorer, load_tokenizer

REPORT_JSON, REPORT_PAGE = "parity.json", "parity.md"
SAMPLE = Path(__file__).parent / "sample.jpg"
END_TO_END_STEPS = 6
LEAST_PSNR = {"float32": 45.0, "float16": 35.0, "bfloat16": 25.0}  # dB, end to end

# A large model restores the sample at this size, in so many steps: at its own, a step takes gigabytes and minutes.
LARGE_CALL: dict[str, Any] = {"num_inference_steps": 2, "height": 128, "width": 64}

# Sizes to try beside those of the sample run; a name that a stage lacks is passed over.
SIZES: tuple[dict[str, int], ...] = (
    {"batch": 1, "people": 1, "height": 1, "width": 1},
    {"batch": 3, "people": 2, "height": 5, "width": 3, "chunks": 2},
    {"batch": 4, "people": 4, "height": 7, "width": 9, "chunks": 3},
)
SIZES_OF_LARGE: tuple[dict[str, int], ...] = (
    {"batch": 1, "people": 1, "height": 1, "width": 1},
    {"batch": 2, "people": 2, "height": 2, "width": 3},
)


@dataclass(frozen=True)
class Row:
    """One output of one run of a stage.

    Attributes:
        stage: its name.
        output: the output's name.
        inputs: "random" or "sample run".
        sizes: the dynamic sizes.
        max_abs: |a − b| at most.
        relative_l2: ‖a − b‖/‖b‖.
        cosine: 1 − cos(a, b).
        tolerance: what the median of relative_l2 over runs may be at most.
        tolerance_of_one_run: what relative_l2 of one run may be at most.
    """

    stage: str
    output: str
    inputs: str
    sizes: dict[str, int]
    max_abs: float
    relative_l2: float
    cosine: float
    tolerance: float
    tolerance_of_one_run: float


@dataclass(frozen=True)
class ParityReport:
    """How near the graphs of one precision are.

    Attributes:
        precision: of the graphs.
        rows: of all stages.
        psnr: between both restorations of the sample, in dB.
        restored: what the sample was restored as, in words.
    """

    precision: str
    rows: list[Row]
    psnr: float
    restored: str

    @property
    def failures(self) -> list[str]:
        """What is beyond its tolerance, one line each."""
        lines = []
        for name, rows in self.by_output().items():
            errors, most = [row.relative_l2 for row in rows], rows[0].tolerance_of_one_run
            if (median := statistics.median(errors)) > rows[0].tolerance:
                lines.append(f"{name}: median relative error {median:.2g}, at most {rows[0].tolerance:g}")
            if max(errors) > most:
                lines.append(f"{name}: largest relative error {max(errors):.2g}, at most {most:g}")
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
            f"Against the PyTorch reference in float32. End to end on a sample, {self.restored}: "
            f"{self.psnr:.1f} dB (at least {LEAST_PSNR[self.precision]:g}).",
            "",
            "| output | runs | max abs | 1 − cosine | relative L2 | at most | its median | at most |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, rows in self.by_output().items():
            most = [max(getattr(row, column) for row in rows) for column in ("max_abs", "cosine", "relative_l2")]
            median = statistics.median(row.relative_l2 for row in rows)
            lines.append(
                f"| {name} | {len(rows)} | {most[0]:.2g} | {most[1]:.2g} | {most[2]:.2g} | "
                f"{rows[0].tolerance_of_one_run:g} | {median:.2g} | {rows[0].tolerance:g} |"
            )
        return "\n".join(lines) + "\n"


def parity(
    source: Source,
    bundle: Bundle,
    precision: str = "float32",
    sample: Path = SAMPLE,
    progress: Progress = silent,
) -> ParityReport:
    """Compare every stage of the bundle with its module, on random inputs and on those of restoring the sample.

    Of a large model, one network, or one stage's engine, is in memory at a time, and sizes are few and small.

    Args:
        source: the model that the bundle was made from.
        bundle: holds graphs of the precision.
        precision: of the graphs.
        sample: picture to restore.
        progress: called before the restoration, and before each stage.

    Raises:
        ImageError: the sample cannot be read.
    """
    picture, total = read_image(sample), len(source.stages)
    call: dict[str, Any] = {"num_inference_steps": END_TO_END_STEPS, "seed": 0, **(LARGE_CALL if source.large else {})}
    progress(0, total, "the sample by PyTorch")
    (wanted,) = source.load_pipeline()(picture, **call, output_type="np").images
    recorded: dict[str, list[dict[str, np.ndarray]]] = {}

    def record(stage: str, feed: dict[str, np.ndarray], outputs: dict[str, np.ndarray], seconds: float) -> None:
        recorded.setdefault(stage, [])[1:] = [feed]  # the first and the last one

    progress(0, total, "the sample by the graphs")
    config = EngineConfig(precision=precision, low_memory=source.large)
    with EnginePool(bundle, config, [record]) as engines:
        found = Restorer(bundle.manifest, engines.infer, load_tokenizer(bundle)).restore(picture, **call).pixels
        psnr = agreement(found, wanted)
        feeds = {stage: list(seen) for stage, seen in recorded.items()}  # what follows is recorded as well
        rows: list[Row] = []
        for done, stage in enumerate(source.stages):
            progress(done, total, stage.name)
            rows += _compare(source, stage, engines, feeds.get(stage.name, []), precision)
    height, width = wanted.shape[:2]
    restored = f"{height}×{width} in {call['num_inference_steps']} steps"
    return ParityReport(
        precision, rows, psnr, f"small, as the model is large, {restored}" if source.large else restored
    )


def _compare(
    source: Source, stage: BoundStage, engines: EnginePool, recorded: list[dict[str, np.ndarray]], precision: str
) -> list[Row]:
    """The rows of a stage. The module is gone before the engine is loaded, of which a large model's is alone."""
    if source.large:
        engines.close()
    feeds = list(_feeds(stage, recorded, SIZES_OF_LARGE if source.large else SIZES))
    module = source.load(stage.name)
    references = [module.reference(feed) for _, feed in feeds]
    del module
    rows = []
    for (kind, feed), wanted in zip(feeds, references, strict=True):
        found = engines.infer(stage.name, feed)
        rows += [_row(stage, name, kind, feed, found[name], wanted[name], precision) for name in wanted]
    return rows


def write_reports(reports: list[ParityReport], folder: Path) -> None:
    """parity.json and parity.md in `folder`."""
    values = [dataclasses.asdict(report) for report in reports]
    (folder / REPORT_JSON).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    pages = ["# Parity with the PyTorch reference\n", *(report.as_markdown() for report in reports)]
    (folder / REPORT_PAGE).write_text("\n".join(pages), encoding="utf-8")


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """PSNR in dB of two results in [0, 1], 200 where they are the same: JSON has no infinity."""
    return float(-10.0 * np.log10(max(np.square(found - wanted).mean(), 1e-20)))


def _feeds(
    stage: BoundStage, recorded: list[dict[str, np.ndarray]], tried: Sequence[dict[str, int]]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    ranges = stage.signature.sizes
    for seed, sizes in enumerate(tried):
        fitting = {name: max(size, ranges[name].least) for name, size in sizes.items() if name in ranges}
        yield "random", stage.example(fitting, seed)
    for feed in recorded:
        yield "sample run", feed


def _row(
    stage: BoundStage,
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
    sizes = read_sizes(stage.signature.inputs, feed)
    tolerance, of_one_run = stage.module.tolerance[precision], stage.module.tolerance_of_one_run[precision]
    return Row(stage.name, output, kind, sizes, most, relative, cosine, tolerance, of_one_run)
