"""PyTorch: stages as the reference's own modules. It needs the reference's packages, which `open` imports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from runtime.bundle import Bundle, StageEntry
from runtime.engines.base import Engine
from runtime.engines.config import EngineConfig


class TorchEngine(Engine):
    """One stage's module, made of the bundle's components.

    Args:
        entry: the stage in the manifest.
        module: a `diffbody_ref.stages.Stage` on its device.
        device: as PyTorch calls it.
    """

    def __init__(self, entry: StageEntry, module: Any, device: str) -> None:
        super().__init__(entry)
        self.module, self.device = module, device

    @classmethod
    def check(cls, bundle: Bundle, stages: Sequence[str], config: EngineConfig) -> None:
        if config.device == "cuda":
            from diffbody_ref.models.devices import cuda_is_usable

            if not cuda_is_usable():
                raise ValueError("device cuda: PyTorch finds no CUDA GPU here; choose the device cpu")

    @classmethod
    def open(cls, bundle: Bundle, stage: str, config: EngineConfig) -> Self:
        """Load the stage's components from the bundle's folder, in the precision of the configuration."""
        import torch

        from diffbody_ref.components import load_component
        from diffbody_ref.libraries import silence_libraries
        from diffbody_ref.models.attention import set_attention
        from diffbody_ref.models.devices import cuda_is_usable
        from diffbody_ref.stages import STAGES, build_stage

        silence_libraries()
        device = config.device
        if device == "auto":
            device = "cuda" if cuda_is_usable() else "cpu"
        dtype = getattr(torch, config.precision)
        components = {name: load_component(bundle.folder, name, dtype) for name in STAGES[stage].components}
        module = build_stage(stage, components).to(device)
        for component in components.values():
            if hasattr(component, "set_attn_processor"):
                set_attention(component)
        return cls(bundle.manifest.stages[stage], module, device)

    def _run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        from diffbody_ref.stages.base import name_outputs

        tensors = (torch.tensor(feed[spec.name], device=self.device) for spec in self.entry.inputs)
        with torch.no_grad():
            results = name_outputs(self.entry.outputs, self.module(*tensors))
        return {name: result.cpu().numpy() for name, result in results.items()}

    def close(self) -> None:
        self.module = None
