"""The first three phases of cleaning, for one picture.

1. screen: the picture can be read, is large enough and not too narrow
2. detect: a person is found with a sufficient score
3. crop: a window of the output's aspect around the person shows enough of them and need not be enlarged too much
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
DETECTION_SIDE = 1024  # longest side in pixels at which people are searched for; the networks' inputs are smaller

FindPeople = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""float32 (H, W, 3) in [0, 1] → boxes (N, 5): x0, y0, x1, y1, score; keypoints (N, 133, 3): x, y, score; in pixels."""


@dataclass(frozen=True)
class CleanConfig:
    """Which pictures are kept, and how they are cropped.

    Attributes:
        height: height of the crops in pixels: 256 for nano, 1024 for the paper's size.
        width: width of the crops in pixels: 128 for nano, 512 for the paper's size.
        max_enlargement: largest allowed ratio of crop size to window size; 1 drops every picture that would have to be
            enlarged.
        max_aspect: largest allowed ratio of a picture's longer side to its shorter side.
        min_score: smallest allowed score of the person from the detector.
        margin: space around the person's box on each side, as a fraction of the box's sides.
        keypoint_score: score from which a body joint counts as seen.
        min_visible: smallest allowed fraction of the 17 body joints seen within the window. 0.6 keeps half-length
            portraits (13 of 17) and drops heads; 0.9 keeps whole people only.
        format: format of the written pictures: "png", "jpg" or "webp".

    Raises:
        ValueError: a value is out of its range.
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
    """Why a picture is not kept.

    Attributes:
        phase: one of `PHASES`.
        reason: the reason, the same for all such pictures.
        detail: the details of this picture.
    """

    phase: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Kept:
    """The crop of a picture's person.

    Attributes:
        data: the encoded crop.
        box: x0, y0, x1, y1 of the person in pixels of the crop.
        score: the detector's score of the person.
        visible: fraction of the body joints that are seen, 0 to 1.
        enlargement: ratio of crop size to window size.
        size: height and width of the source picture.
    """

    data: bytes
    box: tuple[float, float, float, float]
    score: float
    visible: float
    enlargement: float
    size: tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Part of a picture, in pixels, not necessarily whole ones.

    Attributes:
        left: left edge.
        top: top edge.
        width: width.
        height: height.
    """

    left: float
    top: float
    width: float
    height: float


def examine(data: bytes, find_people: FindPeople, config: CleanConfig) -> Kept | Dropped:
    """Run the three phases on one picture.

    Args:
        data: contents of the picture file.
        find_people: finds people in a picture.
        config: which pictures are kept, and how they are cropped.
    """
    screened = screen(data, config)
    if isinstance(screened, Dropped):
        return screened
    person = detect(screened, find_people, config)
    if isinstance(person, Dropped):
        return person
    return crop_person(screened, *person, config)


def screen(data: bytes, config: CleanConfig) -> np.ndarray | Dropped:
    """Phase 1: decode the picture to uint8 (H, W, 3) and check its size."""
    try:
        picture = decode_levels(data, "picture")
    except ImageError as error:
        return Dropped(SCREEN, "unreadable", str(error).removeprefix("picture: "))
    height, width = picture.shape[:2]
    if max(height, width) > config.max_aspect * min(height, width):
        return Dropped(SCREEN, "too narrow", f"{width}x{height}")
    enlargement = config.height / min(height, width * config.height / config.width)
    if enlargement > config.max_enlargement:
        return Dropped(SCREEN, "too small", f"{width}x{height}, a crop would be enlarged {enlargement:.2f} times")
    return picture


def detect(
    picture: np.ndarray, find_people: FindPeople, config: CleanConfig
) -> tuple[np.ndarray, np.ndarray] | Dropped:
    """Phase 2: find the person with the largest box.

    Returns:
        The box (5,): x0, y0, x1, y1, score, and the keypoints (133, 3): x, y, score; in pixels of the picture.
    """
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


def crop_person(picture: np.ndarray, box: np.ndarray, keypoints: np.ndarray, config: CleanConfig) -> Kept | Dropped:
    """Phase 3: crop the window around the person and resize it to the output size."""
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
    box_in_crop = ((box[:4] + 0.5 - corner) * scale - 0.5).clip(0, np.array(size * 2) - 1)
    return Kept(
        data=encode_image(np.asarray(cropped, np.float32) / np.float32(255), format=config.format),
        box=tuple(round(float(side), 1) for side in box_in_crop),  # type: ignore[arg-type]
        score=round(float(box[4]), 3),
        visible=round(seen / len(points), 3),
        enlargement=round(scale, 3),
        size=(picture.shape[0], picture.shape[1]),
    )


def crop_window(box: np.ndarray, size: tuple[int, int], config: CleanConfig) -> Window:
    """The window of the output's aspect around a person, inside the picture.

    The window contains the box with its margin and is centred on the person, as far as the picture's edges allow. If
    the box does not fit, the window is as large as the picture allows and starts above the head.

    Args:
        box: x0, y0, x1, y1 of the person in pixels.
        size: (H, W) of the picture.
        config: its margin, height and width are used.
    """
    aspect = config.width / config.height
    x0, y0, x1, y1 = (float(side) for side in box[:4] + np.array([0, 0, 1, 1]))  # edges, not centres, of pixels
    with_margin = 1.0 + 2.0 * config.margin
    desired = max((y1 - y0) * with_margin, (x1 - x0) * with_margin / aspect)
    height = min(desired, size[0], size[1] / aspect)
    width = height * aspect
    top = (y0 + y1 - height) / 2 if height >= (y1 - y0) * with_margin else y0 - config.margin * (y1 - y0)
    left = (x0 + x1 - width) / 2
    return Window(min(max(left, 0.0), size[1] - width), min(max(top, 0.0), size[0] - height), width, height)


def digest(data: bytes) -> str:
    """A hash of a file's contents that identifies copies of the same file."""
    return hashlib.sha256(data).hexdigest()[:32]
