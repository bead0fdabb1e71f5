"""What a file says besides its pixels stays: EXIF, XMP and the resolution, corrected for what became of the picture."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from diffbody_ref.ops.images import Picture, decode_image, encode_image, lost_in_encoding, picture_from_image
from diffbody_ref.ops.metadata import NO_METADATA, Metadata
from runtime.triton.messages import read_source, write_source

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:creator="J\xc3\xbcrgen"/></x:xmpmeta>'
BASE, IFD = ExifTags.Base, ExifTags.IFD
GPS = {1: "N", 2: (48.0, 8.0, 14.5)}
MAKER_NOTE = b"Maker\0" + bytes(range(256))
FORMATS = ("png", "jpg", "webp", "avif", "tiff")


def exif_block(width: int, height: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[BASE.Orientation] = orientation
    exif[BASE.Make] = "Maker"
    exif[BASE.Artist] = "Jürgen".encode()
    exif[BASE.Copyright] = "nobody"
    exif[IFD.Exif] = {
        BASE.ExifImageWidth: width,
        BASE.ExifImageHeight: height,
        BASE.DateTimeOriginal: "2026:01:02 03:04:05",
        BASE.MakerNote: MAKER_NOTE,
        BASE.ExposureTime: 0.004,
        BASE.ColorSpace: 1,
    }
    exif[IFD.GPSInfo] = GPS
    return exif.tobytes()


def with_thumbnail(exif: bytes, thumbnail: bytes) -> bytes:
    """EXIF with a second directory, in which cameras keep a small picture."""
    body = bytearray(exif[6:])
    order = "<" if body[:2] == b"II" else ">"
    first = struct.unpack_from(f"{order}I", body, 4)[0]
    link = first + 2 + 12 * struct.unpack_from(f"{order}H", body, first)[0]
    struct.pack_into(f"{order}I", body, link, len(body))
    place = len(body) + 2 + 2 * 12 + 4
    body += struct.pack(f"{order}H", 2)
    body += struct.pack(f"{order}HHII", 0x0201, 4, 1, place) + struct.pack(f"{order}HHII", 0x0202, 4, 1, len(thumbnail))
    return b"Exif\0\0" + bytes(body) + bytes(4) + thumbnail


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(orientation: int = 1) -> bytes:
    """A JPEG as a camera makes it, 60x40, which stands upright if the orientation is 1."""
    exif = with_thumbnail(exif_block(60, 40, orientation), encoded(Image.new("RGB", (16, 12), "red"), "JPEG"))
    return encoded(Image.new("RGB", (60, 40), "gray"), "JPEG", exif=exif, xmp=XMP, dpi=(300, 300))


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_goes_from_input_to_output(format: str) -> None:
    picture = decode_image(photo(orientation=6))
    assert picture.notices == ()
    assert picture.pixels.shape == (60, 40, 3)
    doubled = np.repeat(np.repeat(picture.pixels, 2, axis=0), 2, axis=1)
    data = encode_image(doubled, format=format, metadata=picture.metadata)
    assert lost_in_encoding(format, None, picture.metadata) == []
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        assert image.size == (80, 120)
        assert exif.get(BASE.Orientation, 1) == 1  # Pillow takes it from XMP, too
        assert (exif[BASE.Make], exif[BASE.Copyright]) == ("Maker", "nobody")
        assert exif[BASE.Artist].encode("latin-1").decode() == "Jürgen"
        details = exif.get_ifd(IFD.Exif)
        assert (details[BASE.ExifImageWidth], details[BASE.ExifImageHeight]) == (80, 120)
        assert details[BASE.DateTimeOriginal] == "2026:01:02 03:04:05"
        assert details[BASE.MakerNote] == MAKER_NOTE
        assert float(details[BASE.ExposureTime]) == 0.004
        assert exif.get_ifd(IFD.GPSInfo) == GPS
        assert not exif.get_ifd(IFD.IFD1)
        xmp = image.info["xmp"]
        assert (xmp if isinstance(xmp, bytes) else xmp.encode()) == XMP.replace(b'="6"', b'="1"')
        if format in ("webp", "avif"):
            assert (exif[BASE.XResolution], exif[BASE.YResolution], exif[BASE.ResolutionUnit]) == (300, 300, 2)
        else:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)  # PNG counts in pixels per metre
    again = decode_image(data)
    assert again.notices == ()
    assert again.metadata.xmp == picture.metadata.xmp
    assert b"J\xc3\xbcrgen" in again.metadata.exif
    assert b"2026:01:02" in encode_image(again.pixels, format="jpg", metadata=again.metadata)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_where_nothing_is_given(format: str) -> None:
    picture = decode_image(photo())
    for metadata in (None, NO_METADATA):
        data = encode_image(picture.pixels, format=format, metadata=metadata)
        for secret in (b"rgen", b"2026:01:02", b"Maker", b"nobody"):
            assert secret not in data
        read = decode_image(data).metadata
        assert read.xmp == b""
        assert b"GPS" not in read.exif


def test_a_tiffs_layout_is_not_metadata() -> None:
    exif = exif_block(60, 40)
    image = Image.new("RGB", (60, 40), "gray")
    data = encoded(image, "TIFF", exif=exif, dpi=(72, 72))
    metadata = decode_image(data).metadata
    read = Image.Exif()
    read.load(metadata.exif)
    assert read[BASE.Make] == "Maker"
    assert read.get_ifd(IFD.GPSInfo) == GPS
    assert not {BASE.StripOffsets, BASE.Compression, BASE.ImageWidth, BASE.BitsPerSample} & set(read)
    assert metadata.dpi == (72, 72)
    assert decode_image(encode_image(np.zeros((16, 16, 3), np.float32), format="tiff", metadata=metadata)).notices == ()


def test_pillows_pictures_keep_theirs() -> None:
    with Image.open(io.BytesIO(photo())) as image:
        assert picture_from_image(image).metadata == decode_image(photo()).metadata
    assert picture_from_image(Image.new("RGB", (20, 20))).metadata == NO_METADATA


def test_broken_exif_is_left_out_with_a_notice() -> None:
    image = Image.new("RGB", (40, 24), "gray")
    for broken in (b"Exif\0\0nonsense", exif_block(60, 40)[:40], b"Exif\0\0II*\0\xff\xff\xff\x7f"):
        for format in ("JPEG", "PNG", "WEBP"):
            picture = decode_image(encoded(image, format, exif=broken))
            assert picture.pixels.shape == (24, 40, 3)
            assert set(picture.notices) <= {"EXIF is broken: left out"}
            encode_image(picture.pixels, format="jpg", metadata=picture.metadata)
    assert decode_image(encoded(image, "JPEG", exif=b"Exif\0\0nonsense")).notices == ("EXIF is broken: left out",)


def test_a_colour_space_of_exif_is_corrected() -> None:
    """Cameras state Adobe RGB there, often without a profile."""
    exif = Image.Exif()
    exif[IFD.Exif] = {BASE.ColorSpace: 65535}
    picture = decode_image(encoded(Image.new("RGB", (40, 24), "gray"), "JPEG", exif=exif.tobytes()))
    assert picture.notices == ("EXIF states a colour space other than sRGB without a profile of it: read as sRGB",)
    read = Image.Exif()
    read.load(picture.metadata.exif)
    assert read.get_ifd(IFD.Exif)[BASE.ColorSpace] == 1


def test_what_a_format_cannot_hold_has_a_notice() -> None:
    pixels = np.zeros((16, 16, 3), np.float32)
    long = Metadata(xmp=b"<x:xmpmeta>" + b" " * 70_000 + b"</x:xmpmeta>")
    assert lost_in_encoding("jpg", None, long) == ["JPEG holds no XMP of 70,023 bytes: left out"]
    assert decode_image(encode_image(pixels, format="jpg", metadata=long)).metadata.xmp == b""
    for format in ("png", "webp", "avif", "tiff"):
        assert lost_in_encoding(format, None, long) == []
        assert decode_image(encode_image(pixels, format=format, metadata=long)).metadata.xmp == long.xmp
    edge = Metadata(xmp=b"x" * 65_504)
    assert decode_image(encode_image(pixels, format="jpg", metadata=edge)).metadata == edge


def test_what_is_not_kept_has_a_notice() -> None:
    image = Image.new("RGB", (40, 24), "gray")
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "A picture")
    assert decode_image(encoded(image, "PNG", pnginfo=text)).notices == ("the file's comment is not kept",)
    assert decode_image(encoded(image, "JPEG", comment=b"words")).notices == ("the file's comment is not kept",)
    record = b"8BIM" + struct.pack(">HHI", 0x0404, 0, 4) + b"\x1c\x02\x00\x00"
    segment = b"Photoshop 3.0\0" + record
    data = encoded(image, "JPEG", extra=b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment)
    assert decode_image(data).notices == ("the file's IPTC is not kept",)
    huge = b"<x:xmpmeta>" + b"x" * (1 << 22)
    data = encoded(image, "WEBP", xmp=huge)
    assert decode_image(data).notices == (f"XMP of {len(huge):,} bytes: left out, at most 4,194,304 are kept",)


def test_a_resolution_that_says_nothing_is_none() -> None:
    for dpi, kept in (((300, 150), (300, 150)), ((1, 1), None), ((0, 0), None)):
        metadata = decode_image(encoded(Image.new("RGB", (40, 24)), "TIFF", dpi=dpi)).metadata
        assert metadata.dpi == kept


def test_a_server_hands_metadata_and_notices_from_model_to_model() -> None:
    picture = decode_image(photo())
    noted = Picture(picture.pixels, None, picture.metadata, ("one", "two"))
    assert read_source(write_source(noted).encode()) == (picture.metadata, ["one", "two"])
    plain = Picture(picture.pixels)
    assert read_source(write_source(plain)) == (NO_METADATA, [])
