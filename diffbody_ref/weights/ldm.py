"""Stable Diffusion's own layout of a checkpoint: the sizes that its shapes say, and diffusers' names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

from diffbody_ref.weights.filling import count_layers

State = Mapping[str, Tensor]
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
EMA = "model_ema."
HEAD_CHANNELS = 64  # of CLIP's text encoders, and of Stable Diffusion 2's attention
SD1_HEADS = 8


def encoder_config(tensors: State) -> dict[str, Any]:
    """The sizes of a U-Net's encoder, as diffusers' U-Net and ControlNet take them.

    Args:
        tensors: by names such as `input_blocks.0.0.weight`.

    Raises:
        ValueError: it is no encoder of Stable Diffusion 1 or 2.
    """
    widths, attention, blocks = [], [], [0]
    for i in range(1, count_layers(tensors, r"^input_blocks\.(\d+)\.")):
        if f"input_blocks.{i}.0.op.weight" in tensors:
            blocks.append(0)
            continue
        width = tensors[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0]
        if blocks[-1] == 0:
            widths.append(width)
            attention.append(f"input_blocks.{i}.1.proj_in.weight" in tensors)
        blocks[-1] += 1
    context = next((t for name, t in tensors.items() if name.endswith("attn2.to_k.weight")), None)
    projection = next((t for name, t in tensors.items() if name.endswith("1.proj_in.weight")), None)
    if len(set(blocks)) != 1 or context is None or projection is None or not widths:
        raise ValueError("its blocks are not those of Stable Diffusion 1 or 2")
    linear = projection.ndim == 2
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "layers_per_block": blocks[0],
        # diffusers reads this as the number of heads.
        "attention_head_dim": tuple(w // HEAD_CHANNELS for w in widths) if linear else (SD1_HEADS,) * len(widths),
        "cross_attention_dim": context.shape[1],
        "use_linear_projection": linear,
    }


def unet_config(tensors: State) -> dict[str, Any]:
    """The configuration of diffusers' `UNet2DConditionModel`; tensors as for `encoder_config`.

    Raises:
        ValueError: it is no U-Net of Stable Diffusion 1 or 2.
    """
    encoder = encoder_config(tensors)
    up = tuple(kind.replace("Down", "Up") for kind in reversed(encoder["down_block_types"]))
    return {
        **encoder,
        "up_block_types": up,
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "sample_size": 64,
    }


def vae_config(tensors: State) -> dict[str, Any]:
    """The configuration of diffusers' `AutoencoderKL`; tensors by names such as `encoder.conv_in.weight`."""
    levels = count_layers(tensors, r"^encoder\.down\.(\d+)\.")
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "block_out_channels": tuple(tensors[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)),
        "layers_per_block": count_layers(tensors, r"^encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "scaling_factor": 0.18215,  # of Stable Diffusion 1 and 2; the tensors do not say it
        "sample_size": 512,
    }


def is_open_clip(tensors: State) -> bool:
    """Whether the text encoder is OpenCLIP's (Stable Diffusion 2), not CLIP's (1); names without `TEXT`."""
    return "model.positional_embedding" in tensors


def text_config(tensors: State) -> dict[str, Any]:
    """The configuration of transformers' `CLIPTextModel`; names without `TEXT`.

    OpenCLIP's last layer is left out: Stable Diffusion 2 reads the one before.
    """
    if is_open_clip(tensors):
        embedding, positions = tensors["model.token_embedding.weight"], tensors["model.positional_embedding"]
        layers = count_layers(tensors, r"^model\.transformer\.resblocks\.(\d+)\.") - 1
        hidden = tensors["model.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    else:
        place = "transformer.text_model."
        embedding = tensors[f"{place}embeddings.token_embedding.weight"]
        positions = tensors[f"{place}embeddings.position_embedding.weight"]
        layers = count_layers(tensors, r"text_model\.encoder\.layers\.(\d+)\.")
        hidden = tensors[f"{place}encoder.layers.0.mlp.fc1.weight"].shape[0]
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(embedding.shape[1] // HEAD_CHANNELS, 1),
        "max_position_embeddings": positions.shape[0],
        "hidden_act": "gelu" if is_open_clip(tensors) else "quick_gelu",
    }


def averaged(tensors: State) -> dict[str, Tensor]:
    """The U-Net's averaged (EMA) weights by the plain ones' names, without `UNET`; {} if the file has none.

    Stable Diffusion's trainer keeps them under names without dots.
    """
    names = [name for name in tensors if name.startswith(UNET)]
    flat = {name: EMA + name.removeprefix("model.").replace(".", "") for name in names}
    if not names or any(ema not in tensors for ema in flat.values()):
        return {}
    return {name.removeprefix(UNET): tensors[ema] for name, ema in flat.items()}


def as_unet(tensors: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """diffusers' names; tensors as for `encoder_config`. Those that diffusers does not know keep theirs."""
    return _renamed(tensors, convert_ldm_unet_checkpoint({UNET + n: t for n, t in tensors.items()}, config))


def as_vae(tensors: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """diffusers' names; tensors as for `vae_config`. Those that diffusers does not know keep theirs."""
    return _renamed(tensors, convert_ldm_vae_checkpoint({VAE + n: t for n, t in tensors.items()}, config))


def as_text(tensors: State, network: Any) -> dict[str, Tensor]:
    """transformers' names; names without `TEXT`. Those that are no text encoder's keep theirs."""
    whole = {TEXT + name: tensor for name, tensor in tensors.items()}
    if is_open_clip(tensors):
        named = convert_open_clip_checkpoint(network, whole, prefix=f"{TEXT}model.")
    else:
        named = convert_ldm_clip_checkpoint(whole)
    flat = not hasattr(network, "text_model")  # newer releases of transformers have no such level
    named = {name.removeprefix("text_model.") if flat else name: tensor for name, tensor in named.items()}
    known = r"model\.(transformer|ln_final|positional_embedding|token_embedding)\b|transformer\.text_model\."
    return named | {name: tensor for name, tensor in tensors.items() if not re.match(known, name)}


def _renamed(before: State, after: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The renamed tensors, with those that were passed over under their own names, so that they are noticed."""
    known = {tensor.data_ptr() for tensor in after.values() if tensor is not None}
    passed = {name: tensor for name, tensor in before.items() if tensor.data_ptr() not in known}
    return {name: tensor for name, tensor in after.items() if tensor is not None} | passed


def open_clip_last_layer(tensors: State) -> str:
    """A regular expression for the names of OpenCLIP's last layer."""
    last = count_layers(tensors, r"^model\.transformer\.resblocks\.(\d+)\.") - 1
    return rf"^model\.transformer\.resblocks\.{last}\."


def schedule(tensors: State) -> Tensor | None:
    """ᾱ_t of the noise schedule that the file holds, (T,) float64, or None."""
    found = tensors.get("alphas_cumprod")
    return None if found is None else found.double()


def looks_like(tensors: State, prefix: str, *names: str) -> bool:
    """Whether tensors of all these names are there below a prefix."""
    return all(prefix + name in tensors for name in names)
