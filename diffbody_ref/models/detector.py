"""YOLOX, DWPose's person detector (arXiv 2107.08430); parameter names are those of the public checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  # DiffusionPipeline.from_pretrained looks for it beside the class
from torch import nn

from diffbody_ref.models.base import ConfiguredModel
from diffbody_ref.ops.pose import STRIDES, detector_cells

# Initial objectness and class scores, low so that the many empty cells do not dominate the first training steps.
PRIOR = 0.01


@dataclass(frozen=True)
class DetectorConfig:
    """The configuration of YOLOX.

    Attributes:
        size: side of the square input in pixels, a multiple of 32.
        depth: multiplier of YOLOX-l's block counts.
        width: multiplier of YOLOX-l's channels.
        depthwise: use separable convolutions, as in YOLOX-nano.
        num_classes: number of classes, COCO's 80 or 1; class 0 is the person.
    """

    size: int = 640
    depth: float = 1.0
    width: float = 1.0
    depthwise: bool = False
    num_classes: int = 80


SD21 = DetectorConfig()
NANO = DetectorConfig(size=256, depth=0.33, width=7 / 64, num_classes=1)


class ConvUnit(nn.Module):
    """Convolution without bias ("same" padding), batch normalisation, SiLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.bn(self.conv(x)))


class PyramidPooling(nn.Module):
    """The features concatenated with their maxima over 5×5, 9×9 and 13×13 windows (spatial pyramid pooling)."""

    def __init__(self, inputs: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.conv1 = ConvUnit(inputs, inputs // 2, 1, eps=eps)
        self.conv2 = ConvUnit(inputs // 2 * 4, outputs, 1, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pyramid = [self.conv1(x)]
        for _ in range(3):  # the windows of 9 and 13 are the window of 5, applied twice and three times
            pyramid.append(F.max_pool2d(pyramid[-1], 5, stride=1, padding=2))
        return self.conv2(torch.cat(pyramid, dim=1))


def yolo_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> ConvUnit:
    """A convolution unit with YOLOX's epsilon."""
    return ConvUnit(inputs, outputs, kernel, stride, eps=1e-3)


class YoloSeparable(nn.Module):
    """A depthwise and a pointwise unit."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = ConvUnit(inputs, inputs, kernel, stride, groups=inputs, eps=1e-3)
        self.pconv = yolo_conv(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pconv(self.dconv(x))


def spatial_conv(config: DetectorConfig, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """A 3×3 unit, separable if the configuration says so."""
    return (YoloSeparable if config.depthwise else yolo_conv)(inputs, outputs, 3, stride)


class YoloBlock(nn.Module):
    """A 1×1 and a 3×3 unit, optionally with a residual connection: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, config: DetectorConfig, channels: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = yolo_conv(channels, channels, 1)
        self.conv2 = spatial_conv(config, channels, channels)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.residual else y


class YoloStage(nn.Module):
    """Cross stage partial layer: half of the channels pass through the blocks."""

    def __init__(self, config: DetectorConfig, inputs: int, outputs: int, blocks: int, residual: bool = False) -> None:
        super().__init__()
        self.conv1 = yolo_conv(inputs, outputs // 2, 1)
        self.conv2 = yolo_conv(inputs, outputs // 2, 1)
        self.conv3 = yolo_conv(outputs // 2 * 2, outputs, 1)
        self.m = nn.Sequential(*(YoloBlock(config, outputs // 2, residual) for _ in range(blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(torch.cat([self.m(self.conv1(x)), self.conv2(x)], dim=1))


class Focus(nn.Module):
    """Pixel unshuffle in YOLOX's channel order (top left, bottom left, top right, bottom right), then a 3×3 unit."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = yolo_conv(12, outputs, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=1))


class CSPDarknet(nn.Module):
    """YOLOX's backbone: (B, 3, S, S) -> features at 1/8, 1/16 and 1/32 of the size."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        c, few, many = int(64 * config.width), max(round(3 * config.depth), 1), max(round(9 * config.depth), 1)

        def stage(inputs: int, blocks: int) -> nn.Sequential:
            layer = YoloStage(config, 2 * inputs, 2 * inputs, blocks, residual=True)
            return nn.Sequential(spatial_conv(config, inputs, 2 * inputs, 2), layer)

        self.stem = Focus(c)
        self.dark2, self.dark3, self.dark4 = stage(c, few), stage(2 * c, many), stage(4 * c, many)
        self.dark5 = nn.Sequential(
            spatial_conv(config, 8 * c, 16 * c, 2),
            PyramidPooling(16 * c, 16 * c, eps=1e-3),
            YoloStage(config, 16 * c, 16 * c, few),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fine = self.dark3(self.dark2(self.stem(x)))
        middle = self.dark4(fine)
        return fine, middle, self.dark5(middle)


class FeaturePyramid(nn.Module):
    """The backbone with path aggregation: coarse features are passed to the fine ones and back."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        c1, c2, c3 = (int(channels * config.width) for channels in (256, 512, 1024))
        n = max(round(3 * config.depth), 1)
        self.backbone = CSPDarknet(config)
        self.lateral_conv0 = yolo_conv(c3, c2, 1)
        self.C3_p4 = YoloStage(config, 2 * c2, c2, n)
        self.reduce_conv1 = yolo_conv(c2, c1, 1)
        self.C3_p3 = YoloStage(config, 2 * c1, c1, n)
        self.bu_conv2 = spatial_conv(config, c1, c1, 2)
        self.C3_n3 = YoloStage(config, 2 * c1, c2, n)
        self.bu_conv1 = spatial_conv(config, c2, c2, 2)
        self.C3_n4 = YoloStage(config, 2 * c2, c3, n)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fine, middle, coarse = self.backbone(x)
        lateral = self.lateral_conv0(coarse)
        reduced = self.reduce_conv1(self.C3_p4(torch.cat([_twice(lateral), middle], dim=1)))
        out8 = self.C3_p3(torch.cat([_twice(reduced), fine], dim=1))
        out16 = self.C3_n3(torch.cat([self.bu_conv2(out8), reduced], dim=1))
        out32 = self.C3_n4(torch.cat([self.bu_conv1(out16), lateral], dim=1))
        return out8, out16, out32


def _twice(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DecoupledHead(nn.Module):
    """The head: for each stride one branch for the classes, and one for box and objectness."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        c = int(256 * config.width)

        def branch() -> nn.Sequential:
            return nn.Sequential(spatial_conv(config, c, c), spatial_conv(config, c, c))

        self.stems = nn.ModuleList(yolo_conv(int(channels * config.width), c, 1) for channels in (256, 512, 1024))
        self.cls_convs = nn.ModuleList(branch() for _ in STRIDES)
        self.reg_convs = nn.ModuleList(branch() for _ in STRIDES)
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, config.num_classes, 1) for _ in STRIDES)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, 4, 1) for _ in STRIDES)
        self.obj_preds = nn.ModuleList(nn.Conv2d(c, 1, 1) for _ in STRIDES)
        for layer in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(layer.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, pyramid: tuple[torch.Tensor, ...]) -> torch.Tensor:
        outputs = []
        for level, features in enumerate(pyramid):
            x = self.stems[level](features)
            boxes = self.reg_convs[level](x)
            classes = self.cls_preds[level](self.cls_convs[level](x))
            output = torch.cat([self.reg_preds[level](boxes), self.obj_preds[level](boxes), classes], dim=1)
            outputs.append(output.flatten(2).transpose(1, 2))
        return torch.cat(outputs, dim=1)


class PersonDetector(ConfiguredModel):
    """YOLOX, the detector of people."""

    config_dataclass = DetectorConfig

    def __init__(self, config: DetectorConfig) -> None:
        detector_cells(config.size)  # raises an error if the size is not allowed
        super().__init__(config)
        self.backbone = FeaturePyramid(config)
        self.head = DecoupledHead(config)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The output of `forward` before the sigmoid, for `training.pose_losses.detector_loss`."""
        return self.head(self.backbone(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Predict a box and scores for every cell.

        Args:
            images: (B, 3, S, S), RGB in [0, 255], as `ops.pose.letterbox` makes them.

        Returns:
            (B, A, 5 + classes), cells in the order of `ops.pose.detector_cells`: centre offset and log size in units
            of the stride, then objectness and class probabilities. `ops.pose.select_people` selects people from it.
        """
        logits = self.logits(images)
        return torch.cat([logits[..., :4], logits[..., 4:].sigmoid()], dim=-1)
