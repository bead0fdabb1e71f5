"""Timing several ways to do one thing, side by side: rounds, ratios, tables, plots.

All take turns in every round, so that a change in the machine's load meets each alike; what counts is the ratio to
the first of them in the same round. The first round warms up and is not counted.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SAMPLES = Path(__file__).parents[1] / "samples" / "degraded"


@dataclass(frozen=True)
class Timing:
    """Seconds of one way in every counted round, and the median over rounds of its ratio to the first way."""

    name: str
    seconds: list[float]
    ratio: float

    @property
    def median(self) -> float:
        """Seconds, the median over rounds."""
        return statistics.median(self.seconds)


def measure(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    progress: Callable[[int], None] = lambda done: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time every one of `ways` in turns, `rounds` times after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for place, (name, run) in enumerate(ways.items()):
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
            progress(turn * len(ways) + place + 1)
    first = seconds[next(iter(ways))]
    return [
        Timing(name, taken, statistics.median(s / f for s, f in zip(taken, first, strict=True)))
        for name, taken in seconds.items()
    ]


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import os

    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    packages = {package: version(package) for package in ("torch", "diffusers", "numpy", "onnxruntime")}
    return {"device": device, "name": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), **packages}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_table(timings: list[Timing], what: str) -> None:
    """Median, spread over rounds, and ratio of every way."""
    from rich.console import Console
    from rich.table import Table

    table = Table(what, "seconds (median)", "least to most", "ratio")
    for timing in timings:
        spread = f"{min(timing.seconds):.2f} to {max(timing.seconds):.2f}"
        table.add_row(timing.name, f"{timing.median:.2f}", spread, f"{timing.ratio:.2f}×")
    Console().print(table)


def write_json(path: Path, about: dict[str, Any], timings: list[Timing]) -> None:
    """The raw figures and what they are about."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(timing) for timing in timings]
    path.write_text(json.dumps({**about, "timings": rows}, indent=1) + "\n")


def plot_bars(timings: list[Timing], title: str, path: Path) -> None:
    """Bars of the median seconds, with the ratio beside each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(timings) + 1.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([timing.name for timing in timings], [timing.median for timing in timings], color="#3b7a57")
    axes.bar_label(bars, [f" {timing.ratio:.2f}×" for timing in timings])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="seconds a picture (median)", title=title)
    figure.savefig(path, dpi=120)
