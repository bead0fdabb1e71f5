"""The guidance stage: the gradient of eq. 6 by z̃_0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diffbody_ref.guidance import PartFeatures, body_part_loss
from diffbody_ref.models.parts import PartNet
from diffbody_ref.models.vae import decode
from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.options import ModelSettings
from diffbody_ref.ops.tensors import TensorSpec
from diffbody_ref.stages.base import PEOPLE, Signature, Stage, as_weights, grid_sizes, latents_shape, normal, uniform

# The loss is multiplied by it on the way back and the gradient divided: in half precision small ones would be lost. It
# is a power of two, so that in float32 nothing changes.
LOSS_SCALE = 1024.0


class Guidance(Stage):
    """L and s·∇L of eq. 6 from tensors alone.

    People are cut out by interpolation matrices instead of slices, so that one graph serves every window.
    `diffbody_ref.guidance.BodyGuidance` states the same by slices; each is the oracle of the other in the tests.
    """

    components = ("vae", "parts")
    has_gradient = True
    # A ReLU that is at its kink in float32 switches a term of the gradient on or off: PyTorch in float32 is then as far
    # as 5e-4 from itself in float64, where graph and autograd agree to 1e-9 (tests/test_export.py). Near the minimum,
    # where the gradient is small, one such term is a hundredth of it; in half precision there are many.
    tolerance: ClassVar[Mapping[str, float]] = {"float32": 2e-3, "float16": 0.1, "bfloat16": 0.3}
    tolerance_of_one_run: ClassVar[Mapping[str, float]] = {"float32": 5e-2, "float16": 0.2, "bfloat16": 0.6}

    def __init__(self, vae: AutoencoderKL, parts: PartNet) -> None:
        super().__init__()
        self.vae, self.parts = vae, parts

    def forward(
        self, latents: Tensor, embeddings: Tensor, visibility: Tensor, windows: Tensor, owners: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss (B,) and the scaled gradient (B, C, h, w).

        Args:
            latents: z̃_0 (B, C, h, w).
            embeddings, visibility: φ (P, K, D) and v (P, K) of the P people in the reference.
            windows: (P, 4), their whole-pixel windows x0, y0, x1, y1.
            owners: (P, B), 1 at the sample that a person belongs to, else 0.
            scale: s, (B,).
        """
        with torch.enable_grad():
            z = latents.detach().requires_grad_(True)
            loss = self.loss(z, embeddings, visibility, windows, owners)
            (gradient,) = torch.autograd.grad(loss.sum() * LOSS_SCALE, z)
        return loss.detach(), (scale / LOSS_SCALE)[:, None, None, None] * gradient

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        latents, count, dim = latents_shape(geometry), len(geometry.part_names), self.parts.settings.embedding_dim
        return Signature(
            (
                TensorSpec("latents", "float32", latents),
                TensorSpec("embeddings", "float32", ("people", count, dim)),
                TensorSpec("visibility", "float32", ("people", count)),
                TensorSpec("windows", "float32", ("people", 4)),
                TensorSpec("owners", "float32", ("people", "batch")),
                TensorSpec("scale", "float32", ("batch",)),
            ),
            (TensorSpec("loss", "float32", ("batch",)), TensorSpec("gradient", "float32", latents)),
            {**grid_sizes(geometry, settings), "people": PEOPLE},
            {
                "latents": normal,
                "embeddings": lambda rng, shape: np.abs(rng.standard_normal(shape)),
                "visibility": lambda rng, shape: np.maximum(rng.integers(0, 2, shape), np.arange(shape[1]) == 0),
                # Inside the smallest picture that a batch can hold.
                "windows": lambda rng, shape: np.tile((1, 0, geometry.multiple - 2, geometry.multiple), (shape[0], 1)),
                "owners": lambda rng, shape: np.eye(shape[1])[rng.integers(0, shape[1], shape[0])],
                "scale": uniform,
            },
        )

    def loss(self, z: Tensor, embeddings: Tensor, visibility: Tensor, windows: Tensor, owners: Tensor) -> Tensor:
        """L (B,), the mean over a sample's people; 0 without any."""
        pictures = decode(self.vae, as_weights(self.vae, z)).float() / 2.0 + 0.5
        people = cut_out(pictures, windows, owners, *self.parts.input_size)
        found = PartFeatures(self.parts(as_weights(self.parts, people)).embeddings, visibility)
        losses = body_part_loss(found, PartFeatures(embeddings, visibility))
        return losses @ owners / owners.sum(dim=0).clamp_min(1.0)


def cut_out(pictures: Tensor, windows: Tensor, owners: Tensor, height: int, width: int) -> Tensor:
    """Each person's window of their picture, resized as `models.resizing.resize` does: (P, 3, height, width).

    Args:
        pictures: (B, 3, H, W). windows, owners: see `Guidance`.
    """
    rows = _window_weights(windows[:, 1], windows[:, 3], height, pictures.shape[2])
    columns = _window_weights(windows[:, 0], windows[:, 2], width, pictures.shape[3])
    # A product with 0 and 1 and not an indexing: its gradient is a product as well, and not a scattered sum.
    own = (owners @ pictures.flatten(1)).reshape(-1, *pictures.shape[1:])
    return rows[:, None] @ own @ columns[:, None].transpose(2, 3)


def _window_weights(start: Tensor, stop: Tensor, count: int, size: Any) -> Tensor:
    """(P, count, size) antialiased interpolation weights from cells start..stop−1 of `size`; each row sums to 1."""
    scale = (stop - start)[:, None, None] / count
    centres = (torch.arange(count, device=start.device, dtype=start.dtype)[:, None] + 0.5) * scale - 0.5
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    weights = (1.0 - (cells - start[:, None, None] - centres).abs() / scale.clamp_min(1.0)).clamp_min(0.0)
    inside = (cells >= start[:, None, None]) & (cells < stop[:, None, None])
    weights = weights * inside.to(weights)
    return weights / weights.sum(dim=2, keepdim=True)
