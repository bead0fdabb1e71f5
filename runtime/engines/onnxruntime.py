"""ONNX Runtime: the engine that runs everywhere."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from runtime.engines.cuda import compute_capability

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def best_device() -> str:
    """ "cuda" where there is a GPU and an ONNX Runtime for it, else "cpu"."""
    import onnxruntime

    usable = PROVIDERS["cuda"] in onnxruntime.get_available_providers() and compute_capability() is not None
    return "cuda" if usable else "cpu"


class OnnxRuntimeEngine:
    """One ONNX file in an inference session.

    Args:
        path: the graph.
        device: "cpu" or "cuda".
        threads: of an operator on the CPU; None is ONNX Runtime's choice, all cores.

    Raises:
        ValueError: unknown device. RuntimeError, on entry: the device's provider could not be loaded; ONNX Runtime
            itself would fall back to the CPU in silence.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        if device not in PROVIDERS:
            raise ValueError(f"unknown device {device!r}, choose one of {', '.join(PROVIDERS)}")
        self.path, self.device, self.threads = path, device, threads
        self._session: Any = None

    def __enter__(self) -> Self:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; a warning a constant-folded node is of no use to anyone
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        provider = PROVIDERS[self.device]
        self._session = onnxruntime.InferenceSession(str(self.path), options, providers=[provider])
        if provider not in self._session.get_providers():
            raise RuntimeError(
                f"ONNX Runtime cannot use {self.device}: it has {', '.join(onnxruntime.get_available_providers())} "
                "and fell back; install onnxruntime-gpu with its CUDA libraries, or choose the CPU"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runtime.engines.Engine`."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feed), strict=True))
