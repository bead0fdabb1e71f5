"""Importing folders and low-rank updates, and what an import refuses: it is whole, or nothing has changed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from diffbody import cli
from diffbody_ref.components import load_component, save_component
from diffbody_ref.models.swinir import SwinIR
from diffbody_ref.models.text import build_tokenizer
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.weights import import_checkpoints
from tests import layouts
from tests.test_importing import (
    SMALL_SWINIR,
    control_for,
    predicted,
    same,
    small_text,
    small_unet,
    small_vae,
    stable_diffusion,
    written,
)


def pipeline_folder(folder: Path, variant: str | None = None, shard: str = "10GB", **scheduler: Any) -> Path:
    """Stable Diffusion as its publishers upload it, with its tokenizer and a scheduler that we do not sample."""
    build_tokenizer("!").save_pretrained(folder / "source")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "source")
    kind = scheduler.pop("kind", PNDMScheduler)
    made = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **scheduler)
    pipeline = StableDiffusionPipeline(
        small_vae(), small_text(), tokenizer, small_unet(), made, None, None, None, False
    )
    if variant == "fp16":
        pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder / "sd", variant=variant, max_shard_size=shard)
    return folder / "sd"


@pytest.mark.parametrize(("variant", "shard"), [(None, "10GB"), ("fp16", "10GB"), (None, "5MB"), ("fp16", "3MB")])
def test_a_diffusers_folder_of_any_variant(tmp_path: Path, variant: str | None, shard: str) -> None:
    out, folder = tmp_path / "out", pipeline_folder(tmp_path, variant, shard)
    rows = import_checkpoints(out, [folder])
    assert {row.component for row in rows} == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    dtype = torch.float16 if variant else torch.float32
    weights = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    wanted = small_unet().to(dtype).state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in weights.items())
    same(load_component(out, "text_encoder", dtype), small_text().to(dtype))
    assert load_component(out, "tokenizer").pad_token == "!"
    assert sorted(path.name for path in (out / "tokenizer").iterdir()) == [
        "merges.txt",
        "tokenizer_config.json",
        "vocab.json",
    ]
    scheduler = load_component(out, "scheduler")
    assert isinstance(scheduler, DDPMScheduler)
    assert scheduler.config.prediction_type == "epsilon"


def test_names_of_older_releases(tmp_path: Path) -> None:
    """Published folders hold them: the autoencoder's attention, CLIP's level `text_model` and its positions."""
    small_vae().save_pretrained(tmp_path / "sd" / "vae")
    small_text().save_pretrained(tmp_path / "sd" / "text_encoder")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    attention = re.compile("|".join(map(re.escape, old)))
    state = {attention.sub(lambda m: old[m[0]], name): value for name, value in load_file(file).items()}
    assert any(name.endswith("proj_attn.weight") for name in state)
    save_file(state, file, metadata={"format": "pt"})
    file = tmp_path / "sd" / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    save_file({**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}, file, metadata={"format": "pt"})
    (tmp_path / "sd" / "safety_checker").mkdir()
    rows = import_checkpoints(tmp_path / "out", [tmp_path / "sd"])
    same(load_component(tmp_path / "out", "vae"), small_vae())
    same(load_component(tmp_path / "out", "text_encoder"), small_text())
    assert {"no part of DiffBody": 1} in [row.ignored for row in rows]


def test_the_plain_weights_of_a_folder_are_preferred(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    small_unet().half().save_pretrained(folder, variant="fp16")
    small_unet().save_pretrained(folder, variant="non_ema", safe_serialization=False)
    (row,) = import_checkpoints(tmp_path / "half", [folder])
    assert "variant fp16" in row.what
    small_unet().save_pretrained(folder)
    (row,) = import_checkpoints(tmp_path / "whole", [folder])
    assert "variant" not in row.what
    same(load_component(tmp_path / "whole", "unet"), small_unet())
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (row,) = import_checkpoints(tmp_path / "pickled", [folder])
    assert "variant non_ema" in row.what
    next(folder.glob("*.bin")).unlink()
    with pytest.raises(ValueError, match=r"a config\.json without weights"):
        import_checkpoints(tmp_path / "none", [folder])


def test_the_schedule_of_a_folder(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    folder = pipeline_folder(tmp_path, kind=DDIMScheduler, **settings)
    import_checkpoints(tmp_path / "out", [folder])
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert {name: config[name] for name in settings} == settings
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "sample"}))
    with pytest.raises(ValueError, match="prediction_type 'sample'"):
        import_checkpoints(tmp_path / "again", [folder])
    assert not (tmp_path / "again").exists()


def test_our_own_folders_come_with_their_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_checkpoints(out, [NANO_FOLDER])
    index, theirs = (json.loads((folder / "model_index.json").read_text()) for folder in (out, NANO_FOLDER))
    assert {name: index[name] for name in theirs if name != "_diffusers_version"} == {
        name: value for name, value in theirs.items() if name != "_diffusers_version"
    }
    for name in ("swinir", "parts", "control"):
        same(load_component(out, name), load_component(NANO_FOLDER, name))


def with_updates(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A U-Net with LoRA on attention and on a convolution, α twice the rank."""
    torch.manual_seed(8)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=targets))
    return unet


def as_kohya(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """kohya's names: dots become underscores, α lies beside."""
    result = {}
    for name, value in state.items():
        layer, half = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
        flat = "lora_unet_" + layer.replace(".", "_")
        result[f"{flat}.{'lora_down' if half == 'A' else 'lora_up'}.weight"] = value
        result[f"{flat}.alpha"] = torch.tensor(4.0)
    return result


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
def test_low_rank_updates_are_merged_as_diffusers_does(tmp_path: Path, names: str) -> None:
    unet = with_updates(small_unet())
    updates = {name: value.contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    wanted = predicted(unet)
    path = tmp_path / "lora.safetensors"
    if names == "kohya":
        save_file(as_kohya(updates), path)
    else:
        metadata = unet.peft_config["default"].to_dict()
        StableDiffusionPipeline.save_lora_weights(tmp_path, updates, unet_lora_adapter_metadata=metadata)
        path = tmp_path / "pytorch_lora_weights.safetensors"
    base = written(tmp_path / "sd.ckpt", stable_diffusion())
    out = tmp_path / "out"
    rows = import_checkpoints(out, [path, base], prediction="epsilon")  # the update before what it updates
    found = predicted(load_component(out, "unet"))
    assert (wanted - predicted(small_unet())).abs().max() > 0.01
    # Merged weights are rounded once more than updates beside them.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert "rank 2" in next(row.what for row in rows if row.component == "lora")
    # A model that is there already takes updates, too.
    import_checkpoints(tmp_path / "two", [base], prediction="epsilon")
    import_checkpoints(tmp_path / "two", [path])
    torch.testing.assert_close(predicted(load_component(tmp_path / "two", "unet")), found, rtol=0, atol=0)


def test_updates_of_another_kind_or_network_are_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "lora.safetensors", tmp_path / "out"
    save_component(out, "unet", small_unet())
    save_file(
        {"lora_unet_mid_block_x.hada_w1_a": torch.ones(2, 2), "lora_unet_a.lora_down.weight": torch.ones(1)}, path
    )
    with pytest.raises(ValueError, match="hada_w1_a: an update of a kind that DiffBody cannot merge"):
        import_checkpoints(out, [path])
    halves = {"unet.conv_x.lora_A.weight": torch.ones(2, 4), "unet.conv_x.lora_B.weight": torch.ones(4, 2)}
    save_file(halves, path)
    with pytest.raises(ValueError, match=r"updates unet\.conv_x, which this model does not have"):
        import_checkpoints(out, [path])
    save_file({"unet.conv_x.lora_A.weight": torch.ones(2, 4)}, path)
    with pytest.raises(ValueError, match=r"half an update: it has no unet\.conv_x\.lora_B\.weight"):
        import_checkpoints(out, [path])


def test_two_sources_of_a_component_are_refused(tmp_path: Path) -> None:
    paths = [written(tmp_path / name, layouts.swinir_layout(SwinIR(SMALL_SWINIR))) for name in ("a.pth", "b.pth")]
    with pytest.raises(ValueError, match=r"swinir is in .*a\.pth and in .*b\.pth; give only one"):
        import_checkpoints(tmp_path / "out", paths)
    with pytest.raises(ValueError, match=r"swinir is in"):
        import_checkpoints(tmp_path / "out", [tmp_path])  # a folder of downloads: all of its files


def test_every_tensor_has_a_place(tmp_path: Path) -> None:
    out, path, state = tmp_path / "out", tmp_path / "net.pth", layouts.swinir_layout(SwinIR(SMALL_SWINIR))
    import_checkpoints(out, [written(path, state)])
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    wrong: dict[str, Any] = {
        "left over, conv_new.weight first": {**state, "conv_new.weight": torch.ones(1)},
        "1 tensors are missing, norm.bias first": {n: t for n, t in state.items() if n != "norm.bias"},
        r"norm\.bias is \(3,\), must be \(12,\)": {**state, "norm.bias": torch.ones(3)},
        "not recognised: it holds tensors such as x": {"x": torch.ones(1)},
    }
    for message, tensors in wrong.items():
        with pytest.raises(ValueError, match=message) as caught:
            import_checkpoints(out, [written(path, tensors)])
        assert "\n" not in str(caught.value)
    sd = {**stable_diffusion(), "depth_model.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"1 tensors belong to no component: depth_model\.weight"):
        import_checkpoints(out, [written(path, sd)])
    for part in ("model.diffusion_model.input_blocks.9.0.x", "cond_stage_model.model.visual.x", "first_stage_model.x"):
        with pytest.raises(ValueError, match=r"left over|has no tensor"):
            import_checkpoints(out, [written(path, {**stable_diffusion(), part: torch.ones(1)})], prediction="epsilon")
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert [folder.name for folder in tmp_path.iterdir() if folder.is_dir()] == ["out"]


def test_components_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    other = control_for(small_unet(cross_attention_dim=32))
    paths = [
        written(tmp_path / "sd.ckpt", stable_diffusion()),
        written(tmp_path / "control.pth", layouts.diffbir_layout(other)),
    ]
    with pytest.raises(ValueError, match=r"control and unet do not fit: cross_attention_dim is 32, .* is 64"):
        import_checkpoints(tmp_path / "out", paths, prediction="epsilon")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_where_all_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "general_swinir_v1.ckpt", layouts.swinir_layout(SwinIR(SMALL_SWINIR)))
    out = tmp_path / "out"

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["import", *arguments])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    code, said = run(str(out), str(path), "--dry-run")
    assert code == 0
    assert not out.exists()
    assert re.search(r"swinir +SwinIR +general_swinir_v1\.ckpt +SwinIR, 2 groups of 12 channels", said)
    assert "not used of general_swinir_v1.ckpt for swinir: 6, each computed from the sizes" in said
    code, said = run(str(out), str(path))
    assert (code, said.splitlines()[-1]) == (0, f"imported {out}")
    index = json.loads((out / "model_index.json").read_text())
    (record,) = index["imported"]
    assert record["component"] == "swinir"
    assert record["file"] == path.name
    assert len(record["sha256"]) == 64
    path.write_text("<html>")
    code, said = run(str(out), str(path))
    assert (code, said.count("\n")) == (2, 1)
    assert "is a web page" in said
    assert run(str(out))[0] == 2
