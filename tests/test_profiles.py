"""Colours of files: profiles, ranges of values, and the tag of what is written."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage.color import deltaE_ciede2000, rgb2lab

from diffbody_ref.ops.images import decode_image, decode_levels, encode_image, picture_from_image
from diffbody_ref.ops.profiles import srgb_profile

# Of Adobe RGB (1998) and sRGB, XYZ of red, green and blue, adapted to D50 (as profiles hold them), as rows.
ADOBE = np.array([[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]])
SRGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
ADOBE_GAMMA = 563 / 256
D50 = (0.9642, 1.0, 0.8249)


def s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: bytes, kind: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile, version 2.1, of these tags."""
    name = b"Profile of a test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(12 + 67),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + s15(*D50),
        **tags,
    }
    directory, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        directory += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = bytes(4) + b"lcms" + struct.pack(">I", 0x02100000) + kind + space + connection
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + s15(*D50)
    header += bytes(128 - len(header))
    return struct.pack(">I", 128 + len(directory) + len(body)) + header[4:] + directory + body


def gamma_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def adobe_profile() -> bytes:
    colorants = {tag: b"XYZ \0\0\0\0" + s15(*row) for tag, row in zip((b"rXYZ", b"gXYZ", b"bXYZ"), ADOBE, strict=True)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma_curve(ADOBE_GAMMA))
    return profile(b"RGB ", b"mntr", {**colorants, **curves})


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", b"mntr", {b"kTRC": gamma_curve(gamma)})


def cmyk_profile() -> bytes:
    """Every ink takes lightness away, and nothing else: L = 100 − 50·K − 50·mean(C, M, Y); made of a 2⁴ table."""
    corners = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    light = 255 * (1 - 0.5 * corners[:, 3] - 0.5 * corners[:, :3].mean(axis=1))
    table = np.stack([light, np.full(16, 128), np.full(16, 128)], -1).round().astype(np.uint8)
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + table.tobytes() + ramp * 3
    return profile(b"CMYK", b"prtr", {b"A2B0": lut, b"A2B1": lut}, connection=b"Lab ")


def from_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * np.maximum(values, 0) ** (1 / 2.4) - 0.055)


@pytest.fixture
def adobe() -> tuple[np.ndarray, np.ndarray]:
    """Values uint8 (64, 96, 3) of a picture in Adobe RGB, and its colours in sRGB, float in [0, 1]."""
    y, x = np.mgrid[0:64, 0:96]
    values = np.stack([90 + x, 60 + 2 * y, 200 - x - y], axis=-1).astype(np.uint8)
    linear = (values / 255.0) ** ADOBE_GAMMA @ ADOBE @ np.linalg.inv(SRGB)
    return values, np.clip(from_linear(linear), 0, 1)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def difference(pixels: np.ndarray, colours: np.ndarray) -> float:
    """Mean ΔE 2000."""
    return float(deltaE_ciede2000(rgb2lab(pixels), rgb2lab(colours)).mean())


LOSSLESS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100},
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_colours_are_those_of_the_profile(adobe: tuple[np.ndarray, np.ndarray], format: str) -> None:
    values, colours = adobe
    image, options = Image.fromarray(values), LOSSLESS.get(format, {})
    data = encoded(image, format, icc_profile=adobe_profile(), **options)
    picture = decode_image(data)
    assert difference(picture.pixels, colours) < 0.5  # of two roundings to 8 bits
    assert difference(decode_levels(data) / 255, colours) < 0.5
    assert picture.notices == ("colours converted from the profile Profile of a test to sRGB",)
    assert difference(decode_image(encoded(image, format, **options)).pixels, colours) > 3


def test_pillows_pictures_palettes_and_alpha_are_converted_alike(adobe: tuple[np.ndarray, np.ndarray]) -> None:
    values, colours = adobe
    image = Image.fromarray(values)
    image.info["icc_profile"] = adobe_profile()
    assert difference(picture_from_image(image).pixels, colours) < 0.5
    assert image.info["icc_profile"] == adobe_profile()
    alpha = np.linspace(0, 255, values.shape[0] * values.shape[1]).astype(np.uint8).reshape(values.shape[:2])
    rgba = decode_image(encoded(Image.fromarray(np.dstack([values, alpha])), "PNG", icc_profile=adobe_profile()))
    assert difference(rgba.pixels, colours) < 0.5
    assert rgba.alpha is not None
    np.testing.assert_array_equal(rgba.alpha, alpha / np.float32(255))
    palette = Image.fromarray(values).quantize(256)
    plain = decode_image(encoded(palette, "PNG")).pixels.astype(np.float64)
    expected = np.clip(from_linear(plain**ADOBE_GAMMA @ ADOBE @ np.linalg.inv(SRGB)), 0, 1)
    read = decode_image(encoded(palette, "PNG", icc_profile=adobe_profile()))
    assert difference(read.pixels, expected) < 0.5


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_profile_of_srgb_changes_nothing(adobe: tuple[np.ndarray, np.ndarray], mode: str) -> None:
    image = Image.fromarray(adobe[0]).convert(mode)
    picture = decode_image(encoded(image, "PNG", icc_profile=srgb_profile()))
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")) / np.float32(255))
    assert picture.notices == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_profiles(dtype: Any) -> None:
    """Grey of linear light is brighter in sRGB; of 16 bits, it stays finer than 8 bits."""
    most = np.iinfo(dtype).max
    values = np.linspace(0, most, 64 * 64).astype(dtype).reshape(64, 64)
    data = encoded(Image.fromarray(values), "PNG", icc_profile=grey_profile(1.0))
    picture = decode_image(data)
    # A level of 8 bits of the result; in the darkest tenth, a level of the input is several of the result.
    inside = values > most / 10
    expected = from_linear(values / most)
    np.testing.assert_allclose(picture.pixels[:, :, 1][inside], expected[inside], atol=1.5 / 255)
    assert picture.notices == ("colours converted from the profile Profile of a test to sRGB",)
    if dtype == np.uint16:
        assert len(np.unique(picture.pixels)) > 1000


def test_cmyk_by_its_profile_and_without() -> None:
    inks = np.zeros((32, 32, 4), np.uint8)
    inks[:, 8:16, 3] = 255  # black ink: half the lightness of paper, says the profile
    inks[:, 16:24, :3] = 255
    inks[:, 24:] = 255
    image = Image.fromarray(inks, "CMYK")
    for format in ("TIFF", "JPEG"):
        options = LOSSLESS.get(format, {})
        picture = decode_image(encoded(image, format, icc_profile=cmyk_profile(), **options))
        light = rgb2lab(picture.pixels)[16, [4, 12, 20, 28], 0]
        # Black point compensation is at work where all inks together are black; a JPEG rounds.
        np.testing.assert_allclose(light, [100, 50, 50, 0], atol=2)
        assert picture.notices == ("colours converted from the profile Profile of a test to sRGB",)
        plain = decode_image(encoded(image, format, **options))
        assert plain.notices == ("CMYK without a colour profile: the colours are approximate",)
        np.testing.assert_allclose(plain.pixels[16, [4, 12, 20, 28], 0], [1, 0, 0, 0], atol=2 / 255)


def test_lab() -> None:
    image = Image.new("LAB", (20, 20), (128, 128, 128))
    expected = np.full((1, 1, 3), 119 / 255)  # L = 50
    picture = decode_image(encoded(image, "TIFF"))
    assert difference(picture.pixels, np.broadcast_to(expected, (20, 20, 3))) < 0.5


@pytest.mark.parametrize(
    ("mode", "data"),
    [
        ("RGB", b"no profile"),
        ("RGB", adobe_profile()[:150]),
        ("RGB", adobe_profile()[:-200] + b"\xff" * 200),
        ("RGB", grey_profile(1.0)),
        ("RGB", cmyk_profile()),
        ("CMYK", adobe_profile()),
        ("L", cmyk_profile()),
    ],
)
def test_profiles_that_do_not_fit_are_left_out(mode: str, data: bytes) -> None:
    y, x = np.mgrid[0:32, 0:32]
    image = Image.fromarray(np.stack([8 * x, 8 * y, 0 * x], -1).astype(np.uint8)).convert(mode)
    picture = decode_image(encoded(image, "TIFF", icc_profile=data))
    np.testing.assert_array_equal(picture.pixels, decode_image(encoded(image, "TIFF")).pixels)
    assert picture.notices == ("the colour profile (ICC) is broken or does not fit the picture: left out",)


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "avif", "tiff"])
def test_what_is_written_is_tagged_as_srgb(format: str) -> None:
    pixels = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    data = encode_image(pixels, format=format)
    with Image.open(io.BytesIO(data)) as image:
        if format == "png":
            assert image.info["srgb"] == 0
        else:
            tag = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            assert "sRGB" in str(tag.profile.profile_description)
    assert decode_image(data).notices == ()
    srgb_profile.cache_clear()
    assert encode_image(pixels, format=format) == data  # no time of day in it


@pytest.mark.parametrize(
    ("values", "scale", "notices"),
    [
        ([0.0, 0.25, 1.0], 1, ()),
        ([0.0, 0.5, 1.2], 1, ()),  # resampling overshoots
        ([0.0, 100.0, 255.0], 255, ("grey values of up to 255: read as a range of 0 to 255",)),
        ([0.0, 100.0, 65535.0], 65535, ("grey values of up to 65535: read as a range of 0 to 65535",)),
        ([0.0, 1e5, 1e6], 1e6, ("grey values of up to 1e+06: read as a range of 0 to 1e+06",)),
        ([-0.5, 0.5, 1.0], 1, ("grey values below 0: read as black",)),
        ([np.nan, 0.5, np.inf], 1, ("values that are not finite: read as black",)),
        ([0.0, 0.0, 0.0], 1, ()),
    ],
)
def test_float_pictures_are_read_by_their_range(values: list[float], scale: float, notices: tuple[str, ...]) -> None:
    picture = np.tile(np.array(values, np.float32), (24, 8))
    read = decode_image(encoded(Image.fromarray(picture), "TIFF"))
    expected = np.clip(np.where(np.isfinite(picture), picture, 0) / scale, 0, 1)
    np.testing.assert_allclose(read.pixels[:, :, 0], expected, atol=1e-6)  # a rounding of float32
    assert read.notices == notices
    levels = decode_levels(encoded(Image.fromarray(picture), "TIFF"))
    np.testing.assert_allclose(levels[:, :, 0] / 255, expected, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(("top", "scale"), [(255, 255), (60_000, 65_535), (2**31 - 1, 2**31 - 1)])
def test_integers_of_32_bits_are_read_by_their_range(top: int, scale: int) -> None:
    values = np.linspace(0, top, 24 * 24).astype(np.int32).reshape(24, 24)
    read = decode_image(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_allclose(read.pixels[:, :, 0], values / scale, atol=1e-6)
    assert len(read.notices) == (scale != 65_535)
