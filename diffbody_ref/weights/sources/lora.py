"""Low-rank updates (LoRA, Hu et al. 2021, arXiv:2106.09685), with diffusers' or kohya's names, to be merged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.found import Found, Imported

NAME = "LoRA"
LICENCE = "its author's"
KOHYA = ("lora_unet_", "lora_te_")
TARGETS = ("unet", "text_encoder")
OTHER_KINDS = r"hada_|lokr_|dora_scale|\.diff(_b)?$|lora_te[12]_|lora_mid"
HALF = r"\.lora_[AB]\.weight$"
ALPHA = r"(\.lora_[AB]\.weight)?\.alpha$"
OLD_ENDS = r"(\.processor)?(\.|_)lora\.(down|up)\.weight$|lora_linear_layer\.(down|up)\.weight$"


@dataclass(frozen=True)
class Update:
    """The update of one layer: weight + scale · up · down.

    Attributes:
        down: (rank, inputs) or, of a convolution, (rank, inputs, kh, kw).
        up: (outputs, rank) or (outputs, rank, 1, 1).
        scale: α / rank.
    """

    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class Lora:
    """Updates by component and by the name of the layer."""

    path: Path
    updates: Mapping[str, Mapping[str, Update]]

    def parameters(self) -> Iterator[Tensor]:
        """The updates' tensors, as a module's parameters."""
        return (
            tensor for own in self.updates.values() for update in own.values() for tensor in (update.down, update.up)
        )

    @torch.no_grad()
    def merge(self, component: str, network: Any) -> None:
        """Add the updates of a component to its weights, in float32, layer by layer; their number format stays.

        Raises:
            ValueError: the network does not have a layer, or one of another size; the network is of no use then.
        """
        for layer, update in self.updates.get(component, {}).items():
            try:
                weight = network.get_submodule(layer).weight
            except AttributeError:
                raise ValueError(f"{self.path}: updates {component}.{layer}, which this model does not have") from None
            change = update.scale * (update.up.float().flatten(1) @ update.down.float().flatten(1))
            if change.numel() != weight.numel() or len(change) != len(weight):
                raise ValueError(f"{self.path}: the update of {component}.{layer} is not for weights of this size")
            weight.data = (weight.float() + change.reshape(weight.shape)).to(weight.dtype)


def detect(checkpoint: Checkpoint) -> list[Found]:
    """A file of low-rank updates only.

    Raises:
        ValueError: its updates are of another kind, such as LoHa, LoKr or DoRA, or for Stable Diffusion XL.
    """
    names = list(checkpoint.tensors)
    if not all(name.startswith((*KOHYA, "lora_te", *(f"{t}." for t in TARGETS))) for name in names):
        return []
    if not any("lora" in name for name in names):
        return []
    if other := [name for name in names if re.search(OTHER_KINDS, name)]:
        raise ValueError(
            f"{checkpoint.path}: {other[0]}: an update of a kind that DiffBody cannot merge; plain LoRA only"
        )
    downs = [t for name, t in checkpoint.tensors.items() if re.search(r"(lora_down|lora_A|lora\.down)\.weight$", name)]
    ranks = sorted({t.shape[0] for t in downs})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank"
    return [Found("lora", f"LoRA of {rank}, {len(downs)} layers")] if checkpoint.tensors else []


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """The updates, by component and layer.

    Raises:
        ValueError: an update lacks its other half, or a name cannot be understood.
    """
    stated = _stated_alphas(checkpoint.path)
    try:
        state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(checkpoint.tensors))
        named = {target: _peft_names(target, {**state, **(alphas or {})}) for target in TARGETS}
    except (ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{checkpoint.path}: updates whose names cannot be understood: {reason}") from None
    updates = {target: _updates(own, stated.get(target), checkpoint.path, target) for target, own in named.items()}
    return Imported(Lora(checkpoint.path, updates), {}, LICENCE)


def _peft_names(target: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """A component's tensors and α by peft's names, such as `LAYER.lora_A.weight`."""
    own = {name.removeprefix(f"{target}."): value for name, value in state.items() if name.startswith(f"{target}.")}
    if not any(re.search(OLD_ENDS, name) for name in own):
        return own
    return (convert_unet_state_dict_to_peft if target == "unet" else convert_state_dict_to_peft)(own)


def _updates(own: Mapping[str, Any], stated: float | None, path: Path, target: str) -> dict[str, Update]:
    """Updates by layer.

    Raises:
        ValueError: an update lacks its other half.
    """
    alphas = {re.sub(ALPHA, "", name): value for name, value in own.items() if re.search(ALPHA, name)}
    halves = {name for name in own if not re.search(ALPHA, name)}
    updates = {}
    for layer in sorted({re.sub(HALF, "", name) for name in halves}):
        names = {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"}
        if missing := names - halves:
            raise ValueError(f"{path}: half an update: it has no {target}.{min(missing)}")
        down, up = (own[name] for name in sorted(names))
        rank = down.shape[0]
        alpha = alphas.get(layer, rank if stated is None else stated)
        updates[layer.removeprefix("text_model.")] = Update(down, up, float(alpha) / rank)
    return updates


def _stated_alphas(path: Path) -> dict[str, float]:
    """α by component, which diffusers writes into the header of the file; where it is not, α is the rank."""
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (SafetensorError, ValueError, OSError):
        return {}
    return {t: float(values[f"{t}.lora_alpha"]) for t in TARGETS if f"{t}.lora_alpha" in values}
