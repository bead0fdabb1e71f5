"""Picture files that may be anybody's: which are read, and that no file starts a program, hangs or floods."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from diffbody_ref.ops import opening
from diffbody_ref.ops.formats import INPUT_SUFFIXES, OUTPUT_FORMATS, READ_FORMATS, usable_formats
from diffbody_ref.ops.images import (
    ImageError,
    decode_image,
    decode_labels,
    decode_levels,
    encode_image,
    lost_in_encoding,
    read_image,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def colours() -> np.ndarray:
    """uint8 (24, 40, 3), smooth."""
    y, x = np.mgrid[0:24, 0:40]
    return np.stack([40 + 5 * y, 20 + 4 * x, 200 - 3 * y - 2 * x], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def in_any_mode(image: Image.Image, format: str) -> bytes | None:
    """The picture in the first colour mode that the format holds; None if Pillow lacks what it needs to write it."""
    for mode in ("RGB", "P", "L", "1"):
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            return encoded(image.convert(mode), format)
    return None


def one_line(error: ImageError, name: str) -> bool:
    text = str(error)
    return text.startswith(f"{name}: ") and "\n" not in text and len(text) < 300


def test_every_format_of_the_list_is_read_and_no_other_of_pillows(colours: np.ndarray) -> None:
    image = Image.fromarray(colours)
    usable = usable_formats()
    assert set(READ_FORMATS) - set(usable) <= {"HEIF"}
    read, refused = set(), {}
    for format in Image.SAVE:
        data = in_any_mode(image, format)
        if data is None:
            continue
        try:
            picture = decode_image(data, "a picture")
        except ImageError as error:
            refused[format] = str(error)
        else:
            assert picture.pixels.shape == (24, 40, 3), format
            read.add(format)
    assert read >= {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM"}
    assert read <= {*READ_FORMATS, "MPO", "DIB"}  # as Pillow calls kinds of JPEG and BMP when it writes them
    assert refused.keys() >= {"EPS", "PDF", "TGA", "ICO", "PCX", "SGI", "IM"}
    assert all("of a format that is not read" in message for message in refused.values()), refused


def test_a_postscript_file_starts_no_program(
    tmp_path: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands EPS to Ghostscript; what is first on the PATH under its name leaves a mark."""
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    data = encoded(Image.fromarray(colours), "EPS")
    for name in ("a.eps", "a.png", "a.jpg"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match="of a format that is not read; JPEG, PNG"):
            read_image(tmp_path / name)
    assert not (tmp_path / "started").exists()


def test_pillow_opens_files_in_one_place_only() -> None:
    """Elsewhere, a file is opened with the formats that it may have."""
    for path in ROOT.glob("*/**/*.py"):
        package = path.relative_to(ROOT).parts[0]
        if package in ("tests", ".venv"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                assert "formats" in {keyword.arg for keyword in node.keywords}, path


def test_suffixes_of_folders_are_those_of_the_list() -> None:
    assert {".jpg", ".jfif", ".avif", ".heic", ".gif", ".jp2", ".ppm", ".tif", ".bmp", ".webp"} <= set(INPUT_SUFFIXES)
    assert len(set(INPUT_SUFFIXES)) == len(INPUT_SUFFIXES)
    assert {suffix for format in OUTPUT_FORMATS for suffix in format.suffixes} < set(INPUT_SUFFIXES)
    assert not {".eps", ".ps", ".pdf", ".svg"} & set(INPUT_SUFFIXES)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG", "AVIF", "MPO"])
def test_of_several_frames_the_first_is_taken_with_a_notice(colours: np.ndarray, format: str) -> None:
    first = Image.fromarray(colours)
    others = [Image.new("RGB", first.size, colour) for colour in ("red", "blue")]
    data = encoded(first, format, save_all=True, append_images=others)
    picture = decode_image(data)
    count = "" if format in ("GIF", "TIFF") else " of 3"
    assert picture.notices == (f"the file holds several frames or pages: the first{count} is taken",)
    # A palette or lossy compression moves a smooth colour by a few levels; another frame is off by more than 100.
    assert np.abs(picture.pixels * 255 - colours).mean() < 8
    assert decode_image(encoded(first, "TIFF" if format == "MPO" else format)).notices == ()


def test_a_broken_second_frame_leaves_the_first(colours: np.ndarray) -> None:
    first, second = Image.fromarray(colours), Image.new("RGB", (40, 24), "red")
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    alone = encoded(first, "GIF")
    assert decode_image(data[: len(alone) + 12]).pixels.shape == (24, 40, 3)


def test_sixteen_bits_of_colour_are_read_as_eight_with_a_notice(colours: np.ndarray) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (24, 40, 3), dtype=np.uint16)
    for suffix in (".png", ".tiff", ".ppm"):
        picture = decode_image(cv2.imencode(suffix, values[:, :, ::-1])[1].tobytes())
        assert picture.notices == ("colours of more than 8 bits a channel: read with 8",), suffix
        np.testing.assert_allclose(picture.pixels, values / 65535, atol=1 / 255)
        # Of grey, all bits are used.
        grey = decode_image(cv2.imencode(suffix.replace("ppm", "pgm"), values[:, :, 0])[1].tobytes())
        assert grey.notices == (), suffix
        np.testing.assert_allclose(grey.pixels[:, :, 0], values[:, :, 0] / 65535, atol=1e-7)


def test_labels_come_as_they_are() -> None:
    labels = np.arange(24 * 40, dtype=np.uint8).reshape(24, 40) % 7
    grey = Image.fromarray(labels)
    palette = grey.copy()
    palette.putpalette([value for index in range(7) for value in (index * 30, 0, 255 - index)])
    for image in (grey, palette):
        np.testing.assert_array_equal(decode_labels(encoded(image, "PNG")), labels)
    with pytest.raises(ImageError, match=r"^mask: labels are a grey or palette picture"):
        decode_labels(encoded(grey.convert("RGB"), "PNG"), "mask")


# ---- Files that describe more work than they hold pixels ----


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jpeg_of_many_segments(image: Image.Image) -> bytes:
    data = encoded(image, "JPEG")
    return data[:2] + b"\xff\xe5\x00\x02" * 200_000 + data[2:]


def jpeg_of_many_scans(image: Image.Image) -> bytes:
    data = encoded(image, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (opening.MAX_SCANS + 1) + data[-2:]


def png_of_many_chunks(image: Image.Image) -> bytes:
    data = encoded(image, "PNG")
    place = data.index(b"IDAT") - 4
    return data[:place] + chunk(b"zzZz") * 100_000 + data[place:]


def gif_of_many_comments(image: Image.Image) -> bytes:
    data = encoded(image.convert("P"), "GIF")
    place = data.index(b",")
    return data[:place] + b"!\xfe" + b"\x01a" * 200_000 + b"\0" + data[place:]


def pnm_of_many_comments(image: Image.Image) -> bytes:
    return b"P6\n" + b"#a\n" * 200_000 + b"40 24 255\n" + image.tobytes()


TOO_MANY_PARTS = "header has too many parts"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (jpeg_of_many_segments, TOO_MANY_PARTS),
        (jpeg_of_many_scans, "a JPEG of more than 200 scans"),
        (png_of_many_chunks, TOO_MANY_PARTS),
        (gif_of_many_comments, TOO_MANY_PARTS),
        (pnm_of_many_comments, TOO_MANY_PARTS),
    ],
)
def test_endless_headers_are_refused(colours: np.ndarray, make: Any, reason: str) -> None:
    data = make(Image.fromarray(colours))
    with pytest.raises(ImageError, match=reason) as error:
        decode_image(data, "upload")
    assert one_line(error.value, "upload")
    assert decode_image(encoded(Image.fromarray(colours), "JPEG", progressive=True)).notices == ()


def jpeg_2000(**options: Any) -> bytearray:
    values = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    return bytearray(encoded(Image.fromarray(values), "JPEG2000", irreversible=True, **options))


@pytest.mark.parametrize("box", [False, True])
def test_a_jpeg_2000_of_tiny_blocks_is_refused(box: bool) -> None:
    """Of code blocks of 4x4, a file of 18 kB takes 840 MB to decode; of precincts of 2x2, one of 1 MB takes 12 GB."""
    options = {"no_jp2": not box, "precinct_size": (128, 128)}
    good = jpeg_2000(**options, codeblock_size=(32, 32), tile_size=(128, 128))
    assert decode_image(bytes(good)).pixels.shape == (300, 200, 3)
    small_blocks = jpeg_2000(**options, codeblock_size=(8, 8))
    small_precincts = bytearray(good)
    place = good.index(b"\xff\x52") + 14  # marker, length, 5 bytes of style, 5 of parameters; then the precincts
    small_precincts[place : place + 6] = b"\x11" * 6
    coc = b"\xff\x53" + struct.pack(">HBBBBBBB", 9, 1, 0, 5, 0, 0, 0, 1)  # component 1, code blocks of 4x4
    in_main_header, end = bytearray(good), good.index(b"\xff\x90")
    in_main_header[end:end] = coc
    # The same in the header of the last tile part, whose length grows by it.
    in_tile, start = bytearray(good), good.rindex(b"\xff\x90\x00\x0a")
    length = int.from_bytes(good[start + 6 : start + 10])
    in_tile[start + 12 : start + 12] = coc
    in_tile[start + 6 : start + 10] = struct.pack(">I", length + len(coc) if length else 0)
    for data in (small_blocks, small_precincts, in_main_header, in_tile):
        with pytest.raises(ImageError, match="code blocks or precincts have sides below 16 and 32 pixels") as error:
            decode_image(bytes(data), "upload")
        assert one_line(error.value, "upload")


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 64x64 in one tile of this side."""
    data = zlib.compress(bytes(side * side))
    sizes = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    tags = [*sizes, (324, 8 + 2 + 12 * 10 + 4), (325, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + data


def test_a_tiff_of_one_vast_tile_is_refused() -> None:
    """Of 30,000x30,000, a file of 151 bytes takes 900 MB."""
    assert decode_image(tiled_tiff(512)).pixels.shape == (64, 64, 3)
    with pytest.raises(ImageError, match="tiles of 9,000,000 pixels are far larger than the picture") as error:
        decode_image(tiled_tiff(3000), "upload")
    assert one_line(error.value, "upload")


def test_parts_of_a_file_that_overlap_are_not_read_without_end() -> None:
    megabyte = 1 << 20
    source = opening._Source(io.BytesIO(bytes(megabyte)), "upload")
    with pytest.raises(ImageError, match=TOO_MANY_PARTS):
        [(source.seek(0), source.read(megabyte)) for _ in range(10)]


def test_limits_of_bytes_and_seconds(colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(colours), "PNG")
    monkeypatch.setattr(opening, "MAX_BYTES", len(data) - 1)
    with pytest.raises(ImageError, match=rf"^upload: too large: {len(data):,} bytes, at most {len(data) - 1:,}"):
        decode_image(data, "upload")
    monkeypatch.undo()
    monkeypatch.setattr(opening, "MAX_SECONDS", -1.0)  # of CPU time: over before it began
    with pytest.raises(ImageError, match=r"^upload: decoding takes longer than"):
        decode_image(data, "upload")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "HEIF"])
def test_broken_files_are_errors_of_one_line_and_print_nothing(
    colours: np.ndarray, format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if format not in usable_formats():
        pytest.skip("pillow-heif is not installed")
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    data = encoded(Image.fromarray(colours), format, **options)
    rng = np.random.default_rng(0)
    broken = [data[: len(data) * part // 12] for part in range(12)]
    for _ in range(200):
        copy = bytearray(data)
        start = int(rng.integers(4, len(data)))
        copy[start : start + 8] = rng.integers(0, 256, 8, dtype=np.uint8).tobytes()
        broken.append(bytes(copy[: len(data)]))
    failed = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in broken:
            for decode in (decode_image, decode_levels):
                try:
                    decode(each, "upload", max_pixels=1_000_000)
                except ImageError as error:
                    failed.append(error)
    assert len(failed) >= 12
    assert all(one_line(error, "upload") for error in failed)
    assert capfd.readouterr().err == ""


def test_warnings_filters_survive_threads(colours: np.ndarray) -> None:
    data = encoded(Image.fromarray(colours), "TIFF")[:200]
    before = list(warnings.filters)

    def decode() -> None:
        for _ in range(50):
            with pytest.raises(ImageError):
                decode_image(data)

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# ---- Phones' pictures ----


def test_heic(colours: np.ndarray) -> None:
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    usable_formats()
    data = encoded(Image.fromarray(colours), "HEIF", quality=90)
    # Lossy with halved chroma.
    np.testing.assert_allclose(decode_image(data).pixels * 255, colours, atol=16)


def test_without_its_package_heic_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "usable_formats", lambda: ["JPEG", "PNG"])
    with pytest.raises(ImageError, match="pip install pillow-heif") as error:
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "upload")
    assert one_line(error.value, "upload")


# ---- Writing ----


@pytest.mark.parametrize("format", ["jpg", "webp", "avif"])
def test_quality_is_size(format: str) -> None:
    pixels = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    sizes = [len(encode_image(pixels, format=format, quality=quality)) for quality in (20, 60, 100)]
    assert sizes == sorted(set(sizes))
    for quality in (0, 101, -5):
        with pytest.raises(ImageError, match=f"quality must be from 1 to 100, got {quality}"):
            encode_image(pixels, format=format, quality=quality)


@pytest.mark.parametrize(("format", "levels"), [("tiff", 0), ("tif", 0), ("avif", 6)])
def test_further_output_formats(colours: np.ndarray, format: str, levels: int) -> None:
    alpha = np.linspace(0, 1, 24 * 40, dtype=np.float32).reshape(24, 40).round(1)
    picture = decode_image(encode_image(colours / np.float32(255), alpha, format))
    np.testing.assert_allclose(picture.pixels * 255, colours, atol=levels + 1e-4)
    assert picture.alpha is not None
    np.testing.assert_allclose(picture.alpha, alpha, atol=(levels + 1) / 255)
    assert picture.notices == ()


def test_lossless_formats_have_no_quality(colours: np.ndarray) -> None:
    for format in ("png", "tiff"):
        with pytest.raises(ImageError, match="is lossless: it has no quality"):
            encode_image(colours / np.float32(255), format=format, quality=90)


def test_alpha_over_white_has_a_notice() -> None:
    alpha = np.ones((16, 16), np.float32)
    assert lost_in_encoding("jpg", alpha) == ["JPEG holds no transparency: laid over white"]
    assert lost_in_encoding("jpg") == lost_in_encoding("png", alpha) == []
