"""How a bundle's stages are run, and the table of engine kinds."""

from __future__ import annotations

from dataclasses import dataclass

from diffbody_ref.ops.devices import PRECISIONS, check_device

ENGINES = {
    "onnxruntime": "runtime.engines.onnxruntime:OnnxRuntimeEngine",
    "tensorrt": "runtime.engines.tensorrt:TensorRTEngine",
    "torch": "runtime.engines.torch:TorchEngine",
}
"""Engine kind → "module:class", imported when it is first needed. `docs/extending.md` says how to add one."""

GUIDANCE_ENGINES = ("engine", "torch")


@dataclass(frozen=True)
class EngineConfig:
    """How stages are run; checked when made.

    Attributes:
        engine: a name in `ENGINES`: "onnxruntime", "tensorrt" (the bundle's plans) or "torch" (the networks).
        guidance: what runs the gradient of eq. 6: "engine" is the same as the other stages, "torch" is PyTorch.
        device: "cpu", "cuda", or "auto": a GPU where the engine can use one. Plans run on a GPU only.
        threads: number of CPU threads per operator; None is all cores.
        low_memory: hold one stage's engine in memory at a time, and let ONNX Runtime leave a large network's weights in
            their files.
        precision: what the networks calculate in, one of `PRECISIONS`; the bundle must have such graphs.

    Raises:
        ValueError: a value that is none of these; names it.
    """

    engine: str = "onnxruntime"
    guidance: str = "engine"
    device: str = "auto"
    threads: int | None = None
    low_memory: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, choices in (("engine", ENGINES), ("guidance", GUIDANCE_ENGINES), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}, choose one of {', '.join(choices)}")
        check_device(self.device)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, or None for all cores, got {self.threads}")

    def kind_of(self, stage: str) -> str:
        """The engine kind that runs a stage."""
        return "torch" if stage == "guidance" and self.guidance == "torch" else self.engine
