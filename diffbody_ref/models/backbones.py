"""The backbones of the part network: HRNet (Wang et al. 2020, arXiv:1908.07919) and ResNet (He et al. 2016).

Parameter names are those of the public BPBReID checkpoints, see `diffbody_ref.models.parts`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffbody_ref.models.resizing import upsample

EXPANSION = 4  # ratio of a bottleneck block's output channels to its planes


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions, (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(width, width, 3)
        self.conv2, self.bn2 = conv_bn(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(hidden)))


class Bottleneck(nn.Module):
    """Residual block of 1×1, 3×3 and 1×1 convolutions; its output has 4·`planes` channels."""

    def __init__(self, width: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(width, planes, 1)
        self.conv2, self.bn2 = conv_bn(planes, planes, 3, stride)
        self.conv3, self.bn3 = conv_bn(planes, planes * EXPANSION, 1)
        same = stride == 1 and width == planes * EXPANSION
        self.downsample = nn.Identity() if same else nn.Sequential(*conv_bn(width, planes * EXPANSION, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.downsample(x) + self.bn3(self.conv3(hidden)))


def conv_bn(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution that keeps the size (if its stride is 1), and its batch norm."""
    return nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)


def bottlenecks(width: int, planes: int, count: int, stride: int = 1) -> nn.Sequential:
    """`count` bottleneck blocks; the first one has the stride and changes the number of channels."""
    first = Bottleneck(width, planes, stride)
    return nn.Sequential(first, *(Bottleneck(planes * EXPANSION, planes) for _ in range(count - 1)))


class ResNet(nn.Module):
    """ResNet of bottleneck blocks without stride in the last stage: (B, 3, H, W) -> (B, 32·stem_width, H/16, W/16).

    Args:
        stem_width: channels of the first convolution; the stages are 1, 2, 4, 8 times as wide.
        stage_blocks: bottleneck blocks of the four stages.
    """

    def __init__(self, stem_width: int, stage_blocks: Sequence[int]) -> None:
        super().__init__()
        width = stem_width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = bottlenecks(width, width, stage_blocks[0])
        self.layer2 = bottlenecks(4 * width, 2 * width, stage_blocks[1], stride=2)
        self.layer3 = bottlenecks(8 * width, 4 * width, stage_blocks[2], stride=2)
        self.layer4 = bottlenecks(16 * width, 8 * width, stage_blocks[3])
        self.out_channels = 32 * width

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class HRNet(nn.Module):
    """HRNet; its branches are widened, resized to the finest grid and concatenated: (B, 3, H, W) -> (B, C, H/4, W/4).

    Args:
        stem_width: channels of the first convolutions.
        stem_blocks: bottleneck blocks of the first stage.
        branch_widths: channels of the four branches, from fine to coarse.
        branch_modules: exchange modules in the stages of two, three and four branches.
        branch_blocks: residual blocks of each branch in each exchange module.
        head_planes: planes of the bottleneck block at the end of each branch; its output has 4 times as many channels.
    """

    def __init__(
        self,
        stem_width: int,
        stem_blocks: int,
        branch_widths: Sequence[int],
        branch_modules: Sequence[int],
        branch_blocks: int,
        head_planes: Sequence[int],
    ) -> None:
        super().__init__()
        stem, widths = stem_width, branch_widths
        self.conv1, self.bn1 = conv_bn(3, stem, 3, stride=2)
        self.conv2, self.bn2 = conv_bn(stem, stem, 3, stride=2)
        self.layer1 = bottlenecks(stem, stem, stem_blocks)
        first = nn.Sequential(*conv_bn(stem * EXPANSION, widths[0], 3), nn.ReLU())
        self.transition1 = nn.ModuleList([first, nn.Sequential(_halve(stem * EXPANSION, widths[1]))])
        self.transition2 = _new_branch(widths[:3])
        self.transition3 = _new_branch(widths[:4])
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(*(ExchangeModule(widths[:branches], branch_blocks) for _ in range(modules)))
            for branches, modules in zip((2, 3, 4), branch_modules, strict=True)
        )
        heads = zip(widths, head_planes, strict=True)
        self.incre_modules = nn.ModuleList(bottlenecks(width, planes, 1) for width, planes in heads)
        self.out_channels = EXPANSION * sum(head_planes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = self.layer1(x)
        branches = self.stage2([transition(x) for transition in self.transition1])
        for transition, stage in ((self.transition2, self.stage3), (self.transition3, self.stage4)):
            branches = stage([*branches, transition[-1](branches[-1])])
        outputs = [head(branch) for head, branch in zip(self.incre_modules, branches, strict=True)]
        height, width = outputs[0].shape[-2:]
        return torch.cat([outputs[0], *(upsample(y, height, width) for y in outputs[1:])], dim=1)


class ExchangeModule(nn.Module):
    """HRNet's unit: residual blocks on every branch, then each branch becomes the sum of all branches.

    Input and output are lists of (B, widths[i], h / 2^i, w / 2^i).
    """

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths)
        count = range(len(widths))
        self.fuse_layers = nn.ModuleList(nn.ModuleList(_fuse(widths, j, i) for j in count) for i in count)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        branches = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        sums = []
        for fuse in self.fuse_layers:
            terms = [layer(x) for layer, x in zip(fuse, branches, strict=True)]  # type: ignore[call-overload]
            sums.append(F.relu(sum(terms[1:], start=terms[0])))
        return sums


class Repeat(nn.Module):
    """Nearest-neighbour upsampling by an integer factor, with operators whose gradient can be exported to ONNX."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, factor·h, factor·w)."""
        cells = x[:, :, :, None, :, None].expand(-1, -1, -1, self.factor, -1, self.factor)
        return cells.flatten(4, 5).flatten(2, 3)


def _halve(channels: int, width: int, relu: bool = True) -> nn.Sequential:
    return nn.Sequential(*conv_bn(channels, width, 3, stride=2), *([nn.ReLU()] if relu else []))


def _new_branch(widths: Sequence[int]) -> nn.ModuleList:
    """The last entry makes the new, coarsest branch; the others only preserve the checkpoints' numbering."""
    return nn.ModuleList([*(nn.Identity() for _ in widths[:-1]), nn.Sequential(_halve(widths[-2], widths[-1]))])


def _fuse(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """The layer from branch `source` to the grid and width of branch `target`."""
    if source == target:
        return nn.Identity()
    if source > target:  # coarser: widen, then repeat the cells
        return nn.Sequential(*conv_bn(widths[source], widths[target], 1), Repeat(2 ** (source - target)))
    steps = [_halve(widths[source], widths[source]) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _halve(widths[source], widths[target], relu=False))
