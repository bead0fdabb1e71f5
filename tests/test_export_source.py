"""What an export sees before it makes the first graph: whether the model's folder has all that a bundle needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from diffbody import cli
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.pipeline import DiffBodyPipeline
from export.bundle import _start_or_resume
from export.source import Source, check_disk
from export.weights import WeightStore, share_weights
from runtime.bundle import Bundle
from runtime.restore import load_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """nano as `DiffBodyPipeline.save_pretrained` writes it: transformers 5 puts the tokenizer into one file."""
    pipeline = DiffBodyPipeline.from_pretrained(NANO_FOLDER)
    pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer" / "vocab.json").exists()
    return tmp_path / "saved"


def test_a_saved_pipeline_has_a_tokenizer_for_the_runtime(saved: Path, tmp_path: Path) -> None:
    """The vocabulary and merges are made of tokenizer.json; prompts become the ids that nano's own files give."""
    part = tmp_path / "part"
    _start_or_resume(part, Source.open(saved), {"weights": ""})
    manifest = Bundle.open(NANO_FOLDER).manifest
    ours, theirs = load_tokenizer(Bundle(part, manifest)), load_tokenizer(Bundle(NANO_FOLDER, manifest))
    for prompt in ("", "a woman's red coat", "Übergröße, 2 coats!", "🙂", "word " * 200):
        assert (ours(prompt).ids == theirs(prompt).ids).all()
    assert (part / "tokenizer" / "merges.txt").read_text().splitlines()[1:] == [
        line
        for line in (NANO_FOLDER / "tokenizer" / "merges.txt").read_text().splitlines()
        if not line.startswith("#version")
    ]


@pytest.mark.slow
def test_a_saved_pipeline_is_exported(saved: Path, tmp_path: Path) -> None:
    """Loaded, saved, exported, and restored with, as the command does it."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "--model", str(saved), "-o", str(tmp_path / "bundle")])
    assert not stop.value.code
    assert Bundle.open(tmp_path / "bundle").manifest.stages.keys() == Bundle.open(NANO_FOLDER).manifest.stages.keys()


def cut_weights(folder: Path) -> None:
    (path,) = (folder / "vae").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])


def replace_weights(folder: Path) -> None:
    (path,) = (folder / "vae").glob("*.safetensors")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def name_a_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def remove_weights(folder: Path) -> None:
    for path in (folder / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def break_configuration(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{")


def name_a_token_beyond_the_embeddings(folder: Path) -> None:
    path = folder / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**vocabulary, "unheard-of": 60_000}), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_weights, "vae.*cut off"),
        (replace_weights, "vae.*no safetensors file"),
        (name_a_missing_shard, "00001-of-00002.safetensors, which is not there"),
        (remove_weights, "unet: no weights in"),
        (break_configuration, "vae"),
        (name_a_token_beyond_the_embeddings, "tokenizer.*60000"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_at_once(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in NANO_FOLDER.iterdir():
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
    shutil.copy2(NANO_FOLDER / "model_index.json", folder)
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Source.open(folder)
    assert "\n" not in str(caught.value)


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the bundle takes"):
        check_disk(tmp_path / "not" / "there", 10**21)
    check_disk(tmp_path / "not" / "there", 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_any_format_are_kept_once(tmp_path: Path, dtype: torch.dtype) -> None:
    """A graph in float32 refers to the weights' file, casts what it finds there, and says what the network says."""
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    wanted = weight.float().numpy()
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 24])],
        [onnx.numpy_helper.from_array(wanted, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    share_weights(model, WeightStore(tmp_path))
    onnx.save(model, tmp_path / "graph.onnx")
    assert b"model.safetensors" in (tmp_path / "graph.onnx").read_bytes()
    x = np.eye(16, dtype=np.float32)[3:4]
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted[3:4])
