"""YOLOX and RTMPose written a second time, with the names of their public code: an oracle for importers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter and statistic, so that no two layers are alike and features keep their size."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith(("running_var", "bn.weight", ".g")):
            value.copy_(0.8 + 0.4 * torch.rand(value.shape, generator=generator))
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * (1.6 / value[0].numel()) ** 0.5)
        else:
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return network.eval()


class Unit(nn.Module):
    """A convolution, its batch norm, SiLU."""

    def __init__(self, i: int, o: int, k: int, stride: int = 1, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, stride, (k - 1) // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(o, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y * torch.sigmoid(y)


# YOLOX


def unit(i: int, o: int, k: int, stride: int = 1) -> Unit:
    return Unit(i, o, k, stride, eps=1e-3)


class Block(nn.Module):
    def __init__(self, c: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.shortcut = unit(c, c, 1), unit(c, c, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class Csp(nn.Module):
    def __init__(self, i: int, o: int, n: int, shortcut: bool) -> None:
        super().__init__()
        h = o // 2
        self.conv1, self.conv2, self.conv3 = unit(i, h, 1), unit(i, h, 1), unit(2 * h, o, 1)
        self.m = nn.Sequential(*[Block(h, shortcut) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.conv1(x), self.conv2(x)
        return self.conv3(torch.cat((self.m(one), two), 1))


class Spp(nn.Module):
    def __init__(self, c: int, eps: float) -> None:
        super().__init__()
        self.conv1 = Unit(c, c // 2, 1, eps=eps)
        self.conv2 = Unit(c // 2 * 4, c, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))], 1))


class Stem(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = unit(12, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return self.conv(torch.cat(corners, 1))


class Darknet(nn.Module):
    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.stem = Stem(c)
        self.dark2 = nn.Sequential(unit(c, 2 * c, 3, 2), Csp(2 * c, 2 * c, n, True))
        self.dark3 = nn.Sequential(unit(2 * c, 4 * c, 3, 2), Csp(4 * c, 4 * c, 3 * n, True))
        self.dark4 = nn.Sequential(unit(4 * c, 8 * c, 3, 2), Csp(8 * c, 8 * c, 3 * n, True))
        self.dark5 = nn.Sequential(unit(8 * c, 16 * c, 3, 2), Spp(16 * c, 1e-3), Csp(16 * c, 16 * c, n, False))


class Pafpn(nn.Module):
    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.backbone = Darknet(c, n)
        self.lateral_conv0 = unit(16 * c, 8 * c, 1)
        self.C3_p4 = Csp(16 * c, 8 * c, n, False)
        self.reduce_conv1 = unit(8 * c, 4 * c, 1)
        self.C3_p3 = Csp(8 * c, 4 * c, n, False)
        self.bu_conv2 = unit(4 * c, 4 * c, 3, 2)
        self.C3_n3 = Csp(8 * c, 8 * c, n, False)
        self.bu_conv1 = unit(8 * c, 8 * c, 3, 2)
        self.C3_n4 = Csp(16 * c, 16 * c, n, False)

    def forward(self, x: Tensor) -> list[Tensor]:
        b = self.backbone
        x2 = b.dark3(b.dark2(b.stem(x)))
        x1 = b.dark4(x2)
        top = self.lateral_conv0(b.dark5(x1))
        middle = self.reduce_conv1(self.C3_p4(torch.cat([F.interpolate(top, scale_factor=2), x1], 1)))
        p2 = self.C3_p3(torch.cat([F.interpolate(middle, scale_factor=2), x2], 1))
        p1 = self.C3_n3(torch.cat([self.bu_conv2(p2), middle], 1))
        return [p2, p1, self.C3_n4(torch.cat([self.bu_conv1(p1), top], 1))]


class Head(nn.Module):
    def __init__(self, c: int, classes: int, decode: bool) -> None:
        super().__init__()
        h, self.decode = 4 * c, decode
        towers = lambda: nn.ModuleList(nn.Sequential(unit(h, h, 3), unit(h, h, 3)) for _ in range(3))  # noqa: E731
        self.cls_convs, self.reg_convs = towers(), towers()
        self.cls_preds = nn.ModuleList(nn.Conv2d(h, classes, 1) for _ in range(3))
        self.reg_preds = nn.ModuleList(nn.Conv2d(h, 4, 1) for _ in range(3))
        self.obj_preds = nn.ModuleList(nn.Conv2d(h, 1, 1) for _ in range(3))
        self.stems = nn.ModuleList(unit(i * c, h, 1) for i in (4, 8, 16))

    def forward(self, levels: list[Tensor]) -> Tensor:
        outputs = []
        for k, x in enumerate(levels):
            x = self.stems[k](x)
            classes = self.cls_preds[k](self.cls_convs[k](x))
            boxes = self.reg_convs[k](x)
            parts = (self.reg_preds[k](boxes), self.obj_preds[k](boxes).sigmoid(), classes.sigmoid())
            outputs.append(torch.cat(parts, 1))
        flat = torch.cat([x.flatten(start_dim=2) for x in outputs], dim=2).permute(0, 2, 1)
        if not self.decode:
            return flat
        grids, strides = [], []
        for x, stride in zip(outputs, (8, 16, 32), strict=True):
            rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
            grids.append(torch.stack((columns, rows), 2).view(1, -1, 2).float())
            strides.append(torch.full((1, grids[-1].shape[1], 1), float(stride)))
        grid, step = torch.cat(grids, 1), torch.cat(strides, 1)
        return torch.cat([(flat[..., :2] + grid) * step, flat[..., 2:4].exp() * step, flat[..., 4:]], -1)


class Yolox(nn.Module):
    """(B, 3, S, S), 0 to 255 → (B, A, 5 + classes); `decode` gives boxes in pixels, as its export can."""

    def __init__(self, c: int = 8, n: int = 1, classes: int = 80, decode: bool = False) -> None:
        super().__init__()
        self.backbone, self.head = Pafpn(c, n), Head(c, classes, decode)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


# RTMPose


class Separable(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise_conv, self.pointwise_conv = Unit(c, c, 5, groups=c), Unit(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class NeXtBlock(nn.Module):
    def __init__(self, c: int, identity: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.identity = Unit(c, c, 3), Separable(c), identity

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return y + x if self.identity else y


class Attention(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)))


class NeXtLayer(nn.Module):
    def __init__(self, c: int, n: int, identity: bool) -> None:
        super().__init__()
        h = c // 2
        self.main_conv, self.short_conv, self.final_conv = Unit(c, h, 1), Unit(c, h, 1), Unit(2 * h, c, 1)
        self.blocks = nn.Sequential(*[NeXtBlock(h, identity) for _ in range(n)])
        self.attention = Attention(2 * h)

    def forward(self, x: Tensor) -> Tensor:
        short, main = self.short_conv(x), self.blocks(self.main_conv(x))
        return self.final_conv(self.attention(torch.cat((main, short), 1)))


class CspNeXt(nn.Module):
    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(Unit(3, c // 2, 3, 2), Unit(c // 2, c // 2, 3), Unit(c // 2, c, 3))
        self.stage1 = nn.Sequential(Unit(c, 2 * c, 3, 2), NeXtLayer(2 * c, max(n // 2, 1), True))
        self.stage2 = nn.Sequential(Unit(2 * c, 4 * c, 3, 2), NeXtLayer(4 * c, n, True))
        self.stage3 = nn.Sequential(Unit(4 * c, 8 * c, 3, 2), NeXtLayer(8 * c, n, True))
        last = NeXtLayer(16 * c, max(n // 2, 1), False)
        self.stage4 = nn.Sequential(Unit(8 * c, 16 * c, 3, 2), Spp(16 * c, 1e-5), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))


class ScaleNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale, self.g = dim**-0.5, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=2, keepdim=True) * self.scale
        return x / norm.clamp(min=1e-5) * self.g


class ResScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Gau(nn.Module):
    def __init__(self, dim: int, s: int) -> None:
        super().__init__()
        self.e, self.s = 2 * dim, s
        self.o = nn.Linear(self.e, dim, bias=False)
        self.uv = nn.Linear(dim, 2 * self.e + s, bias=False)
        self.gamma, self.beta = nn.Parameter(torch.rand(2, s)), nn.Parameter(torch.rand(2, s))
        self.ln, self.res_scale = ScaleNorm(dim), ResScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.uv(self.ln(x))
        u, v, base = torch.split(y * torch.sigmoid(y), [self.e, self.e, self.s], dim=2)
        q, k = torch.unbind(base.unsqueeze(2) * self.gamma[None, None, :] + self.beta, dim=2)
        kernel = torch.square(F.relu(torch.bmm(q, k.permute(0, 2, 1)) / self.s**0.5))
        return self.res_scale(x) + self.o(u * torch.bmm(kernel, v))


class SimccHead(nn.Module):
    def __init__(self, c: int, joints: int, height: int, width: int, hidden: int, s: int) -> None:
        super().__init__()
        cells = (height // 32) * (width // 32)
        self.final_layer = nn.Conv2d(16 * c, joints, 7, 1, 3)
        self.mlp = nn.Sequential(ScaleNorm(cells), nn.Linear(cells, hidden, bias=False))
        self.gau = Gau(hidden, s)
        self.cls_x, self.cls_y = nn.Linear(hidden, 2 * width, bias=False), nn.Linear(hidden, 2 * height, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.gau(self.mlp(torch.flatten(self.final_layer(x), 2)))
        return self.cls_x(tokens), self.cls_y(tokens)


class RtmPose(nn.Module):
    """(B, 3, H, W) → scores (B, joints, 2W) and (B, joints, 2H)."""

    def __init__(
        self,
        c: int = 8,
        n: int = 2,
        joints: int = 133,
        height: int = 96,
        width: int = 64,
        hidden: int = 32,
        s: int = 16,
    ) -> None:
        super().__init__()
        self.backbone = CspNeXt(c, n)
        self.head = SimccHead(c, joints, height, width, hidden, s)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(x))
