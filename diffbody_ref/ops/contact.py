"""Contact sheets: pictures side by side under labels, to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffbody_ref.ops.images import resize

GAP = 4  # pixels between pictures and around labels
MIN_FONT_SIZE = 12
BACKGROUND, INK = 255, 0


def labelled_grid(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], scale: int = 1) -> np.ndarray:
    """Rows of pictures, one label above each column.

    Pictures may differ in size: a column is as wide as its widest picture (or its label), a row as high as its highest,
    and pictures stand in the upper left of their cell.

    Args:
        rows: pictures, float (H, W, 3) in [0, 1] (clipped), as many a row as there are labels.
        labels: one a column, the same for all rows.
        scale: whole number every picture is enlarged by, pixels repeated.

    Returns:
        float32 (H, W, 3) in [0, 1], on white.

    Raises:
        ValueError: no rows or labels, a row of another length, a picture of another shape, or a scale under 1.
    """
    if not rows or not labels:
        raise ValueError(f"a grid needs at least one row and one label, got {len(rows)} and {len(labels)}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    for row in rows:
        if len(row) != len(labels):
            raise ValueError(f"a row has {len(row)} pictures for {len(labels)} labels")
        for picture in row:
            if picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(f"a picture must be of shape (H, W, 3), got {picture.shape}")

    heights = [scale * max(picture.shape[0] for picture in row) for row in rows]
    widths = [scale * max(row[i].shape[1] for row in rows) for i in range(len(labels))]
    font = ImageFont.load_default(size=max(MIN_FONT_SIZE, max(widths) // 14))
    boxes = [font.getbbox(label) for label in labels]
    widths = [max(width, int(np.ceil(box[2]))) for width, box in zip(widths, boxes, strict=True)]
    top = int(np.ceil(max(box[3] for box in boxes))) + 2 * GAP
    lefts = np.cumsum([GAP] + [width + GAP for width in widths])
    tops = np.cumsum([top] + [height + GAP for height in heights])

    sheet = Image.new("RGB", (int(lefts[-1]), int(tops[-1])), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(sheet)
    for label, left in zip(labels, lefts, strict=False):
        draw.text((int(left), GAP), label, fill=(INK,) * 3, font=font)
    pixels = np.asarray(sheet, np.float32) / np.float32(255)
    for row, y in zip(rows, tops, strict=False):
        for picture, x in zip(row, lefts, strict=False):
            height, width = scale * picture.shape[0], scale * picture.shape[1]
            enlarged = picture if scale == 1 else resize(picture, height, width, "nearest")
            pixels[y : y + height, x : x + width] = np.clip(enlarged, 0.0, 1.0)
    return pixels
