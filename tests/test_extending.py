"""The recipes of docs/extending.md: the code of the page is run, and the whole project knows what it adds."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import read_image, write_image

ROOT = Path(__file__).parent.parent
PERSON = ROOT / "samples" / "degraded" / "synthetic_2.jpg"


def recipe(heading: str) -> str:
    """The code of a section of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text(), re.M | re.S)
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    return code


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict[str, Any]], dict[str, Any]]]:
    """Runs a section's code, which adds to a table; the table is as before afterwards. Returns the code's names."""
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def run(heading: str, table: dict[str, Any]) -> dict[str, Any]:
        tables.append((table, dict(table)))
        names: dict[str, Any] = {}
        exec(compile(recipe(heading), f"docs/extending.md, {heading}", "exec"), names)
        return names

    yield run
    for table, before in tables:
        table.clear()
        table.update(before)


def test_a_sampler(follow: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    import diffbody
    from diffbody_ref.ops.samplers import SAMPLERS
    from diffbody_ref.pipeline import DiffBodyPipeline

    with pytest.raises(ValueError, match="unknown sampler 'renoise'"):
        diffbody.restore(PERSON, sampler="renoise")
    follow("A sampler", SAMPLERS)
    call: dict[str, Any] = {"sampler": "renoise", "num_inference_steps": 3, "strength": 1.0, "seed": 1}
    by_runtime = diffbody.restore(PERSON, **call).pixels
    by_reference = DiffBodyPipeline.from_pretrained(NANO_FOLDER)(read_image(PERSON), **call, output_type="np").images[0]
    # 45 dB is what the project asks of float32 engines.
    assert -10 * np.log10(np.square(by_runtime - by_reference).mean() + 1e-12) > 45
    assert not np.array_equal(by_runtime, diffbody.restore(PERSON, **{**call, "sampler": "ddim"}).pixels)


def test_a_stage(follow: Callable[..., Any], tmp_path: Path) -> None:
    """The export makes its graph, manifest and parity report; both kinds of engine that run here run it."""
    from diffbody_ref.stages import STAGES
    from export.bundle import export_bundle
    from export.tensorrt import profile_shapes
    from runtime.bundle import Bundle
    from runtime.engines import EngineConfig
    from runtime.engines.pool import EnginePool

    follow("A stage", STAGES)

    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    # An export that was cut right away, to which nano's graphs are given: only the new one is left to be made.
    with pytest.raises(KeyboardInterrupt):
        export_bundle(NANO_FOLDER, tmp_path / "bundle", progress=stop)
    for graph in NANO_FOLDER.glob("*.onnx"):
        shutil.copy2(graph, tmp_path / ".bundle.part" / graph.name)
    bundle = Bundle.open(export_bundle(NANO_FOLDER, tmp_path / "bundle"))

    entry = bundle.manifest.stages["brightness"]
    assert entry.graphs == {"onnx-float32": "brightness.float32.onnx"}
    assert "| brightness.brightness |" in (bundle.folder / "parity.md").read_text()
    assert profile_shapes(entry, entry.inputs[0])[1] == (1, 3, 256, 128)
    picture = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    for engine in ("onnxruntime", "torch"):
        with EnginePool(bundle, EngineConfig(engine=engine)) as engines:
            found = engines.infer("brightness", {"picture": picture})["brightness"]
        np.testing.assert_allclose(found, picture.mean(axis=(1, 2, 3)), rtol=1e-5)  # means of 4608 float32 values


def test_a_regression_network(follow: Callable[..., Any], tmp_path: Path) -> None:
    from diffbody_ref.models.regression import REGRESSIONS
    from diffbody_ref.pipeline import DiffBodyPipeline

    names = follow("A regression network", REGRESSIONS)
    smoother = names["Smoother"](size=3)
    torch.nn.init.constant_(smoother.filter.weight, 1 / 9)
    torch.nn.init.zeros_(smoother.filter.bias)
    DiffBodyPipeline.from_pretrained(NANO_FOLDER, swinir=smoother).save_pretrained(tmp_path)
    pipeline = DiffBodyPipeline.from_pretrained(tmp_path)
    assert type(pipeline.swinir) is names["Smoother"]
    picture = np.zeros((256, 128, 3), np.float32)
    picture[100, 50] = 0.9
    call: dict[str, Any] = {"num_inference_steps": 1, "use_structure": False, "return_intermediates": True}
    found = pipeline(picture, **call).intermediates[0].regression
    # A mean of nine pixels, of float32.
    np.testing.assert_allclose(found[99:102, 49:52], 0.1, atol=1e-6)


def test_an_engine_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.bundle import Bundle
    from runtime.engines import ENGINES, EngineConfig
    from runtime.engines.pool import EnginePool

    (tmp_path / "reference_engine.py").write_text(recipe("An engine kind"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="unknown engine 'reference'"):
        EngineConfig(engine="reference")
    monkeypatch.setitem(ENGINES, "reference", "reference_engine:ReferenceEngine")
    bundle = Bundle.open(NANO_FOLDER)
    tokens = {"token_ids": np.arange(77, dtype=np.int64)[None]}
    found, wanted = (
        EnginePool(bundle, EngineConfig(engine=engine)).infer("text_encoder", tokens)["text"]
        for engine in ("reference", "onnxruntime")
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)  # two layers in float32, sums in another order
    with pytest.raises(ValueError, match="'token_ids' is missing"):
        EnginePool(bundle, EngineConfig(engine="reference")).infer("text_encoder", {})


def test_a_checkpoint_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffbody_ref.components import load_component
    from diffbody_ref.weights import importing

    (tmp_path / "trainer_source.py").write_text(recipe("A checkpoint source"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importing, "SOURCES", (*importing.SOURCES, importlib.import_module("trainer_source")))
    state = load_component(NANO_FOLDER, "swinir").state_dict()
    save_file({f"net_g.{name}": value.contiguous() for name, value in state.items()}, tmp_path / "net.safetensors")
    (row,) = importing.import_checkpoints(tmp_path / "out", [tmp_path / "net.safetensors"])
    assert (row.component, row.source) == ("swinir", "BasicSR trainer")
    found = load_component(tmp_path / "out", "swinir").state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_metric(follow: Callable[..., Any]) -> None:
    from diffbody_ref.evaluation.metrics import METRICS, available_metrics

    follow("A metric", METRICS)
    measures, _ = available_metrics()
    assert measures["brightness_error"](np.full((8, 8, 3), 0.75), np.full((8, 8, 3), 0.5)) == 0.25
    assert METRICS["brightness_error"].heading == "Brightness error ↓"


def test_a_data_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffbody_ref.data import readers

    names: dict[str, Any] = {}
    exec(recipe("A data reader"), names)
    (tmp_path / "numbered").mkdir()
    for name in ("7_1.png", "7_2.png", "12_1.png"):
        write_image(tmp_path / "numbered" / name, np.full((20, 20, 3), 0.5, np.float32))
    monkeypatch.setattr(readers, "READERS", (names["NumberedReader"], *readers.READERS))
    reader = readers.open_folder(tmp_path)
    assert (reader.format, len(reader)) == ("numbered", 3)
    assert [reader.entry(i).identity for i in range(3)] == [12, 7, 7]
    assert reader.data(0) == (tmp_path / "numbered" / "12_1.png").read_bytes()


def test_every_recipe_is_followed() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/extending.md").read_text(), re.M)
    tested = {name.removeprefix("test_").replace("_", " ") for name in globals() if name.startswith("test_a")}
    assert {heading.lower() for heading in headings} == tested
