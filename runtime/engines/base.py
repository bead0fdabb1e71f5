"""What an engine is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from diffbody_ref.ops.tensors import read_sizes
from runtime.bundle import Bundle, StageEntry
from runtime.engines.config import EngineConfig

Infer = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""(stage, inputs by name) → outputs by name."""

Observer = Callable[[str, dict[str, np.ndarray], dict[str, np.ndarray], float], None]
"""Called after every inference with the stage, its inputs and outputs by name, and the seconds that it took."""


class Engine(ABC):
    """A loaded stage. `open` loads one, `infer` runs it, `close` frees it.

    Args:
        entry: the stage in the bundle's manifest.
    """

    def __init__(self, entry: StageEntry) -> None:
        self.entry = entry

    @classmethod
    def check(cls, bundle: Bundle, stages: Sequence[str], config: EngineConfig) -> None:
        """See that stages of the bundle can be run here, without loading any. This one finds nothing wrong.

        Raises:
            ValueError: the bundle lacks what this engine needs, or the machine does; the message says what to do.
        """
        return

    @classmethod
    @abstractmethod
    def open(cls, bundle: Bundle, stage: str, config: EngineConfig) -> Self:
        """Load one stage of a bundle.

        Raises:
            ValueError: see `check`.
        """

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The stage's outputs by name. May be called from several threads.

        Raises:
            ValueError: an input is missing or unknown, or of another dtype or shape.
        """
        read_sizes(self.entry.inputs, feed)
        return self._run(feed)

    @abstractmethod
    def _run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for inputs that are checked."""

    @abstractmethod
    def close(self) -> None:
        """Free what `open` loaded; the engine cannot be used afterwards."""
