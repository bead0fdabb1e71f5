"""ONNX Runtime's engine: its cache of optimised graphs, and inputs kept on the device."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffbody_ref.ops.builtin import NANO_FOLDER
from runtime.bundle import Bundle, FileEntry
from runtime.engines import cache
from runtime.engines.onnxruntime import Binding, OnnxRuntimeEngine

GRAPH = NANO_FOLDER / "pose.float32.onnx"
ENTRY = Bundle.open(NANO_FOLDER).manifest.stages["pose"]


def crops(seed: int) -> dict[str, np.ndarray]:
    height, width = ENTRY.inputs[0].shape[2:]
    shape = (1, 3, int(height), int(width))
    return {"crops": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def infer(cached: Path | None) -> np.ndarray:
    engine = OnnxRuntimeEngine(ENTRY, GRAPH, cached=cached)
    return engine.infer(crops(0))["simcc_x"]


def test_a_cached_graph_gives_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "pose"
    wanted = infer(None)
    assert np.array_equal(infer(folder), wanted)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "graph.onnx" in written
    assert np.array_equal(infer(folder), wanted)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert [path.name for path in folder.parent.iterdir()] == ["pose"]


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "pose"
    wanted = infer(folder)
    (folder / "graph.onnx").write_bytes(b"not a graph")
    assert np.array_equal(infer(folder), wanted)
    assert (folder / "graph.onnx").stat().st_size > 1000


def test_without_a_cache_it_works_as_well(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert np.array_equal(infer(tmp_path / "file" / "pose"), infer(None))


def test_the_cache_is_of_these_weights_and_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files = Bundle.open(NANO_FOLDER).manifest.files
    name = next(name for name in files if name.endswith(".safetensors"))
    changed = {**files, name: replace(files[name], sha256="0" * 64)}
    names = [cache.optimised_graph(given, GRAPH.name, "cpu") for given in (files, changed)]
    names.append(cache.optimised_graph(files, GRAPH.name, "cuda"))
    monkeypatch.setattr(cache, "processor", lambda: "another one")
    names.append(cache.optimised_graph(files, GRAPH.name, "cpu"))
    assert len(set(names)) == len(names)
    assert cache.optimised_graph({**files, name: FileEntry(1 << 34, "")}, GRAPH.name, "cpu") is None


def test_nothing_is_kept_for_its_maker(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry leaves its events, and an ID of the machine, in the user's cache folder."""
    program = f"""if True:
        import runtime.engines, onnxruntime
        onnxruntime.InferenceSession({str(GRAPH)!r})
    """
    home = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    unset = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", program], env={**unset, **home}, check=True)
    assert not list(tmp_path.iterdir())


def test_bound_inputs_give_what_a_run_gives() -> None:
    """On the CPU, where the binding is the same as on a GPU, but that it may share the memory of what it is given."""
    engine = OnnxRuntimeEngine(ENTRY, GRAPH)
    binding = Binding(engine._session, "cpu")
    for seed in (1, 2, 2):
        wanted = engine.infer(crops(seed))
        found = dict(zip(binding.outputs, binding.run(crops(seed)), strict=True))
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_constant_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    binding = Binding(OnnxRuntimeEngine(ENTRY, GRAPH)._session, "cpu")
    constant = crops(1)["crops"]
    constant.flags.writeable = False
    first = binding.run({"crops": constant})
    held = binding._held["crops"]
    assert all(np.array_equal(*pair) for pair in zip(first, binding.run({"crops": constant[:]}), strict=True))
    assert binding._held["crops"] is held  # a view of it is the same constant
    other = binding.run(crops(2))
    assert binding._held["crops"] is not held
    assert not np.array_equal(first[0], other[0])
