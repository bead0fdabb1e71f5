"""Boxes of people."""

from __future__ import annotations

import numpy as np


def labelled_box(parts: np.ndarray) -> np.ndarray:
    """The box of the labelled pixels of a part map.

    Args:
        parts: integer (H, W), 0 is background.

    Returns:
        float32 (4,): x0, y0, x1, y1 of the outermost labelled pixels; zeros if there are none.
    """
    rows, columns = np.nonzero(parts)
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()] if len(rows) else [0] * 4, np.float32)
