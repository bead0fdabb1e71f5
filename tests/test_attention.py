"""Attention is chosen in one place, and every choice computes softmax(qkᵀ/√d + bias)·v."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from diffbody_ref.models.attention import attention, choose_attention, set_attention, xformers_available
from diffbody_ref.models.unet import build_unet


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v


def test_attention_is_the_formula() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 16, dtype=torch.float64).unbind(0)
    bias = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(attention(q, k, v, bias), naive(q, k, v, bias), atol=1e-12, rtol=1e-12)


def test_without_cuda_it_is_pytorchs() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert choose_attention("auto") == choose_attention("sdpa") == "sdpa"
    with pytest.raises(RuntimeError, match="CUDA"):
        choose_attention("xformers")
    unet = build_unet("nano")
    assert set_attention(unet) == "sdpa"
    assert all(isinstance(p, AttnProcessor2_0) for p in unet.attn_processors.values())


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="flash"):
        choose_attention("flash")


@pytest.mark.gpu
@pytest.mark.skipif(not xformers_available(), reason="needs CUDA and the xformers package")
def test_xformers_gives_the_same() -> None:
    q, k, v = torch.randn(3, 2, 4, 64, 32, device="cuda").unbind(0)
    bias = torch.randn(1, 4, 64, 64, device="cuda").expand(2, -1, -1, -1).contiguous()
    # float32 on tensor cores rounds products to TF32's 10 bits: 1e-3 relative.
    torch.testing.assert_close(attention(q, k, v, bias), naive(q, k, v, bias), atol=2e-3, rtol=2e-3)
