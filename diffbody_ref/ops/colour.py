"""Colour correction: give a restored picture the colours of a reference (the regression result)."""

from __future__ import annotations

import numpy as np

COLOUR_METHODS = ("wavelet", "adain", "none")

_ADAIN_EPSILON = 1e-5  # on the variance, as in Huang & Belongie 2017: keeps flat channels finite


def match_colour(image: np.ndarray, reference: np.ndarray, method: str = "wavelet", levels: int = 5) -> np.ndarray:
    """Match the colours of `image` to `reference`.

    "wavelet" keeps the image's details and takes the reference's low frequencies (à-trous decomposition, as StableSR
    and DiffBIR do): correct where colours vary over the picture. "adain" matches each channel's mean and standard
    deviation: one correction for the whole picture. "none" returns the image.

    Args:
        image, reference: float32 (H, W, C) in [0, 1], of the same shape.
        method: one of `COLOUR_METHODS`.
        levels: of the wavelet; the blur reaches 2^levels − 1 pixels. It needs no limit for small pictures: what lies
            outside repeats the edge, however far the blur reaches.

    Returns:
        float32 (H, W, C), clipped to [0, 1].

    Raises:
        ValueError: an unknown method, different shapes, or less than one level.
    """
    if method not in COLOUR_METHODS:
        raise ValueError(f"unknown colour method {method!r}, choose one of {', '.join(COLOUR_METHODS)}")
    if image.ndim != 3 or image.shape != reference.shape:
        raise ValueError(f"image and reference must both be (H, W, C), got {image.shape} and {reference.shape}")
    if method == "none":
        return image
    image, reference = image.astype(np.float32, copy=False), reference.astype(np.float32, copy=False)
    matched = _adain(image, reference) if method == "adain" else _wavelet(image, reference, levels)
    return np.clip(matched, 0.0, 1.0)


def _wavelet(image: np.ndarray, reference: np.ndarray, levels: int) -> np.ndarray:
    # image − low(image) + low(reference); the low pass is linear, so one blur of the difference does for both.
    return image + wavelet_low_pass(reference - image, levels)


def _adain(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    def mean_and_std(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, variance = pixels.mean(axis=(0, 1), dtype=np.float64), pixels.var(axis=(0, 1), dtype=np.float64)
        return mean, np.sqrt(variance + _ADAIN_EPSILON)

    (mean, std), (target_mean, target_std) = mean_and_std(image), mean_and_std(reference)
    scale = target_std / std
    return image * scale.astype(np.float32) + (target_mean - mean * scale).astype(np.float32)


def wavelet_low_pass(pixels: np.ndarray, levels: int = 5) -> np.ndarray:
    """The lowest band of the à-trous wavelet transform, float32 (H, W, C).

    Level i blurs with [1 2 1]/4 along both axes, the taps 2^i pixels apart, the edge repeated.

    Raises:
        ValueError: less than one level.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    low = np.array(pixels, dtype=np.float32)
    for level in range(levels):
        low = _blur_rows(low, 2**level)
        low = _blur_rows(low.swapaxes(0, 1), 2**level).swapaxes(0, 1)
    return low


def _blur_rows(pixels: np.ndarray, radius: int) -> np.ndarray:
    """Blur along axis 0. The shifted copies are clamped slices, so that no padded copy is made."""
    radius = min(radius, len(pixels))  # further away there is only the edge
    blurred = pixels * np.float32(2)
    blurred[radius:] += pixels[: len(pixels) - radius]
    blurred[:radius] += pixels[:1]
    blurred[: len(pixels) - radius] += pixels[radius:]
    blurred[len(pixels) - radius :] += pixels[-1:]
    blurred *= np.float32(0.25)
    return blurred
