"""Engine kinds behind one small protocol: a graph in, a function of named arrays out."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import numpy as np

Infer = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""(stage, inputs by name) → outputs by name."""


class Engine(Protocol):
    """A loaded graph. Used as a context manager, which loads it on entry and frees it on exit."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs by name. Thread-safe.

        Raises:
            ValueError: an input is missing or unknown, or of another dtype or shape.
        """
        ...
