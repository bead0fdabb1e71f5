"""The first three phases for one picture: it is fit, a person is in it, and can be cut out at the format.

1. screen: can be read, is large enough, not too narrow
2. detect: a person is found, surely enough
3. crop: a window of the format's shape about the person, enough of whom is in it, and not enlarged too much
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffbody_ref.ops.images import ImageError, decode_levels, encode_image
from diffbody_ref.ops.keypoints import BODY

SCREEN, DETECT, CROP, INSPECT = PHASES = ("screen", "detect", "crop", "inspect")
DETECTION_SIDE = 1024  # longest side in pixels that people are looked for at; the networks look at less

FindPeople = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""float32 (H, W, 3) in [0, 1] → boxes (N, 5): x0, y0, x1, y1, score; keypoints (N, 133, 3): x, y, score; in pixels."""


@dataclass(frozen=True)
class CleanConfig:
    """What is kept, and how it is cut.

    Attributes:
        height, width: of the result in pixels: nano's, or the paper's 1024 × 512.
        max_enlargement: result over window, at most; 1 keeps nothing that would have to be enlarged.
        max_aspect: longer over shorter side of a picture, at most.
        min_score: the detector's, of the person.
        margin: space left around the person's box, as a part of its sides, on each side.
        keypoint_score: from which on a body joint counts as seen.
        min_visible: part of the 17 body joints that is seen within the window, at least. 0.6 takes half-length
            portraits (13 of 17) and leaves heads out; 0.9 takes whole people only.
        format: of the written pictures: "png", "jpg" or "webp".

    Raises:
        ValueError: a value out of its range.
    """

    height: int = 256
    width: int = 128
    max_enlargement: float = 1.25
    max_aspect: float = 4.0
    min_score: float = 0.5
    margin: float = 0.08
    keypoint_score: float = 0.3
    min_visible: float = 0.6
    format: str = "png"

    def __post_init__(self) -> None:
        ranges = {
            "height": (16, 8192),
            "width": (16, 8192),
            "max_enlargement": (0.1, 16.0),
            "max_aspect": (1.0, 100.0),
            "min_score": (0.0, 1.0),
            "margin": (0.0, 1.0),
            "keypoint_score": (0.0, 1.0),
            "min_visible": (0.0, 1.0),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {low} to {high}")
        if self.format not in ("png", "jpg", "webp"):
            raise ValueError(f"format is {self.format!r}; it must be png, jpg or webp")


@dataclass(frozen=True)
class Dropped:
    """Why a picture is not kept: a phase, a reason that is the same for all such pictures, and this picture's case."""

    phase: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Kept:
    """A picture's person, cut out.

    Attributes:
        data: the encoded picture.
        box: x0, y0, x1, y1 of the person in pixels of it.
        score: the detector's.
        visible: part of the body joints that is seen, 0 to 1.
        enlargement: result over window.
        size: height and width of the picture that it was cut from.
    """

    data: bytes
    box: tuple[float, float, float, float]
    score: float
    visible: float
    enlargement: float
    size: tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Part of a picture: left and top edge, width and height, in pixels, whole or not."""

    left: float
    top: float
    width: float
    height: float


def examine(data: bytes, find_people: FindPeople, config: CleanConfig) -> Kept | Dropped:
    """One picture through the phases.

    Args:
        data: the picture's file.
    """
    screened = screen(data, config)
    if isinstance(screened, Dropped):
        return screened
    person = detect(screened, find_people, config)
    if isinstance(person, Dropped):
        return person
    return cut(screened, *person, config)


def screen(data: bytes, config: CleanConfig) -> np.ndarray | Dropped:
    """Phase 1: the picture, uint8 (H, W, 3)."""
    try:
        picture = decode_levels(data, "picture")
    except ImageError as error:
        return Dropped(SCREEN, "unreadable", str(error).removeprefix("picture: "))
    height, width = picture.shape[:2]
    if max(height, width) > config.max_aspect * min(height, width):
        return Dropped(SCREEN, "too narrow", f"{width}x{height}")
    needed = config.height / min(height, width * config.height / config.width)
    if needed > config.max_enlargement:
        return Dropped(SCREEN, "too small", f"{width}x{height}, a crop would be enlarged {needed:.2f} times")
    return picture


def detect(
    picture: np.ndarray, find_people: FindPeople, config: CleanConfig
) -> tuple[np.ndarray, np.ndarray] | Dropped:
    """Phase 2: box (5,) and keypoints (133, 3) of the person who takes the largest area, in pixels of the picture."""
    height, width = picture.shape[:2]
    shrink = min(1.0, DETECTION_SIDE / max(height, width))
    size = (max(16, round(width * shrink)), max(16, round(height * shrink)))
    small = np.asarray(
        Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), np.float32
    ) / np.float32(255)
    boxes, keypoints = find_people(small)
    if not len(boxes):
        return Dropped(DETECT, "nobody", "no person found")
    ratio = np.array([width / size[0], height / size[1]], np.float32)
    boxes, keypoints = boxes.copy(), keypoints.copy()
    boxes[:, :4] = (boxes[:, :4] + 0.5) * np.tile(ratio, 2) - 0.5  # pixel centres are at integers
    keypoints[..., :2] = (keypoints[..., :2] + 0.5) * ratio - 0.5
    boxes[:, 0:4:2], boxes[:, 1:4:2] = boxes[:, 0:4:2].clip(0, width - 1), boxes[:, 1:4:2].clip(0, height - 1)
    best = int(np.argmax(np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1)))
    if boxes[best, 4] < config.min_score:
        return Dropped(DETECT, "unsure", f"score {boxes[best, 4]:.2f}, at least {config.min_score:g}")
    return boxes[best], keypoints[best]


def cut(picture: np.ndarray, box: np.ndarray, keypoints: np.ndarray, config: CleanConfig) -> Kept | Dropped:
    """Phase 3: the window about the person, at the format."""
    window = crop_window(box, (picture.shape[0], picture.shape[1]), config)
    scale = config.height / window.height
    points = keypoints[BODY]
    x, y = points[:, 0] + 0.5 - window.left, points[:, 1] + 0.5 - window.top
    inside = (x >= 0) & (x <= window.width) & (y >= 0) & (y <= window.height)
    seen = int((inside & (points[:, 2] >= config.keypoint_score)).sum())
    if seen < config.min_visible * len(points):
        return Dropped(CROP, "too little of the person", f"{seen} of {len(points)} body joints seen")
    if scale > config.max_enlargement:
        return Dropped(CROP, "person too small", f"would be enlarged {scale:.2f} times")
    edges = (window.left, window.top, window.left + window.width, window.top + window.height)
    size = (config.width, config.height)
    cropped = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, box=edges)
    corner = np.array([window.left, window.top] * 2)
    placed = ((box[:4] + 0.5 - corner) * scale - 0.5).clip(0, np.array(size * 2) - 1)
    return Kept(
        data=encode_image(np.asarray(cropped, np.float32) / np.float32(255), format=config.format),
        box=tuple(round(float(side), 1) for side in placed),  # type: ignore[arg-type]
        score=round(float(box[4]), 3),
        visible=round(seen / len(points), 3),
        enlargement=round(scale, 3),
        size=(picture.shape[0], picture.shape[1]),
    )


def crop_window(box: np.ndarray, size: tuple[int, int], config: CleanConfig) -> Window:
    """The window of the format's shape about a person, inside of the picture (H, W).

    It holds the box with its margin and has the person in its middle, as far as the picture reaches. Where the box does
    not fit in, the window is as large as the picture allows, and begins above the head.
    """
    aspect = config.width / config.height
    x0, y0, x1, y1 = (float(side) for side in box[:4] + np.array([0, 0, 1, 1]))  # edges, not centres, of pixels
    air = 1.0 + 2.0 * config.margin
    wanted = max((y1 - y0) * air, (x1 - x0) * air / aspect)
    height = min(wanted, size[0], size[1] / aspect)
    width = height * aspect
    top = (y0 + y1 - height) / 2 if height >= (y1 - y0) * air else y0 - config.margin * (y1 - y0)
    left = (x0 + x1 - width) / 2
    return Window(min(max(left, 0.0), size[1] - width), min(max(top, 0.0), size[0] - height), width, height)


def digest(data: bytes) -> str:
    """What two copies of a file have in common."""
    return hashlib.sha256(data).hexdigest()[:32]
