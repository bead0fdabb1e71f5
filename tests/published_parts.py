"""BPBReID written a second time, with the names of its public code: an oracle for its importer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(i: int, o: int, k: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class Bottleneck(nn.Module):
    def __init__(self, i: int, planes: int, stride: int, downsample: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(i, planes, 1, relu=False)
        self.conv2, self.bn2 = conv_bn(planes, planes, 3, stride, relu=False)
        self.conv3, self.bn3 = conv_bn(planes, 4 * planes, 1, relu=False)
        self.downsample = conv_bn(i, 4 * planes, 1, stride, relu=False) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


def layer(i: int, planes: int, count: int, stride: int = 1) -> nn.Sequential:
    first = Bottleneck(i, planes, stride, stride != 1 or i != 4 * planes)
    return nn.Sequential(first, *[Bottleneck(4 * planes, planes, 1, False) for _ in range(count - 1)])


class ResNet(nn.Module):
    def __init__(self, width: int, counts: tuple[int, int, int, int], identities: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.layer1 = layer(width, width, counts[0])
        self.layer2 = layer(4 * width, 2 * width, counts[1], 2)
        self.layer3 = layer(8 * width, 4 * width, counts[2], 2)
        self.layer4 = layer(16 * width, 8 * width, counts[3], 1)
        self.classifier = nn.Linear(32 * width, identities)
        self.channels = 32 * width

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Basic(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c, c, 3, relu=False)
        self.conv2, self.bn2 = conv_bn(c, c, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class HighResolutionModule(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*[Basic(c) for _ in range(blocks)]) for c in widths)
        self.fuse_layers = nn.ModuleList()
        for i, own in enumerate(widths):
            row = nn.ModuleList()
            for j, other in enumerate(widths):
                if j > i:
                    up = nn.Upsample(scale_factor=2 ** (j - i), mode="nearest")
                    row.append(nn.Sequential(nn.Conv2d(other, own, 1, bias=False), nn.BatchNorm2d(own), up))
                elif j == i:
                    row.append(nn.Identity())
                else:
                    steps = [conv_bn(other, other, 3, 2) for _ in range(i - j - 1)]
                    row.append(nn.Sequential(*steps, conv_bn(other, own, 3, 2, relu=False)))
            self.fuse_layers.append(row)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [branch(y) for branch, y in zip(self.branches, x, strict=True)]
        return [F.relu(sum((f(y) for f, y in zip(row, x, strict=True)), torch.zeros(()))) for row in self.fuse_layers]


class HrNet(nn.Module):
    def __init__(self, stem: int, widths: tuple[int, ...], modules: tuple[int, ...], blocks: int, dim: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, stem, 3, 2, relu=False)
        self.conv2, self.bn2 = conv_bn(stem, stem, 3, 2, relu=False)
        self.layer1 = layer(stem, stem, 4)
        self.transition1 = nn.ModuleList(
            [conv_bn(4 * stem, widths[0], 3), nn.Sequential(conv_bn(4 * stem, widths[1], 3, 2))]
        )
        self.stage2 = nn.Sequential(*[HighResolutionModule(widths[:2], blocks) for _ in range(modules[0])])
        new = lambda k: nn.Sequential(conv_bn(widths[k - 1], widths[k], 3, 2))  # noqa: E731
        self.transition2 = nn.ModuleList([nn.Identity(), nn.Identity(), new(2)])
        self.stage3 = nn.Sequential(*[HighResolutionModule(widths[:3], blocks) for _ in range(modules[1])])
        self.transition3 = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity(), new(3)])
        self.stage4 = nn.Sequential(*[HighResolutionModule(widths, blocks) for _ in range(modules[2])])
        self.incre_modules = nn.ModuleList(layer(c, c, 1) for c in widths)
        self.channels = 4 * sum(widths)
        self.cls_head = nn.Sequential(nn.Conv2d(self.channels, dim, 1), nn.BatchNorm2d(dim), nn.ReLU())  # never used

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = self.layer1(x)
        y = self.stage2([t(x) for t in self.transition1])
        y = self.stage3([*y, self.transition2[2](y[-1])])
        y = self.stage4([*y, self.transition3[3](y[-1])])
        y = [m(z) for m, z in zip(self.incre_modules, y, strict=True)]
        size = y[0].shape[2:]
        return torch.cat([y[0], *(F.interpolate(z, size=size, mode="bilinear", align_corners=True) for z in y[1:])], 1)


class DimReduce(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())


class IdentityClassifier(nn.Module):
    def __init__(self, i: int, identities: int) -> None:
        super().__init__()
        self.bn, self.classifier = nn.BatchNorm1d(i), nn.Linear(i, identities, bias=False)


class PixelClassifier(nn.Module):
    def __init__(self, i: int, parts: int) -> None:
        super().__init__()
        self.bn, self.classifier = nn.BatchNorm2d(i), nn.Conv2d(i, parts + 1, 1)


class BpbReid(nn.Module):
    """Normalised pictures (B, 3, H, W) → part masks with the background (B, K+1, h, w) and embeddings (B, K, D)."""

    def __init__(self, backbone: ResNet | HrNet, parts: int, dim: int, identities: int) -> None:
        super().__init__()
        self.backbone_appearance_feature_extractor = backbone
        c = backbone.channels
        self.global_after_pooling_dim_reduce = DimReduce(c, dim)
        self.foreground_after_pooling_dim_reduce = DimReduce(c, dim)
        self.background_after_pooling_dim_reduce = DimReduce(c, dim)
        self.parts_after_pooling_dim_reduce = DimReduce(c, dim)
        self.pixel_classifier = PixelClassifier(c, parts)
        self.global_identity_classifier = IdentityClassifier(dim, identities)
        self.background_identity_classifier = IdentityClassifier(dim, identities)
        self.foreground_identity_classifier = IdentityClassifier(dim, identities)
        self.concat_parts_identity_classifier = IdentityClassifier(parts * dim, identities)
        self.parts_identity_classifier = nn.ModuleList(IdentityClassifier(dim, identities) for _ in range(parts))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone_appearance_feature_extractor(images)
        masks = F.softmax(self.pixel_classifier.classifier(self.pixel_classifier.bn(features)), dim=1)
        weights = masks[:, 1:].unsqueeze(2)  # (B, K, 1, h, w)
        pooled = (weights * features.unsqueeze(1)).sum((-2, -1)) / weights.sum((-2, -1)).clamp(min=1e-6)
        return masks, self.parts_after_pooling_dim_reduce.layers(pooled.flatten(0, 1)).view(*pooled.shape[:2], -1)
