"""Muon: momentum steps of weight matrices whose singular values are equalised; AdamW for all other parameters.

Sources: Jordan et al. 2024 (kellerjordan.github.io/posts/muon) for the iteration and its coefficients, Liu et al. 2025
(arXiv:2502.16982) for the scale that makes AdamW's learning rates fit. PyTorch's own class supports no convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
ADAM_RMS = 0.2  # root mean square of a typical AdamW step in learning rates
MIN_SIDE = 16  # matrices with fewer rows or columns (such as outputs of three channels) are stepped by AdamW


class Muon(torch.optim.AdamW):
    """The optimizer. Weights (out, ...) in groups with `orthogonal=True` are stepped as matrices (out, rest)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step; the groups that are not orthogonal are stepped by AdamW."""
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:  # AdamW expects a step in every state that it loads
                    state.update(momentum=torch.zeros_like(weight), step=torch.zeros(()))
                momentum = state["momentum"]
                momentum.mul_(MOMENTUM).add_(weight.grad)
                update = orthogonalised((weight.grad + MOMENTUM * momentum).flatten(1))  # Nesterov momentum
                rate = group["lr"] * ADAM_RMS * max(update.shape) ** 0.5
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                weight.add_(update.view_as(weight), alpha=-rate)
                weight.grad = None  # so that AdamW skips it
        return super().step(closure)


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups of the trainable parameters: weights of linear layers and convolutions, and the others."""
    matrices = {
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and min(module.weight.flatten(1).shape) >= MIN_SIDE
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p in matrices], "orthogonal": True},
        {"params": [p for p in trained if p not in matrices], "orthogonal": False},
    ]


def orthogonalised(matrix: Tensor) -> Tensor:
    """An approximation of U·Vᵀ for a matrix U·S·Vᵀ (singular value decomposition), float32.

    Its singular values lie between 0.7 and 1.2. It is computed by iterating an odd polynomial of degree five in
    bfloat16, whose rounding the iteration tolerates.
    """
    x = matrix.to(torch.bfloat16)
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).float()
