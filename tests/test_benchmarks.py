"""Benchmarks: what they compute from what they time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.latency import SETTINGS, measure, plot


def test_ratios_are_of_the_same_round_and_the_warm_up_does_not_count() -> None:
    """On a machine that gets twice as slow each round, the k-th setting takes k + 1 times the first's time."""
    now, calls = 0.0, 0

    def restore(options: dict[str, Any]) -> None:
        nonlocal now, calls
        turn, place = divmod(calls, len(SETTINGS))
        assert options == list(SETTINGS.values())[place]
        now += 2.0**turn * (place + 1)
        calls += 1

    timings = measure(restore, 3, clock=lambda: now)
    assert calls == 4 * len(SETTINGS)
    assert [timing.seconds[0] for timing in timings] == [2.0 * (k + 1) for k in range(len(SETTINGS))]
    assert [timing.ratio for timing in timings] == [k + 1.0 for k in range(len(SETTINGS))]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    timings = measure(lambda options: None, 1)
    plot(timings, "title", tmp_path / "plot.png")
    assert np.asarray(Image.open(tmp_path / "plot.png")).std() > 10
