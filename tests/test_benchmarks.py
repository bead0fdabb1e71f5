"""Benchmarks: what they compute from what they time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.engines import plot_stages
from benchmarks.timing import measure, plot_bars

ROOT = Path(__file__).parents[1]


def test_ratios_are_of_the_same_round_and_the_warm_up_does_not_count() -> None:
    """On a machine that gets twice as slow each round, the k-th way takes k + 1 times the first's time."""
    now = 0.0
    calls: list[int] = []

    def take(place: int) -> None:
        nonlocal now
        now += 2.0 ** (len(calls) // 3) * (place + 1)
        calls.append(place)

    ways = {str(place): lambda place=place: take(place) for place in range(3)}
    timings = measure(ways, 3, clock=lambda: now)
    assert calls == [0, 1, 2] * 4
    assert [timing.seconds[0] for timing in timings] == [2.0 * (k + 1) for k in range(3)]
    assert [timing.ratio for timing in timings] == [k + 1.0 for k in range(3)]
    assert timings[1].median == 8.0


@pytest.mark.parametrize("name", ["engines", "serving", "settings"])
def test_a_benchmark_is_a_command(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "--rounds" in finished.stdout


def test_the_plots_are_pictures(tmp_path: Path) -> None:
    plot_bars(measure({"a": lambda: None, "b": lambda: None}, 1), "title", tmp_path / "bars.png")
    calls = [
        {"stage": "whole", "start": 0.0, "seconds": 3.0},
        {"stage": "denoiser", "start": 0.5, "seconds": 1.0},
        {"stage": "guidance", "start": 1.5, "seconds": 1.5},
    ]
    plot_stages(calls, "title", tmp_path / "stages.png")
    for name in ("bars.png", "stages.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 10
