"""Seeded blind degradation: a second-order chain of blur, resize, noise and JPEG, and what else befalls pictures.

Motion blur, a second downscaling, over-sharpening and a video codec have a probability each, 0 by default.

Sources: the second-order chain of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833), with the ranges of DiffBIR (Lin et
al. 2023, arXiv:2308.15070) for the paper's 1024×512 pictures. Ranges are per preset because a blur of 12 pixels that
leaves a 1024-pixel person recognisable erases a 256-pixel one.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from diffbody_ref.data.motion import limb_moved, motion_kernel, moved
from diffbody_ref.ops.images import resize


@dataclass(frozen=True)
class DegradationConfig:
    """Ranges from which the parameters of each picture's degradation are drawn uniformly, and probabilities.

    Attributes:
        blur_sigma: standard deviation of the Gaussian blur in pixels.
        downscale: factor of the downscaling, drawn log-uniformly.
        noise: standard deviation of the noise in 8-bit levels (0–255).
        jpeg_quality: quality of the JPEG compression, 1–100.
        anisotropic_probability: probability of an anisotropic blur.
        grey_noise_probability: probability of the same noise in all channels.
        poisson_probability: probability of photon noise instead of Gaussian noise.
        second_order_probability: probability of a second pass.
        second_order_strength: strength of the second pass relative to the first.
        motion_probability: probability of motion blur of the whole picture along a path.
        limb_motion_probability: probability of motion blur of a limb (see `data.motion`).
        motion: length of the path in pixels of the whole picture.
        rescale_probability: probability that the degraded picture is shrunk once more and enlarged to its size again.
        rescale: factor of that shrinking, drawn log-uniformly.
        sharpen_probability: probability of over-sharpening by an unsharp mask.
        sharpen: strength of the unsharp mask.
        video_probability: probability of a video codec's compression (VP8's key frame, as WebP has it).
        video_quality: its quality, 1–100.

    Raises:
        ValueError: a value is out of its range.
    """

    blur_sigma: tuple[float, float] = (0.1, 12.0)
    downscale: tuple[float, float] = (1.0, 12.0)
    noise: tuple[float, float] = (0.0, 15.0)
    jpeg_quality: tuple[int, int] = (30, 100)
    anisotropic_probability: float = 0.4
    grey_noise_probability: float = 0.4
    poisson_probability: float = 0.3
    second_order_probability: float = 0.5
    second_order_strength: float = 0.4
    motion_probability: float = 0.0
    limb_motion_probability: float = 0.0
    motion: tuple[float, float] = (2.0, 8.0)
    rescale_probability: float = 0.0
    rescale: tuple[float, float] = (1.2, 2.0)
    sharpen_probability: float = 0.0
    sharpen: tuple[float, float] = (0.5, 2.0)
    video_probability: float = 0.0
    video_quality: tuple[int, int] = (10, 60)

    def __post_init__(self) -> None:
        for name, least, most in (
            ("blur_sigma", 0.01, math.inf),
            ("downscale", 1.0, math.inf),
            ("noise", 0.0, 255.0),
            ("jpeg_quality", 1, 100),
            ("motion", 0.1, math.inf),
            ("rescale", 1.0, math.inf),
            ("sharpen", 0.0, math.inf),
            ("video_quality", 1, 100),
        ):
            span = getattr(self, name)
            if not (isinstance(span, tuple) and len(span) == 2 and all(map(_is_number, span))):
                raise ValueError(f"{name} is {str(span)[:60]}; it must be two numbers")
            if not least <= span[0] <= span[1] <= most or math.isinf(span[1]):
                raise ValueError(f"{name} is {span[0]:g} to {span[1]:g}; it must rise, from {least:g} to {most:g}")
        for name in (
            "anisotropic_probability",
            "grey_noise_probability",
            "poisson_probability",
            "second_order_probability",
            "second_order_strength",
            "motion_probability",
            "limb_motion_probability",
            "rescale_probability",
            "sharpen_probability",
            "video_probability",
        ):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{name} is {str(value)[:60]}; it must be 0 to 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


PAPER = DegradationConfig()
NANO = DegradationConfig(blur_sigma=(0.1, 2.2), downscale=(1.0, 4.0))

RESIZE_METHODS = ("area", "bilinear", "bicubic")
ENLARGING_METHODS = ("bilinear", "bicubic")
SHARPEN_SIGMA = (0.7, 1.5)  # pixels


def degrade(
    picture: np.ndarray,
    rng: np.random.Generator,
    config: DegradationConfig = PAPER,
    parts: np.ndarray | None = None,
) -> np.ndarray:
    """Draw one blind degradation and apply it.

    Args:
        picture: float32 (H, W, 3), RGB in [0, 1].
        rng: the only source of randomness: the same state gives the same result.
        config: ranges and probabilities.
        parts: the picture's part labels, uint8 (H, W), where they are known; limbs then move as they are.

    Returns:
        The low-quality picture, float32 (h, w, 3) in [0, 1] with h <= H, w <= W, quantised to 8 bits.
    """
    height, width = picture.shape[:2]
    if _happens(config.motion_probability, rng):
        picture = moved(picture, motion_kernel(rng.uniform(*config.motion), rng))
    if _happens(config.limb_motion_probability, rng):
        picture = limb_moved(picture, motion_kernel(rng.uniform(*config.motion), rng), rng, parts)
    scale = float(np.exp(rng.uniform(*np.log(config.downscale))))
    second = rng.random() < config.second_order_probability
    # With two passes the picture shrinks in two steps to the same final size.
    first_scale = scale ** rng.uniform(0.3, 1.0) if second else scale
    low = _one_pass(picture, rng, config, _shrunk(height, width, first_scale), strength=1.0)
    if second:
        low = _one_pass(low, rng, config, _shrunk(height, width, scale), strength=config.second_order_strength)
    return _passed_on(low, rng, config)


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Whether something of this probability happens; without a draw if it cannot."""
    return probability > 0 and rng.random() < probability


def _passed_on(low: np.ndarray, rng: np.random.Generator, config: DegradationConfig) -> np.ndarray:
    """What apps and sites do to a degraded picture: scale it down and up, sharpen it, compress it as video."""
    if _happens(config.rescale_probability, rng):
        factor = float(np.exp(rng.uniform(*np.log(config.rescale))))
        height, width = low.shape[:2]
        smaller = resize(low, *_shrunk(height, width, factor), method=str(rng.choice(RESIZE_METHODS)))
        low = _quantised(resize(smaller, height, width, method=str(rng.choice(ENLARGING_METHODS))))
    if _happens(config.sharpen_probability, rng):
        low = _quantised(sharpened(low, rng.uniform(*SHARPEN_SIGMA), rng.uniform(*config.sharpen)))
    if _happens(config.video_probability, rng):
        low = compressed(low, "WEBP", int(rng.integers(config.video_quality[0], config.video_quality[1] + 1)))
    return low


def _quantised(picture: np.ndarray) -> np.ndarray:
    """Clipped to [0, 1] and rounded to 8 bits, float32."""
    return np.asarray(np.round(np.clip(picture, 0.0, 1.0) * 255.0) / 255.0, np.float32)


def sharpened(picture: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """An unsharp mask: p + strength·(p − p blurred by a Gaussian of `sigma` pixels); not clipped."""
    return picture + strength * (picture - gaussian_filter(picture, sigma=(sigma, sigma, 0), mode="nearest"))


def _shrunk(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) divided by `scale`, at least 8 pixels each."""
    return max(8, round(height / scale)), max(8, round(width / scale))


def _one_pass(
    picture: np.ndarray, rng: np.random.Generator, config: DegradationConfig, size: tuple[int, int], strength: float
) -> np.ndarray:
    """Blur, resize to `size` (h, w), add noise, compress as JPEG; `strength` in [0, 1] weakens all but the resize."""
    sigma = config.blur_sigma[0] + (config.blur_sigma[1] - config.blur_sigma[0]) * rng.random() * strength
    blurred = random_blur(picture, rng, sigma, config.anisotropic_probability)
    small = resize(blurred, *size, method=str(rng.choice(RESIZE_METHODS)))
    noisy = add_noise(small, rng, strength * rng.uniform(*config.noise) / 255.0, config)
    quality = rng.integers(config.jpeg_quality[0], config.jpeg_quality[1] + 1)
    return jpeg(np.clip(noisy, 0.0, 1.0), round(quality + (100 - quality) * (1.0 - strength)))


def random_blur(picture: np.ndarray, rng: np.random.Generator, sigma: float, anisotropic: float) -> np.ndarray:
    """Blur by a Gaussian; with probability `anisotropic` it is narrower across a random direction.

    Args:
        picture: float32 (H, W, 3).
        rng: source of randomness.
        sigma: standard deviation in pixels.
        anisotropic: probability of an anisotropic blur.
    """
    if rng.random() >= anisotropic:
        return np.asarray(gaussian_filter(picture, sigma=(sigma, sigma, 0), mode="nearest", truncate=3.0), np.float32)
    kernel = anisotropic_kernel(sigma, sigma * rng.uniform(0.2, 0.8), rng.uniform(0.0, np.pi))
    radius = kernel.shape[0] // 2
    padded = np.pad(picture, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    return fftconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1)).astype(np.float32)


def anisotropic_kernel(sigma_long: float, sigma_short: float, angle: float) -> np.ndarray:
    """Normalised Gaussian kernel (2r+1, 2r+1), r = ⌈3·sigma_long⌉, its long axis at `angle` radians."""
    radius = max(1, int(np.ceil(3.0 * sigma_long)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    kernel = np.exp(-0.5 * ((along / sigma_long) ** 2 + (across / max(sigma_short, 1e-3)) ** 2))
    return kernel / kernel.sum()


def add_noise(picture: np.ndarray, rng: np.random.Generator, level: float, config: DegradationConfig) -> np.ndarray:
    """Add Gaussian noise of deviation `level` (in the range 0–1), or photon noise of this level at mid-grey."""
    channels = 1 if rng.random() < config.grey_noise_probability else 3
    noise = rng.standard_normal((*picture.shape[:2], channels), dtype=np.float32)
    if rng.random() < config.poisson_probability:
        # Photon noise: variance proportional to brightness, twice `level`² at full white.
        noise = noise * np.sqrt(2.0 * np.clip(picture, 0.0, 1.0))
    return picture + level * noise


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Compress a picture, float32 (H, W, 3) in [0, 1], as JPEG of `quality` (1–100), and decompress it."""
    return compressed(picture, "JPEG", quality)


def compressed(picture: np.ndarray, format: str, quality: int) -> np.ndarray:
    """Compress a picture, float32 (H, W, 3) in [0, 1], and decompress it.

    Args:
        picture: the picture.
        format: "JPEG", or "WEBP", whose lossy compression is that of a key frame of the video codec VP8.
        quality: 1–100.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.round(picture * 255.0))).save(buffer, format=format, quality=quality)
    return np.asarray(Image.open(buffer, formats=[format]), np.float32) / 255.0
