"""Opening a picture file that may be anybody's: known formats only, bounded work, nothing on standard error."""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from PIL import Image, TiffImagePlugin, UnidentifiedImageError, _imaging

from diffbody_ref.ops.formats import HEIF_BRANDS, READ_FORMATS, ImageError, usable_formats

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30  # of a file; 100 million pixels of 16-bit RGBA are 800 million
MAX_SECONDS = 60.0  # of a thread's CPU time; Pillow's slowest decoders, in pure Python, take 3 s a million pixels
MAX_SCANS = 200  # of a JPEG; libjpeg writes 10. Each costs 0.12 s at 100 million pixels, and may be a few bytes long
MAX_REASON = 200  # characters of a library's message

# A JPEG 2000 of code blocks of 4x4 takes 94 bytes of memory a pixel, one of precincts of 2x2 more than 1000; encoders
# write code blocks of 32 or 64, and precincts of 128 or more.
MIN_CODE_BLOCK, MIN_PRECINCT = 4, 5  # binary logarithms of a side in pixels: 16 and 32

MAX_TILE = 1 << 22  # pixels of a TIFF's tile, where the picture is smaller: libtiff takes memory for a whole one
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags

_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # those with a length, and the end


@contextlib.contextmanager
def open_image(data: bytes | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open a picture file for as long as the context lasts. Its pixels are decoded when they are asked for, in there.

    Args:
        data: the file's bytes, or a seekable binary stream.
        name: what the error messages call it.
        max_pixels: larger pictures are refused by their header, before anything is decoded.

    Raises:
        ImageError: not a picture of a known format, truncated, corrupt, too large, or slow beyond all measure; also
            for whatever else is raised inside the context.
    """
    # Decoders raise all sorts of exceptions on broken files; to the user they are one case.
    try:
        source = _Source(io.BytesIO(data) if isinstance(data, bytes | bytearray | memoryview) else data, name)
        with _quiet(), Image.open(cast(Any, source), formats=usable_formats()) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise ImageError(f"{name}: too large: {size}, at most {max_pixels:,} pixels are read")
            _check_work(image, source, name)
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, 179 million pixels
        raise ImageError(f"{name}: too large: more than {max_pixels:,} pixels") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: {_unknown(source)}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
        raise ImageError(f"{name}: truncated, corrupt or unsupported: {reason}") from error


class _Source:
    """A file as Pillow reads it. What the reading costs is bounded, as a small file can describe endless work.

    Attributes:
        reads_left: number of calls. Pillow's parsers, in Python, make some for every part of a header; pictures have
            up to about one in 100 bytes (GIF).
        bytes_left: number of bytes; parts of a file may overlap.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        size = stream.seek(0, os.SEEK_END)
        if size > MAX_BYTES:
            raise ImageError(f"{name}: too large: {size:,} bytes, at most {MAX_BYTES:,} are read")
        stream.seek(0)
        self.reads_left: float = 100_000 + size // 64
        self.bytes_left = (1 << 20) + 8 * size
        self._end = time.thread_time() + MAX_SECONDS

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.reads_left -= 1
        self.bytes_left -= len(data)
        if self.reads_left < 0 or self.bytes_left < 0:
            raise ImageError(f"{self._name}: its header has too many parts for a file of its size")
        if time.thread_time() > self._end:
            raise ImageError(f"{self._name}: decoding takes longer than {MAX_SECONDS:g} s")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def content(self) -> bytes:
        """The whole file; the position stays."""
        position = self._stream.tell()
        self._stream.seek(0)
        data = self._stream.read()
        self._stream.seek(position)
        return data


def _unknown(source: _Source) -> str:
    """Why a file that Pillow does not know cannot be used."""
    head = source.content()[:12]
    if head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS and "HEIF" not in usable_formats():
        return "HEIC is read where the package pillow-heif is installed (pip install pillow-heif)"
    return f"not a picture, or of a format that is not read; {', '.join(READ_FORMATS)} are"


def _check_work(image: Image.Image, source: _Source, name: str) -> None:
    """Refuse what is far more work to decode than its pixels.

    Raises:
        ImageError: a JPEG of many scans, a JPEG 2000 of tiny blocks, a TIFF of a tile that is far larger than it.
    """
    if image.format in ("JPEG", "MPO") and _count_scans(source.content()) > MAX_SCANS:
        raise ImageError(f"{name}: a JPEG of more than {MAX_SCANS} scans")
    if image.format == "JPEG2000" and _has_tiny_blocks(source.content()):
        sides = f"{1 << MIN_CODE_BLOCK} and {1 << MIN_PRECINCT}"
        raise ImageError(f"{name}: a JPEG 2000 whose code blocks or precincts have sides below {sides} pixels")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = image.tag_v2.get(_TILE_WIDTH, 0) * image.tag_v2.get(_TILE_LENGTH, 0)
        if tile > max(MAX_TILE, 4 * image.width * image.height):
            raise ImageError(f"{name}: a TIFF whose tiles of {tile:,} pixels are far larger than the picture")
    has_more_pictures(image)  # asked here, where reads are counted: a GIF and a TIFF read on to tell
    source.reads_left = math.inf


def has_more_pictures(image: Image.Image) -> bool:
    """Whether a file has more frames or pages than the one that is decoded."""
    try:
        return bool(getattr(image, "is_animated", False))
    except ImageError:
        raise
    except Exception:  # what follows the first picture is broken
        return True


def _count_scans(data: bytes) -> int:
    """The number of scans of a JPEG's first picture, counted up to one more than `MAX_SCANS`."""
    position, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _JPEG_MARKER.search(data, position)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


def _has_tiny_blocks(data: bytes) -> bool:
    """Whether any coding style of a JPEG 2000, in its main header or a tile's, has blocks below the smallest sizes."""
    position = _codestream(data)
    component_bytes = 1
    while (marker := data[position : position + 2]) and marker != b"\xff\xd9":
        start, length = position + 4, int.from_bytes(data[position + 2 : position + 4])
        body = data[start : start + max(0, length - 2)]
        if marker == b"\xff\x51":  # SIZ: the number of components
            component_bytes = 1 if int.from_bytes(body[34:36]) < 257 else 2
        elif marker == b"\xff\x90":  # SOT: the tile part's length, from its marker on
            tile_part = position, int.from_bytes(body[2:6]) or len(data)
        elif marker == b"\xff\x93":  # SOD: the tile part's data
            if tile_part[1] < 12:
                return False  # corrupt, as the decoder will tell
            position = sum(tile_part)
            continue
        elif marker in (b"\xff\x52", b"\xff\x53"):  # COD, COC: style, and its parameters after four bytes or at once
            style, skipped = (0, 4) if marker == b"\xff\x52" else (component_bytes, 0)
            if _is_tiny(body[style : style + 1], body[style + 1 + skipped :]):
                return True
        position += 2 + (0 if marker == b"\xff\x4f" else max(2, length))
    return False


def _codestream(data: bytes) -> int:
    """Where the codestream of a JPEG 2000 begins."""
    position = 0
    while data[position : position + 2] != b"\xff\x4f" and position < len(data):
        size, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        header = 8
        if size == 1:
            size, header = int.from_bytes(data[position + 8 : position + 16]), 16
        position += header if kind == b"jp2c" else max(size, header)
    return position


def _is_tiny(style: bytes, parameters: bytes) -> bool:
    """Whether a coding style has code blocks or precincts below the smallest sizes.

    Args:
        style: its first bit says that the precincts' sizes are given.
        parameters: number of decompositions, logarithms of the code block's sides less 2, style, transform, and the
            logarithms of the precincts' sides, two in a byte, from the smallest resolution to the full one.
    """
    blocks = [value + 2 for value in parameters[1:3]]
    decompositions = parameters[0] if parameters else 0
    precincts = parameters[5 : 6 + decompositions] if style and style[0] & 1 else b""
    sides = [
        side + decompositions - resolution  # in pixels of the full picture
        for resolution, value in enumerate(precincts)
        for side in (value & 15, value >> 4)
    ]
    return min(blocks, default=MIN_CODE_BLOCK) < MIN_CODE_BLOCK or min(sides, default=MIN_PRECINCT) < MIN_PRECINCT


class _Quiet:
    """Turns Pillow's warnings off while at least one thread is inside. What they tell is the library's own affair,
    such as a size limit that is ours here; they name its source files.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:  # filters are of the process: threads that set and reset them in turn mix them up
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._filters.__exit__(None, None, None)


_quiet = _Quiet()

# libtiff prints its errors to standard error itself, besides returning them. Pillow has no switch for it; the function
# that sets the handler is found through Pillow's own module, except where it is linked in statically (Windows).
with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
