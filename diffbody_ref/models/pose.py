"""RTMPose, DWPose's keypoint network (arXiv 2303.07399), and the application of both DWPose networks to a picture.

Parameter names are those of the public mmpose checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  # DiffusionPipeline.from_pretrained looks for it beside the class
from torch import nn

from diffbody_ref.models.base import ConfiguredModel
from diffbody_ref.models.detector import NANO as NANO_DETECTOR
from diffbody_ref.models.detector import SD21 as SD21_DETECTOR
from diffbody_ref.models.detector import ConvUnit, DetectorConfig, PersonDetector, PyramidPooling
from diffbody_ref.ops.keypoints import COUNT
from diffbody_ref.ops.pose import SPLIT_RATIO, crop_people, decode_simcc, letterbox, select_people

__all__ = [
    "NANO_DETECTOR",
    "NANO_POSE",
    "SD21_DETECTOR",
    "SD21_POSE",
    "DetectorConfig",
    "PersonDetector",
    "PoseConfig",
    "PoseEstimator",
    "detect_people",
    "estimate_pose",
]


@dataclass(frozen=True)
class PoseConfig:
    """The configuration of RTMPose.

    Attributes:
        height: height of the crop in pixels.
        width: width of the crop in pixels.
        widen: multiplier of CSPNeXt-l's channels.
        deepen: multiplier of CSPNeXt-l's block counts.
        stages: number of stages after the stem; each halves the resolution, the last one has the pyramid pooling.
        final_kernel: kernel of the convolution that makes one feature map per keypoint.
        hidden: width of the tokens in the gated attention unit.
        attention_dim: width of queries and keys in the gated attention unit.
    """

    height: int = 384
    width: int = 288
    widen: float = 1.0
    deepen: float = 1.0
    stages: int = 4
    final_kernel: int = 7
    hidden: int = 256
    attention_dim: int = 128


SD21_POSE = PoseConfig()
NANO_POSE = PoseConfig(192, 144, widen=0.3125, deepen=0.33, stages=3, final_kernel=3, hidden=128, attention_dim=64)


class Separable(nn.Module):
    """mmcv's depthwise and pointwise unit."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvUnit(channels, channels, kernel, groups=channels)
        self.pointwise_conv = ConvUnit(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class NeXtBlock(nn.Module):
    """A 3×3 unit, then a separable one with a 5×5 window."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = ConvUnit(channels, channels, 3)
        self.conv2 = Separable(channels, 5)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.residual else y


class ChannelAttention(nn.Module):
    """Features multiplied by a learned weight per channel, (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.hardsigmoid(self.fc(x.mean(dim=(2, 3), keepdim=True)))


class NeXtStage(nn.Module):
    """Cross stage partial layer with channel attention."""

    def __init__(self, channels: int, blocks: int, residual: bool) -> None:
        super().__init__()
        half = channels // 2
        self.main_conv = ConvUnit(channels, half, 1)
        self.short_conv = ConvUnit(channels, half, 1)
        self.final_conv = ConvUnit(2 * half, channels, 1)
        self.blocks = nn.Sequential(*(NeXtBlock(half, residual) for _ in range(blocks)))
        self.attention = ChannelAttention(2 * half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], dim=1)
        return self.final_conv(self.attention(halves))


class CSPNeXt(nn.Sequential):
    """RTMPose's backbone: `stem`, `stage1`, ..."""

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        c = int(64 * config.widen)
        self.stem = nn.Sequential(ConvUnit(3, c // 2, 3, 2), ConvUnit(c // 2, c // 2, 3), ConvUnit(c // 2, c, 3))
        for stage, blocks in enumerate((3, 6, 6, 3)[: config.stages], start=1):
            outputs = int(64 * 2**stage * config.widen)
            last = stage == config.stages
            layers: list[nn.Module] = [ConvUnit(int(32 * 2**stage * config.widen), outputs, 3, 2)]
            if last:
                layers.append(PyramidPooling(outputs, outputs, eps=1e-5))
            layers.append(NeXtStage(outputs, max(round(blocks * config.deepen), 1), residual=not last))
            self.add_module(f"stage{stage}", nn.Sequential(*layers))


class ScaleNorm(nn.Module):
    """x / rms(x)·g with one learned number g."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-5) * self.g


class Scale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class GatedAttention(nn.Module):
    """Gated attention unit over keypoints (arXiv 2202.10447): squared-ReLU attention weights, no positions."""

    def __init__(self, hidden: int, attention_dim: int) -> None:
        super().__init__()
        self.split = (2 * hidden, 2 * hidden, attention_dim)
        self.ln = ScaleNorm()
        self.uv = nn.Linear(hidden, sum(self.split), bias=False)
        self.gamma = nn.Parameter(torch.rand(2, attention_dim))
        self.beta = nn.Parameter(torch.rand(2, attention_dim))
        self.o = nn.Linear(2 * hidden, hidden, bias=False)
        self.res_scale = Scale(hidden)
        nn.init.xavier_uniform_(self.uv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value, base = F.silu(self.uv(self.ln(x))).split(self.split, dim=-1)
        query, key = (base.unsqueeze(2) * self.gamma + self.beta).unbind(2)
        weights = F.relu(query @ key.transpose(1, 2) / math.sqrt(self.split[2])).square()
        return self.res_scale(x) + self.o(gate * (weights @ value))


class RTMHead(nn.Module):
    """The head: a token per keypoint, attention among them, linear classifiers of x and y in half pixels (SimCC)."""

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        side = 2 ** (config.stages + 1)
        cells = math.ceil(config.height / side) * math.ceil(config.width / side)
        channels = int(64 * 2**config.stages * config.widen)
        self.final_layer = nn.Conv2d(channels, COUNT, config.final_kernel, padding=config.final_kernel // 2)
        self.mlp = nn.Sequential(ScaleNorm(), nn.Linear(cells, config.hidden, bias=False))
        self.gau = GatedAttention(config.hidden, config.attention_dim)
        self.cls_x = nn.Linear(config.hidden, int(SPLIT_RATIO * config.width), bias=False)
        self.cls_y = nn.Linear(config.hidden, int(SPLIT_RATIO * config.height), bias=False)
        for layer in (self.final_layer, self.cls_x, self.cls_y):  # small, so that an uncertain keypoint scores near 0
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.gau(self.mlp(self.final_layer(features).flatten(2)))
        return self.cls_x(tokens), self.cls_y(tokens)


class PoseEstimator(ConfiguredModel):
    """RTMPose, the keypoint network."""

    config_dataclass = PoseConfig

    def __init__(self, config: PoseConfig) -> None:
        if not 1 <= config.stages <= 4:
            raise ValueError(f"stages is {config.stages}; it must be 1 to 4")
        super().__init__(config)
        self.backbone = CSPNeXt(config)
        self.head = RTMHead(config)

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of x and y for each keypoint.

        Args:
            crops: (B, 3, H, W), RGB normalised by ImageNet's mean and standard deviation, from `ops.pose.crop_affine`.

        Returns:
            simcc_x (B, 133, 2W) and simcc_y (B, 133, 2H); bin i is crop pixel i / 2, the maximum of a certain keypoint
            is about 1. `ops.pose.decode_simcc` decodes them.
        """
        return self.head(self.backbone(crops))


@torch.no_grad()
def detect_people(detector: PersonDetector, picture: np.ndarray) -> np.ndarray:
    """Find the people in a picture.

    Args:
        detector: the detector.
        picture: float32 (H, W, 3), RGB in [0, 1].

    Returns:
        float32 (N, 5): x0, y0, x1, y1 in pixels (not clipped to the picture) and the score, best first; N may be 0.
    """
    size = detector.config.size
    square, ratio = letterbox(picture, size)
    raw = detector(torch.from_numpy(square)[None].to(detector.device, detector.dtype))
    return select_people(raw[0].float().cpu().numpy(), size, ratio)


@torch.no_grad()
def estimate_pose(estimator: PoseEstimator, picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Find the 133 keypoints of each person.

    Args:
        estimator: the keypoint network.
        picture: float32 (H, W, 3), RGB in [0, 1].
        boxes: (N, ≥ 4): x0, y0, x1, y1 of the people in pixels; N may be 0.

    Returns:
        float32 (N, 133, 3): x, y in pixels of the picture and the score.
    """
    if len(boxes) == 0:
        return np.zeros((0, COUNT, 3), np.float32)
    crops, inverses = crop_people(picture, boxes, estimator.config.height, estimator.config.width)
    simcc = estimator(torch.from_numpy(crops).to(estimator.device, estimator.dtype))
    simcc_x, simcc_y = (scores.float().cpu().numpy() for scores in simcc)
    return decode_simcc(simcc_x, simcc_y, inverses)
