"""A small adversary for image-space training: heads that tell restored pictures from originals by VGG16's features.

The features are those that LPIPS compares anyway, so that the adversary costs little beyond it, and a discriminator on
a frozen classifier's features needs far fewer pictures than one from nothing (Sauer et al. 2021, arXiv:2111.01007). A
head on the pixels themselves sees what a classifier does not care about, such as noise. The loss compares each place of
a restored picture with the same place of its original (relativistic: Jolicoeur-Martineau 2018, arXiv:1807.00734), so
that what is in the picture does not matter and only how it is drawn does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTH = 32  # channels of a head
FINE = 2  # features as large as the picture, and half as large, which their heads halve
SLOPE = 0.2


class Head(nn.Sequential):
    """Three convolutions: maps (B, channels, h, w) → scores (B, 1, h', w'); higher is more like an original.

    The first two have spectral norm 1 (Miyato et al. 2018, arXiv:1802.05957), the last one sets the scale.

    Args:
        channels: channels of the maps.
        fine: halve the maps by the first convolution, of 3×3; else it is one of 1×1, which costs little.
    """

    def __init__(self, channels: int, fine: bool) -> None:
        first = nn.Conv2d(channels, WIDTH, 3, 2, padding=1) if fine else nn.Conv2d(channels, WIDTH, 1)
        super().__init__(
            spectral_norm(first),
            nn.LeakyReLU(SLOPE),
            spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WIDTH, 1, 3, padding=1),
        )


class Adversary(nn.Module):
    """The discriminator: a head on the pixels and one on each of the features.

    Args:
        widths: channels of each of the features, see `LPIPS.widths`.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(3, True), *(Head(width, i < FINE) for i, width in enumerate(widths))])

    def forward(self, pictures: Tensor, features: list[Tensor]) -> list[Tensor]:
        """The scores of each head.

        Args:
            pictures: (B, 3, H, W), RGB in [0, 1].
            features: of the pictures, of unit length across channels, see `LPIPS.features`.
        """
        # A mean square of 1 a channel, as layers are initialised for.
        inputs = [2 * pictures - 1, *(f * f.shape[1] ** 0.5 for f in features)]
        return [head(x) for head, x in zip(self.heads, inputs, strict=True)]


def adversarial_losses(
    adversary: Adversary, restored: Tensor, truth: Tensor, features: list[Tensor], true_features: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """(loss of the restoring network, loss of the adversary): softplus of how far the wrong one is ahead.

    The first has no gradient by the adversary's weights, the second none by the restored picture, so that one backward
    pass of their sum trains each side for its own.

    Args:
        adversary: the discriminator.
        restored: restored pictures (B, 3, H, W), RGB, about [0, 1].
        truth: their originals.
        features: features of the restored pictures.
        true_features: features of the originals, without gradient.
    """
    real = adversary(truth, true_features)
    fake = adversary(restored.detach(), [f.detach() for f in features])
    fixed = {name: parameter.detach() for name, parameter in adversary.named_parameters()}
    judged = torch.func.functional_call(adversary, fixed, (restored, features))
    return _behind(judged, [score.detach() for score in real]), _behind(real, fake)


def _behind(ones: list[Tensor], others: list[Tensor]) -> Tensor:
    """softplus(other − one), the mean over places, pictures and heads: small where all of `ones` score higher."""
    return torch.stack([F.softplus((b - a).float()).mean() for a, b in zip(ones, others, strict=True)]).mean()
