"""Full-reference measures of a restored picture: PSNR, SSIM, and its sharpness compared with the original."""

from __future__ import annotations

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffbody_ref.ops.colour import wavelet_low_pass

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
DETAIL_BLOCK = 8  # pixels: small enough to separate an edge from the flat area beside it, tolerant of a one-pixel shift


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

    H is the finest band of the à-trous wavelet transform of the luma, 1 − [1 2 1]⊗[1 2 1]/16. A value of 1 is as sharp
    as the original, less is over-smoothed, more is noise or ringing.

    Why energy, and why relative: the best regression is r = E[x|y], and the law of total variance gives
    E‖Hx‖² = E‖Hr‖² + E‖H(x − r)‖². So a regression stage always falls short of 1 by exactly the detail that it could
    not predict, while a sample of the posterior x|y has 1. The ratio measures what the diffusion prior should add, and
    needs no network. It does not show whether the energy is in the right place: `detail_error` does.

    Args:
        picture: float (H, W, 3), RGB in [0, 1].
        truth: float (H, W, 3), RGB in [0, 1].

    Raises:
        ValueError: the original is flat, so there is no detail to compare with.
    """
    return float(_detail_energy(picture).sum() / _reference_energy(truth).sum())


def detail_error(picture: np.ndarray, truth: np.ndarray) -> float:
    """Missing or excess detail energy, block by block: Σ_b |e_b(p) − e_b(x)| / Σ_b e_b(x).

    e_b is the energy of `sharpness` within block b of 8×8 pixels. The original has 0, a picture without any detail has
    1; the error is never less than |1 − sharpness|, and equal to it if every block is over-smoothed. It guards against
    noise that counts as sharpness: detail energy added to a smooth picture lowers the error only if more than half of
    it is added where it was missing, because Σ|e(p) − e(x)| = Σe(x) − Σe(p) + 2·Σmax(e(p) − e(x), 0). Details are at
    edges and textures but noise is everywhere, so a noisy picture gains little or loses, unless the original has detail
    everywhere (so look at the pictures as well). The guard is strict: even a true sample of the posterior is penalised
    for details that it puts into another block. (Correlation with the original would penalise even a shift by one
    pixel; a distance of radial spectra does not depend on where the energy is.)

    Arguments and errors are those of `sharpness`.
    """
    reference = _reference_energy(truth)
    return float(np.abs(_detail_energy(picture) - reference).sum() / reference.sum())


def _detail_energy(picture: np.ndarray) -> np.ndarray:
    """Energy of the finest à-trous band in each block, float64 (⌈H/8⌉, ⌈W/8⌉)."""
    luma = (picture @ LUMA)[:, :, None]
    energy = np.square((luma - wavelet_low_pass(luma, 1))[:, :, 0], dtype=np.float64)
    for axis in (0, 1):
        energy = np.add.reduceat(energy, np.arange(0, energy.shape[axis], DETAIL_BLOCK), axis=axis)
    return energy


def _reference_energy(truth: np.ndarray) -> np.ndarray:
    """`_detail_energy` of an original, which must not be flat."""
    energy = _detail_energy(truth)
    # Rounding alone leaves about (1e-7)² per pixel in a flat picture; one 8-bit level at one pixel is 1e-5.
    if energy.sum() < 1e-9:
        raise ValueError("the original picture is flat: it has no detail to compare the sharpness with")
    return energy
