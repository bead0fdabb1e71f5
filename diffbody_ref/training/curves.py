"""The loss curves of several runs in one picture, for a model card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from diffbody_ref.training.stages import STAGES

SMOOTHED_OVER = 0.02  # width of the smoothing window as a fraction of a run's log lines


def read_losses(log: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the steps and losses of a log.jsonl; if a resumed run logged a step again, the last line counts.

    Raises:
        ValueError: the file holds no line.
    """
    rows = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["step"]] = row["loss"]
    if not rows:
        raise ValueError(f"{log}: no step was logged")
    steps = sorted(rows)
    return np.array(steps), np.array([rows[step] for step in steps])


def plot_losses(runs: Path, out: Path) -> None:
    """Draw the losses in all `runs`/STAGE/log.jsonl, as logged and smoothed, and write them to the PNG `out`.

    Raises:
        FileNotFoundError: there is no log.
    """
    from matplotlib.figure import Figure

    logs = {stage: runs / stage / "log.jsonl" for stage in STAGES if (runs / stage / "log.jsonl").is_file()}
    if not logs:
        raise FileNotFoundError(f"{runs}: holds no STAGE/log.jsonl of a training run")
    figure = Figure(figsize=(3.2 * len(logs), 2.8), layout="constrained")
    for axes, (stage, log) in zip(np.atleast_1d(figure.subplots(1, len(logs))), logs.items(), strict=True):
        steps, losses = read_losses(log)
        width = max(1, round(len(losses) * SMOOTHED_OVER))
        axes.plot(steps, losses, color="#3b7a57", alpha=0.25, linewidth=1)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(steps[len(steps) - len(smooth) :], smooth, color="#3b7a57", linewidth=1.5)
        axes.set(title=stage, xlabel="step", yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.savefig(out, dpi=100)
