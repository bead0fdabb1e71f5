"""The engines of a bundle's stages, each loaded when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from runtime.bundle import PRECISIONS, graph_kind, read_sizes
from runtime.engines import Engine
from runtime.engines.cache import optimised_graph
from runtime.engines.onnxruntime import PROVIDERS, OnnxRuntimeEngine, best_device
from runtime.engines.tensorrt import TensorRTEngine, plan_of_this_machine
from runtime.engines.torch import TorchEngine

if TYPE_CHECKING:
    from runtime.bundle import Bundle

ENGINES = ("onnxruntime", "tensorrt", "torch")


class EnginePool:
    """Runs stages by name; may be used from several threads.

    Args and errors: see `runtime.bundle.Bundle.restorer`.
    """

    def __init__(
        self,
        bundle: Bundle,
        kinds: Mapping[str, str],
        device: str = "cpu",
        threads: int | None = None,
        low_memory: bool = False,
        precision: str = "float32",
    ) -> None:
        """`kinds` is the engine of each stage, one of `ENGINES`."""
        for kind in kinds.values():
            if kind not in ENGINES:
                raise ValueError(f"unknown engine {kind!r}, choose one of {', '.join(ENGINES)}")
        if device not in ("auto", *PROVIDERS):
            raise ValueError(f"unknown device {device!r}, choose one of auto, {', '.join(PROVIDERS)}")
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}, choose one of {', '.join(PRECISIONS)}")
        for stage, entry in bundle.manifest.stages.items():
            if kinds[stage] == "onnxruntime" and graph_kind(precision) not in entry.graphs:
                raise ValueError(
                    f"{bundle.folder}: has no {precision} graph of {stage}, only {', '.join(entry.graphs)}; "
                    f"export it with --precision {precision}"
                )
        self.plan = plan_of_this_machine(bundle.manifest.plans, precision) if "tensorrt" in kinds.values() else None
        self.precision = precision
        self.bundle, self.kinds, self.device, self.threads, self.low_memory = bundle, kinds, device, threads, low_memory
        self._engines: dict[str, Engine] = {}
        self._lock = threading.RLock()

    def infer(self, stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The stage's outputs by name.

        Raises:
            ValueError: the feed does not fit the stage's inputs.
        """
        read_sizes(self.bundle.manifest.stages[stage].inputs, feed)
        if self.low_memory:  # another thread must not unload it meanwhile
            with self._lock:
                return self._engine(stage).infer(feed)
        return self._engine(stage).infer(feed)

    def load(self, stages: Iterable[str]) -> None:
        """Load the engines of these stages now, and not when they are first needed."""
        for stage in stages:
            self._engine(stage)

    def unload(self) -> None:
        """Free all engines; they are loaded again when needed."""
        with self._lock:
            for engine in self._engines.values():
                engine.__exit__(None, None, None)
            self._engines.clear()

    def _engine(self, stage: str) -> Engine:
        with self._lock:
            if stage not in self._engines:
                if self.low_memory:
                    self.unload()
                self._engines[stage] = self._build(stage).__enter__()
            return self._engines[stage]

    def _build(self, stage: str) -> Engine:
        entry = self.bundle.manifest.stages[stage]
        if self.kinds[stage] == "torch":
            device = None if self.device == "auto" else self.device
            return TorchEngine(self.bundle.folder, stage, entry.inputs, entry.outputs, device, self.precision)
        if self.plan is not None and self.kinds[stage] == "tensorrt":
            return TensorRTEngine(self.bundle.folder / entry.graphs[self.plan.kind], self.plan)
        device = best_device() if self.device == "auto" else self.device
        graph = entry.graphs[graph_kind(self.precision)]
        cached = optimised_graph(self.bundle.manifest.files, graph, device)
        return OnnxRuntimeEngine(self.bundle.folder / graph, device, self.threads, cached)
