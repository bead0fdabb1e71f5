"""Where a GPU's memory goes in training: counted tensor by tensor on PyTorch's meta device.

    python -m benchmarks.training_memory                    sd21's diffusion stage, a table of all ways to tune it
    python -m benchmarks.training_memory RECIPE.toml ...    what each recipe needs on one device, and on each of four

No GPU is needed, and none is measured: counted are weights, gradients, Adam's moments, the moving average and what the
forward pass keeps for the backward pass. Under autocast some operators keep float32 and others bfloat16; the table
gives both, and recipes are counted as if all kept float32, an upper bound. Not counted: cuDNN's workspaces, the
allocator's gaps, CUDA's context, and what sample pictures and the encoding of the data take for a moment.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffbody_ref.components import build_component
from diffbody_ref.models.control import denoise
from diffbody_ref.training.config import TrainConfig, load_config
from diffbody_ref.training.loop import micro_batch
from diffbody_ref.training.lora import add_lora
from diffbody_ref.training.parts_losses import IdentityHead
from diffbody_ref.training.stages import stage_class
from diffbody_ref.training.stages.base import training_size

GIB = 2**30
DEVICES = (1, 4)  # numbers of GPUs for which a recipe says what it needs
COUNTED = 2  # pictures: batch norm needs two
IDENTITIES = 2000  # people of a set, for the part network's classifiers


class _FlashAttention(torch.autograd.Function):
    """What a fused attention keeps: its inputs and its output, not the T×T weights that meta's own would count.

    With a bias, which may be learnt, it is counted as if it kept the weights as well.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, biased: bool) -> Tensor:
        out = torch.empty_like(q)
        weights = [q.new_empty((*q.shape[:-1], k.shape[-2]))] if biased else []
        ctx.save_for_backward(q, k, v, out, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError


class _Kept:
    """Bytes of distinct tensors that autograd keeps inside `counting`, weights left out."""

    def __init__(self, weights: set[int]) -> None:
        self.weights, self.bytes, self._seen = weights, 0, dict[int, Tensor]()

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor  # kept alive, so that its number is not given away again
            self.bytes += storage.nbytes()
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights: of the networks that are on the GPU while a stage trains.
        trained: number of trained parameters.
        gradients: of the trained parameters.
        moments: of Adam.
        average: the moving average of the trained parameters.
        copies: autocast's copies of the trained parameters.
    """

    weights: int
    trained: int
    gradients: int
    moments: int
    average: int
    copies: int

    @property
    def fixed(self) -> int:
        """What does not depend on the number of pictures."""
        return self.weights + self.gradients + self.moments + self.average + self.copies


def count_fixed(config: TrainConfig) -> Memory:
    """What a recipe's networks and optimizer take."""
    networks = _networks(config)
    parameters = [p for network in networks.values() for p in network.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    half = config.mixed_precision != "no"
    kept = [_meta("vae", config.preset)] if config.stage == "diffusion" else []  # for the sample pictures
    decoder = 4 * sum(p.numel() for network in kept for p in network.parameters())
    return Memory(
        weights=4 * trained + (2 if half else 4) * frozen + decoder,
        trained=trained,
        gradients=4 * trained,
        moments=8 * trained,
        average=4 * trained,
        copies=2 * trained if half else 0,
    )


def count_activations(config: TrainConfig, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that one picture's forward pass keeps; with checkpointing the inputs of blocks and the block at work."""
    networks = _networks(config)
    for network in networks.values():
        nn.Module.to(network, dtype)  # diffusers' own `to` warns of what is not so here
    weights = {p.untyped_storage()._cdata for network in networks.values() for p in network.parameters()}
    outer, largest = _Kept(weights), 0

    def block(module: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        nonlocal largest
        inner = _Kept(weights)
        with inner.counting():
            result = module(*arguments, **named)
        largest = max(largest, inner.bytes)
        for argument in (*arguments, *named.values()):
            if isinstance(argument, Tensor):
                outer.add(argument)
        return result

    if config.gradient_checkpointing:
        for network in networks.values():
            if hasattr(network, "enable_gradient_checkpointing"):
                network.enable_gradient_checkpointing(block)
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused
    try:
        with outer.counting():
            FORWARDS[config.stage](networks, config, dtype)
    finally:
        F.scaled_dot_product_attention = plain
    return (outer.bytes + largest) // COUNTED


def count_recipe(config: TrainConfig, gpus: int) -> int:
    """Bytes on each of several GPUs that a recipe needs at most."""
    return count_fixed(config).fixed + micro_batch(config, gpus) * count_activations(config)


def describe_recipe(config: TrainConfig) -> str:
    """What a recipe needs, as its file says it."""
    rounds = config.batch_size // config.accumulation
    needs = {count: count_recipe(config, count) / GIB for count in DEVICES if rounds % count == 0}
    texts = (f"{need:.1f} GiB on {'one device' if count == 1 else f'each of {count}'}" for count, need in needs.items())
    return f"Memory, counted: {', '.join(texts)}."


def _fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    return _FlashAttention.apply(q, k, v, attn_mask is not None)


def _meta(name: str, preset: str) -> Any:
    with torch.device("meta"):
        return build_component(name, preset).train()


def _networks(config: TrainConfig) -> dict[str, Any]:
    """The networks through which a step of the stage goes."""
    trained, frozen = stage_class(config.stage).components(config)
    used = ("unet", "control") if config.stage == "diffusion" else ()
    names = dict.fromkeys((*trained, *used, *(n for n in frozen if config.stage == "pose")))
    if config.stage == "diffusion" and not config.cache_text:
        names["text_encoder"] = None
    networks = {name: _meta(name, config.preset) for name in names}
    for name, network in networks.items():
        network.requires_grad_(name in trained)
    if config.tuning == "lora":
        with torch.device("meta"):
            add_lora(networks["unet"], Path("nowhere"), config.lora_rank)
    if config.stage == "vae" and config.tuning == "decoder":
        for module in (networks["vae"].encoder, networks["vae"].quant_conv):
            module.requires_grad_(False)
    if config.stage == "parts":
        with torch.device("meta"):
            networks["identity_head"] = IdentityHead(IDENTITIES, networks["parts"].settings)
    return networks


def _pictures(config: TrainConfig, dtype: torch.dtype, channels: int = 3, factor: int = 1) -> Tensor:
    height, width = (config.crop, config.crop) if config.crop else training_size(config)
    return torch.empty(COUNTED, channels, height // factor, width // factor, device="meta", dtype=dtype)


def _swinir(networks: dict[str, Any], config: TrainConfig, dtype: torch.dtype) -> None:
    networks["swinir"](_pictures(config, dtype))


def _vae(networks: dict[str, Any], config: TrainConfig, dtype: torch.dtype) -> None:
    posterior = networks["vae"].encode(_pictures(config, dtype)).latent_dist
    networks["vae"].decode(posterior.mean + posterior.std)


def _pose(networks: dict[str, Any], config: TrainConfig, dtype: torch.dtype) -> None:
    sizes = networks["pose"].settings
    networks["pose"](torch.empty(COUNTED, 3, sizes.height, sizes.width, device="meta", dtype=dtype))
    if config.tuning == "full":
        side = networks["pose_detector"].settings.size
        networks["pose_detector"].logits(torch.empty(COUNTED, 3, side, side, device="meta", dtype=dtype))


def _parts(networks: dict[str, Any], config: TrainConfig, dtype: torch.dtype) -> None:
    height, width = networks["parts"].input_size
    output = networks["parts"](torch.empty(COUNTED, 3, height, width, device="meta", dtype=dtype))
    networks["identity_head"](output)


def _diffusion(networks: dict[str, Any], config: TrainConfig, dtype: torch.dtype) -> None:
    unet, control = networks["unet"], networks["control"]
    vae = _meta("vae", config.preset)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    z = _pictures(config, dtype, vae.config.latent_channels, factor)
    condition = _pictures(config, dtype, control.controlnet_cond_embedding.in_channels, factor)
    if "text_encoder" in networks:
        tokens = torch.zeros(COUNTED, 77, device="meta", dtype=torch.int64)
        text = networks["text_encoder"](tokens).last_hidden_state
    else:
        text = torch.empty(COUNTED, 77, unet.config.cross_attention_dim, device="meta", dtype=dtype)
    timestep = torch.zeros(COUNTED, device="meta", dtype=torch.int64)
    denoise(unet, control, z, timestep, text, condition)


FORWARDS: dict[str, Callable[[dict[str, Any], TrainConfig, torch.dtype], None]] = {
    "swinir": _swinir,
    "vae": _vae,
    "pose": _pose,
    "parts": _parts,
    "diffusion": _diffusion,
}


def table() -> str:
    """A Markdown table of all ways to tune sd21's diffusion stage, for one picture, in GiB."""
    lines = [
        "| tuning | trained | weights | gradients | Adam | EMA | bf16 copies | activations | checkpointed | in all |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for tuning in ("lora", "control", "full"):
        config = TrainConfig("diffusion", "sd21", "", (), "", 1, 1, 1e-4, tuning=tuning, mixed_precision="bf16")
        m = count_fixed(config)
        kept = {
            again: [
                count_activations(dataclasses.replace(config, gradient_checkpointing=again), dtype)
                for dtype in (torch.bfloat16, torch.float32)
            ]
            for again in (False, True)
        }
        cells = [f"{n / GIB:.1f}" for n in (m.weights, m.gradients, m.moments, m.average, m.copies)]
        cells += [f"{low / GIB:.1f}–{high / GIB:.1f}" for low, high in kept.values()]
        cells.append(f"{(m.fixed + kept[True][0]) / GIB:.1f}–{(m.fixed + kept[True][1]) / GIB:.1f}")
        lines.append(f"| {tuning} | {m.trained / 1e6:.0f} M | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {describe_recipe(load_config(Path(name)))}", flush=True)
    if not sys.argv[1:]:
        print(table())
