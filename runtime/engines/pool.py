"""The engines of a bundle's stages, each loaded when it is first needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from runtime.bundle import Bundle
from runtime.engines import Engine, EngineConfig, Observer, engine_class


class EnginePool:
    """Runs stages by name; may be used from several threads. A context manager that frees its engines.

    Args:
        bundle: its stages are run.
        config: how.
        observers: see `runtime.engines.Observer`.
        opening: called with a stage's name before its engine is loaded.

    Raises:
        ValueError: the bundle lacks what the engines need, or the machine does.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: EngineConfig | None = None,
        observers: Sequence[Observer] = (),
        opening: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.bundle, self.config, self.observers = bundle, config or EngineConfig(), tuple(observers)
        self.opening = opening
        by_kind: dict[str, list[str]] = {}
        for stage in bundle.manifest.stages:
            by_kind.setdefault(self.config.kind_of(stage), []).append(stage)
        for kind, stages in by_kind.items():
            engine_class(kind).check(bundle, stages, self.config)
        self._engines: dict[str, Engine] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(self, stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The stage's outputs by name.

        Raises:
            ValueError: the feed does not fit the stage's inputs.
        """
        start = time.perf_counter()
        if self.config.low_memory:
            with self._lock:  # another thread must not close the engine meanwhile
                outputs = self._engine(stage).infer(feed)
        else:
            outputs = self._engine(stage).infer(feed)
        for observer in self.observers:
            observer(stage, feed, outputs, time.perf_counter() - start)
        return outputs

    def load(self, stages: Iterable[str]) -> None:
        """Load the engines of these stages now, and not when they are first needed."""
        for stage in stages:
            self._engine(stage)

    def close(self) -> None:
        """Free all engines; they are loaded again when they are needed."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()

    def _engine(self, stage: str) -> Engine:
        with self._lock:
            if stage not in self._engines:
                if self.config.low_memory:
                    self.close()
                self.opening(stage)
                kind = engine_class(self.config.kind_of(stage))
                self._engines[stage] = kind.open(self.bundle, stage, self.config)
            return self._engines[stage]
