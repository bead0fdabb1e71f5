"""Where a GPU's memory goes when sd21's diffusion stage is trained: counted tensor by tensor on PyTorch's meta device.

    python -m benchmarks.training_memory

No GPU is needed, and none is measured: counted are weights, gradients, Adam's moments, the moving average and what the
forward pass keeps for the backward pass, for one 1024×512 picture. Under autocast some operators keep float32 and
others bfloat16, so activations are given for both. Not counted: cuDNN's workspaces, the allocator's gaps, CUDA's
context, and what sample pictures take for a moment.
"""

from __future__ import annotations

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
from diffbody_ref.training.lora import add_lora

LATENTS = (128, 64)  # cells of a 1024×512 picture
GIB = 2**30


class _FlashAttention(torch.autograd.Function):
    """What a fused attention keeps: its inputs and its output, not the T×T weights that meta's own would count."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
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
    """Bytes. `activations` by ("bfloat16" or "float32", whether gradients are checkpointed)."""

    weights: int
    trained: int
    gradients: int
    moments: int
    average: int
    copies: int
    activations: dict[tuple[str, bool], int]


def count(tuning: str, rank: int = 16) -> Memory:
    """The memory of one picture's step.

    Args:
        tuning, rank: see `TrainConfig`; the captions are cached but for "full".
    """
    activations = {}
    for dtype in (torch.bfloat16, torch.float32):
        for again in (False, True):
            networks = _networks(tuning, rank)
            activations[str(dtype).removeprefix("torch."), again] = _activations(networks, dtype, again)
    networks = _networks(tuning, rank)
    parameters = [p for network in networks.values() for p in network.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    decoder = sum(p.numel() for p in _meta("vae").parameters())  # stays for the sample pictures, in float32
    return Memory(
        weights=4 * trained + 2 * frozen + 4 * decoder,  # frozen ones in bfloat16
        trained=trained,
        gradients=4 * trained,
        moments=8 * trained,
        average=4 * trained,
        copies=2 * trained,  # autocast's bfloat16 copies
        activations=activations,
    )


def _meta(name: str) -> Any:
    with torch.device("meta"):
        return build_component(name, "sd21")


def _networks(tuning: str, rank: int) -> dict[str, Any]:
    networks = {name: _meta(name) for name in ("unet", "control")}
    if tuning == "full":
        networks["text_encoder"] = _meta("text_encoder")
    elif tuning == "lora":
        with torch.device("meta"):
            add_lora(networks["unet"], Path("nowhere"), rank)
    else:
        networks["unet"].requires_grad_(False)
    return networks


def _activations(networks: dict[str, nn.Module], dtype: torch.dtype, again: bool) -> int:
    """Kept bytes; with checkpointing the blocks' inputs and, for the block at work, all that it keeps."""
    unet: Any = nn.Module.to(networks["unet"], dtype)  # diffusers' own `to` warns of what is not so here
    control: Any = nn.Module.to(networks["control"], dtype)
    weights = {p.untyped_storage()._cdata for network in (unet, control) for p in network.parameters()}
    outer, largest = _Kept(weights), 0

    def block(module: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal largest
        inner = _Kept(weights)
        with inner.counting():
            result = module(*arguments)
        largest = max(largest, inner.bytes)
        for argument in arguments:
            if isinstance(argument, Tensor):
                outer.add(argument)
        return result

    if again:
        for network in (unet, control):
            network.enable_gradient_checkpointing(block)
    z = torch.empty(1, 4, *LATENTS, device="meta", dtype=dtype)
    channels = control.controlnet_cond_embedding.in_channels
    condition = torch.empty(1, channels, *LATENTS, device="meta", dtype=dtype)
    text = torch.empty(1, 77, unet.config.cross_attention_dim, device="meta", dtype=dtype)
    timestep = torch.zeros(1, device="meta", dtype=torch.int64)
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: _FlashAttention.apply(q, k, v)
    try:
        with outer.counting():
            denoise(unet, control, z, timestep, text, condition)
    finally:
        F.scaled_dot_product_attention = plain
    return outer.bytes + largest


def table() -> str:
    """A Markdown table of all ways to tune, in GiB."""
    lines = [
        "| tuning | trained | weights | gradients | Adam | EMA | bf16 copies | activations | checkpointed | in all |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for tuning in ("lora", "control", "full"):
        m = count(tuning)
        fixed = m.weights + m.gradients + m.moments + m.average + m.copies
        kept = {again: [m.activations[kind, again] for kind in ("bfloat16", "float32")] for again in (False, True)}
        cells = [f"{n / GIB:.1f}" for n in (m.weights, m.gradients, m.moments, m.average, m.copies)]
        cells += [f"{low / GIB:.1f}–{high / GIB:.1f}" for low, high in kept.values()]
        cells.append(f"{(fixed + kept[True][0]) / GIB:.1f}–{(fixed + kept[True][1]) / GIB:.1f}")
        lines.append(f"| {tuning} | {m.trained / 1e6:.0f} M | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
