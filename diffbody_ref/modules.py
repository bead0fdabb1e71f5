"""The stages of a bundle as PyTorch modules: tensors in, tensors out, nothing that depends on the inputs' values.

Tensors are float32 (whole numbers int64) at every door; inside, a network works in the precision of its weights.

`MODULES` is the list of stages, in the order in which a picture meets them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from diffbody_ref.guidance import PartFeatures, body_part_loss
from diffbody_ref.models.control import ControlBranch, denoise
from diffbody_ref.models.parts import PartNet, attention_map
from diffbody_ref.models.pose import PersonDetector, PoseEstimator
from diffbody_ref.models.swinir import SwinIR
from diffbody_ref.models.vae import decode, encode_mode
from diffbody_ref.ops.pose import NMS_THRESHOLD, PERSON, SCORE_THRESHOLD, detector_cells

CANDIDATES = 256  # best-scoring boxes that suppression looks at
SUPPRESSION_ROUNDS = 32
# The loss is multiplied by it on the way back and the gradient divided: in half precision small ones would be lost. It
# is a power of two, so that in float32 nothing changes.
LOSS_SCALE = 1024.0


def _for(network: Any, tensor: Tensor) -> Tensor:
    """In the precision of the network's weights."""
    return tensor.to(network.dtype)


class Restorer(nn.Module):
    """y to r, step 1 of the method: (B, 3, H, W) in [0, 1] to the same."""

    def __init__(self, swinir: SwinIR) -> None:
        super().__init__()
        self.swinir = swinir

    def forward(self, picture: Tensor) -> Tensor:
        return self.swinir(_for(self.swinir, picture)).float().clamp(0.0, 1.0)


class Detector(nn.Module):
    """Person boxes with their suppression (`ops.pose.select_people`) in the graph.

    Greedy suppression keeps a box unless a kept box of a better score overlaps it. With all overlaps in a matrix this
    is a fixed point: keep_i = no j < i with keep_j and overlap_ji. Each round settles at least the next link of every
    chain of overlapping boxes, so `SUPPRESSION_ROUNDS` of them are exact for chains of that length.
    """

    def __init__(self, detector: PersonDetector) -> None:
        super().__init__()
        self.detector = detector
        cells, strides = detector_cells(detector.config.size)
        self.register_buffer("cells", torch.from_numpy(cells), persistent=False)
        self.register_buffer("strides", torch.from_numpy(strides)[:, None], persistent=False)
        self.candidates = min(CANDIDATES, len(cells))

    def forward(self, square: Tensor, ratio: Tensor) -> Tensor:
        """Args: square (B, 3, S, S) and ratio (B,) of `ops.pose.letterbox`.

        Returns:
            (B, CANDIDATES, 5): x0, y0, x1, y1 in pixels of the picture and the score, best first; score 0 is no box.
        """
        raw = self.detector(_for(self.detector, square)).float()
        scores, order = (raw[..., 4] * raw[..., 5 + PERSON]).topk(self.candidates, dim=1)
        centre = (raw[..., :2] + self.cells) * self.strides
        half = 0.5 * raw[..., 2:4].exp() * self.strides
        boxes = torch.cat([centre - half, centre + half], dim=2) / ratio[:, None, None]
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        keep = self._suppress(boxes, (scores > SCORE_THRESHOLD).to(boxes))
        # Nothing of what is no box: in the background many scores are almost equal, and their order is chance.
        return torch.cat([boxes, scores[..., None]], dim=2).where(keep[..., None] > 0, 0.0)

    def _suppress(self, boxes: Tensor, candidate: Tensor) -> Tensor:
        """1 for boxes (B, N, 4), sorted by score, that stay; DWPose's inclusive pixels: a side is x1 − x0 + 1."""
        low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
        high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
        common = (high - low + 1).clamp_min(0).prod(dim=3)
        area = (boxes[..., 2:] - boxes[..., :2] + 1).prod(dim=2)
        better = torch.ones(self.candidates, self.candidates, device=boxes.device, dtype=boxes.dtype).triu(1)
        # Without a division: an overflowing box must not turn the quotient into NaN.
        overlap = (common > NMS_THRESHOLD * (area[:, :, None] + area[:, None, :] - common)).to(boxes) * better
        keep = candidate
        for _ in range(SUPPRESSION_ROUNDS):
            suppressed = (keep[:, None, :] @ overlap)[:, 0]
            keep = candidate * (suppressed < 0.5).to(boxes)
        return keep


class Pose(nn.Module):
    """Crops (P, 3, h, w) of `ops.pose.crop_people` to SimCC scores (P, 133, 2w) and (P, 133, 2h)."""

    def __init__(self, pose: PoseEstimator) -> None:
        super().__init__()
        self.pose = pose

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        simcc_x, simcc_y = self.pose(_for(self.pose, crops))
        return simcc_x.float(), simcc_y.float()


class Parts(nn.Module):
    """Pictures (P, 3, H, W) of one person each to attention maps (P, K+1, H, W), φ (P, K, D) and v (P, K)."""

    def __init__(self, parts: PartNet) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, person: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = _for(self.parts, person)
        output = self.parts(images)
        attention = attention_map(self.parts.attention_masks(images, output), *person.shape[-2:])
        return attention.float(), output.embeddings.float(), output.visibility.float()


class TextEncoder(nn.Module):
    """Token ids (B, 77) to the text embedding (B, 77, D)."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.text_encoder(token_ids).last_hidden_state.float()


class VaeEncoder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to scaled latents (B, C, h, w): z_r."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, picture: Tensor) -> Tensor:
        return encode_mode(self.vae, _for(self.vae, picture * 2.0 - 1.0)).float()


class VaeDecoder(nn.Module):
    """Scaled latents (B, C, h, w) to pictures (B, 3, H, W), about [0, 1], not clamped."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return decode(self.vae, _for(self.vae, latents)).float() / 2.0 + 0.5


class Denoiser(nn.Module):
    """ε_θ of eq. 4, control branch and U-Net in one graph."""

    def __init__(self, unet: UNet2DConditionModel, control: ControlBranch) -> None:
        super().__init__()
        self.unet, self.control = unet, control

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        latents, text, condition = (_for(self.unet, tensor) for tensor in (latents, text, condition))
        return denoise(self.unet, self.control, latents, timesteps, text, condition).float()


class Guidance(nn.Module):
    """L and s·∇L of eq. 6: what `diffbody_ref.guidance.BodyGuidance` computes, of tensors alone.

    People are cut out by interpolation matrices instead of slices, so that one graph serves every window.
    """

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

    def loss(self, z: Tensor, embeddings: Tensor, visibility: Tensor, windows: Tensor, owners: Tensor) -> Tensor:
        """L (B,), the mean over a sample's people; 0 without any."""
        pictures = decode(self.vae, _for(self.vae, z)).float() / 2.0 + 0.5
        people = cut_out(pictures, windows, owners, *self.parts.input_size)
        found = PartFeatures(self.parts(_for(self.parts, people)).embeddings, visibility)
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


MODULES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "restorer": (Restorer, ("swinir",)),
    "pose_detector": (Detector, ("pose_detector",)),
    "pose": (Pose, ("pose",)),
    "parts": (Parts, ("parts",)),
    "text_encoder": (TextEncoder, ("text_encoder",)),
    "vae_encoder": (VaeEncoder, ("vae",)),
    "denoiser": (Denoiser, ("unet", "control")),
    "guidance": (Guidance, ("vae", "parts")),
    "vae_decoder": (VaeDecoder, ("vae",)),
}
"""Stage → its module, and the pipeline's components that the module is made of, in the order of its arguments."""


def build_module(stage: str, components: dict[str, Any]) -> nn.Module:
    """A stage's module of a pipeline's components, in evaluation mode."""
    kind, names = MODULES[stage]
    return kind(*(components[name] for name in names)).eval().requires_grad_(False)
