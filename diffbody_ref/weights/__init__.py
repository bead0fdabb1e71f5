"""Weights: the import of public checkpoints, and in `nano/` the pipeline whose weights are part of this package.

`diffbody_ref.ops.builtin.NANO_FOLDER` is the path of `nano/`. What is imported loads the networks' libraries, so it
is loaded when it is asked for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["import_checkpoints"]


def __getattr__(name: str) -> Any:
    if name == "import_checkpoints":
        from diffbody_ref.weights.importing import import_checkpoints

        return import_checkpoints
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
