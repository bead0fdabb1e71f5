"""A release: half precision, small, complete or not there, with the model card kept and the loss curves drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffbody_ref.components import COMPONENT_CLASSES, build_component
from diffbody_ref.ops.options import PRESETS
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.training.curves import plot_losses, read_losses
from diffbody_ref.training.release import UNTRAINED, release


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's pipeline folder, its networks random."""
    folder = tmp_path_factory.mktemp("runs") / "pipeline"
    torch.manual_seed(0)
    for name in COMPONENT_CLASSES:
        if name not in UNTRAINED:
            build_component(name, "nano").save_pretrained(folder / name)
    return folder


def write_log(runs: Path, stage: str, steps: range) -> None:
    (runs / stage).mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) for step in steps]
    (runs / stage / "log.jsonl").write_text("\n".join(lines) + "\n")


def test_a_release_is_small_and_restores(trained: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "runs", "vae", range(20, 400, 20))
    out = tmp_path / "model"
    out.mkdir()
    (out / "README.md").write_text("card")
    (out / "stale.bin").write_text("old")
    assert release(trained, out, "nano", tmp_path / "runs") == out
    assert (out / "README.md").read_text() == "card"
    assert not (out / "stale.bin").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "runs"]
    assert not any(str(trained) in path.read_text() for path in out.rglob("*.json"))  # where it was trained
    weights = list(out.rglob("*.safetensors"))
    floating = [t.dtype for path in weights for t in load_file(path).values() if t.is_floating_point()]
    assert set(floating) == {torch.float16}
    assert sum(path.stat().st_size for path in weights) <= 32_000_000
    assert np.asarray(Image.open(out / "losses.png")).std() > 5
    pipeline = DiffBodyPipeline.from_pretrained(out)
    assert pipeline.settings == PRESETS["nano"]
    picture = np.full((40, 24, 3), 0.5, np.float32)
    (image,) = pipeline(picture, num_inference_steps=2, strength=0.5, output_type="np").images
    assert np.isfinite(image).all()


def test_an_incomplete_run_is_refused_and_harms_nothing(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "components").mkdir()
    (tmp_path / "components" / "vae").symlink_to(trained / "vae")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="components"):
        release(tmp_path / "components", tmp_path / "model", "nano")
    assert (tmp_path / "model" / "model_index.json").read_text() == "{}"
    with pytest.raises(ValueError, match="unknown preset 'pico'"):
        release(trained, tmp_path / "model", "pico")


def test_lines_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 20, "loss": 3.0}\n{"step": 40, "loss": 2.0}\n{"step": 40, "loss": 1.0}\n')
    steps, losses = read_losses(log)
    assert (steps.tolist(), losses.tolist()) == ([20, 40], [3.0, 1.0])
    with pytest.raises(FileNotFoundError, match=r"no STAGE/log\.jsonl"):
        plot_losses(tmp_path, tmp_path / "losses.png")
