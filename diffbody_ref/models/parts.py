"""The part network: part maps and part embeddings of one person's picture.

Architecture: BPBReID (Somers et al., WACV 2023, arXiv:2211.03679) on HRNet-W32 (Wang et al. 2020, arXiv:1908.07919) or
ResNet-50 (He et al. 2016). Parameter names are those of the public BPBReID checkpoints. Their
`*_identity_classifier`, `background_after_pooling_dim_reduce` and `cls_head` serve neither part maps nor embeddings and
have no counterpart here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffbody_ref.models.base import ConfiguredModel
from diffbody_ref.ops.parts import mirrored_parts, part_names

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EXPANSION = 4  # a bottleneck block widens its planes by this


@dataclass(frozen=True)
class PartNetConfig:
    """Sizes; the defaults are those of the public checkpoints with HRNet-W32.

    Attributes:
        backbone: "hrnet" (features at 1/4 of the input) or "resnet50" (1/16).
        input_height, input_width: the size in pixels that every picture is resized to; multiples of 32.
        part_set: a name of `diffbody_ref.ops.parts.PART_SETS`.
        embedding_dim: D, length of each embedding.
        stem_width: channels of the first convolutions; ResNet's stages are 1, 2, 4, 8 times as wide.
        stage_blocks: bottleneck blocks of ResNet's four stages; HRNet has the first stage only.
        branch_widths: channels of HRNet's four branches, from fine to coarse.
        branch_modules: exchange modules in HRNet's stages of two, three and four branches.
        branch_blocks: residual blocks of each branch in each of those modules.
        head_planes: each HRNet branch ends with 4 times as many channels; all are concatenated.
        mirror_average: attention maps are the mean of those of the picture and of its mirror image, which are a little
            nearer to the truth; embeddings, and with them body guidance, are those of the picture alone.
    """

    backbone: str = "hrnet"
    input_height: int = 384
    input_width: int = 128
    part_set: str = "five_v"
    embedding_dim: int = 512
    stem_width: int = 64
    stage_blocks: tuple[int, ...] = (4,)
    branch_widths: tuple[int, ...] = (32, 64, 128, 256)
    branch_modules: tuple[int, ...] = (1, 4, 3)
    branch_blocks: int = 4
    head_planes: tuple[int, ...] = (32, 64, 128, 256)
    mirror_average: bool = False

    def __post_init__(self) -> None:
        if self.backbone not in ("hrnet", "resnet50"):
            raise ValueError(f"backbone is {self.backbone!r}; it must be 'hrnet' or 'resnet50'")
        for name in ("input_height", "input_width"):
            if getattr(self, name) < 32 or getattr(self, name) % 32:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive multiple of 32")
        lengths = {"stage_blocks": 4 if self.backbone == "resnet50" else 1}
        if self.backbone == "hrnet":
            lengths |= {"branch_widths": 4, "branch_modules": 3, "head_planes": 4}
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} is {getattr(self, name)}; a {self.backbone} takes {length} of them")
        part_names(self.part_set)


SD21 = PartNetConfig()
SD21_RESNET50 = PartNetConfig(backbone="resnet50", stage_blocks=(3, 4, 6, 3))
NANO = PartNetConfig(
    input_height=192,
    input_width=96,
    part_set="paper",
    embedding_dim=64,
    stem_width=16,
    stage_blocks=(1,),
    branch_widths=(12, 24, 48, 96),
    branch_modules=(1, 1, 1),
    branch_blocks=1,
    head_planes=(8, 12, 16, 24),
    mirror_average=True,
)


@dataclass(frozen=True)
class PartOutput:
    """What a part network says of B pictures, on its feature grid of h×w cells.

    Attributes:
        embeddings: (B, K, D), one for each part; non-negative (they leave a ReLU).
        foreground: (B, D), of the whole person.
        global_: (B, D), of the whole picture.
        logits: (B, K+1, h, w), of the pixel classifier, background first.
        masks: (B, K+1, h, w), their softmax.
        foreground_map: (B, 1, h, w) in [0, 1], the maximum of the part masks.
        visibility: (B, K), 1 where the part is the likeliest class of some cell, else 0. An argmax has no gradient:
            use it as a weight or a target.
    """

    embeddings: Tensor
    foreground: Tensor
    global_: Tensor
    logits: Tensor
    masks: Tensor
    foreground_map: Tensor
    visibility: Tensor


class PartNet(ConfiguredModel):
    """BPBReID: a pixel classifier finds the parts, and its masks pool the backbone's features into embeddings."""

    config_dataclass = PartNetConfig

    def __init__(self, config: PartNetConfig) -> None:
        super().__init__(config)
        self.input_size = (config.input_height, config.input_width)
        self.part_names = part_names(config.part_set)
        self.part_count = len(self.part_names)
        self.backbone_appearance_feature_extractor = (HRNet if config.backbone == "hrnet" else ResNet)(config)
        channels = self.backbone_appearance_feature_extractor.out_channels
        self.pixel_classifier = PixelClassifier(channels, self.part_count + 1)
        self.global_after_pooling_dim_reduce = DimReduce(channels, config.embedding_dim)
        self.foreground_after_pooling_dim_reduce = DimReduce(channels, config.embedding_dim)
        self.parts_after_pooling_dim_reduce = DimReduce(channels, config.embedding_dim)
        for convolution in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        # Small, so that training starts from undecided masks.
        nn.init.normal_(self.pixel_classifier.classifier.weight, std=0.01)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize to the network's input size (differentiable, antialiased) and normalise by ImageNet's statistics.

        Args:
            images: (B, 3, H, W), RGB in [0, 1], of any size and floating dtype.

        Returns:
            (B, 3, input_height, input_width) in the network's dtype.

        Raises:
            ValueError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are of shape {tuple(images.shape)}; they must be (B, 3, H, W)")
        images = resize(images.to(self.dtype), *self.input_size)
        mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
        return (images - mean[:, None, None]) / std[:, None, None]

    def forward(self, images: Tensor) -> PartOutput:
        """Find and embed the parts of the person in each picture.

        In evaluation mode a picture's result does not depend on the others of its batch.

        Args:
            images: (B, 3, H, W), RGB in [0, 1], each a crop around one person, of any size.

        Raises:
            ValueError: another shape.
        """
        features = self.backbone_appearance_feature_extractor(self.preprocess(images))
        logits = self.pixel_classifier(features)
        masks = logits.softmax(dim=1)
        foreground_map = masks[:, 1:].amax(dim=1, keepdim=True)
        cells, weights = features.flatten(2).transpose(1, 2), masks[:, 1:].flatten(2)  # (B, hw, C), (B, K, hw)
        # Parts are averaged by weight; the foreground over all cells, so that it also tells how large the person is.
        parts = (weights.to(cells) @ cells) / weights.sum(dim=2, keepdim=True).clamp_min(1e-6)
        foreground = (features * foreground_map).mean(dim=(2, 3))
        return PartOutput(
            embeddings=self.parts_after_pooling_dim_reduce(parts.flatten(0, 1)).unflatten(0, (-1, self.part_count)),
            foreground=self.foreground_after_pooling_dim_reduce(foreground),
            global_=self.global_after_pooling_dim_reduce(features.mean(dim=(2, 3))),
            logits=logits,
            masks=masks,
            foreground_map=foreground_map,
            visibility=_visibility(masks),
        )

    def attention_masks(self, images: Tensor, output: PartOutput) -> Tensor:
        """The masks that attention maps are made of, (B, K+1, h, w): see `PartNetConfig.mirror_average`.

        Args:
            images: (B, 3, H, W), RGB in [0, 1]. output: of them.
        """
        if not self.settings.mirror_average:
            return output.masks
        order = [0, *(1 + part for part in mirrored_parts(self.settings.part_set))]
        return (output.masks + self(images.flip(-1)).masks[:, order].flip(-1)) / 2


@torch.no_grad()
def _visibility(masks: Tensor) -> Tensor:
    winner = masks.argmax(dim=1, keepdim=True)
    parts = torch.arange(1, masks.shape[1], device=masks.device)[:, None, None]
    return (winner == parts).to(masks.dtype).amax(dim=(2, 3))


def attention_map(masks: Tensor, height: int, width: int) -> Tensor:
    """The attention map A of eq. 3: K part maps, then their foreground map (their maximum), resized.

    Args:
        masks: (B, K+1, h, w), of `PartNet.attention_masks`, background first.

    Returns:
        (B, K+1, height, width) in [0, 1].
    """
    parts = masks[:, 1:]
    return resize(torch.cat([parts, parts.amax(dim=1, keepdim=True)], dim=1), height, width)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize, as `torch.nn.functional.interpolate(antialias=True)`, as two matrix products.

    (B, C, H, W) -> (B, C, height, width), within the range of the input. Unlike that operator's, its gradient can be
    exported to ONNX, and exists for every floating dtype.
    """
    rows, columns = (_antialiased(*sizes, images) for sizes in zip(images.shape[-2:], (height, width), strict=True))
    return rows @ images @ columns.transpose(0, 1)


def _antialiased(size: int, new_size: int, like: Tensor) -> Tensor:
    """(new_size, size) weights of cells whose centres lie at half-integers, over max(scale, 1) cells to either side."""
    scale = size / new_size
    # A plain max would fix an exported graph to shrinking or to growing.
    return _triangles((_arange(new_size, like) + 0.5) * scale - 0.5, size, torch.sym_max(scale, 1.0), like)


def upsample(features: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with `align_corners=True`, (B, C, h, w) -> (B, C, height, width), as exportable as `resize`."""
    rows, columns = (
        _triangles(_arange(new_size, features) * ((size - 1) / (new_size - 1)), size, 1.0, features)
        for size, new_size in zip(features.shape[-2:], (height, width), strict=True)
    )
    return rows @ features @ columns.transpose(0, 1)


def _triangles(centres: Tensor, size: int, half_width: float, like: Tensor) -> Tensor:
    """(len(centres), size) interpolation weights in the dtype of `like`; each row sums to 1."""
    weights = (1 - (_arange(size, like) - centres[:, None]).abs() / half_width).clamp_min(0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)


def _arange(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


class PixelClassifier(nn.Module):
    """Logits of background and parts for each cell."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, classes, h, w)."""
        return self.classifier(self.bn(features))


class DimReduce(nn.Module):
    """Pooled features to an embedding."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, dim), nn.BatchNorm1d(dim), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, dim), non-negative."""
        return self.layers(features)


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
    """Residual block of 1×1, 3×3 and 1×1 convolutions, to 4 times `planes` channels."""

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
    """A convolution that keeps the size (but for its stride), and its batch norm."""
    return nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)


def bottlenecks(width: int, planes: int, count: int, stride: int = 1) -> nn.Sequential:
    """`count` bottleneck blocks, the first with the stride and the change of width."""
    first = Bottleneck(width, planes, stride)
    return nn.Sequential(first, *(Bottleneck(planes * EXPANSION, planes) for _ in range(count - 1)))


class ResNet(nn.Module):
    """ResNet of bottleneck blocks without stride in the last stage: (B, 3, H, W) -> (B, 32·stem_width, H/16, W/16)."""

    def __init__(self, config: PartNetConfig) -> None:
        super().__init__()
        width = config.stem_width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = config.stage_blocks
        self.layer1 = bottlenecks(width, width, blocks[0])
        self.layer2 = bottlenecks(4 * width, 2 * width, blocks[1], stride=2)
        self.layer3 = bottlenecks(8 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = bottlenecks(16 * width, 8 * width, blocks[3])
        self.out_channels = 32 * width

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class HRNet(nn.Module):
    """HRNet, its branches widened, brought to the finest grid and concatenated: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, config: PartNetConfig) -> None:
        super().__init__()
        stem, widths = config.stem_width, config.branch_widths
        self.conv1, self.bn1 = conv_bn(3, stem, 3, stride=2)
        self.conv2, self.bn2 = conv_bn(stem, stem, 3, stride=2)
        self.layer1 = bottlenecks(stem, stem, config.stage_blocks[0])
        first = nn.Sequential(*conv_bn(stem * EXPANSION, widths[0], 3), nn.ReLU())
        self.transition1 = nn.ModuleList([first, nn.Sequential(_halve(stem * EXPANSION, widths[1]))])
        self.transition2 = _new_branch(widths[:3])
        self.transition3 = _new_branch(widths[:4])
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(*(ExchangeModule(widths[:branches], config.branch_blocks) for _ in range(modules)))
            for branches, modules in zip((2, 3, 4), config.branch_modules, strict=True)
        )
        heads = zip(widths, config.head_planes, strict=True)
        self.incre_modules = nn.ModuleList(bottlenecks(width, planes, 1) for width, planes in heads)
        self.out_channels = EXPANSION * sum(config.head_planes)

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
    """HRNet's unit: residual blocks on every branch, then each branch receives the sum of all.

    Takes and returns a list of (B, widths[i], h / 2^i, w / 2^i).
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
    """Nearest upsampling by a whole factor, of operators whose gradient can be exported to ONNX."""

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
    """The last entry makes the new, coarsest branch; the others are there for the checkpoints' numbering."""
    return nn.ModuleList([*(nn.Identity() for _ in widths[:-1]), nn.Sequential(_halve(widths[-2], widths[-1]))])


def _fuse(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From branch `source` to the grid and width of branch `target`."""
    if source == target:
        return nn.Identity()
    if source > target:  # coarser: widen, then repeat the cells
        return nn.Sequential(*conv_bn(widths[source], widths[target], 1), Repeat(2 ** (source - target)))
    steps = [_halve(widths[source], widths[source]) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _halve(widths[source], widths[target], relu=False))
