"""SwinIR as DiffBIR configures it: the regression stage r = SwinIR(y) (Liang et al. 2021, arXiv:2108.10257).

The picture is pixel-unshuffled before the first convolution, so that the transformer works on a small grid. It is
enlarged again by nearest-neighbour upsampling and convolutions. Parameter names are those of DiffBIR's checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  # DiffusionPipeline.from_pretrained looks for it beside the class
from torch import Tensor, nn

from diffbody_ref.models.attention import attention
from diffbody_ref.models.base import ConfiguredModel

UPSAMPLERS = ("nearest+conv", "pixelshuffledirect")
MASKED = -100.0  # added to the attention logits of cells that are neighbours only by the cyclic shift, as in Swin


@dataclass(frozen=True)
class SwinIRConfig:
    """The configuration of SwinIR; the defaults are DiffBIR's.

    Attributes:
        unshuffle: side of a cell of the transformer's grid in pixels of the (shrunk) picture, a power of 2.
        shrink: factor by which the picture is averaged down first, a power of 2. The upstream networks for real
            pictures enlarge their input by 2 or 4; shrunk by as much, a picture comes out at its own size.
        embed_dim: channels of the transformer.
        depths: number of layers in each group.
        num_heads: number of attention heads in each group.
        window_size: side of an attention window in cells.
        mlp_ratio: ratio of hidden to embedded channels in the MLPs.
        upsampler: "nearest+conv" as in DiffBIR, or SwinIR's lighter "pixelshuffledirect", one convolution to the pixels
            of a cell.
        num_feat: channels of "nearest+conv".
        refine_blocks: residual blocks of two convolutions between transformer and upsampler (EDSR, Lim et al. 2017,
            arXiv:1707.02921). With them a small network learns local filters many times faster than with attention,
            whose layer norms hide the strength of a feature.
        global_residual: add the input to the output, so that training starts from the identity.
        bottleneck: end each group with three convolutions through a quarter of the channels, as upstream's large
            networks do, in place of one.
        mirror_average: in evaluation mode, average the results for the picture and for its mirror image: the
            self-ensemble of EDSR and SwinIR+ with one flip. It doubles the time for a few hundredths of a decibel.

    Raises:
        ValueError: a value is out of its range.
    """

    unshuffle: int = 8
    shrink: int = 1
    embed_dim: int = 180
    depths: tuple[int, ...] = (6,) * 8
    num_heads: tuple[int, ...] = (6,) * 8
    window_size: int = 8
    mlp_ratio: float = 2.0
    upsampler: str = "nearest+conv"
    num_feat: int = 64
    refine_blocks: int = 0
    global_residual: bool = False
    bottleneck: bool = False
    mirror_average: bool = False

    def __post_init__(self) -> None:
        for name in ("unshuffle", "shrink"):
            if getattr(self, name) < 1 or getattr(self, name) & (getattr(self, name) - 1):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a power of 2")
        if self.bottleneck and self.global_residual:
            raise ValueError("bottleneck and global_residual cannot be combined")
        if self.upsampler not in UPSAMPLERS:
            raise ValueError(f"unknown upsampler {self.upsampler!r}, choose one of {', '.join(UPSAMPLERS)}")
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must be equally long")


SD21 = SwinIRConfig()
NANO = SwinIRConfig(
    unshuffle=4,
    embed_dim=96,
    depths=(2,),
    num_heads=(4,),
    upsampler="pixelshuffledirect",
    refine_blocks=10,
    global_residual=True,
    mirror_average=True,
)


class SwinIR(ConfiguredModel):
    """SwinIR: pictures (B, 3, H, W), RGB in [0, 1], of any size → the same shape, about [0, 1], not clamped."""

    config_dataclass = SwinIRConfig
    _supports_gradient_checkpointing = True

    def __init__(self, config: SwinIRConfig) -> None:
        super().__init__(config)
        channels, width = 3 * config.unshuffle**2, config.num_feat
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1), persistent=False)
        cells = nn.PixelUnshuffle(config.unshuffle) if config.unshuffle > 1 else nn.Identity()
        self.conv_first = nn.Sequential(cells, nn.Conv2d(channels, config.embed_dim, 3, padding=1))
        self.patch_embed = _Normed(config.embed_dim)
        self.layers = nn.ModuleList(
            ResidualGroup(config, depth, heads) for depth, heads in zip(config.depths, config.num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(config.embed_dim)
        self.conv_after_body = _group_end(config)
        self.refine = nn.Sequential(*(ResidualConvs(config.embed_dim) for _ in range(config.refine_blocks)))
        if config.upsampler == "nearest+conv":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(config.embed_dim, width, 3, padding=1), nn.LeakyReLU())
            for i in range(1, self._doublings + 1):
                self.add_module(f"conv_up{i}", nn.Conv2d(width, width, 3, padding=1))
            self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
            self.conv_last = last = nn.Conv2d(width, 3, 3, padding=1)
        else:
            factor = config.unshuffle * config.shrink
            last = nn.Conv2d(config.embed_dim, 3 * factor**2, 3, padding=1)
            self.upsample = nn.Sequential(last, nn.PixelShuffle(factor))
        if config.global_residual:
            for layer in (self.conv_after_body, last):  # one convolution each
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def _doublings(self) -> int:
        return int(math.log2(self.settings.unshuffle * self.settings.shrink))

    def forward(self, pictures: Tensor) -> Tensor:
        if self.training or not self.settings.mirror_average:
            return self._restore(pictures)
        return (self._restore(pictures) + self._restore(pictures.flip(3)).flip(3)) / 2.0

    def _restore(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        multiple = self.settings.shrink * self.settings.unshuffle * self.settings.window_size
        padded = _pad_to_multiple(pictures, multiple) - self.mean.to(pictures)
        shallow = self.conv_first(F.avg_pool2d(padded, self.settings.shrink) if self.settings.shrink > 1 else padded)
        x = self._to_pixels(self.refine(self.conv_after_body(self._body(shallow)) + shallow))
        if self.settings.global_residual:
            x = x + padded
        return (x + self.mean.to(x))[..., :height, :width]

    def _to_pixels(self, x: Tensor) -> Tensor:
        if self.settings.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        x = self.conv_before_upsample(x)
        for i in range(1, self._doublings + 1):
            x = F.leaky_relu(getattr(self, f"conv_up{i}")(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))

    def _body(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed.norm(x.permute(0, 2, 3, 1))
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens).permute(0, 3, 1, 2)


class _Normed(nn.Module):
    """A module that contains `norm`, to match the parameter's name in the checkpoint."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)


class ResidualConvs(nn.Sequential):
    """Two convolutions with a ReLU between them, added to their input; initially they add zero. (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        nn.init.zeros_(self[2].weight)
        nn.init.zeros_(self[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ResidualGroup(nn.Module):
    """RSTB: Swin layers, every other one with shifted windows, a convolution, a residual connection. (B, H, W, C)."""

    def __init__(self, config: SwinIRConfig, depth: int, heads: int) -> None:
        super().__init__()
        shifts = [0 if i % 2 == 0 else config.window_size // 2 for i in range(depth)]
        self.residual_group = nn.Module()
        self.residual_group.blocks = nn.ModuleList(SwinBlock(config, heads, shift) for shift in shifts)
        self.conv = _group_end(config)
        self.gradient_checkpointing = False  # set with the function below by diffusers' enable_gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.residual_group.blocks:
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            y = self._gradient_checkpointing_func(block, y) if recompute else block(y)
        return self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + x


def _group_end(config: SwinIRConfig) -> nn.Module:
    """What ends a group of layers: one convolution, or three through a bottleneck. (B, C, H, W)."""
    width = config.embed_dim
    if not config.bottleneck:
        return nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(width, width // 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width // 4, width // 4, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width // 4, width, 3, padding=1),
    )


class SwinBlock(nn.Module):
    """Window attention and an MLP, each after a layer norm and with a residual connection. (B, H, W, C)."""

    def __init__(self, config: SwinIRConfig, heads: int, shift: int) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.window, self.shift = config.window_size, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.window_size, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        y = self.norm1(x)
        mask = None
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
            mask = shift_mask(height, width, self.window, self.shift, y)
        y = from_windows(self.attn(to_windows(y, self.window), mask), height, width, self.window)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias per head and relative position. (B·N, window², C)."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            windows: (B·N, T, C).
            mask: (N, T, T), added to the attention logits, or None.
        """
        count, tokens, dim = windows.shape
        heads = (count, self.heads, tokens, dim // self.heads)
        q, k, v = self.qkv(windows).view(count, tokens, 3, self.heads, heads[-1]).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(tokens, tokens, self.heads).permute(2, 0, 1)[None]
        if mask is not None:
            # The windows of a picture become heads, so that one bias (1, N·heads, T, T) is valid for the whole batch.
            bias = (bias + mask[:, None]).flatten(0, 1)[None]
            q, k, v = (x.reshape(-1, bias.shape[1], tokens, heads[-1]) for x in (q, k, v))
        out = attention(q, k, v, bias.to(q)).reshape(heads)
        return self.proj(out.transpose(1, 2).reshape(count, tokens, dim))


def relative_positions(window: int) -> Tensor:
    """The row of the bias table for each pair of a window's T = window² cells, int64 (T, T)."""
    cells = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = (cells[:, :, None] - cells[:, None, :]) + (window - 1)
    return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """The mask to add to attention logits after a cyclic shift: `MASKED` between cells of different regions.

    Rolling a grid by −shift moves its first `shift` rows below its last row, and columns likewise. A cell's region is 0
    before the last window, 1 in the last window, and 2 in the part that was moved there. The mask is built by
    comparing ranges, so an exported graph works at every size.

    Args:
        height: height of the grid in cells.
        width: width of the grid in cells.
        window: side of a window in cells.
        shift: number of cells by which the grid is shifted.
        like: tensor whose dtype and device the mask gets.

    Returns:
        (N, T, T), N = height/window · width/window, in `like`'s dtype and device.
    """
    rows = torch.arange(height, device=like.device)
    columns = torch.arange(width, device=like.device)
    row_region = (rows >= height - window).long() + (rows >= height - shift).long()
    column_region = (columns >= width - window).long() + (columns >= width - shift).long()
    regions = 3 * row_region[:, None] + column_region[None, :]
    cells = to_windows(regions[None, :, :, None], window)[..., 0]
    return torch.where(cells[:, :, None] == cells[:, None, :], 0.0, MASKED).to(like.dtype)


def to_windows(x: Tensor, window: int) -> Tensor:
    """Divide a grid (B, H, W, C) into windows (B·H/window·W/window, window², C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(windows: Tensor, height: int, width: int, window: int) -> Tensor:
    """Join windows to a grid (B, H, W, C); the inverse of `to_windows`."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def _pad_to_multiple(pictures: Tensor, multiple: int) -> Tensor:
    """Pad pictures at the bottom and right to a multiple by mirroring; beyond the mirror image the first pixels repeat.

    Padding selects indices that are computed from the sizes, so that an exported graph can pad every size.
    """
    rows, columns = (_mirrored(size, multiple, pictures.device) for size in pictures.shape[-2:])
    return pictures.index_select(2, rows).index_select(3, columns)


def _mirrored(size: int, multiple: int, device: torch.device) -> Tensor:
    """Indices 0 … size−1, then back from size−2, up to the next multiple, int64."""
    positions = torch.arange((size + multiple - 1) // multiple * multiple, device=device)
    return ((size - 1) - ((size - 1) - positions).abs()).clamp_min(0)
