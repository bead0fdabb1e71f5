"""The pictures of a report: grids of restorations, ablation figures, bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffbody_ref.ops.contact import labelled_grid
from diffbody_ref.ops.files import whole_file
from diffbody_ref.ops.images import read_image, write_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL_WIDTH = 256  # pictures narrower than this are enlarged twice in a grid
FIGURE_ROWS = 3
COLOURS = ("#b0b0b0", "#7da7c4", "#3b7a57", "#c46b4f", "#8b6bb1", "#d0a33b")


def kept_path(out: Path, index: int, method: str) -> Path:
    """The file of a restored picture that is kept for the report's figures."""
    return out / "pictures" / f"{index:06d}" / f"{method}.png"


def read_kept(out: Path, index: int, method: str) -> np.ndarray:
    """Read a kept restored picture, float32 (H, W, 3) in [0, 1]."""
    return read_image(kept_path(out, index, method)).pixels


def grid(out: Path, indices: Sequence[int], methods: Sequence[str]) -> np.ndarray:
    """A grid of kept restored pictures, with a row per picture and a labelled column per method."""
    rows = [[read_kept(out, index, method) for method in methods] for index in indices]
    widest = max(row[0].shape[1] for row in rows)
    return labelled_grid(rows, methods, scale=2 if widest < SMALL_WIDTH else 1)


def draw_grid(path: Path, out: Path, indices: Sequence[int], methods: Sequence[str]) -> None:
    """Write a `grid` to the PNG `path`."""
    write_image(path, grid(out, indices, methods), overwrite=True)


def draw_ablation(
    path: Path,
    title: str,
    out: Path,
    indices: Sequence[int],
    others: Sequence[str],
    full: str,
    differences: Mapping[str, Sequence[tuple[float, float | None]]],
    beside: Sequence[str] = (),
) -> None:
    """Draw a figure of the paper: the pictures that the ablations change most, and their effect on each metric.

    Args:
        path: PNG to write.
        title: title of the figure.
        out: folder of the report with the kept pictures.
        indices: pictures to choose from.
        others: names of the ablations.
        full: name of the full method.
        differences: by metric, the mean and standard error of each ablation's difference from the full method.
        beside: names of other methods whose pictures are shown first.
    """
    from matplotlib.figure import Figure

    def change(index: int) -> float:
        whole = read_kept(out, index, full)
        return max(float(np.square(read_kept(out, index, other) - whole).mean()) for other in others)

    most = sorted(indices, key=change, reverse=True)[:FIGURE_ROWS]
    pictures = grid(out, most, [*beside, *others, full, "original"])
    width = 10.0  # inches
    height = min(width * pictures.shape[0] / pictures.shape[1], 8.0)
    figure = Figure(figsize=(width, height + 2.6), layout="constrained")
    figure.suptitle(title)
    above, below = figure.subfigures(2, 1, height_ratios=(height, 2.2))
    axes = above.subplots()
    axes.imshow(pictures, interpolation="nearest")
    axes.set_axis_off()
    for panel, (metric, estimates) in zip(
        np.atleast_1d(below.subplots(1, len(differences))), differences.items(), strict=True
    ):
        _difference_bars(panel, metric, others, estimates)
    below.supxlabel(f"difference from {full}, mean ± standard error over all pictures", fontsize=9)
    _save(figure, path)


def _difference_bars(
    axes: Axes, metric: str, others: Sequence[str], estimates: Sequence[tuple[float, float | None]]
) -> None:
    """Draw one metric's differences and their standard errors as bars."""
    means, errors = [e[0] for e in estimates], [e[1] or 0.0 for e in estimates]
    axes.bar(range(len(others)), means, yerr=errors, color=COLOURS[: len(others)], capsize=3)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(others)), [other.replace("without-", "no ") for other in others], rotation=30, fontsize=7)
    axes.set_title(metric, fontsize=9)
    axes.tick_params(axis="y", labelsize=7)
    axes.ticklabel_format(axis="y", style="plain")


def draw_bars(path: Path, columns: Sequence[str], bars: Mapping[str, Sequence[float | None]]) -> None:
    """Draw groups of bars in [0, 1], with a group per column and a colour per method.

    Args:
        path: PNG to write.
        columns: names of the columns.
        bars: by method, the value of each column; None leaves a gap.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        places = np.arange(len(columns)) + (i - (len(bars) - 1) / 2) * width
        drawn = axes.bar(places, [value or 0.0 for value in values], width, label=name, color=COLOURS[i % len(COLOURS)])
        axes.bar_label(drawn, ["" if v is None else f"{v:.2f}" for v in values], fontsize=6)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylim(0, 1.08)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
