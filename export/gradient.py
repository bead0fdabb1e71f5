"""The guidance gradient as a forward graph: autograd's own steps, recorded as operators that ONNX knows."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffbody_ref.stages import Stage

aten = torch.ops.aten


def gradient_graph(module: Stage, args: tuple[Tensor, ...]) -> fx.GraphModule:
    """A stage whose forward calls autograd, as a graph module of forward operators for any size.

    Args:
        args: example arguments; no size may be 0 or 1, and no two dynamic sizes equal.
    """
    module.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), patch.object(torch.nn.functional, "interpolate", _interpolate):
        return make_fx(
            lambda *tensors: module(*tensors),
            decomposition_table=_decompositions(),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(*args)


def _decompositions() -> dict[Any, Any]:
    backward = (
        aten.native_layer_norm_backward,
        aten.native_batch_norm_backward,
        aten.silu_backward,
        aten.threshold_backward,
        aten._softmax_backward_data,
        aten.gelu_backward,
        aten.native_batch_norm,
        aten._native_batch_norm_legit_no_training,
    )
    core = core_aten_decompositions()
    for kept in (aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec, aten.avg_pool2d.default):
        core.pop(kept, None)
    return {
        **core,
        **get_decompositions(backward),
        aten.native_group_norm.default: _group_norm,
        aten.native_group_norm_backward.default: _group_norm_backward,
        aten.convolution_backward.default: _convolution_backward,
    }


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, batch: int, channels: int, cells: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One scale and one shift a channel; x keeps its shape, so that an engine keeps its memory layout.

    In float32 at least: squares are beyond what half precision holds.
    """
    wide = _wide(x)
    mean = _over_groups(_over_cells(wide), groups)
    centred = wide - mean
    rstd = torch.rsqrt(_over_groups(_over_cells(centred * centred), groups) + eps)
    normal = centred * (rstd * _wide(_channels(weight, x))) + _wide(_channels(bias, x))
    return normal.to(x.dtype), mean, rstd


def _group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    batch: int,
    channels: int,
    cells: int,
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, None, None]:
    """By the input only: σ⁻¹(w·g − mean(w·g) − x̂·mean(w·g·x̂)), x̂ = (x − μ)/σ, means over a group."""
    if not output_mask[0]:
        return None, None, None
    dtype = x.dtype
    grad, x, w = (_wide(tensor) for tensor in (grad, x, _channels(weight, x)))
    centred = x - mean
    by_mean = _over_groups(_over_cells(grad) * w, groups)
    by_deviation = _over_groups(_over_cells(grad * centred) * w, groups) * rstd * rstd
    return ((grad * w - by_mean - centred * by_deviation) * rstd).to(dtype), None, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _over_cells(x: Tensor) -> Tensor:
    """(B, C, …) to its means over the cells of a channel, (B, C, 1, …)."""
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


def _over_groups(means: Tensor, groups: int) -> Tensor:
    """(B, C, 1, …) to the means of groups of channels, for each channel its group's."""
    if groups == 1:
        return means.mean(dim=1, keepdim=True)
    size = means.shape[1] // groups
    by_group = means.reshape(-1, groups, size).mean(dim=2, keepdim=True)
    return by_group.expand(-1, -1, size).reshape(means.shape)


def _channels(values: Tensor, like: Tensor) -> Tensor:
    """(C,) to (1, C, 1, …)."""
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, None, None]:
    """By the input only: the weights are constants here.

    Of stride 1, it is a convolution by the flipped kernel, which engines run several times faster than the transposed
    convolution that it is in general.
    """
    if transposed or output_mask[1] or output_mask[2]:
        raise NotImplementedError("only the gradient of a plain convolution by its input is exported")
    if not output_mask[0]:
        return None, None, None
    if groups == 1 and all(step == 1 for step in stride):
        flipped = weight.transpose(0, 1).flip(2, 3)
        margin = [dilation[i] * (weight.shape[2 + i] - 1) - padding[i] for i in range(2)]
        by_x = aten.convolution.default(grad, flipped, None, stride, margin, dilation, False, [0, 0], 1)
        return by_x, None, None
    extra = [
        0 if stride[i] == 1 else int(x.shape[2 + i] - _reach(grad.shape[2 + i], i, weight, stride, padding, dilation))
        for i in range(2)
    ]
    by_x = aten.convolution.default(grad, weight, None, stride, padding, dilation, True, extra, groups)
    return by_x, None, None


def _reach(size: Any, axis: int, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Any:
    """Cells of a transposed convolution's result without output padding."""
    return (size - 1) * stride[axis] - 2 * padding[axis] + dilation[axis] * (weight.shape[2 + axis] - 1) + 1


def _interpolate(x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **other: Any) -> Tensor:
    """The VAE's upsampling by 2, whose gradient is then a sum of blocks.

    PyTorch's own is taken apart to an indexing before autograd sees it; the gradient of that is a scattered sum, which
    is slow and which TensorRT does not have.
    """
    if size is not None or scale_factor != 2.0 or mode != "nearest":
        raise NotImplementedError(f"upsampling by {scale_factor or size}, {mode}: only nearest by 2 is exported")
    return _Upsample.apply(x)


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return aten.upsample_nearest2d.default(x, [2 * x.shape[2], 2 * x.shape[3]])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 4.0 * torch.nn.functional.avg_pool2d(grad, 2)
