"""The picture formats that are read and written: one list for files, servers and training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


class ImageError(ValueError):
    """A picture cannot be read, written or resized; the message is one clear line."""


# By Pillow's names, in the order in which a file is tried. No others are ever opened: some start a program (EPS runs
# Ghostscript), some have no signature, so that anything passes for one (TGA), some decode in pure Python. MPO is what
# Pillow calls a JPEG of several pictures.
READ_FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif", ".hif"),  # where pillow-heif is installed
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".pnm", ".ppm", ".pgm", ".pbm", ".pfm"),
}

INPUT_SUFFIXES: tuple[str, ...] = tuple(suffix for suffixes in READ_FORMATS.values() for suffix in suffixes)
"""Lower-case suffixes of the files that are taken from a folder."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")


def usable_formats() -> list[str]:
    """The formats of `READ_FORMATS` that this installation decodes."""
    Image.init()
    if "HEIF" not in Image.OPEN:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            pass
        else:
            register_heif_opener(thumbnails=False)
    return [name for name in READ_FORMATS if name in Image.OPEN]


@dataclass(frozen=True)
class OutputFormat:
    """A format that pictures are written in, with 8 bits a channel.

    Attributes:
        name: Pillow's.
        suffixes: of its files, lower-case; the first one without its dot is the format's name in calls.
        quality: 1 to 100, where none is asked for; None is lossless.
        alpha: it holds an alpha channel.
        dpi: it has a field for the resolution; in the others EXIF states it.
        most_metadata: largest EXIF and XMP in bytes, each.
        options: further ones of Pillow's.
    """

    name: str
    suffixes: tuple[str, ...]
    quality: int | None = None
    alpha: bool = True
    dpi: bool = True
    most_metadata: int = 1 << 24
    options: Mapping[str, Any] = field(default_factory=dict)


OUTPUT_FORMATS = (
    OutputFormat("PNG", (".png",)),
    # A JPEG's segment holds 65,533 bytes; XMP has a header of 29 in it.
    OutputFormat(
        "JPEG", (".jpg", ".jpeg"), quality=95, alpha=False, most_metadata=65_504, options={"subsampling": "4:4:4"}
    ),
    OutputFormat("WEBP", (".webp",), quality=95, dpi=False, options={"exact": True}),
    OutputFormat("AVIF", (".avif",), quality=90, dpi=False, options={"subsampling": "4:4:4"}),
    OutputFormat("TIFF", (".tif", ".tiff")),  # not compressed: with compression, Pillow cannot write EXIF
)

OUTPUT_SUFFIXES: tuple[str, ...] = tuple(suffix for format in OUTPUT_FORMATS for suffix in format.suffixes)


def output_format(name: str) -> OutputFormat:
    """The format with this name or suffix: "jpg", ".JPG" or "jpeg".

    Raises:
        ImageError: there is none.
    """
    suffix = f".{name.lower().lstrip('.')}"
    for format in OUTPUT_FORMATS:
        if suffix in format.suffixes:
            return format
    known = ", ".join(known.lstrip(".") for known in OUTPUT_SUFFIXES)
    raise ImageError(f"unknown picture format {name[:40]!r}, supported are {known}")
