"""Full-reference measures of a restored picture: PSNR, SSIM, and how sharp it is compared with the original."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffbody_ref.ops.colour import wavelet_low_pass

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
DETAIL_BLOCK = 8  # pixels: local enough to tell an edge from the flat area beside it, forgiving of a shift by a pixel


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio over RGB in dB, −10·log10(mean squared error); both float (H, W, 3) in [0, 1]."""
    return float(peak_signal_noise_ratio(truth, picture, data_range=1.0))


def ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity as Wang et al. (2004) define it: Gaussian window of σ = 1.5, population covariance.

    The mean over RGB and pixels; both float (H, W, 3) in [0, 1], sides of at least 11 pixels.
    """
    return float(
        structural_similarity(
            truth,
            picture,
            data_range=1.0,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def sharpness(picture: np.ndarray, truth: np.ndarray) -> float:
    """Energy of the finest details relative to the original's: Σ(Hp)² / Σ(Hx)².

    H is the finest band of the à-trous wavelet transform of the luma, 1 − [1 2 1]⊗[1 2 1]/16. 1 is as sharp as the
    original, less is over-smoothed, more is noise or ringing.

    Why energy, and why relative: the best regression is r = E[x|y], and the law of total variance gives
    E‖Hx‖² = E‖Hr‖² + E‖H(x − r)‖², so a regression stage always falls short of 1 by exactly the detail that it could
    not predict, while a sample of the posterior x|y has 1. The ratio measures what the diffusion prior is there to
    add, and needs no network to measure it. It does not say whether that energy is in the right place:
    `detail_error` does.

    Args:
        picture, truth: float (H, W, 3), RGB in [0, 1], of the same shape.

    Raises:
        ValueError: the original is flat, so that there is no detail to compare with.
    """
    return float(_detail_energy(picture).sum() / _reference_energy(truth).sum())


def detail_error(picture: np.ndarray, truth: np.ndarray) -> float:
    """Detail energy that is missing or too much, block by block: Σ_b |e_b(p) − e_b(x)| / Σ_b e_b(x).

    e_b is the energy of `sharpness` within block b of 8×8 pixels. 0 is the original; 1 is a picture without any detail;
    it is never less than |1 − sharpness|, and equal to it where every block is over-smoothed. It guards against noise
    that counts as sharpness: detail energy added to a smooth picture lowers the error only if more than half of it goes
    where it was missing, because Σ|e(p) − e(x)| = Σe(x) − Σe(p) + 2·Σmax(e(p) − e(x), 0). Details sit at edges and
    textures and noise everywhere, so a noisy picture gains little or loses, unless the original is busy everywhere (so
    look at the pictures as well). The guard is stern: a true sample of the posterior, too, pays for details that it
    puts into another block. (Correlation with the original would punish even a shift by a pixel; a distance of radial
    spectra does not see where the energy is.)

    Args and errors as for `sharpness`.
    """
    reference = _reference_energy(truth)
    return float(np.abs(_detail_energy(picture) - reference).sum() / reference.sum())


def _detail_energy(picture: np.ndarray) -> np.ndarray:
    """Energy of the finest à-trous band per block, float64 (⌈H/8⌉, ⌈W/8⌉)."""
    luma = (picture @ LUMA)[:, :, None]
    energy = np.square((luma - wavelet_low_pass(luma, 1))[:, :, 0], dtype=np.float64)
    for axis in (0, 1):
        energy = np.add.reduceat(energy, np.arange(0, energy.shape[axis], DETAIL_BLOCK), axis=axis)
    return energy


def _reference_energy(truth: np.ndarray) -> np.ndarray:
    energy = _detail_energy(truth)
    # Rounding alone leaves about (1e-7)² a pixel in a flat picture; one 8-bit level at one pixel is 1e-5.
    if energy.sum() < 1e-9:
        raise ValueError("the original picture is flat: it has no detail to compare the sharpness with")
    return energy


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "psnr": psnr,
    "ssim": ssim,
    "sharpness": sharpness,
    "detail_error": detail_error,
}
