"""What a picture file says besides its pixels, and keeps when it is restored: EXIF, XMP and the resolution."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from diffbody_ref.ops.formats import OutputFormat
from diffbody_ref.ops.profiles import srgb_profile

MAX_METADATA = 1 << 22  # bytes of EXIF and of XMP, each

_BASE = ExifTags.Base
# Of the tags that describe a TIFF's layout, 254 to 532, those that describe the picture. Its thumbnail is in a
# directory of its own, which is never taken over.
_DESCRIPTIONS = {270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316}
# XMP, IPTC, Photoshop's, the profile and its layers, which are kept in another way or not at all; digital negatives.
_LAYOUT = {*range(254, 533), 700, 33723, 34377, 34675, 37724, *range(50706, 51200)} - _DESCRIPTIONS
_POINTERS = {ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop}
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[0-9]')
_XMP_TAG = 700  # of a TIFF
_SIZE = (_BASE.ExifImageWidth, _BASE.ExifImageHeight)
_SRGB = 1  # EXIF's ColorSpace


@dataclass(frozen=True)
class Metadata:
    """What a file says of its picture.

    Attributes:
        exif: EXIF as files hold it, without orientation and thumbnail; empty if there is none.
        xmp: XMP, an XML document in UTF-8; empty if there is none.
        dpi: horizontal and vertical resolution, pixels per inch, or None.
    """

    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None

    def to_json(self) -> str:
        """The metadata as JSON in one line."""
        binary = {name: base64.b64encode(getattr(self, name)).decode() for name in ("exif", "xmp")}
        return json.dumps({**binary, "dpi": self.dpi})

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """The metadata that `to_json` wrote."""
        values = json.loads(text)
        exif, xmp = (base64.b64decode(values[name]) for name in ("exif", "xmp"))
        return cls(exif, xmp, None if values["dpi"] is None else (values["dpi"][0], values["dpi"][1]))


NO_METADATA = Metadata()


def read_metadata(image: Image.Image) -> tuple[Metadata, list[str]]:
    """What an opened file says, and a sentence each on what cannot be kept. Broken EXIF is removed from the image."""
    notices = []
    try:
        kept_exif = _copy(_read_exif(image))
        details = kept_exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in kept_exif else {}
        if details.get(_BASE.ColorSpace, _SRGB) != _SRGB:
            if not image.info.get("icc_profile"):
                notices.append("EXIF states a colour space other than sRGB without a profile of it: read as sRGB")
            details[_BASE.ColorSpace] = _SRGB
        exif = kept_exif.tobytes() if len(kept_exif) else b""
    except Exception:  # whatever Pillow's parser makes of broken bytes
        image.info.pop("exif", None)
        exif, notices = b"", ["EXIF is broken: left out"]
    xmp = image.info.get("xmp", b"")
    xmp = xmp if isinstance(xmp, bytes) else str(xmp).encode()
    # The pixels are upright.
    xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
    kept = {"EXIF": exif, "XMP": xmp}
    for name, data in kept.items():
        if len(data) > MAX_METADATA:
            kept[name] = b""
            notices.append(f"{name} of {len(data):,} bytes: left out, at most {MAX_METADATA:,} are kept")
    notices += [f"the file's {name} is not kept" for name in _other_texts(image)]
    return Metadata(kept["EXIF"], kept["XMP"], _dpi(image.info.get("dpi"))), notices


def save_options(metadata: Metadata, height: int, width: int, target: OutputFormat) -> dict[str, Any]:
    """What Pillow is told to write besides the pixels: the colour space, and what the format can hold of the rest.

    Args:
        metadata: of the picture.
        height, width: of the file, in pixels.
        target: its format.
    """
    options: dict[str, Any] = {}
    exif = _exif_for(metadata, height, width, target)
    xmp = metadata.xmp if len(metadata.xmp) <= target.most_metadata else b""
    if xmp and target.name == "TIFF":
        exif[_XMP_TAG] = xmp
    if len(exif) and len(data := exif.tobytes()) <= target.most_metadata:
        options["exif"] = exif if target.name == "TIFF" else data  # of bytes, the writer of TIFFs keeps ASCII only
    if metadata.dpi and target.dpi:
        options["dpi"] = metadata.dpi
    if target.name == "PNG":
        options["pnginfo"] = chunks = PngImagePlugin.PngInfo()
        chunks.add(b"sRGB", b"\0")  # shorter than a profile, and says the same
        if xmp:
            chunks.add_itxt("XML:com.adobe.xmp", xmp.decode(errors="replace"))
        return options
    options["icc_profile"] = srgb_profile()
    if xmp and target.name != "TIFF":
        options["xmp"] = xmp
    return options


def _exif_for(metadata: Metadata, height: int, width: int, target: OutputFormat) -> Image.Exif:
    """EXIF for a file of this size in pixels; without any tag if there is nothing to say."""
    exif = Image.Exif()
    if metadata.exif:
        exif.load(metadata.exif)
    exif = _copy(exif)
    details = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
    details.update({tag: size for tag, size in zip(_SIZE, (width, height), strict=True) if tag in details})
    if metadata.dpi and not target.dpi and _BASE.XResolution not in exif:
        exif[_BASE.XResolution], exif[_BASE.YResolution] = metadata.dpi
        exif[_BASE.ResolutionUnit] = 2  # inches
    return exif


def _read_exif(image: Image.Image) -> Image.Exif:
    """
    Raises:
        Exception: of any kind, where it is broken. Pillow's `getexif` raises at its first call only.
    """
    if "exif" not in image.info:
        return image.getexif()
    exif = Image.Exif()
    exif.load(image.info["exif"])
    return exif


def _copy(exif: Image.Exif) -> Image.Exif:
    """EXIF without thumbnail and what describes a file's layout, ready to be written."""
    copy = Image.Exif()
    copy.endian = exif.endian
    for tag, value in exif.items():
        if tag not in _LAYOUT and tag not in _POINTERS:
            copy[tag] = _writable(value)
    for pointer in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        entries = exif.get_ifd(pointer) if pointer in exif else {}
        if entries := {tag: _writable(value) for tag, value in entries.items() if tag not in _POINTERS}:
            copy.get_ifd(pointer).update(entries)
            copy[pointer] = 0  # where it is: the writer will know
    return copy


def _writable(value: Any) -> Any:
    """A text that is not ASCII as its bytes: Pillow reads it as Latin-1 and would write question marks."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def _other_texts(image: Image.Image) -> list[str]:
    """Names of what else a file says of its picture."""
    info = image.info
    texts = [key for key in getattr(image, "text", {}) if not key.startswith(("XML:com.adobe", "Raw profile"))]
    names = {"comment": "comment" in info or bool(texts), "IPTC": 0x0404 in info.get("photoshop", {})}
    return [name for name, there in names.items() if there]


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        x, y = (round(float(one), 3) for one in value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    # Without a unit, files state the pixels' proportions, such as 1:1.
    return (x, y) if all(math.isfinite(one) and 1 < one <= 65535 for one in (x, y)) else None
