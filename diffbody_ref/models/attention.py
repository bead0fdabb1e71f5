"""The choice of the attention implementation, made only here: xformers if it can run on CUDA, else PyTorch's own."""

from __future__ import annotations

import importlib.util

import torch.nn.functional as F
from torch import Tensor, nn

from diffbody_ref.models.devices import cuda_is_usable

KINDS = ("auto", "xformers", "sdpa")


def xformers_available() -> bool:
    """Whether `memory_efficient_attention` can run: it needs the package and a CUDA device (it has no CPU operator)."""
    return cuda_is_usable() and importlib.util.find_spec("xformers") is not None


def choose_attention(kind: str = "auto") -> str:
    """Resolve a kind of attention to "xformers" or "sdpa".

    Args:
        kind: one of `KINDS`.

    Raises:
        ValueError: the kind is unknown.
        RuntimeError: xformers is requested but cannot run.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown attention {kind!r}; choose one of {', '.join(KINDS)}")
    if kind == "xformers" and not xformers_available():
        raise RuntimeError("xformers attention needs the xformers package and a CUDA device")
    return "xformers" if kind != "sdpa" and xformers_available() else "sdpa"


def set_attention(module: nn.Module, kind: str = "auto") -> str:
    """Make a diffusers network (U-Net, control branch, VAE) use the chosen attention, and return the choice.

    Both kinds compute softmax(qkᵀ/√d)·v; they differ by rounding, about 1e-6 relative in float32 and 1e-3 in half
    precision.
    """
    chosen = choose_attention(kind)
    if chosen == "xformers":
        module.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
    else:
        from diffusers.models.attention_processor import AttnProcessor2_0

        module.set_attn_processor(AttnProcessor2_0())  # type: ignore[operator]
    return chosen


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute softmax(qkᵀ/√d + bias)·v.

    Args:
        q: queries (B, heads, T, d).
        k: keys (B, heads, T, d).
        v: values (B, heads, T, d).
        bias: broadcastable to (B, heads, T, T), or None.

    Returns:
        (B, heads, T, d).
    """
    if q.is_cuda and xformers_available():
        from xformers.ops import memory_efficient_attention

        full = None if bias is None else bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        out = memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_bias=full)
        return out.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
