"""The engines of a bundle's stages, each loaded when it is first needed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from runtime.bundle import read_sizes
from runtime.engines import Engine
from runtime.engines.onnxruntime import PROVIDERS, OnnxRuntimeEngine

if TYPE_CHECKING:
    from runtime.bundle import Bundle


class EnginePool:
    """Runs stages by name; may be used from several threads.

    Args and errors: see `runtime.bundle.Bundle.restorer`.
    """

    def __init__(
        self, bundle: Bundle, graph: str, device: str = "cpu", threads: int | None = None, low_memory: bool = False
    ) -> None:
        lacking = [name for name, stage in bundle.manifest.stages.items() if graph not in stage.graphs]
        if lacking:
            raise ValueError(
                f"{bundle.folder}: no {graph} graph of the stage {lacking[0]!r}; export the bundle with it"
            )
        if device not in PROVIDERS:
            raise ValueError(f"unknown device {device!r}, choose one of {', '.join(PROVIDERS)}")
        self.bundle, self.graph, self.device, self.threads, self.low_memory = bundle, graph, device, threads, low_memory
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
                path = self.bundle.folder / self.bundle.manifest.stages[stage].graphs[self.graph]
                self._engines[stage] = OnnxRuntimeEngine(path, self.device, self.threads).__enter__()
            return self._engines[stage]
