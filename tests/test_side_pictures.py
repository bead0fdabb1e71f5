"""Pictures beside a restored one."""

from __future__ import annotations

import numpy as np

from diffbody.side_pictures import attention_overlay, before_after, loss_chart


def test_before_after_shows_both(pixels: np.ndarray) -> None:
    after = np.repeat(np.repeat(1 - pixels, 2, axis=0), 2, axis=1)
    sheet = before_after(pixels, after)
    height, width = after.shape[:2]
    corner = sheet.shape[0] - height, sheet.shape[1] - width
    found = [
        (y, x)
        for y in range(corner[0] + 1)
        for x in range(corner[1] + 1)
        if np.allclose(sheet[y : y + height, x : x + width], after, atol=1e-6)
    ]
    assert len(found) == 1
    assert found[0][1] >= width  # the right half


def test_attention_overlay_colours_the_parts_only(pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    attention = np.zeros((6, height, width), np.float32)
    attention[0, :10] = attention[5, :10] = 1.0
    overlay = attention_overlay(pixels, attention)
    np.testing.assert_array_equal(overlay[10:], pixels[10:])
    # The first hue is red: red rises towards 1, green and blue keep 30 %.
    np.testing.assert_allclose(overlay[:10, :, 1:], 0.3 * pixels[:10, :, 1:], atol=1e-6)
    assert (overlay[:10, :, 0] >= 0.7 - 1e-6).all()


def test_loss_chart_falls_with_the_loss() -> None:
    chart = loss_chart([(999, 1.0), (500, 0.5), (0, 0.0)])
    red = (chart[:, :, 0] > 0.7) & (chart[:, :, 1] < 0.4)
    heights = [np.flatnonzero(red[:, x]).mean() for x in np.flatnonzero(red.any(axis=0))]
    assert len(heights) > 400  # most of the 640 columns
    # Lines go down; a pixel of play for the joint of two segments.
    assert (np.diff(heights) >= -1.0).all()
    assert heights[-1] - heights[0] > 200
