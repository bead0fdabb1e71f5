"""Pictures: reading, writing and resizing, with Pillow and numpy only.

A picture is float32 (H, W, 3), sRGB in [0, 1]. Whatever is wrong with a file or with a request is an `ImageError` of
one line that names the file. What a file loses on the way is a notice, one sentence each.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.formats import OUTPUT_SUFFIXES, ImageError, output_format
from diffbody_ref.ops.metadata import NO_METADATA, Metadata, read_metadata, save_options
from diffbody_ref.ops.opening import MAX_PIXELS, has_more_pictures, open_image
from diffbody_ref.ops.profiles import DEEP_MODES, read_grey, to_srgb

MIN_SIDE = 16

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class ImageExistsError(ImageError, FileExistsError):
    """The output exists and overwriting was not asked for."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: float32 (H, W, 3), sRGB in [0, 1], upright (EXIF orientation applied), not multiplied by alpha.
        alpha: float32 (H, W) in [0, 1], 1 is opaque; None where the file has no transparency.
        metadata: what the file says besides, to be written with the result.
        notices: what of the file was left out or converted, a sentence each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    metadata: Metadata = NO_METADATA
    notices: tuple[str, ...] = ()


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
    """Decode a picture of any of `ops.formats.READ_FORMATS`; of several frames or pages, the first.

    What the pixels become is told at `picture_from_image`.

    Args:
        data: the file's bytes, or a seekable binary stream.
        name: what the error messages call it.
        max_pixels: larger pictures are refused by their header, before anything is decoded.

    Raises:
        ImageError: not a picture, truncated, corrupt, of an unsupported colour mode, smaller than 16×16, too large.
    """
    with open_image(data, name, max_pixels) as image:
        return picture_from_image(image, name)


def decode_levels(data: bytes | BinaryIO, name: str = "picture", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a picture as uint8 (H, W, 3), sRGB, upright, in a third of the memory that `decode_image` takes.

    What is transparent lies over white. Arguments and errors as those of `decode_image`.
    """
    with open_image(data, name, max_pixels) as image:
        _check_side(image, name)
        image.load()
        read_metadata(image)  # it removes broken EXIF, which would make the orientation an error
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in DEEP_MODES:
            return np.rint(read_grey(image)[0] * np.float32(255)).astype(np.uint8)[:, :, None].repeat(3, axis=2)
        colours, _ = to_srgb(image)
        if colours.mode == "RGBA":
            white = Image.new("RGBA", colours.size, "white")
            white.alpha_composite(colours)
            colours = white.convert("RGB")
        return np.asarray(colours)


def decode_labels(data: bytes | BinaryIO, name: str = "labels", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a map of labels, a grey or palette picture: its values as they are, uint8 (H, W).

    Raises:
        ImageError: as `decode_image`, or the picture is in colours.
    """
    with open_image(data, name, max_pixels) as image:
        if image.mode not in ("L", "P"):
            raise ImageError(f"{name}: labels are a grey or palette picture of 8 bits, not of the mode {image.mode}")
        return np.asarray(image)


def picture_from_image(image: Image.Image, name: str = "picture") -> Picture:
    """A Pillow image as a picture: upright, in sRGB by its colour profile; grey, palette, CMYK and LAB turned to RGB.

    Grey of more than 8 bits: "I;16" is in 0..65535, "I" in that or the smallest usual range that holds its values, "F"
    in 0..1 or the smallest one. Colours of more than 8 bits a channel come as 8 bits (Pillow decodes them so).

    Raises:
        ImageError: smaller than 16×16.
        ValueError: a colour mode Pillow cannot turn to RGB.
        OSError: the image was opened but not loaded yet, and its file turns out to be broken.
    """
    _check_side(image, name)
    notices = _lost_in_decoding(image)
    image.load()
    metadata, lost = read_metadata(image)
    upright = ImageOps.exif_transpose(image)
    alpha = None
    if upright.mode in DEEP_MODES:
        grey, converted = read_grey(upright)
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    else:
        colours, converted = to_srgb(upright)
        values = np.asarray(colours, dtype=np.float32) / np.float32(255)
        pixels = values if colours.mode == "RGB" else values[:, :, :3].copy()
        alpha = None if colours.mode == "RGB" else values[:, :, 3].copy()
    return Picture(pixels, alpha, metadata, (*notices, *converted, *lost))


def _lost_in_decoding(image: Image.Image) -> list[str]:
    """What decoding an opened file leaves out, a sentence each. Asked before it is decoded."""
    notices = []
    if has_more_pictures(image):
        # To count those of a GIF or a TIFF, the whole file must be read.
        count = f" of {image.n_frames}" if image.format not in ("GIF", "TIFF") else ""  # type: ignore[attr-defined]
        notices.append(f"the file holds several frames or pages: the first{count} is taken")
    if image.mode not in DEEP_MODES and _is_deep(image):
        notices.append("colours of more than 8 bits a channel: read with 8")
    return notices


def _is_deep(image: Image.Image) -> bool:
    """Whether an opened file, not decoded yet, has more than 8 bits a channel."""
    for tile in getattr(image, "tile", []):
        layout, *numbers = (tile.args,) if isinstance(tile.args, str) else tile.args or ("",)
        if ";16" in str(layout) or (tile.codec_name.startswith("ppm") and numbers[0] > 255):
            return True
    return image.info.get("bit_depth", 8) > 8  # which pillow-heif tells


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
    pixels: np.ndarray,
    alpha: np.ndarray | None = None,
    format: str = "png",
    *,
    quality: int | None = None,
    metadata: Metadata | None = None,
) -> bytes:
    """Encode a picture with 8 bits a channel, tagged as sRGB.

    Args:
        pixels: float (H, W, 3); clipped to [0, 1].
        alpha: float (H, W) or None. JPEG holds no alpha: there the picture is laid over white.
        format: a name or suffix of `ops.formats.OUTPUT_FORMATS`: "png", "jpg", "webp", "avif" or "tiff".
        quality: 1 to 100; None is the format's own. A lossless format has none.
        metadata: to be written into the file, as far as it holds it (see `lost_in_encoding`); None is nothing.

    Raises:
        ImageError: an unknown format or quality, a wrong shape, values that are not finite, or a size the format cannot
            hold.
    """
    target = output_format(format)
    if quality is not None and target.quality is None:
        raise ImageError(f"{target.name} is lossless: it has no quality")
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"quality must be from 1 to 100, got {quality}")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"pixels must be of shape (H, W, 3), got {pixels.shape}")
    if alpha is not None and alpha.shape != pixels.shape[:2]:
        raise ImageError(f"alpha must be of shape {pixels.shape[:2]}, got {alpha.shape}")
    if alpha is not None and not target.alpha:
        opacity = np.clip(alpha, 0.0, 1.0)[:, :, None]
        pixels, alpha = np.clip(pixels, 0.0, 1.0) * opacity + (1.0 - opacity), None
    image = to_image(pixels, alpha)
    options: dict[str, Any] = {
        **target.options,
        **save_options(metadata or NO_METADATA, image.height, image.width, target),
    }
    if target.quality is not None:
        options["quality"] = quality or target.quality
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=target.name, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # KeyError: this Pillow lacks the format
        raise ImageError(f"cannot encode {image.width}x{image.height} as {target.name}: {error}") from error
    return buffer.getvalue()


def lost_in_encoding(format: str, alpha: np.ndarray | None = None, metadata: Metadata | None = None) -> list[str]:
    """What `encode_image` leaves out or changes of a picture in this format, a sentence each.

    Raises:
        ImageError: an unknown format.
    """
    target = output_format(format)
    notices = [f"{target.name} holds no transparency: laid over white"] * (alpha is not None and not target.alpha)
    metadata = metadata or NO_METADATA
    for name, size in (("EXIF", len(metadata.exif)), ("XMP", len(metadata.xmp))):
        if size > target.most_metadata:
            notices.append(f"{target.name} holds no {name} of {size:,} bytes: left out")
    return notices


def write_image(
    path: str | os.PathLike[str],
    pixels: np.ndarray,
    alpha: np.ndarray | None = None,
    overwrite: bool = False,
    *,
    quality: int | None = None,
    metadata: Metadata | None = None,
) -> list[str]:
    """Write a picture file, whole or not at all; the format follows from the suffix (see `encode_image`).

    Returns:
        What the file does not hold, a sentence each.

    Raises:
        ImageExistsError: the file exists and `overwrite` is not set.
        ImageError: an unknown suffix, a folder that is missing or not writable, a picture that cannot be encoded.
    """
    path = Path(path)
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ImageError(f"{path}: unknown suffix {path.suffix!r}, supported are {', '.join(OUTPUT_SUFFIXES)}")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise ImageExistsError(f"{path}: exists; allow overwriting or choose another name")
    data = encode_image(pixels, alpha, path.suffix, quality=quality, metadata=metadata)
    try:
        write_whole(path, data, overwrite=overwrite)
    except FileExistsError:
        raise ImageExistsError(f"{path}: exists; allow overwriting or choose another name") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from None
    return lost_in_encoding(path.suffix, alpha, metadata)


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
    base = base_height * base_width
    return scale_to_area(height, width, base) if height * width < base else (height, width)


def scale_to_area(height: int, width: int, area: int) -> tuple[int, int]:
    """Height and width with their aspect ratio, scaled to at least an area in pixels."""
    scale = math.sqrt(area / (height * width))  # a product that is whole but for rounding is not lifted to the next
    return math.ceil(height * scale - 1e-9), math.ceil(width * scale - 1e-9)


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
