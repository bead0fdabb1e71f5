"""Engine kinds behind one small base class: a stage's graph in, a function of named arrays out."""

from __future__ import annotations

import os
from importlib import import_module

from runtime.engines.base import Engine, Infer, Observer
from runtime.engines.config import ENGINES, EngineConfig

# ONNX Runtime would tell its maker which machine and program it runs in. It looks once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["ENGINES", "Engine", "EngineConfig", "Infer", "Observer", "engine_class"]


def engine_class(kind: str) -> type[Engine]:
    """The class of an engine kind; its module is imported now."""
    module, _, name = ENGINES[kind].partition(":")
    return getattr(import_module(module), name)
