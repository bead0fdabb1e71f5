"""The part network: part maps and part embeddings of one person's picture.

The architecture is BPBReID (Somers et al., WACV 2023, arXiv:2211.03679) on HRNet-W32 (Wang et al. 2020,
arXiv:1908.07919) or ResNet-50 (He et al. 2016). Parameter names are those of the public BPBReID checkpoints. Their
`*_identity_classifier`, `background_after_pooling_dim_reduce` and `cls_head` are needed neither for part maps nor for
embeddings and have no counterpart here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ModelMixin  # noqa: F401  # DiffusionPipeline.from_pretrained looks for it beside the class
from torch import Tensor, nn

from diffbody_ref.models.backbones import HRNet, ResNet
from diffbody_ref.models.base import ConfiguredModel
from diffbody_ref.models.resizing import resize
from diffbody_ref.ops.parts import mirrored_parts, part_names

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PartNetConfig:
    """The configuration of the part network; the defaults are those of the public checkpoints with HRNet-W32.

    Attributes:
        backbone: "hrnet" (features at 1/4 of the input) or "resnet50" (1/16).
        input_height: height in pixels to which every picture is resized, a multiple of 32.
        input_width: width in pixels to which every picture is resized, a multiple of 32.
        part_set: a key of `diffbody_ref.ops.parts.PART_SETS`.
        embedding_dim: D, the length of each embedding.
        stem_width: channels of the first convolutions; ResNet's stages are 1, 2, 4, 8 times as wide.
        stage_blocks: bottleneck blocks of ResNet's four stages; HRNet only has the first stage.
        branch_widths: channels of HRNet's four branches, from fine to coarse.
        branch_modules: exchange modules in HRNet's stages of two, three and four branches.
        branch_blocks: residual blocks of each branch in each exchange module.
        head_planes: planes at the end of each HRNet branch, whose output has 4 times as many channels; the outputs of
            all branches are concatenated.
        mirror_average: attention maps are the mean of the maps for the picture and for its mirror image, which is a
            little nearer to the truth; embeddings, and thus body guidance, only depend on the picture itself.

    Raises:
        ValueError: a value is out of its range.
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
    """The output of a part network for B pictures, on its feature grid of h×w cells.

    Attributes:
        embeddings: (B, K, D), the embedding of each part; non-negative (the output of a ReLU).
        foreground: (B, D), the embedding of the whole person.
        global_: (B, D), the embedding of the whole picture.
        logits: (B, K+1, h, w), the output of the pixel classifier, background first.
        masks: (B, K+1, h, w), the softmax of the logits.
        foreground_map: (B, 1, h, w) in [0, 1], the maximum of the part masks.
        visibility: (B, K), 1 if the part is the likeliest class of some cell, else 0. It is made by an argmax and has
            no gradient: use it as a weight or a target.
    """

    embeddings: Tensor
    foreground: Tensor
    global_: Tensor
    logits: Tensor
    masks: Tensor
    foreground_map: Tensor
    visibility: Tensor


class PartNet(ConfiguredModel):
    """BPBReID: a pixel classifier finds the parts, and its masks pool the backbone's features to embeddings."""

    config_dataclass = PartNetConfig

    def __init__(self, config: PartNetConfig) -> None:
        super().__init__(config)
        self.input_size = (config.input_height, config.input_width)
        self.part_names = part_names(config.part_set)
        self.part_count = len(self.part_names)
        self.backbone_appearance_feature_extractor = _backbone(config)
        channels = self.backbone_appearance_feature_extractor.out_channels
        self.pixel_classifier = PixelClassifier(channels, self.part_count + 1)
        self.global_after_pooling_dim_reduce = DimReduce(channels, config.embedding_dim)
        self.foreground_after_pooling_dim_reduce = DimReduce(channels, config.embedding_dim)
        self.parts_after_pooling_dim_reduce = DimReduce(channels, config.embedding_dim)
        for convolution in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        # Small weights, so that training starts from undecided masks.
        nn.init.normal_(self.pixel_classifier.classifier.weight, std=0.01)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize to the network's input size (differentiable, antialiased) and normalise by ImageNet's statistics.

        Args:
            images: (B, 3, H, W), RGB in [0, 1], of any size and floating dtype.

        Returns:
            (B, 3, input_height, input_width) in the network's dtype.

        Raises:
            ValueError: the images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}; they must be (B, 3, H, W)")
        images = resize(images.to(self.dtype), *self.input_size)
        mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
        return (images - mean[:, None, None]) / std[:, None, None]

    def forward(self, images: Tensor) -> PartOutput:
        """Find and embed the parts of the person in each picture.

        In evaluation mode a picture's result does not depend on the other pictures of its batch.

        Args:
            images: (B, 3, H, W), RGB in [0, 1], each a crop around one person, of any size.

        Raises:
            ValueError: the images have another shape.
        """
        features = self.backbone_appearance_feature_extractor(self.preprocess(images))
        logits = self.pixel_classifier(features)
        masks = logits.softmax(dim=1)
        foreground_map = masks[:, 1:].amax(dim=1, keepdim=True)
        cells, weights = features.flatten(2).transpose(1, 2), masks[:, 1:].flatten(2)  # (B, hw, C), (B, K, hw)
        # Parts are weighted means. The foreground is a mean over all cells, so that it also contains the person's size.
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
        """The masks (B, K+1, h, w) from which attention maps are made; see `PartNetConfig.mirror_average`.

        Args:
            images: (B, 3, H, W), RGB in [0, 1].
            output: the network's output for these images.
        """
        if not self.settings.mirror_average:
            return output.masks
        order = [0, *(1 + part for part in mirrored_parts(self.settings.part_set))]
        return (output.masks + self(images.flip(-1)).masks[:, order].flip(-1)) / 2


def _backbone(config: PartNetConfig) -> HRNet | ResNet:
    if config.backbone == "resnet50":
        return ResNet(config.stem_width, config.stage_blocks)
    return HRNet(
        config.stem_width,
        config.stage_blocks[0],
        config.branch_widths,
        config.branch_modules,
        config.branch_blocks,
        config.head_planes,
    )


@torch.no_grad()
def _visibility(masks: Tensor) -> Tensor:
    """The visibility (B, K) of the parts in masks (B, K+1, h, w); see `PartOutput`."""
    winner = masks.argmax(dim=1, keepdim=True)
    parts = torch.arange(1, masks.shape[1], device=masks.device)[:, None, None]
    return (winner == parts).to(masks.dtype).amax(dim=(2, 3))


def attention_map(masks: Tensor, height: int, width: int) -> Tensor:
    """The attention map A of eq. 3: K part maps, then the foreground map (their maximum), resized.

    Args:
        masks: (B, K+1, h, w), from `PartNet.attention_masks`, background first.
        height: height of the map in pixels.
        width: width of the map in pixels.

    Returns:
        (B, K+1, height, width) in [0, 1].
    """
    parts = masks[:, 1:]
    return resize(torch.cat([parts, parts.amax(dim=1, keepdim=True)], dim=1), height, width)


class PixelClassifier(nn.Module):
    """The classifier of each cell: logits of background and parts."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, classes, h, w)."""
        return self.classifier(self.bn(features))


class DimReduce(nn.Module):
    """The layer from pooled features to an embedding."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, dim), nn.BatchNorm1d(dim), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, dim), non-negative."""
        return self.layers(features)
