"""TensorRT, and TensorRT-RTX, by Polygraphy: the engine for NVIDIA GPUs."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np

from runtime.bundle import Bundle, PlanTarget, StageEntry
from runtime.engines.base import Engine
from runtime.engines.config import EngineConfig
from runtime.engines.cuda import compute_capability

FLAVOURS = ("tensorrt", "tensorrt_rtx")


def installed_flavour() -> str:
    """The TensorRT that is installed, the full one if both are.

    Raises:
        ValueError: none is.
    """
    for flavour in FLAVOURS:
        if find_spec(flavour) is not None:
            return flavour
    raise ValueError("neither TensorRT nor TensorRT-RTX is installed; install DiffBody with its extra 'rtx'")


def import_tensorrt(flavour: str) -> Any:
    """TensorRT's Python module, with Polygraphy set to use it: Polygraphy reads its choice once, when it is imported.

    Raises:
        ValueError: unknown, or not installed, or Polygraphy runs the other one in this process already.
    """
    if flavour not in FLAVOURS:
        raise ValueError(f"unknown TensorRT {flavour!r}, choose one of {', '.join(FLAVOURS)}")
    if find_spec(flavour) is None:
        raise ValueError(f"{flavour} is not installed here; install DiffBody with its extra 'rtx', or NVIDIA's wheel")
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if flavour == "tensorrt_rtx" else "0"
    from polygraphy import config

    if (flavour == "tensorrt_rtx") != config.USE_TENSORRT_RTX:
        raise ValueError(f"Polygraphy was loaded for another TensorRT than {flavour} in this process")
    return importlib.import_module(flavour)


def choose_plan(
    plans: Sequence[PlanTarget], precision: str, flavour: str, version: str, capability: str | None
) -> PlanTarget:
    """The plans that this machine can run.

    Args:
        flavour, version: of the TensorRT that is installed. capability: of the GPU; None is no GPU.

    Raises:
        ValueError: there are none; the message says what to build.
    """
    if capability is None:
        raise ValueError("TensorRT plans need an NVIDIA GPU and its driver, and there is none here; use onnxruntime")
    for plan in plans:
        same = (plan.flavour, plan.version, plan.precision) == (flavour, version, precision)
        if same and capability in plan.compute_capabilities:
            return plan
    there = ", ".join(plan.kind for plan in plans) or "none"
    raise ValueError(
        f"no plans for {flavour} {version} on a GPU of compute capability {capability} in {precision} (there are: "
        f"{there}); build them with `diffbody plan BUNDLE --compute-capability {capability} --precision {precision}`"
    )


class TensorRTEngine(Engine):
    """One plan in an execution context.

    Args:
        entry: the stage in the manifest.
        runner: Polygraphy's, activated.
    """

    def __init__(self, entry: StageEntry, runner: Any) -> None:
        super().__init__(entry)
        self._runner = runner
        self._lock = threading.Lock()  # a context runs one inference at a time

    @classmethod
    def check(cls, bundle: Bundle, stages: Sequence[str], config: EngineConfig) -> None:
        plan_of_this_machine(bundle.manifest.plans, config.precision)

    @classmethod
    def open(cls, bundle: Bundle, stage: str, config: EngineConfig) -> Self:
        """Load the plan that this machine can run."""
        plan, entry = plan_of_this_machine(bundle.manifest.plans, config.precision), bundle.manifest.stages[stage]
        return cls.of_plan(bundle.folder / entry.graphs[plan.kind], plan, entry)

    @classmethod
    def of_plan(cls, path: Path, target: PlanTarget, entry: StageEntry) -> Self:
        """Load a plan's file, made for `target`."""
        import_tensorrt(target.flavour)
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        runner = TrtRunner(EngineFromBytes(BytesFromPath(str(path))))
        runner.activate()
        return cls(entry, runner)

    def _run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            found = self._runner.infer({name: np.ascontiguousarray(array) for name, array in feed.items()})
            return {name: np.array(array) for name, array in found.items()}  # the runner writes over its own next time

    def close(self) -> None:
        self._runner.deactivate()
        self._runner = None


def plan_of_this_machine(plans: Sequence[PlanTarget], precision: str) -> PlanTarget:
    """`choose_plan` for the TensorRT and the GPU that are here.

    Raises:
        ValueError: see `choose_plan`.
    """
    flavour = next((plan.flavour for plan in plans if find_spec(plan.flavour) is not None), None) or installed_flavour()
    version = import_tensorrt(flavour).__version__
    return choose_plan(plans, precision, flavour, version, compute_capability())
