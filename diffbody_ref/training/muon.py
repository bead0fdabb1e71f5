"""Muon: momentum steps of weight matrices with all singular values made alike; AdamW for all other parameters.

Sources: Jordan et al. 2024 (kellerjordan.github.io/posts/muon) for the iteration and its coefficients, Liu et al. 2025
(arXiv:2502.16982) for the scale that makes AdamW's learning rates fit. PyTorch's own class takes no convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
ADAM_RMS = 0.2  # root mean square of a typical AdamW step in learning rates
LEAST_SIDE = 16  # a matrix with fewer rows or columns (an output of three channels) is left to AdamW


class Muon(torch.optim.AdamW):
    """Parameter groups with `orthogonal=True` hold weights (out, ...), which are stepped as matrices (out, rest)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; AdamW's own follows for the groups that are not orthogonal."""
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:  # AdamW reads a step of every state that it loads
                    state.update(momentum=torch.zeros_like(weight), step=torch.zeros(()))
                momentum = state["momentum"]
                momentum.mul_(MOMENTUM).add_(weight.grad)
                update = orthogonalised((weight.grad + MOMENTUM * momentum).flatten(1))  # Nesterov's look ahead
                rate = group["lr"] * ADAM_RMS * max(update.shape) ** 0.5
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                weight.add_(update.view_as(weight), alpha=-rate)
                weight.grad = None  # AdamW passes it over
        return super().step(closure)


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The model's trainable parameters: weights of linear layers and convolutions, and the others."""
    matrices = {
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and min(module.weight.flatten(1).shape) >= LEAST_SIDE
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p in matrices], "orthogonal": True},
        {"params": [p for p in trained if p not in matrices], "orthogonal": False},
    ]


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U·Vᵀ of the singular value decomposition U·S·Vᵀ, float32: singular values of 0.7 to 1.2.

    By an odd polynomial of fifth degree in bfloat16, which the iteration tolerates.
    """
    x = matrix.to(torch.bfloat16)
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).float()
