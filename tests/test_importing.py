"""Importing public checkpoints in their own layouts, of random weights at reduced width: outputs stay the same."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffbody import cli
from diffbody_ref.components import build_component, load_component, save_component
from diffbody_ref.models.control import ControlBranch, denoise
from diffbody_ref.models.parts import NANO as NANO_PARTS
from diffbody_ref.models.parts import PartNet
from diffbody_ref.models.swinir import SwinIR, SwinIRConfig
from diffbody_ref.models.text import build_tokenizer, encode_prompt
from diffbody_ref.models.unet import CONFIGS as UNETS
from diffbody_ref.weights import import_checkpoints, ldm
from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.sources import diffbir, swinir
from tests import layouts

WIDTHS = (64, 64)  # Stable Diffusion's norms have 32 groups, and 2.x's attention heads 64 channels
CONTEXT = {1: 48, 2: 64}
DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")


def small_unet(version: int = 2, **settings: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        **{
            "block_out_channels": WIDTHS,
            "down_block_types": DOWN,
            "up_block_types": UP,
            "layers_per_block": 1,
            "attention_head_dim": (1, 1) if version == 2 else 8,
            "cross_attention_dim": CONTEXT[version],
            "use_linear_projection": version == 2,
            **settings,
        }
    ).eval()


def small_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=32, **levels).eval()


def small_text(version: int = 2) -> CLIPTextModel:
    torch.manual_seed(2)
    sizes = {"hidden_size": CONTEXT[version], "intermediate_size": 2 * CONTEXT[version], "num_hidden_layers": 2}
    act = "gelu" if version == 2 else "quick_gelu"
    return CLIPTextModel(CLIPTextConfig(num_attention_heads=1, hidden_act=act, **sizes)).eval()


def stable_diffusion(version: int = 2) -> dict[str, Tensor]:
    """A file of Stable Diffusion's trainer, with all that lies in it."""
    unet, vae, text = small_unet(version).state_dict(), small_vae().state_dict(), small_text(version).state_dict()
    lay = layouts.open_clip_layout if version == 2 else layouts.clip_layout
    return {
        **{f"model.diffusion_model.{n}": t for n, t in layouts.unet_layout(unet, 1).items()},
        **{f"first_stage_model.{n}": t for n, t in layouts.vae_layout(vae, 2).items()},
        **{f"cond_stage_model.{n}": t for n, t in lay(text).items()},
        "first_stage_model.loss.logvar": torch.zeros(()),
        **layouts.schedule_buffers(build_component("scheduler", "sd21").alphas_cumprod),
    }


def control_for(unet: UNet2DConditionModel) -> ControlBranch:
    branch = ControlBranch.from_unet(unet, 5).eval()
    torch.manual_seed(3)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        branch.controlnet_cond_embedding.weight[:, 4:] = 0  # DiffBIR has neither pose nor attention
    return branch


def written(path: Path, state: Any) -> Path:
    torch.save(state, path) if path.suffix != ".safetensors" else save_file(
        {name: tensor.clone() for name, tensor in state.items()}, path
    )
    return path


@torch.no_grad()
def predicted(unet: UNet2DConditionModel) -> Tensor:
    noise = torch.randn(1, 4, 16, 8, generator=torch.Generator().manual_seed(4))
    text = torch.randn(1, 7, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(5))
    return unet(noise, torch.tensor([400]), text).sample


def same(found: torch.nn.Module, wanted: torch.nn.Module) -> None:
    theirs = wanted.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("version", [1, 2])
def test_stable_diffusion_in_one_file(tmp_path: Path, version: int, suffix: str) -> None:
    state: Any = stable_diffusion(version)
    surroundings = {"global_step": 875000, "callbacks": {cli.main: 1}, "optimizer_states": [{"m": torch.ones(2)}]}
    whole = state if suffix == ".safetensors" else {"state_dict": state, **surroundings}
    out = tmp_path / "out"
    rows = import_checkpoints(out, [written(tmp_path / f"sd{suffix}", whole)], prediction="epsilon")
    assert {row.component for row in rows} == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    unet, vae, text = (load_component(out, name) for name in ("unet", "vae", "text_encoder"))
    torch.testing.assert_close(predicted(unet), predicted(small_unet(version)), rtol=0, atol=0)
    same(vae, small_vae())
    same(text, small_text(version))
    assert text.config.hidden_act == ("gelu" if version == 2 else "quick_gelu")
    assert vae.config.scaling_factor == 0.18215
    assert load_component(out, "scheduler").config.prediction_type == "epsilon"


def test_full_sizes_come_from_shapes() -> None:
    """Of the published networks: Stable Diffusion 1.5's and 2.1-base's networks, DiffBIR's."""
    sd15 = {"attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False}
    with torch.device("meta"):
        for settings in ({}, sd15):
            wide = {**UNETS["sd21"], "use_linear_projection": True, **settings}
            unet = UNet2DConditionModel(**wide)
            state = layouts.unet_layout(unet.state_dict(), 2)
            again = UNet2DConditionModel(**ldm.unet_config(state))
            assert shapes(again) == shapes(unet)
            assert sum(p.numel() for p in again.parameters()) == (865_910_724 if not settings else 859_520_964)
            heads = wide["attention_head_dim"]
            assert again.config.attention_head_dim == (heads if isinstance(heads, tuple) else (heads,) * 4)
        vae, text = build_component("vae", "sd21"), build_component("text_encoder", "sd21")
        again = AutoencoderKL(**ldm.vae_config(layouts.vae_layout(vae.state_dict(), 4)))
        assert shapes(again) == shapes(vae)
        config = ldm.text_config(layouts.open_clip_layout(text.state_dict()))
        assert {name: text.config.to_dict()[name] for name in config} == config
        branch = ControlBranch.from_unet(UNet2DConditionModel(**UNETS["sd21"], use_linear_projection=True), 5)
        (found,) = diffbir.detect(Checkpoint(Path("v1_general.pth"), layouts.diffbir_layout(branch)))
        assert found.what == "control branch of 320 channels, reads z_t and z_r"
        (found,) = swinir.detect(Checkpoint(Path("swinir.ckpt"), layouts.swinir_layout(SwinIR(SwinIRConfig()))))
        assert SwinIRConfig(**found.config["sizes"]) == SwinIRConfig()


def shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("version", [1, 2])
def test_padded_captions_are_embedded_as_by_diffusers(tmp_path: Path, version: int) -> None:
    """Every position conditions the U-Net: Stable Diffusion 2 pads with "!", 1 with the end token."""
    out = tmp_path / "out"
    import_checkpoints(out, [written(tmp_path / "sd.ckpt", stable_diffusion(version))], prediction="epsilon")
    # Stable Diffusion's own tokenizer files, as its folders have them.
    folder = tmp_path / "tokenizer"
    build_tokenizer().save_pretrained(folder)
    pad = "!" if version == 2 else "<|endoftext|>"
    theirs = CLIPTokenizer.from_pretrained(folder, pad_token=pad, model_max_length=77)
    pipeline = StableDiffusionPipeline(
        small_vae(), small_text(version), theirs, small_unet(version), DDPMScheduler(), None, None, None, False
    )
    captions = ["a woman in a red coat", "", "stop! look there, a man"]
    wanted, _ = pipeline.encode_prompt(captions, "cpu", 1, False)
    found = encode_prompt(load_component(out, "tokenizer"), load_component(out, "text_encoder"), captions)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)  # batches of three and of one sum in other orders


def test_averaged_weights_and_half_precision_are_kept(tmp_path: Path) -> None:
    state = stable_diffusion()
    state |= layouts.ema_layout(state)
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    rows = import_checkpoints(tmp_path / "out", [written(tmp_path / "sd.ckpt", state)], prediction="epsilon")
    saved = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    wanted = small_unet().state_dict()
    assert all(tensor.dtype == torch.float16 for tensor in saved.values())
    assert all(torch.equal(tensor, (wanted[name] * 0.5).half()) for name, tensor in saved.items())
    unet = next(row for row in rows if row.component == "unet")
    assert "averaged (EMA) weights" in unet.what
    assert unet.ignored["the plain weight of an averaged one"] == len(wanted)


def test_what_the_u_net_predicts(tmp_path: Path) -> None:
    """The schedule in the file tells zero-terminal SNR; that it is no ε is what the (random) U-Net itself shows."""
    out, state = tmp_path / "out", stable_diffusion()
    path = written(tmp_path / "sd.ckpt", state)
    import_checkpoints(out, [path])
    assert load_component(out, "unet") is not None
    settings = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert (settings["prediction_type"], settings["rescale_betas_zero_snr"]) == ("v_prediction", False)
    zero = DDPMScheduler.from_config(settings, rescale_betas_zero_snr=True)
    import_checkpoints(out, [written(path, {**state, "alphas_cumprod": zero.alphas_cumprod})])
    settings = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert (settings["prediction_type"], settings["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert settings["timestep_spacing"] == "trailing"
    found = DDPMScheduler.from_config(settings).alphas_cumprod
    torch.testing.assert_close(found, zero.alphas_cumprod)
    with pytest.raises(ValueError, match="give --prediction v"):
        import_checkpoints(out, [written(path, {n: t for n, t in state.items() if n.startswith(("model.", "first_"))})])


def diffbir_full() -> dict[str, Tensor]:
    state = stable_diffusion()
    control = layouts.diffbir_layout(control_for(small_unet()))
    swinir = layouts.swinir_layout(SwinIR(SMALL_SWINIR))
    encoder = {n: t for n, t in state.items() if re.match(r"first_stage_model\.(encoder|quant_conv)\.", n)}
    return {
        **state,
        **{f"control_model.{n}": t for n, t in control.items()},
        **{f"preprocess_model.{n}": t for n, t in swinir.items()},
        **{n.replace("first_stage_model.", "cond_encoder."): t.clone() for n, t in encoder.items()},
    }


SMALL_SWINIR = SwinIRConfig(unshuffle=8, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=4, num_feat=8)


def test_diffbirs_full_checkpoint(tmp_path: Path) -> None:
    out, state = tmp_path / "out", diffbir_full()
    rows = import_checkpoints(out, [written(tmp_path / "full.ckpt", {"state_dict": state})], prediction="epsilon")
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "control", "swinir"} == {r.component for r in rows}
    wanted, branch = control_for(small_unet()), load_component(out, "control")
    same(branch, wanted)
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.randn(1, 7, 64))
    condition = torch.randn(1, 13, 8, 8)
    with torch.no_grad():
        found = denoise(load_component(out, "unet"), branch, *inputs, condition)
        torch.testing.assert_close(found, denoise(small_unet(), wanted, *inputs, condition), rtol=0, atol=0)
    swinir = next(row for row in rows if row.component == "swinir")
    assert sum(swinir.ignored.values()) == 6  # of four blocks an index each, of every other one a mask
    state["cond_encoder.quant_conv.bias"] += 1
    with pytest.raises(ValueError, match=r"cond_encoder\.quant_conv\.bias is not the autoencoder's"):
        import_checkpoints(out, [written(tmp_path / "full.ckpt", state)], prediction="epsilon")


def test_the_control_branch_gets_an_input_a_part(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_component(out, "parts", PartNet(replace(NANO_PARTS, part_set="eight")))
    torch.save(layouts.diffbir_layout(control_for(small_unet())), tmp_path / "v1_general.pth")
    import_checkpoints(out, [tmp_path / "v1_general.pth"])
    branch = load_component(out, "control")
    assert branch.config["part_count"] == 8
    weight = branch.state_dict()["controlnet_cond_embedding.weight"]
    assert torch.equal(weight[:, :4], control_for(small_unet()).controlnet_cond_embedding.weight[:, :4])
    assert not weight[:, 4:].any()
    assert (out / "parts" / "config.json").is_file()  # what was there stays


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unshuffle": 1, "shrink": 4},
        {"unshuffle": 1, "shrink": 2, "embed_dim": 16, "bottleneck": True, "num_heads": (4, 4), "mlp_ratio": 4.0},
    ],
    ids=["DiffBIR", "upstream x4", "upstream large x2"],
)
def test_swinir_of_every_size(tmp_path: Path, changes: dict[str, Any]) -> None:
    torch.manual_seed(6)
    sizes = {**SMALL_SWINIR.__dict__, **changes}
    wanted = SwinIR(SwinIRConfig(**sizes)).eval()
    state = {"params": {"w": torch.ones(1)}, "params_ema": layouts.swinir_layout(wanted)}
    import_checkpoints(tmp_path / "out", [written(tmp_path / "net.pth", state)])
    found = load_component(tmp_path / "out", "swinir")
    assert found.settings == wanted.settings
    picture = torch.rand(1, 3, 40, 72)
    with torch.no_grad():
        assert torch.equal(found(picture), wanted(picture))


def test_tiny_autoencoders(tmp_path: Path) -> None:
    torch.manual_seed(7)
    wanted = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    halves = [
        written(tmp_path / f"{half}.safetensors", layouts.taesd_layout(wanted, half)) for half in ("encoder", "decoder")
    ]
    with pytest.raises(ValueError, match="the decoder is missing"):
        import_checkpoints(tmp_path / "out", halves[:1])
    assert not (tmp_path / "out").exists()
    wanted.save_pretrained(tmp_path / "folder")
    for name, paths in (("out", halves[::-1]), ("again", [tmp_path / "folder"])):
        import_checkpoints(tmp_path / name, paths)
        found = AutoencoderTiny.from_pretrained(tmp_path / name / "tiny_vae")
        picture = torch.rand(1, 3, 32, 16)
        with torch.no_grad():
            assert torch.equal(found(picture).sample, wanted(picture).sample)


def real(name: str) -> Path:
    """A file of real weights: in the folder that DIFFBODY_WEIGHTS names, or in ../shared/weights beside the project."""
    folders = [Path(__file__).parents[2] / "shared" / "weights", Path(__file__).parents[3] / "shared" / "weights"]
    folders = [Path(os.environ["DIFFBODY_WEIGHTS"])] if "DIFFBODY_WEIGHTS" in os.environ else folders
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
        pytest.skip(f"{name} is not there; DIFFBODY_WEIGHTS can name its folder")
    return found


def test_the_real_taesd_codes_a_picture(tmp_path: Path) -> None:
    """Latents of real weights are of Stable Diffusion's scale, and a smooth picture comes back."""
    paths = [real(f"taesd_{half}.safetensors") for half in ("encoder", "decoder")]
    rows = import_checkpoints(tmp_path / "out", paths)
    assert [row.parameters for row in rows] == [1_222_531, 1_222_532]
    network = AutoencoderTiny.from_pretrained(tmp_path / "out" / "tiny_vae", torch_dtype=torch.float32).eval()
    ramp = torch.linspace(-0.8, 0.8, 64).expand(1, 3, 64, 64)
    with torch.no_grad():
        latents = network.encode(ramp).latents
        back = network.decode(latents).sample
    assert latents.shape == (1, 4, 8, 8)
    # PSNR of TAESD on photographs is 22 dB (an error of 0.16 in [-1, 1]); a ramp is easier.
    assert (back - ramp).pow(2).mean().sqrt() < 0.16
