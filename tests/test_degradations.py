"""What else befalls pictures: motion along a path, a second downscaling, over-sharpening, a video codec."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from diffbody_ref.data.degradations import NANO, compressed, degrade, sharpened
from diffbody_ref.data.motion import limb_moved, motion_kernel, moved
from diffbody_ref.ops.parts import PART_LABELS

OPTIONS = ("motion", "limb_motion", "rescale", "sharpen", "video")
# Hardly any other degradation.
MILD = dataclasses.replace(
    NANO,
    blur_sigma=(0.1, 0.1),
    downscale=(1.0, 1.0),
    noise=(0.0, 0.0),
    jpeg_quality=(100, 100),
    anisotropic_probability=0.0,
    second_order_probability=0.0,
)


def picture(height: int = 64, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).random((height, width, 3), dtype=np.float32)


def degraded(config: object, seed: int = 1, **arguments: object) -> np.ndarray:
    return degrade(picture(), np.random.default_rng(seed), config, **arguments)  # type: ignore[arg-type]


def test_what_is_off_draws_nothing() -> None:
    others = {"motion": (1.0, 2.0), "rescale": (1.0, 3.0), "sharpen": (1.0, 1.5), "video_quality": (1, 2)}
    for seed in range(4):
        expected = degraded(NANO, seed)
        assert np.array_equal(degraded(dataclasses.replace(NANO, **others), seed), expected)  # type: ignore[arg-type]
        assert np.array_equal(degraded(NANO, seed, parts=np.ones((64, 48), np.uint8)), expected)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_the_picture_by_its_seed(option: str) -> None:
    config = dataclasses.replace(MILD, **{f"{option}_probability": 1.0})  # type: ignore[arg-type]
    first, again, other = (degraded(config, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.abs(first - degraded(MILD)).mean() > 0.003  # a limb is a small part
    assert first.shape == (64, 48, 3)
    assert first.dtype == np.float32
    levels = first * 255
    assert np.abs(levels - levels.round()).max() < 1e-4  # 8 bits
    assert 0 <= first.min() <= first.max() <= 1
    with pytest.raises(ValueError, match=f"{option}_probability is 2"):
        dataclasses.replace(NANO, **{f"{option}_probability": 2.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1.0, 4.0, 15.0])
def test_a_path_is_centred_and_of_its_length(length: float) -> None:
    for seed in range(10):
        kernel = motion_kernel(length, np.random.default_rng(seed))
        assert kernel.sum() == pytest.approx(1)
        offsets = np.arange(len(kernel)) - len(kernel) // 2
        assert kernel.sum(axis=1) @ offsets == pytest.approx(0, abs=1e-9)
        assert kernel.sum(axis=0) @ offsets == pytest.approx(0, abs=1e-9)
        y, x = np.nonzero(kernel)
        # A bent path is shorter from end to end, and its ends are shared with the next pixels.
        assert np.hypot(np.ptp(y), np.ptp(x)) <= length + 3
        assert len(y) >= length / 2


def test_motion_leaves_what_is_flat_and_keeps_the_brightness() -> None:
    kernel = motion_kernel(6.0, np.random.default_rng(0))
    flat = np.full((32, 32, 3), 0.25, np.float32)
    np.testing.assert_allclose(moved(flat, kernel), flat, atol=1e-6)  # float32
    point = np.zeros((33, 33, 3), np.float32)
    point[16, 16] = 1
    radius = len(kernel) // 2
    around = slice(16 - radius, 17 + radius)
    np.testing.assert_allclose(moved(point, kernel)[around, around, 0], kernel, atol=1e-6)


def test_a_limb_moves_where_its_label_is() -> None:
    parts = np.zeros((64, 48), np.uint8)
    parts[30:50, 20:26] = PART_LABELS.index("arms")
    parts[10:40, 30:40] = PART_LABELS.index("torso")  # no limb
    clean = picture()
    result = limb_moved(clean, motion_kernel(4.0, np.random.default_rng(0)), np.random.default_rng(1), parts)
    change = np.abs(result - clean).max(axis=2)
    near = np.zeros_like(parts, bool)
    near[30 - 12 : 50 + 12, 20 - 12 : 26 + 12] = True  # the path and the soft edge
    assert change[32:48, 21:25].mean() > 0.1
    assert change[~near].max() < 0.02
    none = limb_moved(clean, motion_kernel(4.0, np.random.default_rng(0)), np.random.default_rng(1), 0 * parts)
    assert np.abs(none - clean).max() > 0.1  # nobody's limb: a capsule


def test_sharpening_overshoots_and_video_loses_by_its_quality() -> None:
    edge = np.repeat((np.arange(32) >= 16)[None, :, None] * 0.4 + 0.3, 32, axis=0).repeat(3, axis=2).astype(np.float32)
    sharp = sharpened(edge, 1.0, 1.0)
    assert sharp.max() > 0.75
    assert sharp.min() < 0.25
    np.testing.assert_allclose(sharp[:, :8], 0.3, atol=1e-6)
    errors = [np.abs(compressed(picture(), "WEBP", quality) - picture()).mean() for quality in (5, 50, 95)]
    assert errors == sorted(errors, reverse=True)
