"""Benchmarks: what they compute from what they time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.engines import plot_stages
from benchmarks.full_size import run as run_step
from benchmarks.full_size import steps_of
from benchmarks.full_size import table as table_of_steps
from benchmarks.identity import _pairs
from benchmarks.launched import Resources
from benchmarks.soak import Findings, growth, kind_of
from benchmarks.soak import plot as plot_soak
from benchmarks.soak import run as run_soak
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


def test_the_soak_is_a_command() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--help"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert all(option in finished.stdout for option in ("--requests", "--rounds", "--crowd", "--deadline", "--kills"))


def taken(megabytes: float) -> Resources:
    return Resources(megabytes, 100, 50, 10.0, 15)


def test_growth_is_the_last_quarter_over_the_first(tmp_path: Path) -> None:
    found = Findings([(25 * row, taken(1000.0 + 10 * row)) for row in range(8)])
    assert growth(found) == {
        "megabytes": 1.0597,  # 1065 over 1005
        "descriptors": 1.0,
        "threads": 1.0,
        "shared_megabytes": 1.0,
        "processes": 1.0,
    }
    found.crowds.append({"resources": asdict(taken(1000.0)), "answers": {"late": 1}, "restarts": 0})
    plot_soak(found, tmp_path / "soak.png")
    assert np.asarray(Image.open(tmp_path / "soak.png")).std() > 10


def test_every_answer_under_load_has_a_kind() -> None:
    found = Findings()
    for message, kind in {
        "[StatusCode.DEADLINE_EXCEEDED] Deadline Exceeded": "late",
        "[StatusCode.UNAVAILABLE] 64 requests are waiting, which is the most; retry later": "busy",
        "[StatusCode.UNAVAILABLE] failed to connect to all addresses": "away",
        "[StatusCode.INTERNAL] internal error: a surprise": "unclear",
    }.items():
        assert kind_of(message, found) == kind
    assert sum(found.unclear.values()) == 1


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path) -> None:
    """The short form of the command: nothing grows by more than a tenth, in which the samples scatter."""
    files = run_soak(150, 2, 60, 6.0, 1, 1, tmp_path, lambda done, total: None)
    assert all(path.is_file() for path in files)
    found = json.loads((tmp_path / "soak.json").read_text())
    assert max(found["growth"].values()) < 1.1, found["growth"]
    assert len(found["kills"]) == 3
    assert found["unclear"] == {}
    for crowd in found["crowds"]:
        assert sum(crowd["answers"].values()) == 60


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


def test_a_step_is_measured_and_ended_at_its_limit() -> None:
    take = "import time; held = bytearray(300_000_000); held[::4096] = b'x' * len(held[::4096]); time.sleep(%s)"
    done = run_step([sys.executable, "-c", take % 1], limit=4.0)
    assert done.outcome == "done"
    assert 0.3 <= done.gigabytes < 1.0
    ended = run_step([sys.executable, "-c", take % 600], limit=0.2)
    assert ended.outcome == "ended at 0.2 GB"
    assert run_step([sys.executable, "-c", "raise SystemExit(3)"], 1.0).outcome == "failed with exit code 3"


def test_the_table_of_full_size_has_a_line_for_each_step(tmp_path: Path) -> None:
    names = [step.name for step in steps_of(tmp_path, 512, 2)]
    assert len(set(names)) == len(names)
    lines = table_of_steps({name: {"gigabytes": 7.5, "seconds": 60.0, "outcome": "done"} for name in names})
    assert len(lines) == len(names) + 2
    assert "| `restore --model --low-memory` | 7.5 GB | 60 | done |" in lines


def test_pairs_of_pictures_are_of_the_people_that_are_asked_for() -> None:
    """Two people, two pictures each: embeddings that tell only the pictures apart."""
    embeddings = np.eye(4, dtype=np.float32)[:, None, :]
    features = {"first": [embeddings, np.ones((4, 1), np.float32)], "second": [embeddings, np.ones((4, 1), np.float32)]}
    people = np.array([0, 0, 1, 1])

    def distances(**wanted: bool) -> list[float]:
        pairs = _pairs(("head",), features, "first", "second", people, **wanted)  # type: ignore[arg-type]
        return [pair.distance or 0.0 for pair in pairs]

    assert max(distances(same=True)) < 1e-5
    assert [round(distance, 2) for distance in distances(same=True, views=True)] == [1.0] * 4
    assert len(distances(same=False)) == 8
