"""DWPose's way around its two networks, in numpy: letterbox, box decoding, person crops, SimCC decoding.

Follows the ONNX pipeline of IDEA-Research/DWPose: YOLOX finds people, RTMPose finds 133 keypoints in each one's crop.
Both get RGB, as in DWPose's ControlNet annotator. DWPose rounds resized pictures to 8 bits; here they stay float.

Pixel coordinates: pixel centres at integers, x to the right, y down.
"""

from __future__ import annotations

import math

import numpy as np

STRIDES = (8, 16, 32)
PERSON = 0
PAD_VALUE = 114.0
NMS_THRESHOLD = 0.45
SCORE_THRESHOLD = 0.3
BOX_PADDING = 1.25
CROP_MARGIN = 0.05  # part networks are trained on crops that leave a little air around the person
SPLIT_RATIO = 2.0
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def letterbox(picture: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """The detector's input: the picture resized into the top left of a grey square, its aspect kept.

    Args:
        picture: float32 (H, W, 3), RGB in [0, 1].
        size: side of the square in pixels.

    Returns:
        float32 (3, size, size), RGB in [0, 255], padded with 114; and the ratio square / picture.
    """
    height, width = picture.shape[:2]
    ratio = min(size / height, size / width)
    resized = resize_bilinear(picture, max(int(height * ratio), 1), max(int(width * ratio), 1))
    square = np.full((3, size, size), PAD_VALUE, np.float32)
    square[:, : resized.shape[0], : resized.shape[1]] = 255.0 * resized.transpose(2, 0, 1)
    return square, ratio


def detector_cells(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells (anchors) of a detector of size × size pixels, finest stride first, row by row.

    Returns:
        float32 (A, 2) column and row of each cell in its own grid, and float32 (A,) its stride in pixels.

    Raises:
        ValueError: the size is not a multiple of the coarsest stride.
    """
    if size <= 0 or size % STRIDES[-1]:
        raise ValueError(f"detector size is {size}; it must be a positive multiple of {STRIDES[-1]}")
    sides = [size // stride for stride in STRIDES]
    cells = [np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2) for n in sides]
    strides = np.repeat(STRIDES, [n * n for n in sides])
    return np.concatenate(cells).astype(np.float32), strides.astype(np.float32)


def decode_boxes(raw: np.ndarray, size: int) -> np.ndarray:
    """YOLOX's boxes: centre = (output + cell)·stride, side = exp(output)·stride.

    Args:
        raw: (..., A, ≥ 4) detector output, of which the first four columns are read.
        size: side of the detector's input.

    Returns:
        float32 (..., A, 4): x0, y0, x1, y1 in pixels of the detector's input.
    """
    cells, strides = detector_cells(size)
    if raw.shape[-2] != len(cells):
        raise ValueError(f"detector output has {raw.shape[-2]} cells; size {size} has {len(cells)}")
    centre = (raw[..., :2] + cells) * strides[:, None]
    half = 0.5 * np.exp(raw[..., 2:4]) * strides[:, None]
    return np.concatenate([centre - half, centre + half], axis=-1).astype(np.float32)


def select_people(raw: np.ndarray, size: int, ratio: float, threshold: float = SCORE_THRESHOLD) -> np.ndarray:
    """People in one picture: boxes of class 0 whose score (objectness × class) passes, after non-maximum suppression.

    DWPose suppresses class by class among scores over 0.1 and then asks for 0.3. A box never suppresses one that
    scores higher, so asking for 0.3 and class 0 first gives the same boxes.

    Args:
        raw: (A, 5 + classes) detector output, objectness and classes after their sigmoid.
        size: side of the detector's input.
        ratio: what `letterbox` returned.

    Returns:
        float32 (N, 5): x0, y0, x1, y1 in pixels of the picture and the score, best first. Not clipped to the picture.
    """
    scores = raw[:, 4] * raw[:, 5 + PERSON]
    boxes = decode_boxes(raw, size)
    candidates = scores > threshold
    boxes, scores = boxes[candidates] / ratio, scores[candidates]
    keep = suppress(boxes, scores)
    return np.concatenate([boxes[keep], scores[keep, None]], axis=1).astype(np.float32)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float = NMS_THRESHOLD) -> np.ndarray:
    """Greedy non-maximum suppression with DWPose's inclusive pixel boxes (a side is x1 - x0 + 1).

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in pixels.
        scores: (N,).
        threshold: a box goes when its overlap (IoU) with a kept one exceeds this.

    Returns:
        int64 indices of the kept boxes, best score first.
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    order = np.argsort(-scores, kind="stable")
    keep = []
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(best)
        corner0 = np.maximum(boxes[best, :2], boxes[rest, :2])
        corner1 = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        common = np.prod(np.maximum(corner1 - corner0 + 1, 0), axis=1)
        order = rest[common / (areas[best] + areas[rest] - common) <= threshold]
    return np.array(keep, np.int64)


def crop_affine(
    picture: np.ndarray, box: np.ndarray, height: int, width: int, padding: float = BOX_PADDING
) -> tuple[np.ndarray, np.ndarray]:
    """The pose network's input: the padded box, extended to the crop's aspect, resampled and normalised.

    Args:
        picture: float32 (H, W, 3), RGB in [0, 1].
        box: x0, y0, x1, y1 in pixels (more values, such as a score, are ignored).
        height, width: size of the crop.
        padding: what the box is enlarged by, about its centre.

    Returns:
        float32 (3, height, width), RGB, ImageNet mean and deviation, black beyond the picture; and the float32 (2, 3)
        affine map from crop to picture pixels.

    Raises:
        ValueError: the box is empty or not finite.
    """
    x0, y0, x1, y1 = (float(v) for v in box[:4])
    if not (math.isfinite(x0 + y0 + x1 + y1) and x1 > x0 and y1 > y0):
        raise ValueError(f"box is {x0:g}, {y0:g}, {x1:g}, {y1:g}; it must be finite with x1 > x0 and y1 > y0")
    scale = padding * max((x1 - x0) / width, (y1 - y0) / height)  # picture pixels per crop pixel
    left = 0.5 * (x0 + x1) - 0.5 * width * scale
    top = 0.5 * (y0 + y1) - 0.5 * height * scale
    rows = _lerp(picture, top + scale * np.arange(height), axis=0, black_outside=True)
    crop = _lerp(rows, left + scale * np.arange(width), axis=1, black_outside=True)
    normalised = (255.0 * crop - MEAN) / STD
    inverse = np.array([[scale, 0.0, left], [0.0, scale, top]], np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32), inverse


def crop_people(picture: np.ndarray, boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """`crop_affine` of every box: float32 (N, 3, height, width) and float32 (N, 2, 3)."""
    pairs = [crop_affine(picture, box, height, width) for box in boxes]
    crops = np.array([crop for crop, _ in pairs], np.float32).reshape(-1, 3, height, width)
    return crops, np.array([inverse for _, inverse in pairs], np.float32).reshape(-1, 2, 3)


def person_crop(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The window (x0, y0, x1, y1) of a person's box with `CROP_MARGIN` around it: whole pixels inside the picture."""
    x0, y0, x1, y1 = (float(v) for v in box[:4])
    dx, dy = CROP_MARGIN * (x1 - x0), CROP_MARGIN * (y1 - y0)
    left, top = int(np.clip(np.floor(x0 - dx), 0, width - 8)), int(np.clip(np.floor(y0 - dy), 0, height - 8))
    right, bottom = int(np.clip(np.ceil(x1 + dx), left + 8, width)), int(np.clip(np.ceil(y1 + dy), top + 8, height))
    return left, top, right, bottom


def decode_simcc(simcc_x: np.ndarray, simcc_y: np.ndarray, inverses: np.ndarray) -> np.ndarray:
    """Keypoints from SimCC's one-dimensional scores: argmax / 2 in crop pixels, then into the picture.

    Args:
        simcc_x, simcc_y: (N, K, 2·width) and (N, K, 2·height).
        inverses: (N, 2, 3), crop to picture, from `crop_affine`.

    Returns:
        float32 (N, K, 3): x, y in pixels of the picture and the score, the lower of the two maxima. Where it is not
        positive the position means nothing.
    """
    bins = np.stack([simcc_x.argmax(-1), simcc_y.argmax(-1)], axis=-1)
    scores = np.minimum(simcc_x.max(-1), simcc_y.max(-1))
    crop_points = np.where(scores[..., None] > 0, bins, -1) / SPLIT_RATIO
    points = crop_points @ inverses[:, :, :2].transpose(0, 2, 1) + inverses[:, None, :, 2]
    return np.concatenate([points, scores[..., None]], axis=-1).astype(np.float32)


def resize_bilinear(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear without a low-pass filter, sample positions (i + ½)·(old / new) - ½: OpenCV's INTER_LINEAR.

    Args:
        picture: (H, W, C).

    Returns:
        float32 (height, width, C).
    """
    for axis, size in enumerate((height, width)):
        positions = (np.arange(size) + 0.5) * (picture.shape[axis] / size) - 0.5
        picture = _lerp(picture, positions, axis, black_outside=False)
    return picture


def _lerp(picture: np.ndarray, positions: np.ndarray, axis: int, black_outside: bool) -> np.ndarray:
    """Linear interpolation at positions along one axis of (H, W, C); beyond it 0, or else the edge goes on."""
    first = np.floor(positions)
    weights = np.stack([first + 1 - positions, positions - first])
    index = np.stack([first, first + 1])
    last = picture.shape[axis] - 1
    if black_outside:
        weights *= (index >= 0) & (index <= last)
    index = np.clip(index, 0, last).astype(np.int64)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    low, high = (
        w.astype(np.float32).reshape(shape) * picture.take(i, axis) for w, i in zip(weights, index, strict=True)
    )
    return low + high
