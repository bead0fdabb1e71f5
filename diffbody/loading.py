"""From a bundle's folder to what restores with its engines: the one place of this package that knows how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffbody_ref.loading import DEVICES
from diffbody_ref.ops.schedule import SAMPLERS
from diffbody_ref.weights import NANO_FOLDER
from runtime.bundle import PRECISIONS

if TYPE_CHECKING:
    from runtime.restore import Restorer

__all__ = [
    "DEVICES",
    "ENGINES",
    "GUIDANCE_ENGINES",
    "NANO_FOLDER",
    "PRECISIONS",
    "SAMPLERS",
    "EngineConfig",
    "open_restorer",
]

ENGINES = ("onnxruntime", "tensorrt", "torch")
GUIDANCE_ENGINES = ("engine", "torch")


@dataclass(frozen=True)
class EngineConfig:
    """What runs a model's stages.

    Attributes:
        engine: "onnxruntime", "tensorrt" (the bundle's plans) or "torch" (the networks themselves).
        guidance: what runs the gradient of eq. 6: "engine", as the other stages, or "torch".
        device: "cpu", "cuda", or "auto": a GPU where the engine can use one. Plans run on a GPU only.
        threads: CPU threads of one operator; None is all cores.
        low_memory: hold one stage's engine in memory at a time.
        precision: what the networks calculate in: "float32", "float16" or "bfloat16".
    """

    engine: str = "onnxruntime"
    guidance: str = "engine"
    device: str = "auto"
    threads: int | None = None
    low_memory: bool = False
    precision: str = "float32"


def open_restorer(bundle: Path, config: EngineConfig) -> Restorer:
    """What restores pictures with the bundle in a folder.

    Raises:
        ValueError: no bundle, or a broken one; an engine, device or precision that is unknown or not there.
    """
    from runtime.bundle import Bundle

    return Bundle.open(bundle).restorer(**dataclasses.asdict(config))
