"""PyTorch: stages as the reference's own modules. It needs the reference's packages, which are imported on entry."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from runtime.bundle import TensorSpec


class TorchEngine:
    """One stage's module, of components in diffusers' layout.

    Args:
        folder: of the components.
        stage: a name of `diffbody_ref.modules.MODULES`.
        inputs, outputs: of the stage.
        device: as PyTorch calls it; None is a GPU if PyTorch finds one, else the CPU.
        precision: what the networks calculate in, by PyTorch's name.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: str | None = None,
        precision: str = "float32",
    ) -> None:
        self.precision = precision
        self.folder, self.stage, self.inputs, self.outputs, self.device = folder, stage, inputs, outputs, device
        self._module: Any = None

    def __enter__(self) -> Self:
        import torch

        from diffbody_ref.components import load_component
        from diffbody_ref.models.attention import set_attention
        from diffbody_ref.modules import MODULES, build_module

        dtype = getattr(torch, self.precision)
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        components = {name: load_component(self.folder, name, dtype) for name in MODULES[self.stage][1]}
        self._module = build_module(self.stage, components).to(self.device)
        for component in components.values():
            if hasattr(component, "set_attn_processor"):
                set_attention(component)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._module = None

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runtime.engines.Engine`."""
        import torch

        tensors = (torch.tensor(feed[spec.name], device=self.device) for spec in self.inputs)
        with torch.no_grad():
            results = self._module(*tensors)
        results = results if isinstance(results, tuple) else (results,)
        return {spec.name: result.cpu().numpy() for spec, result in zip(self.outputs, results, strict=True)}
