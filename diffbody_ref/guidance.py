"""Human-centric guidance (DiffBody eq. 5, 6): move the predicted z_0 so that its body parts look like the reference's.

Everything is per sample: a batch gives what its samples give alone. The gradient passes through the VAE decoder and the
part network only, never through the denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffbody_ref.models.parts import PartNet
from diffbody_ref.models.resizing import resize
from diffbody_ref.ops.options import RestoreOptions

Decode = Callable[[Tensor], Tensor]
"""z_0 (B, C, h, w) → pictures (B, 3, H, W), RGB in [0, 1] and not clamped, so that a gradient is everywhere."""

Box = Sequence[float]
"""x0, y0, x1, y1 in pixels; x1 and y1 are outside of it."""

NORM_EPS = 1e-6


@dataclass(frozen=True)
class PartFeatures:
    """Part embeddings φ (P, K, D) and visibilities v (P, K) in [0, 1] of P people."""

    embeddings: Tensor
    visibility: Tensor


def part_features(part_net: PartNet, images: Tensor) -> PartFeatures:
    """φ and v of pictures (P, 3, H, W), RGB in [0, 1], each of one person. Only the embeddings have a gradient."""
    output = part_net(images)
    return PartFeatures(output.embeddings, output.visibility)


def body_part_loss(features: PartFeatures, target: PartFeatures) -> Tensor:
    """L = Σ_k v_k (1 − cos(φ_k(x̃), φ_k(r))) / Σ_k v_k (eq. 6), v the visibility in the target.

    The division makes the loss a mean over visible parts, so that a scale means the same for a person seen in full and
    for a bust. A person without any visible part has zero loss and zero gradient.

    Returns:
        (P,), in [0, 2], float32 or wider.
    """
    dtype = torch.promote_types(features.embeddings.dtype, torch.float32)
    ours, theirs = features.embeddings.to(dtype), target.embeddings.to(dtype)
    # The ε keeps the gradient finite where an embedding is zero.
    norms = torch.sqrt(ours.square().sum(dim=2) + NORM_EPS) * torch.sqrt(theirs.square().sum(dim=2) + NORM_EPS)
    distance = 1.0 - (ours * theirs).sum(dim=2) / norms
    visibility = target.visibility.to(dtype)
    total = visibility.sum(dim=1)
    return (visibility * distance).sum(dim=1) / torch.where(total > 0, total, 1.0)


def guidance_gradient(
    decode: Decode,
    embed: Callable[[Tensor], PartFeatures],
    z0: Tensor,
    target: PartFeatures,
    owners: Tensor,
) -> tuple[Tensor, Tensor]:
    """∇_{z̃_0} L(φ(D(z̃_0)), φ(r)) and L, for each sample.

    Works where gradients are off (`torch.no_grad`, not `torch.inference_mode`), and leaves parameters' `.grad` alone.

    Args:
        decode: differentiable by z_0.
        embed: decoded pictures → features of P people, in the target's order.
        z0: (B, C, h, w).
        target: features of the same P people in the reference.
        owners: int64 (P,), the sample of each person; the loss of a sample is the mean over its people, and zero
            without any.

    Returns:
        The loss (B,), and its gradient, of z0's shape and dtype.
    """
    with torch.enable_grad():
        z = z0.detach().requires_grad_(True)
        losses = _mean_by_owner(body_part_loss(embed(decode(z)), target), owners, len(z0))
        (gradient,) = torch.autograd.grad(losses.sum(), z)
    return losses.detach(), gradient


def _mean_by_owner(losses: Tensor, owners: Tensor, count: int) -> Tensor:
    sums = losses.new_zeros(count).index_add(0, owners, losses)
    people = losses.new_zeros(count).index_add(0, owners, torch.ones_like(losses))
    return sums / people.clamp_min(1.0)


class BodyGuidance:
    """The sampler's guidance hook: z̃_0 ← z̃_0 − s·∇L (algorithm 1).

    `diffbody_ref.stages.guidance.Guidance` states eq. 6 a second time, by matrices instead of slices, so that it can be
    exported; each is the oracle of the other in the tests.
    """

    def __init__(
        self,
        part_net: PartNet,
        decode: Decode,
        reference: Tensor,
        boxes: Sequence[Sequence[Box]],
        options: RestoreOptions,
    ) -> None:
        """Embed the people of the reference.

        Args:
            part_net: in evaluation mode.
            decode: the VAE decoder; its pictures must have the reference's size.
            reference: the regression result r, (B, 3, H, W), RGB in [0, 1].
            boxes: for each sample its people's boxes, possibly none.
            options: they say when and how strongly to guide.

        Raises:
            ValueError: the part network is in training mode, a box is empty or outside of the picture, or the number
                of samples in `boxes` is not the reference's.
        """
        if part_net.training:
            raise ValueError("the part network is in training mode, where a sample depends on its batch; call eval()")
        if len(boxes) != len(reference):
            raise ValueError(f"boxes are for {len(boxes)} samples; the reference holds {len(reference)}")
        height, width = reference.shape[-2:]
        self.part_net, self.decode, self.options = part_net, decode, options
        self.picture_size = (height, width)
        self.windows = [[_pixel_window(box, height, width) for box in people] for people in boxes]
        owners = [sample for sample, people in enumerate(boxes) for _ in people]
        self.owners = torch.tensor(owners, dtype=torch.int64, device=reference.device)
        self.target: PartFeatures | None = None
        if owners and options.body_guidance_scale > 0:
            with torch.no_grad():
                self.target = self._embed(reference)

    def _embed(self, pictures: Tensor) -> PartFeatures:
        if pictures.shape[-2:] != self.picture_size:
            raise ValueError(
                f"decoded pictures are {tuple(pictures.shape[-2:])} pixels, the reference is {self.picture_size}"
            )
        people = (
            resize(picture[None, :, y0:y1, x0:x1], *self.part_net.input_size)
            for picture, windows in zip(pictures, self.windows, strict=True)
            for x0, y0, x1, y1 in windows
        )
        return part_features(self.part_net, torch.cat(list(people)))

    def __call__(self, z0: Tensor, t: int, step: int) -> tuple[Tensor, Tensor | None]:
        """Guide one step; see `diffbody_ref.sampling.GuidanceHook`.

        Returns:
            The guided z_0 and the loss (B,) before the move; z0 itself and None where the step is not guided.
        """
        if self.target is None or not self.options.guides(t, step):
            return z0, None
        loss, gradient = guidance_gradient(self.decode, self._embed, z0, self.target, self.owners)
        return z0 - self.options.body_guidance_scale * gradient, loss


def _pixel_window(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """The whole pixels that a box touches inside the picture."""
    x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    x1, y1 = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"box {tuple(box)} has no pixels in the picture of {width}x{height}; boxes are x0, y0, x1, y1")
    return x0, y0, x1, y1
