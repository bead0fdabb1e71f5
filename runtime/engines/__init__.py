"""Engine kinds behind one small base class: a stage's graph in, a function of named arrays out."""

from __future__ import annotations

from importlib import import_module

from runtime.engines.base import Engine, Infer, Observer
from runtime.engines.config import ENGINES, EngineConfig

__all__ = ["ENGINES", "Engine", "EngineConfig", "Infer", "Observer", "engine_class"]


def engine_class(kind: str) -> type[Engine]:
    """The class of an engine kind; its module is imported now."""
    module, _, name = ENGINES[kind].partition(":")
    return getattr(import_module(module), name)
