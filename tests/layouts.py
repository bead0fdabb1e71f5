"""The layouts in which public projects write their checkpoints, stated anew: from diffusers' names to theirs."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
STATIC = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "controlnet_mid_block": "middle_block_out.0",
}


def unet_layout(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Stable Diffusion's names of a U-Net's or control branch's tensors (openaimodel.UNetModel, ControlNet)."""
    return {_unet_name(name, layers, state): value for name, value in state.items()}


def _unet_name(name: str, layers: int, state: dict[str, Tensor]) -> str:
    step = layers + 1
    if found := re.match(r"controlnet_down_blocks\.(\d+)\.(.+)", name):
        return f"zero_convs.{found[1]}.0.{found[2]}"
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", name):
        side, i, kind, j, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        blocks = "input_blocks" if side == "down" else "output_blocks"
        number = i * step + j + (1 if side == "down" else 0)
        if kind == "downsamplers":
            return f"input_blocks.{(i + 1) * step}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            has_attention = any(other.startswith(f"up_blocks.{i}.attentions.") for other in state)
            return f"output_blocks.{i * step + layers}.{2 if has_attention else 1}.{rest}"
        return f"{blocks}.{number}.{'0.' + _resnet(rest) if kind == 'resnets' else '1.' + rest}"
    place = max((place for place in STATIC if name.startswith(f"{place}.")), key=len)
    rest = name.removeprefix(f"{place}.")
    return f"{STATIC[place]}.{_resnet(rest) if '.resnets.' in place else rest}"


def _resnet(rest: str) -> str:
    layer, kind = rest.rsplit(".", 1)
    return f"{RESNET[layer]}.{kind}"


def vae_layout(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Stable Diffusion's names of an autoencoder's tensors (AutoencoderKL), whose attention is of 1×1 convolutions."""
    result = {}
    for name, value in state.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", new)
        new = re.sub(r"(up\.\d+)\.resnets\.(\d+)", r"\1.block.\2", new).replace("upsamplers.0.", "upsample.")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in new:
            new = new.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
            new = re.sub(r"to_(q|k|v)\.", r"\1.", new).replace("to_out.0.", "proj_out.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        result[new] = value
    return result


def clip_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of CLIP's text model within Stable Diffusion 1, with the buffer that older releases kept."""
    named = {f"transformer.text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
    return {**named, "transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of OpenCLIP's text tower within Stable Diffusion 2: one more layer, which is not read, and the rest."""
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    plain = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.randn(2 * [state["final_layer_norm.bias"].shape[0]]),
        "logit_scale": torch.tensor(4.6),
    }
    count = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    for i in (*range(count), count - 1):  # the last one is a stand-in of the same sizes
        layer = {n.removeprefix(f"encoder.layers.{i}."): v for n, v in state.items() if f"layers.{i}." in n}
        place = f"transformer.resblocks.{i if f'transformer.resblocks.{i}.ln_1.weight' not in plain else count}"
        for kind in ("weight", "bias"):
            qkv = torch.cat([layer[f"self_attn.{part}_proj.{kind}"] for part in "qkv"])
            plain |= {
                f"{place}.attn.in_proj_{kind}": qkv,
                f"{place}.attn.out_proj.{kind}": layer[f"self_attn.out_proj.{kind}"],
                f"{place}.ln_1.{kind}": layer[f"layer_norm1.{kind}"],
                f"{place}.ln_2.{kind}": layer[f"layer_norm2.{kind}"],
                f"{place}.mlp.c_fc.{kind}": layer[f"mlp.fc1.{kind}"],
                f"{place}.mlp.c_proj.{kind}": layer[f"mlp.fc2.{kind}"],
            }
    return {f"model.{name}": value for name, value in plain.items()}


def ema_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights beside `model.diffusion_model.*`: names without dots."""
    named = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": value * 0.5
        for name, value in state.items()
        if name.startswith("model.diffusion_model.")
    }
    return {**named, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(9, dtype=torch.int)}


def schedule_buffers(alphas_cumprod: Tensor) -> dict[str, Tensor]:
    """Some of the buffers that a latent diffusion model registers."""
    return {
        "betas": torch.zeros(1000),
        "alphas_cumprod": alphas_cumprod,
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        "posterior_mean_coef1": torch.zeros(1000),
        "logvar": torch.zeros(1000),
    }


def diffbir_layout(branch: Any) -> dict[str, Tensor]:
    """DiffBIR's ControlNet: one input convolution over z_t ⊕ z_r."""
    state = dict(branch.state_dict())
    condition, latent = state.pop("controlnet_cond_embedding.weight"), branch.config["in_channels"]
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"], condition[:, :latent]], dim=1)
    return unet_layout(state, branch.config["layers_per_block"])


def swinir_layout(network: Any) -> dict[str, Tensor]:
    """SwinIR's persistent buffers beside its weights; without pixel unshuffle its first layer has no number."""
    state = dict(network.state_dict())
    if network.settings.unshuffle == 1:
        state = {re.sub(r"^conv_first\.1\.", "conv_first.", name): value for name, value in state.items()}
    window = network.settings.window_size
    for i, depth in enumerate(network.settings.depths):
        for j in range(depth):
            block = f"layers.{i}.residual_group.blocks.{j}"
            state[f"{block}.attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.int64)
            if j % 2:
                state[f"{block}.attn_mask"] = torch.zeros(4, window**2, window**2)
    return state


def taesd_layout(network: Any, half: str) -> dict[str, Tensor]:
    """TAESD's numbered layers; its decoder begins with a clamp, which diffusers' does not count."""
    shift = int(half == "decoder")
    named = {}
    for name, value in getattr(network, half).state_dict().items():
        _, number, rest = name.split(".", 2)
        named[f"{int(number) + shift}.{rest}"] = value
    return named
