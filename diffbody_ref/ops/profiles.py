"""Colours: whatever colour space and range of values a file has, to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# As photo editors do: white stays white, black stays black, colours that sRGB holds stay as they are.
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of grey of more than 8 bits."""

MAX_NAME = 60  # characters of a profile's name in a notice


@lru_cache(1)
def srgb_profile() -> bytes:
    """An sRGB profile to embed, about 600 bytes, the same at every call of every process."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = np.array([2000, 1, 1, 0, 0, 0], ">u2").tobytes()  # when it was made: now, says the library
    return bytes(data)


def to_srgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """A picture of 8 bits a channel in sRGB.

    Args:
        image: of any mode but those of more bits; its profile, if any, in `info`.

    Returns:
        RGB, or RGBA where it has transparency; notices, a sentence each.

    Raises:
        ValueError: a colour mode Pillow cannot turn to RGB.
    """
    data = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        colours, notices = to_srgb(_with_profile(image.convert("RGB"), data))
        colours.putalpha(image.getchannel("A"))
        return colours, notices
    if image.mode == "LAB":
        return _transform(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))), []
    if data:
        try:
            return _by_profile(image, ImageCms.ImageCmsProfile(io.BytesIO(data)))
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            return image.convert("RGB"), ["the colour profile (ICC) is broken or does not fit the picture: left out"]
    notices = ["CMYK without a colour profile: the colours are approximate"] if image.mode == "CMYK" else []
    return image.convert("RGB"), notices


def read_grey(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """Grey of more than 8 bits as float32 (H, W), sRGB in [0, 1], and a sentence each on what is not plain."""
    values, notices = np.asarray(image, dtype=np.float32), []
    finite = np.isfinite(values)
    if not finite.all():
        values, notices = np.where(finite, values, np.float32(0)), ["values that are not finite: read as black"]
    top, usual = float(values.max()), 1.0 if image.mode == "F" else 65535.0
    scale = 65535.0
    if image.mode == "F":  # resampling overshoots a range a little
        scale = next((float(most) for most in (1, 255, 65535) if top <= (2 if most == 1 else 1.01 * most)), top)
    elif image.mode == "I":
        scale = next((float(most) for most in (255, 65535) if top <= most), float(2**31 - 1))
    if scale != usual:
        notices.append(f"grey values of up to {top:g}: read as a range of 0 to {scale:g}")
    if values.min() < 0:
        notices.append("grey values below 0: read as black")
    grey, converted = _grey_by_profile(np.clip(values / np.float32(scale), 0.0, 1.0), image.info.get("icc_profile"))
    return grey, notices + converted


def _grey_by_profile(grey: np.ndarray, data: bytes | None) -> tuple[np.ndarray, list[str]]:
    """Grey values of more than 8 bits in sRGB, interpolated between what the profile makes of 256 levels.

    Args:
        grey: float32 (H, W) in [0, 1].
        data: the profile, or None.

    Returns:
        float32 (H, W) in [0, 1]; notices, a sentence each.
    """
    ramp = np.arange(256, dtype=np.uint8)
    converted, notices = to_srgb(_with_profile(Image.fromarray(ramp[None]), data))
    levels = np.asarray(converted, np.float32)[0].mean(axis=1)
    if np.abs(levels - ramp).max() <= 1:
        return grey, notices
    return np.interp(grey, ramp / 255, levels / 255).astype(np.float32), notices


def _with_profile(image: Image.Image, data: bytes | None) -> Image.Image:
    image.info["icc_profile"] = data
    return image


def _by_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> tuple[Image.Image, list[str]]:
    space = profile.profile.xcolor_space.strip()
    mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space)
    grey = image.mode in ("1", "L")
    if mode is None or (mode != image.mode and not (grey and mode != "CMYK") and image.mode not in ("P", "RGBX")):
        raise ValueError(f"a profile of {space} for a picture of {image.mode}")
    image = image.convert(mode)
    if mode != "CMYK" and _is_srgb(profile, mode):
        return image.convert("RGB"), []
    name = "".join(c for c in (profile.profile.profile_description or "") if c.isprintable()).strip()[:MAX_NAME]
    return _transform(image, profile), [f"colours converted from the profile {name or 'of the file'} to sRGB"]


def _transform(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    target = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
    transform = ImageCms.buildTransform(profile, target, image.mode, "RGB", INTENT, FLAGS)
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None of a picture that is changed in place
    return converted


def _is_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Whether the profile changes no colour by more than one level, as rounding does: most photographs' profile."""
    axis = np.linspace(0, 255, 18).astype(np.uint8)
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(1, -1, 3)
    if mode == "L":
        colours = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    before = Image.fromarray(colours if mode == "RGB" else np.ascontiguousarray(colours[:, :, 0]))
    after = np.asarray(_transform(before, profile), np.int16)
    return bool(np.abs(after - colours).max() <= 1)
