"""Seeded noise, colour correction, tiling and captions."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from diffbody_ref.ops import colour, noise, tiling
from diffbody_ref.ops.captions import Caption
from diffbody_ref.ops.tiling import Tile, plan_tiles, tile_weights


def test_ops_need_numpy_and_pillow_only() -> None:
    script = """
import importlib, pkgutil, sys
import diffbody_ref.ops as ops
names = [module.name for module in pkgutil.iter_modules(ops.__path__)]
for name in names:
    importlib.import_module("diffbody_ref.ops." + name)
heavy = {"torch", "scipy", "cv2", "diffusers", "transformers", "skimage"} & set(sys.modules)
print(len(names), ",".join(sorted(heavy)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, _, heavy = result.stdout.strip("\n").partition(" ")
    assert int(count) >= 6
    assert heavy == ""


# ---- noise


PINNED = np.array([0.059911035001277924, 0.015559634193778038, -1.1644384860992432], np.float32)  # exact in float32


def test_noise_is_pinned() -> None:
    """These numbers are what a seed means: a change here changes every restored picture."""
    expected = np.random.Generator(np.random.Philox(key=7 + (3 << 64))).standard_normal(6, dtype=np.float32)
    drawn = noise.philox_noise(7, 3, (2, 3))
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn.ravel(), expected)
    np.testing.assert_array_equal(noise.philox_noise(0, 0, (3,)), PINNED)


def test_noise_is_standard_normal_and_independent() -> None:
    draws = {key: noise.philox_noise(*key, (4, 128, 64)) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (2**64 - 1, 5)]}
    count = 4 * 128 * 64  # 32768: standard errors of mean and correlation 0.0055, of the deviation 0.004; times 4
    for draw in draws.values():
        assert abs(draw.mean()) < 0.022
        assert abs(draw.std() - 1) < 0.016
        assert (np.abs(draw) > 3).mean() == pytest.approx(0.0027, abs=4 * (0.0027 / count) ** 0.5)
    correlations = np.corrcoef([draw.ravel() for draw in draws.values()]) - np.eye(len(draws))
    assert np.abs(correlations).max() < 0.022
    np.testing.assert_array_equal(noise.philox_noise(np.uint64(1), 0, (4, 128, 64)), draws[1, 0])  # type: ignore[arg-type]


def test_noise_rejects_bad_seeds() -> None:
    for seed in (-1, 2**64, 1.5, "7", None, True):
        with pytest.raises(ValueError, match="seed must be an integer"):
            noise.philox_noise(seed, 0, (2,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step must be an integer"):
        noise.philox_noise(0, -1, (2,))


# ---- colour


def opencv_low_pass(pixels: np.ndarray, levels: int) -> np.ndarray:
    """The à-trous low pass with OpenCV: a dense kernel with holes, the edge replicated."""
    for level in range(levels):
        taps = np.zeros(2 * 2**level + 1, np.float32)
        taps[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        pixels = cv2.sepFilter2D(pixels, -1, taps, taps, borderType=cv2.BORDER_REPLICATE)
    return pixels


@pytest.mark.parametrize("size", [(64, 48), (17, 90), (3, 5), (1, 1)])
def test_wavelet_against_opencv(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0.3, 0.7, (*size, 3)).astype(np.float32)
    reference = rng.uniform(0.3, 0.7, (*size, 3)).astype(np.float32)
    for levels in (1, 3, 5):
        expected = image - opencv_low_pass(image, levels) + opencv_low_pass(reference, levels)
        matched = colour.match_colour(image, reference, "wavelet", levels)
        assert matched.dtype == np.float32
        # Up to 10 blurs of values below 1 in float32 on either side.
        np.testing.assert_allclose(matched, np.clip(expected, 0, 1), atol=2e-6)


def test_wavelet_corrects_colour_and_keeps_detail() -> None:
    detail = np.random.default_rng(1).uniform(-0.05, 0.05, (96, 96, 3)).astype(np.float32)
    detail -= colour.wavelet_low_pass(detail)
    base = np.linspace(0.3, 0.6, 96, dtype=np.float32)[:, None, None] * np.ones((96, 96, 3), np.float32)
    tinted = base + detail + np.array([0.1, 0.0, -0.1], np.float32)
    # What remains is the low pass of the high band, which is small but not zero; the tint of 0.1 is gone.
    np.testing.assert_allclose(colour.match_colour(tinted, base, "wavelet"), base + detail, atol=5e-3)


def test_adain_matches_mean_and_deviation() -> None:
    rng = np.random.default_rng(2)
    image = rng.normal(0.4, 0.05, (80, 60, 3)).astype(np.float32)
    reference = rng.normal([0.6, 0.5, 0.4], 0.08, (80, 60, 3)).astype(np.float32).clip(0, 1)
    matched = colour.match_colour(image, reference, "adain")
    np.testing.assert_allclose(matched.mean(axis=(0, 1)), reference.mean(axis=(0, 1)), atol=1e-3)
    # The 1e-5 on the variances (0.0025 and up) moves the deviation by about 1e-4; clipping hardly more.
    np.testing.assert_allclose(matched.std(axis=(0, 1)), reference.std(axis=(0, 1)), atol=1e-3)
    flat = colour.match_colour(np.full((8, 8, 3), 0.2, np.float32), np.full((8, 8, 3), 0.7, np.float32), "adain")
    np.testing.assert_allclose(flat, 0.7, atol=1e-6)


def test_colour_leaves_a_matching_picture_alone() -> None:
    image = np.random.default_rng(3).random((40, 30, 3), dtype=np.float32)
    for method in colour.COLOUR_METHODS:
        np.testing.assert_allclose(colour.match_colour(image, image, method), image, atol=1e-6)
    assert colour.match_colour(image, 1 - image, "none") is image
    for method in ("wavelet", "adain"):
        matched = colour.match_colour(image, np.ones_like(image), method)
        assert matched.min() >= 0
        assert matched.max() <= 1


def test_colour_rejects_bad_values() -> None:
    image = np.zeros((8, 8, 3), np.float32)
    with pytest.raises(ValueError, match="wavelet, adain, none"):
        colour.match_colour(image, image, "lab")
    with pytest.raises(ValueError, match=r"\(8, 9, 3\)"):
        colour.match_colour(image, np.zeros((8, 9, 3), np.float32))
    with pytest.raises(ValueError, match="levels"):
        colour.match_colour(image, image, "wavelet", 0)


# ---- tiling


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "multiple"),
    [
        ((64, 64), (64, 64), 0, 1),
        ((100, 70), (64, 32), 16, 1),
        ((1536, 1024), (1024, 512), 128, 8),
        ((1528, 520), (1024, 512), 100, 8),
        ((32, 200), (64, 64), 63, 1),
        ((65, 64), (64, 64), 0, 1),
    ],
)
def test_tiles_cover(size: tuple[int, int], tile: tuple[int, int], overlap: int, multiple: int) -> None:
    tiles = plan_tiles(*size, *tile, overlap, multiple)
    covered = np.zeros(size, int)
    for item in tiles:
        assert (item.height, item.width) == (min(tile[0], size[0]), min(tile[1], size[1]))
        assert item.top % multiple == item.left % multiple == 0
        assert min(item.top, item.left) >= 0
        assert item.top + item.height <= size[0]
        assert item.left + item.width <= size[1]
        covered[item.slices] += 1
    assert covered.min() >= 1
    assert len(set(tiles)) == len(tiles)
    lefts = sorted({item.left for item in tiles})
    assert all(right - left <= tile[1] - overlap for left, right in itertools.pairwise(lefts))


def test_tiles_by_hand() -> None:
    assert plan_tiles(10, 25, 10, 10, 2) == [Tile(0, 0, 10, 10), Tile(0, 8, 10, 10), Tile(0, 15, 10, 10)]
    assert [tile.left for tile in plan_tiles(8, 10, 8, 4, 1)] == [0, 3, 6]  # fits without shifting


def test_tiles_map_between_pixels_and_latent() -> None:
    latent = plan_tiles(24, 16, 16, 8, 4)
    pixels = plan_tiles(192, 128, 128, 64, 32, multiple=8)
    assert [tile.enlarged(8) for tile in latent] == pixels
    assert [tile.reduced(8) for tile in pixels] == latent
    with pytest.raises(ValueError, match="grid of 8"):
        Tile(8, 4, 64, 64).reduced(8)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_blending_the_tiles_of_a_picture_gives_the_picture(kind: Callable[[np.ndarray], Any]) -> None:
    picture = np.random.default_rng(4).random((3, 150, 90), dtype=np.float32)
    tiles = plan_tiles(150, 90, 64, 48, 20)
    for values in (picture, np.full_like(picture, 0.37)):
        blended = tiling.blend((kind(values)[(..., *tile.slices)] for tile in tiles), tiles)
        assert type(blended) is type(kind(values))
        # Up to 9 shares, each rounded to float32, of values below 1.
        np.testing.assert_allclose(np.asarray(blended), values, atol=1e-6)


def test_in_tiles_is_the_same_for_numpy_and_torch_and_for_a_network_that_sees_one_cell() -> None:
    latents = np.random.default_rng(4).standard_normal((1, 4, 40, 24)).astype(np.float32)
    enlarge = lambda x: x.repeat(4, axis=2).repeat(4, axis=3)  # noqa: E731
    calls: list[tuple[int, ...]] = []

    def network(cells: tiling.Cells) -> np.ndarray:
        calls.append(latents[cells].shape)
        return enlarge(latents[cells])

    by_numpy = tiling.in_tiles(network, (40, 24), 64, 16, (4, 1), 4)
    assert set(calls) == {(1, 4, 16, 16)}
    np.testing.assert_allclose(by_numpy, enlarge(latents), atol=1e-5)  # values of up to 4, as above
    by_torch = tiling.in_tiles(lambda cells: torch.from_numpy(enlarge(latents[cells])), (40, 24), 64, 16, (4, 1), 4)
    np.testing.assert_array_equal(by_numpy, by_torch.numpy())
    calls.clear()
    assert tiling.in_tiles(network, (40, 24), 160, 16, (4, 1), 4).shape == (1, 4, 160, 96)
    assert calls == [latents.shape]  # not larger than a tile: as a whole


def test_blending_enlarged_tiles_fades_smoothly() -> None:
    tiles = [tile.enlarged(4) for tile in plan_tiles(8, 20, 8, 12, 4)]
    left, right = tiles
    blended = tiling.blend([np.zeros((32, 48)), np.ones((32, 48))], tiles)
    assert blended.shape == (32, 80)
    assert (blended[:, : right.left] == 0).all()
    assert (blended[:, left.width :] == 1).all()
    assert (np.diff(blended, axis=1) >= -1e-7).all()
    # Symmetric about the overlap's middle: what one tile loses the other gains.
    overlap = blended[:, right.left : left.width]
    np.testing.assert_allclose(overlap + overlap[:, ::-1], 1.0, atol=1e-6)
    assert overlap[0, 0] < 0.01


def test_feather_window() -> None:
    window = tiling.feather_window(128, 65)
    assert window.dtype == np.float32
    assert window.shape == (128, 65)
    assert window.min() > 0
    assert window[64, 32] == window.max() <= 1
    np.testing.assert_array_equal(window, window[::-1, ::-1])
    x = (np.arange(65) - 32) / 65
    np.testing.assert_allclose(window[64] / window[64, 32], np.exp(-0.5 * (x / 0.1) ** 2), rtol=1e-6)


def test_tiling_rejects_bad_values() -> None:
    for arguments in [(0, 64, 64, 64, 0), (64, 64, 64, -8, 0), (64, 64, 64, 64, -1), (64, 64, 64, 64, 0, 0)]:
        with pytest.raises(ValueError, match="positive"):
            plan_tiles(*arguments)
    with pytest.raises(ValueError, match="width must be a positive multiple of 8, got 100"):
        plan_tiles(64, 100, 64, 64, 0, multiple=8)
    with pytest.raises(ValueError, match="stride"):
        plan_tiles(64, 100, 64, 64, 64)
    with pytest.raises(ValueError, match="no tiles"):
        tile_weights([])
    tiles = [Tile(0, 0, 8, 8)]
    with pytest.raises(ValueError, match="does not fit"):
        tiling.blend([np.zeros((8, 9))], tiles)
    with pytest.raises(ValueError, match="zip"):
        tiling.blend([], tiles)


# ---- captions


def test_caption_goes_from_top_to_bottom() -> None:
    caption = Caption(
        background="a quiet street",
        shoes="white sneakers.",
        look=" a young  woman,",
        hair="long black hair",
        lower="blue jeans",
        pose="standing",
    )
    assert caption.sentence() == (
        "a young woman, long black hair, blue jeans, white sneakers, standing, a quiet street"
    )
    assert Caption().sentence() == ""
    assert Caption("l", "h", "f", "u", "w", "a", "s", "p", "b").sentence() == "l, h, f, u, w, a, s, p, b"
