"""Pictures: reading, writing and resizing, with Pillow and numpy only.

A picture is float32 (H, W, 3), RGB in [0, 1]. Whatever is wrong with a file or with a request is an `ImageError`
of one line that names the file.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffbody_ref.ops.files import write_whole

Decoded = TypeVar("Decoded")

MIN_SIDE = 16
MAX_PIXELS = 100_000_000

_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "exact": True},
}
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class ImageError(ValueError):
    """A picture cannot be read, written or resized; the message is one clear line."""


class ImageExistsError(ImageError, FileExistsError):
    """The output exists and overwriting was not asked for."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: float32 (H, W, 3), RGB in [0, 1], upright (EXIF orientation applied), not multiplied by alpha.
        alpha: float32 (H, W) in [0, 1], 1 is opaque; None where the file has no transparency.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None


ImageInput = Image.Image | np.ndarray | Picture | str | os.PathLike[str]
"""What a call takes: a picture of Pillow's, an array, float (H, W, 3) in [0, 1], a `Picture`, or a file's path."""


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file; see `decode_image`.

    Raises:
        ImageError: there is no such readable file, or it is not a picture that can be used.
    """
    try:
        with Path(path).open("rb") as file:
            return decode_image(file, name=os.fspath(path), max_pixels=max_pixels)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not a picture") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None


def decode_image(data: bytes | BinaryIO, name: str = "picture", max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture in any format Pillow knows; of an animation, the first frame.

    What the pixels become is told at `picture_from_image`. 16-bit colour comes as 8 bits (Pillow decodes it so).

    Args:
        data: the file's bytes, or a seekable binary stream.
        name: what the error messages call it.
        max_pixels: larger pictures are refused by their header, before anything is decoded.

    Raises:
        ImageError: not a picture, truncated, corrupt, of an unsupported colour mode, smaller than 16×16, too large.
    """
    return _decode(data, name, max_pixels, picture_from_image)


def decode_levels(data: bytes | BinaryIO, name: str = "picture", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a picture as uint8 (H, W, 3), RGB, upright, in a third of the memory that `decode_image` takes.

    What is transparent lies over white. Arguments and errors as those of `decode_image`.
    """
    return _decode(data, name, max_pixels, _levels_from_image)


def _decode(
    data: bytes | BinaryIO, name: str, max_pixels: int, convert: Callable[[Image.Image, str], Decoded]
) -> Decoded:
    stream = io.BytesIO(data) if isinstance(data, bytes | bytearray | memoryview) else data
    # Decoders raise all sorts of exceptions on broken files; to the user they are one case.
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on; the limit here is max_pixels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(stream)
        with image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise ImageError(f"{name}: too large: {size}, at most {max_pixels:,} pixels are read")
            return convert(image, name)
    except ImageError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, 179 million pixels
        raise ImageError(f"{name}: too large: more than {max_pixels:,} pixels") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture, or of an unknown format") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: truncated, corrupt or unsupported: {reason}") from error


def picture_from_image(image: Image.Image, name: str = "picture") -> Picture:
    """A Pillow image as a picture: upright, grey, palette and CMYK turned to RGB; colour profiles are not applied.

    Modes of more than 8 bits: "I;16" and "I" are grey in 0..65535, "F" is grey in 0..1.

    Raises:
        ImageError: smaller than 16×16.
        ValueError: a colour mode Pillow cannot turn to RGB.
        OSError: the image was opened but not loaded yet, and its file turns out to be broken.
    """
    _check_side(image, name)
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "F":
        scale = 1.0 if image.mode == "F" else 65535.0
        grey = np.clip(np.nan_to_num(np.asarray(image, dtype=np.float32)) / np.float32(scale), 0.0, 1.0)
        return Picture(np.repeat(grey[:, :, None], 3, axis=2))
    transparent = image.has_transparency_data
    values = np.asarray(image.convert("RGBA" if transparent else "RGB"), dtype=np.float32) / np.float32(255)
    return Picture(values[:, :, :3].copy(), values[:, :, 3].copy()) if transparent else Picture(values)


def _levels_from_image(image: Image.Image, name: str) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "F":
        return np.rint(picture_from_image(image, name).pixels * np.float32(255)).astype(np.uint8)
    _check_side(image, name)
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_side(image: Image.Image, name: str) -> None:
    if min(image.size) < MIN_SIDE:
        raise ImageError(f"{name}: too small: {image.width}x{image.height}, need at least {MIN_SIDE}x{MIN_SIDE}")


def as_picture(image: ImageInput) -> Picture:
    """A call's input as a `Picture`.

    Raises:
        ImageError: a file that cannot be read, or is no picture.
        ValueError: an array of another shape or range, or a picture smaller than 16×16.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return picture_from_image(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f"an array must be float (H, W, 3) in [0, 1], got {image.dtype} {image.shape}")
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise ValueError("an array's values must be in [0, 1]")
        image = Picture(image.astype(np.float32))
    if not isinstance(image, Picture):
        raise ValueError(f"image must be a PIL picture, an array, a path or a list of them, got {type(image).__name__}")
    height, width = image.pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"picture is too small: {width}x{height}, need at least {MIN_SIDE}x{MIN_SIDE}")
    return image


def to_image(pixels: np.ndarray, alpha: np.ndarray | None = None) -> Image.Image:
    """A picture as Pillow's, with 8 bits a channel: RGB, or RGBA where there is an alpha.

    Args:
        pixels: float (H, W, 3); clipped to [0, 1].
        alpha: float (H, W), the same, or None.

    Raises:
        ImageError: a value is not finite.
    """
    values = pixels if alpha is None else np.dstack([pixels, alpha])
    if not np.isfinite(values).all():
        raise ImageError("pixels hold values that are not finite")
    return Image.fromarray(np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8))


def encode_image(
    pixels: np.ndarray, alpha: np.ndarray | None = None, format: str = "png", quality: int | None = None
) -> bytes:
    """Encode a picture with 8 bits a channel.

    Args:
        pixels: float (H, W, 3); clipped to [0, 1].
        alpha: float (H, W) or None. JPEG holds no alpha: there the picture is laid over white.
        format: "png", "jpg" (4:4:4) or "webp".
        quality: of jpg and webp, 1 to 100; None is 95.

    Raises:
        ImageError: an unknown format, a wrong shape, values that are not finite, or a size the format cannot hold.
    """
    name = _FORMATS.get(format.lower().lstrip("."))
    if name is None:
        raise ImageError(f"unknown picture format {format!r}, supported are {', '.join(_FORMATS)}")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"pixels must be of shape (H, W, 3), got {pixels.shape}")
    if alpha is not None and alpha.shape != pixels.shape[:2]:
        raise ImageError(f"alpha must be of shape {pixels.shape[:2]}, got {alpha.shape}")
    if alpha is not None and name == "JPEG":
        opacity = np.clip(alpha, 0.0, 1.0)[:, :, None]
        pixels, alpha = np.clip(pixels, 0.0, 1.0) * opacity + (1.0 - opacity), None
    image = to_image(pixels, alpha)
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=name, **_SAVE_OPTIONS[name] | ({} if quality is None else {"quality": quality}))
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot encode {image.width}x{image.height} as {name}: {error}") from error
    return buffer.getvalue()


def write_image(
    path: str | os.PathLike[str], pixels: np.ndarray, alpha: np.ndarray | None = None, overwrite: bool = False
) -> None:
    """Write a picture file, whole or not at all; the format follows from the suffix (see `encode_image`).

    Raises:
        ImageExistsError: the file exists and `overwrite` is not set.
        ImageError: an unknown suffix, a folder that is missing or not writable, a picture that cannot be encoded.
    """
    path = Path(path)
    if path.suffix.lower().lstrip(".") not in _FORMATS:
        suffixes = ", ".join(f".{suffix}" for suffix in _FORMATS)
        raise ImageError(f"{path}: unknown suffix {path.suffix!r}, supported are {suffixes}")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise ImageExistsError(f"{path}: exists; allow overwriting or choose another name")
    data = encode_image(pixels, alpha, path.suffix)
    try:
        write_whole(path, data, overwrite=overwrite)
    except FileExistsError:
        raise ImageExistsError(f"{path}: exists; allow overwriting or choose another name") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from None


def resize(pixels: np.ndarray, height: int, width: int, method: str = "bicubic") -> np.ndarray:
    """Resize in float, with antialiasing when shrinking (except "nearest").

    Args:
        pixels: float (H, W) or (H, W, C), any range.
        height, width: the new size in pixels.
        method: "nearest", "area" (mean of the covered pixels), "bicubic" or "lanczos". The last two can overshoot the
            input's range by a little; nothing is clipped here.

    Returns:
        float32 (height, width) or (height, width, C).

    Raises:
        ImageError: an unknown method, a wrong shape or size.
    """
    if method not in _FILTERS:
        raise ImageError(f"unknown resize method {method!r}, choose one of {', '.join(_FILTERS)}")
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ImageError(f"pixels must be of shape (H, W) or (H, W, C), got {pixels.shape}")
    if height < 1 or width < 1:
        raise ImageError(f"cannot resize to {height}x{width} (height x width), both must be positive")
    channels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    resized = np.empty((height, width, channels.shape[2]), dtype=np.float32)
    for index in range(channels.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(channels[:, :, index], dtype=np.float32))
        resized[:, :, index] = np.asarray(plane.resize((width, height), _FILTERS[method]))
    return resized[:, :, 0] if pixels.ndim == 2 else resized


def working_size(height: int, width: int, base_height: int, base_width: int) -> tuple[int, int]:
    """Height and width in pixels at which a picture is restored, before padding.

    A picture of less area than the base is scaled up, its aspect kept, to at least the base's area; a larger one keeps
    its size.

    Raises:
        ValueError: a size is not positive.
    """
    if min(height, width, base_height, base_width) < 1:
        raise ValueError(f"sizes must be positive, got {height}x{width}, base {base_height}x{base_width}")
    if height * width < base_height * base_width:
        scale = math.sqrt(base_height * base_width / (height * width))
        # The margin keeps a product that is whole but for rounding from being lifted to the next integer.
        height, width = math.ceil(height * scale - 1e-9), math.ceil(width * scale - 1e-9)
    return height, width


def pad(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pad (H, W) or (H, W, C) at the bottom and right to height × width; `crop` undoes it.

    The padding mirrors the picture; where the picture is too small for that, it repeats the edge.

    Raises:
        ValueError: the array is larger than that.
    """
    for axis, size in enumerate((height, width)):
        missing = size - pixels.shape[axis]
        if missing < 0:
            raise ValueError(f"cannot pad {pixels.shape[0]}x{pixels.shape[1]} to {height}x{width}")
        widths = [(0, missing if index == axis else 0) for index in range(pixels.ndim)]
        if missing:
            pixels = np.pad(pixels, widths, mode="reflect" if missing < pixels.shape[axis] else "edge")
    return pixels


def crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The top left height × width of (H, W) or (H, W, C): what `pad` was given.

    Raises:
        ValueError: the array is smaller than that.
    """
    if pixels.shape[0] < height or pixels.shape[1] < width:
        raise ValueError(f"cannot crop {pixels.shape[0]}x{pixels.shape[1]} to {height}x{width}")
    return pixels[:height, :width]


def round_up(value: int, multiple: int) -> int:
    """The next multiple, or the value itself if it is one."""
    return -(-value // multiple) * multiple
