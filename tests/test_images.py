"""Reading, writing and resizing pictures: every kind of file a user may have, and every way it can be broken."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from diffbody_ref.ops import images
from diffbody_ref.ops.images import ImageError

HEIGHT, WIDTH = 24, 40


@pytest.fixture
def colours() -> np.ndarray:
    """uint8 (24, 40, 3), smooth, so that JPEG keeps it, and different in each corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([40 + 5 * y, 20 + 4 * x, 200 - 3 * y - 2 * x], axis=-1).astype(np.uint8)


def save(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, colours: np.ndarray, orientation: int) -> None:
    upright = colours
    # How the EXIF standard says each orientation is stored (row 0 and column 0 of the stored picture).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, "photo.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    picture = images.read_image(path)
    np.testing.assert_array_equal(picture.pixels, upright / np.float32(255))
    assert picture.pixels.dtype == np.float32
    assert picture.alpha is None


@pytest.mark.parametrize("name", ["grey.png", "grey16.png", "grey16.tiff", "bilevel.png", "float.tiff"])
def test_grey_pictures_become_rgb(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    values, scale = {
        "grey.png": (np.rint(ramp * 255).astype(np.uint8), 255),
        "grey16.png": (np.rint(ramp * 65535).astype(np.uint16), 65535),
        "grey16.tiff": (np.rint(ramp * 65535).astype(np.uint16), 65535),
        "bilevel.png": (ramp > 0.5, 1),
        "float.tiff": (ramp.astype(np.float32), 1),
    }[name]
    picture = images.read_image(save(tmp_path, name, Image.fromarray(values)))
    assert picture.pixels.shape == (HEIGHT, WIDTH, 3)
    for channel in range(3):  # one float32 rounding of a value up to 1
        np.testing.assert_allclose(picture.pixels[:, :, channel], values / scale, atol=1e-7)


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), values[:, :, ::-1])
    # Decoded with 8 bits a channel, so off by up to one step of 8 bits.
    np.testing.assert_allclose(images.read_image(tmp_path / "deep.png").pixels, values / 65535, atol=1 / 255)


def test_palette_cmyk_and_alpha(tmp_path: Path, colours: np.ndarray) -> None:
    image = Image.fromarray(colours)
    palette = image.quantize(64)
    read = images.read_image(save(tmp_path, "palette.png", palette))
    np.testing.assert_array_equal(read.pixels, np.asarray(palette.convert("RGB")) / np.float32(255))

    cmyk = images.read_image(save(tmp_path, "cmyk.jpg", image.convert("CMYK"), quality=100))
    # JPEG at quality 100 rounds by a few of 255 levels; an inverted reading would be off by far more.
    np.testing.assert_allclose(cmyk.pixels, colours / 255, atol=6 / 255)

    alpha = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    rgba = images.read_image(save(tmp_path, "alpha.png", Image.fromarray(np.dstack([colours, alpha]))))
    np.testing.assert_array_equal(rgba.pixels, colours / np.float32(255))
    assert rgba.alpha is not None
    np.testing.assert_array_equal(rgba.alpha, alpha / np.float32(255))

    keyed = images.read_image(save(tmp_path, "key.png", palette, transparency=palette.getpixel((0, 0))))
    assert keyed.alpha is not None
    assert keyed.alpha[0, 0] == 0
    assert keyed.alpha.max() == 1


def test_bytes_and_streams_decode_alike(tmp_path: Path, colours: np.ndarray) -> None:
    path = save(tmp_path, "a.png", Image.fromarray(colours))
    from_file, data = images.read_image(path).pixels, path.read_bytes()
    np.testing.assert_array_equal(images.decode_image(data).pixels, from_file)
    np.testing.assert_array_equal(images.decode_image(io.BytesIO(data)).pixels, from_file)
    with pytest.raises(ImageError, match=r"^upload 7: "):
        images.decode_image(b"nothing", name="upload 7")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds hardly any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_unusable_files_give_one_clear_line(tmp_path: Path, colours: np.ndarray) -> None:
    good = save(tmp_path, "good.png", Image.fromarray(colours)).read_bytes()
    jpeg = save(tmp_path, "good.jpg", Image.fromarray(colours).resize((400, 400))).read_bytes()
    position = good.index(b"IDAT") + 10
    cases = {
        "empty.png": (b"", "not a picture"),
        "text.png": (b"hello, I am no picture", "not a picture"),
        "cut.png": (good[: len(good) // 2], "truncated"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "broken.png": (good[:position] + b"\xff" * 40 + good[position + 40 :], "corrupt"),
        "one.png": (png_header(1, 1), "too small: 1x1, need at least 16x16"),
        "thin.png": (png_header(500, 15), "too small: 500x15"),
        "bomb.png": (png_header(30_000, 30_000), "too large: more than 100,000,000 pixels"),
        "huge.png": (png_header(11_000, 10_000), "too large: 11000x10000"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError) as error:
            images.read_image(tmp_path / name)
        assert reason in str(error.value)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        images.read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        images.read_image(tmp_path)
    with pytest.raises(ImageError, match="at most 900 pixels"):
        images.decode_image(good, max_pixels=900)


def test_sixteen_by_sixteen_is_enough() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    assert images.decode_image(buffer.getvalue()).pixels.shape == (16, 16, 3)


# PNG is lossless. JPEG at quality 95 without chroma subsampling stays within a few levels on smooth colours. WebP
# always halves the chroma, which on blue, that weighs least in luma, amounts to about twice as much.
@pytest.mark.parametrize(("name", "levels"), [("a.png", 0), ("a.PNG", 0), ("a.jpg", 4), ("a.jpeg", 4), ("a.webp", 12)])
def test_write_then_read(tmp_path: Path, colours: np.ndarray, name: str, levels: int) -> None:
    images.write_image(tmp_path / name, colours / np.float32(255))
    np.testing.assert_allclose(images.read_image(tmp_path / name).pixels * 255, colours, atol=levels + 1e-4)
    with Image.open(tmp_path / name) as written:
        assert written.format == {"png": "PNG", "webp": "WEBP"}.get(name[2:].lower(), "JPEG")


def test_alpha_is_kept_or_laid_over_white(tmp_path: Path, colours: np.ndarray) -> None:
    pixels, alpha = colours / np.float32(255), np.zeros((HEIGHT, WIDTH), np.float32)
    alpha[:, WIDTH // 2 :] = 1.0
    for name in ("a.png", "a.webp"):
        images.write_image(tmp_path / name, pixels, alpha)
        read = images.read_image(tmp_path / name)
        assert read.alpha is not None
        np.testing.assert_array_equal(read.alpha, alpha)
    flat = images.decode_image(images.encode_image(np.zeros_like(pixels), alpha, "jpg"))
    assert flat.alpha is None
    # Away from the 8-pixel JPEG block that holds the edge (columns 16..23).
    np.testing.assert_allclose(flat.pixels[:, :16], 1.0, atol=2 / 255)
    np.testing.assert_allclose(flat.pixels[:, 24:], 0.0, atol=2 / 255)


def test_encoding_rounds_and_clips() -> None:
    pixels = np.full((16, 16, 3), 0.5, np.float32)
    pixels[0, 0], pixels[0, 1] = -3.0, 7.0
    decoded = images.decode_image(images.encode_image(pixels)).pixels * 255
    assert decoded[0, 0, 0] == 0
    assert decoded[0, 1, 0] == 255
    assert decoded[5, 5, 0] == 128  # 127.5 to even


def test_write_refuses(tmp_path: Path, colours: np.ndarray) -> None:
    pixels = colours / np.float32(255)
    path = tmp_path / "out.png"
    images.write_image(path, pixels)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"out\.png: exists") as exists:
        images.write_image(path, 1 - pixels)
    assert isinstance(exists.value, ImageError)
    assert path.read_bytes() == before
    images.write_image(path, 1 - pixels, overwrite=True)
    assert path.read_bytes() != before
    with pytest.raises(ImageError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        images.write_image(tmp_path / "out.gif", pixels)
    with pytest.raises(ImageError, match="cannot be written"):
        images.write_image(tmp_path / "nowhere" / "out.png", pixels)
    with pytest.raises(ImageError, match="not finite"):
        images.write_image(tmp_path / "nan.png", np.full_like(pixels, np.nan))
    with pytest.raises(ImageError, match=r"\(H, W, 3\)"):
        images.write_image(tmp_path / "grey.png", pixels[:, :, 0])
    with pytest.raises(ImageError, match="alpha"):
        images.write_image(tmp_path / "alpha.png", pixels, pixels)
    with pytest.raises(ImageError, match="encode"):
        images.encode_image(np.zeros((1, 20_000, 3), np.float32), format="webp")  # WebP's limit is 16383
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="is a folder"):
        images.write_image(tmp_path / "folder.png", pixels, overwrite=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.png", "out.png"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.png"
    path.write_bytes(b"the old file")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(ImageError, match="No space left"):
        images.write_image(path, colours / np.float32(255), overwrite=True)
    assert path.read_bytes() == b"the old file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]


def test_write_without_hard_links(tmp_path: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", unsupported)
    images.write_image(tmp_path / "out.png", colours / np.float32(255))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]


def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fsync = tmp_path / "out.png", os.fsync

    def fsync_while_another_writes(descriptor: int) -> None:
        path.write_bytes(b"another's")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_while_another_writes)
    with pytest.raises(FileExistsError):
        images.write_image(path, colours / np.float32(255))
    assert path.read_bytes() == b"another's"


def test_resize_against_opencv() -> None:
    pixels = np.random.default_rng(1).random((32, 48, 3), dtype=np.float32)
    # Shrinking by whole factors is a block mean; both sides sum a few floats.
    area = cv2.resize(pixels, (12, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(images.resize(pixels, 16, 12, "area"), area, atol=1e-6)
    nearest = cv2.resize(pixels, (96, 64), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(images.resize(pixels, 64, 96, "nearest"), nearest)
    # Both put pixel centres at half integers; a shift by half a pixel would be off by 0.5/48 on this ramp.
    # (The bicubic kernels differ, but every one of them reproduces a ramp away from the edge.)
    ramp = np.tile(np.linspace(0, 1, 48, dtype=np.float32), (32, 1))
    expected = cv2.resize(ramp, (96, 64), interpolation=cv2.INTER_LINEAR)
    for method in ("bicubic", "lanczos"):
        resized = images.resize(ramp, 64, 96, method)
        assert resized.shape == (64, 96)
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized[8:-8, 8:-8], expected[8:-8, 8:-8], atol=1e-3)


def test_resize_keeps_values_and_channels() -> None:
    maps = np.random.default_rng(2).normal(size=(20, 20, 7)).astype(np.float32) * 50
    for method in ("nearest", "area", "bicubic", "lanczos"):
        np.testing.assert_allclose(images.resize(maps, 20, 20, method), maps)
        # Weights add up to 1 up to float32 rounding.
        flat = images.resize(np.full((20, 30, 2), 7.25, np.float32), 45, 11, method)
        np.testing.assert_allclose(flat, 7.25, rtol=1e-6)
    for bad in ((0, 5, "area"), (5, -1, "area"), (5, 5, "cubic")):
        with pytest.raises(ImageError):
            images.resize(maps, *bad)
    with pytest.raises(ImageError):
        images.resize(np.zeros(5, np.float32), 5, 5)


def test_working_size() -> None:
    assert images.working_size(512, 256, 1024, 512) == (1024, 512)
    assert images.working_size(768, 384, 1024, 512) == (1024, 512)
    assert images.working_size(1024, 512, 1024, 512) == (1024, 512)
    assert images.working_size(2000, 1001, 1024, 512) == (2000, 1001)
    rng = np.random.default_rng(3)
    for height, width in rng.integers(16, 700, (300, 2)).tolist():
        new_height, new_width = images.working_size(height, width, 1024, 512)
        assert new_height * new_width >= 1024 * 512
        # One row and column less would be too little: nothing is enlarged more than needed.
        assert (new_height - 1) * (new_width - 1) < 1024 * 512
        # Each side is rounded up by less than a pixel.
        assert abs(new_height * width - new_width * height) < max(height, width)
    with pytest.raises(ValueError, match="positive"):
        images.working_size(512, 0, 1024, 512)


def test_pad_and_crop() -> None:
    pixels = np.random.default_rng(4).random((30, 50, 3), dtype=np.float32)
    padded = images.pad(pixels, 32, 64)
    assert padded.shape == (32, 64, 3)
    expected = cv2.copyMakeBorder(pixels, 0, 2, 0, 14, cv2.BORDER_REFLECT_101)
    np.testing.assert_array_equal(padded, expected)
    np.testing.assert_array_equal(images.crop(padded, 30, 50), pixels)
    small = images.pad(pixels[:3, :3, 0], 8, 8)  # too small to mirror
    np.testing.assert_array_equal(small, cv2.copyMakeBorder(pixels[:3, :3, 0], 0, 5, 0, 5, cv2.BORDER_REPLICATE))
    assert images.pad(pixels, 30, 50) is pixels
    with pytest.raises(ValueError, match="cannot pad 30x50 to 29x64"):
        images.pad(pixels, 29, 64)
    assert [images.round_up(value, 8) for value in (1, 8, 9)] == [8, 8, 16]
    with pytest.raises(ValueError, match="crop"):
        images.crop(pixels, 31, 50)


def test_pillow_images_convert_as_files_do(tmp_path: Path, colours: np.ndarray) -> None:
    image = Image.fromarray(colours).convert("RGBA")
    path = save(tmp_path, "a.png", image)
    converted, read = images.picture_from_image(image), images.read_image(path)
    np.testing.assert_array_equal(converted.pixels, read.pixels)
    assert converted.alpha is not None
    np.testing.assert_array_equal(converted.alpha, np.ones((HEIGHT, WIDTH)))
    with pytest.raises(ImageError, match="too small: 15x20"):
        images.picture_from_image(Image.new("RGB", (15, 20)))


def test_overwriting_replaces_the_file_and_not_its_bytes(tmp_path: Path, colours: np.ndarray) -> None:
    """Whoever still has the old file open reads all of the old picture."""
    path = tmp_path / "out.png"
    path.write_bytes(b"the old file")
    with path.open("rb") as reader:
        images.write_image(path, colours / np.float32(255), overwrite=True)
        assert reader.read() == b"the old file"
    assert images.read_image(path).pixels.shape == colours.shape
