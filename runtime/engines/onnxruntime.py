"""ONNX Runtime: the engine that runs everywhere."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from runtime.bundle import Bundle, StageEntry, graph_kind
from runtime.engines.base import Engine
from runtime.engines.cache import optimised_graph
from runtime.engines.config import EngineConfig
from runtime.engines.cuda import compute_capability

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
WEIGHTS_OF_CACHED = "graph.weights"


def best_device() -> str:
    """ "cuda" where there is a GPU and an ONNX Runtime for it, else "cpu"."""
    import onnxruntime

    usable = PROVIDERS["cuda"] in onnxruntime.get_available_providers() and compute_capability() is not None
    return "cuda" if usable else "cpu"


def check_cuda() -> None:
    """
    Raises:
        ValueError: this ONNX Runtime has no CUDA, or there is no GPU; itself it warns, and computes on the CPU.
    """
    import onnxruntime

    if PROVIDERS["cuda"] not in (there := onnxruntime.get_available_providers()):
        raise ValueError(
            f"device cuda: this ONNX Runtime has {', '.join(there)}; install onnxruntime-gpu, or choose the device cpu"
        )
    if compute_capability() is None:
        raise ValueError("device cuda: there is no NVIDIA GPU with a driver here; choose the device cpu")


class OnnxRuntimeEngine(Engine):
    """One ONNX graph in an inference session.

    Args:
        entry: the stage in the manifest.
        path: the graph.
        device: "cpu" or "cuda".
        threads: number of CPU threads per operator; None is ONNX Runtime's choice, all cores.
        cached: folder of the optimised graph; made when there is none, and read later, which is several times faster.
            Whatever the graph and its optimisation depend on must be in the name. None: no cache.
        thrifty: weights stay in their files, which are mapped into memory, and in the format that they have there; each
            is cast when its node runs. A large network in float32 that is kept in float16 takes a third of the memory
            then, and longer.

    Raises:
        ValueError: the device's provider could not be loaded; ONNX Runtime itself would fall back to the CPU in
            silence.
    """

    def __init__(
        self,
        entry: StageEntry,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        cached: Path | None = None,
        *,
        thrifty: bool = False,
    ) -> None:
        super().__init__(entry)
        self.path, self.device, self.threads, self.cached, self.thrifty = path, device, threads, cached, thrifty
        self._session: Any = self._from_cache() or self._optimise()
        self._bindings = threading.local()

    @classmethod
    def check(cls, bundle: Bundle, stages: Sequence[str], config: EngineConfig) -> None:
        for stage in stages:
            graphs = bundle.manifest.stages[stage].graphs
            if graph_kind(config.precision) not in graphs:
                raise ValueError(
                    f"{bundle.folder}: has no {config.precision} graph of {stage}, only {', '.join(graphs)}; "
                    f"export it with --precision {config.precision}"
                )
        if config.device == "cuda":
            check_cuda()

    @classmethod
    def open(cls, bundle: Bundle, stage: str, config: EngineConfig) -> Self:
        """Load the stage's graph in the configuration's precision, optimised for this machine."""
        entry = bundle.manifest.stages[stage]
        device = best_device() if config.device == "auto" else config.device
        graph = entry.graphs[graph_kind(config.precision)]
        cached = optimised_graph(bundle.manifest.files, graph, device)
        # What is small enough for the cache is opened from there.
        thrifty = config.low_memory and cached is None
        return cls(entry, bundle.folder / graph, device, config.threads, cached, thrifty=thrifty)

    def _run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self._session.get_outputs()]
        if self.device == "cpu":
            return dict(zip(names, self._session.run(names, feed), strict=True))
        return dict(zip(names, self._binding().run(feed), strict=True))

    def close(self) -> None:
        self._session = None
        self._bindings = threading.local()

    def _binding(self) -> Binding:
        if not hasattr(self._bindings, "own"):
            self._bindings.own = Binding(self._session, self.device)
        return self._bindings.own

    def _from_cache(self) -> Any:
        """The session of the cached graph, None without a usable one."""
        import onnxruntime

        if self.cached is None or not (graph := self.cached / "graph.onnx").exists():
            return None
        options = self._options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return self._session_of(graph, options)
        except Exception:  # a damaged file; ONNX Runtime's errors have no common class
            shutil.rmtree(self.cached, ignore_errors=True)
            return None

    def _optimise(self) -> Any:
        """The session of the graph, which is written to the cache where that is possible."""
        if self.cached is None:
            return self._session_of(self.path, self._options())
        try:
            self.cached.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=f".{self.cached.name}.", dir=self.cached.parent))
        except OSError:  # a read-only home; the cache is for speed only
            return self._session_of(self.path, self._options())
        options = self._options()
        options.optimized_model_filepath = str(fresh / "graph.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS_OF_CACHED)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            session = self._session_of(self.path, options)
            fresh.rename(self.cached)  # fails where another process was faster, whose graph is the same
        except OSError:
            pass
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return session

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; a warning of a constant-folded node is of no use to anyone
        # Each stage has threads of its own. Waiting in a loop for more work, as they do by default, they would take
        # the processor from the next stage: on two cores that was a third of a restoration's time.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.thrifty:
            # Copies of the weights in the layout of the matrix products, and memory that is kept for the next call.
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        return options

    def _session_of(self, path: Path, options: Any) -> Any:
        import onnxruntime

        provider = PROVIDERS[self.device]
        # Folding would make the casts of the weights once, and keep what comes of it.
        disabled = ["ConstantFolding"] if self.thrifty else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a provider that is not there: the error below says more
            session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=[provider], disabled_optimizers=disabled
            )
        if provider not in session.get_providers():
            raise ValueError(
                f"ONNX Runtime cannot use {self.device}: it has {', '.join(onnxruntime.get_available_providers())} "
                "and fell back; install onnxruntime-gpu with its CUDA libraries, or choose the device cpu"
            )
        return session


class Binding:
    """A session's inputs and outputs in the memory of its device, for one thread.

    An input that cannot be written to is a constant: it is copied to the device once, and stays there until another
    array takes its place. Of a sampling loop, that leaves the latents to copy at each step.
    """

    def __init__(self, session: Any, device: str) -> None:
        self.session, self.device = session, device
        self.outputs = [output.name for output in session.get_outputs()]
        self._binding = session.io_binding()
        self._held: dict[str, tuple[np.ndarray, Any]] = {}

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the session's order."""
        for name, array in feed.items():
            self._bind(name, array)
        for name in self.outputs:
            self._binding.bind_output(name)
        self.session.run_with_iobinding(self._binding)
        return self._binding.copy_outputs_to_cpu()

    def _bind(self, name: str, array: np.ndarray) -> None:
        import onnxruntime

        if held := self._held.get(name):
            before, value = held
            if _same_constant(before, array):
                return
            if (before.shape, before.dtype) == (array.shape, array.dtype):  # the buffer is used again
                value.update_inplace(np.ascontiguousarray(array))
                self._held[name] = array, value
                return
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device)
        self._binding.bind_ortvalue_input(name, value)
        self._held[name] = array, value


def _same_constant(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether both are the same memory, and read-only."""
    place = lambda array: (array.__array_interface__["data"], array.shape, array.strides)  # noqa: E731
    return not other.flags.writeable and place(one) == place(other)
