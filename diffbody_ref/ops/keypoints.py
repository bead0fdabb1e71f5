"""The 133 whole-body keypoints of COCO-WholeBody: order, names, mirror image, and how OpenPose draws them.

The only place that knows the order: 17 body, 6 feet, 68 face (iBUG-68), 21 left hand and 21 right hand points.
"Left" is the person's own left.
"""

from __future__ import annotations

import colorsys

import numpy as np

BODY = slice(0, 17)
FEET = slice(17, 23)
FACE = slice(23, 91)
LEFT_HAND = slice(91, 112)
RIGHT_HAND = slice(112, 133)
COUNT = 133

_BODY_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_TOES = ("big_toe", "small_toe", "heel")
_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")


def _names() -> tuple[str, ...]:
    body = ["nose", *(f"{side}_{joint}" for joint in _BODY_PAIRS for side in ("left", "right"))]
    feet = [f"{side}_{toe}" for side in ("left", "right") for toe in _TOES]
    face = [f"face_{i}" for i in range(68)]
    hand = ["hand_root", *(f"{finger}{i}" for finger in _FINGERS for i in range(1, 5))]
    return (*body, *feet, *face, *(f"{side}_{joint}" for side in ("left", "right") for joint in hand))


NAMES: tuple[str, ...] = _names()
INDEX: dict[str, int] = {name: i for i, name in enumerate(NAMES)}


def unseen(people: int) -> np.ndarray:
    """Keypoints of people of whom none was looked for: zeros, float32 (people, 133, 3)."""
    return np.zeros((people, COUNT, 3), np.float32)


# Mirror images within iBUG-68, as (first, last, sum): point i of first..last mirrors to sum - i.
# Jaw, brows, nostrils, upper and lower eyelids, outer and inner lips; the nose bridge stays.
_FACE_MIRROR = (
    (0, 16, 16),
    (17, 26, 43),
    (31, 35, 66),
    (36, 39, 81),
    (40, 41, 87),
    (42, 45, 81),
    (46, 47, 87),
    (48, 54, 102),
    (55, 59, 114),
    (60, 64, 124),
    (65, 67, 132),
)


def _flip() -> np.ndarray:
    swap = {"left": "right", "right": "left"}
    index = np.arange(COUNT)
    for i, name in enumerate(NAMES):
        side, _, rest = name.partition("_")
        if side in swap:
            index[i] = INDEX[f"{swap[side]}_{rest}"]
    for first, last, total in _FACE_MIRROR:
        for i in range(first, last + 1):
            index[FACE.start + i] = FACE.start + total - i
    index.setflags(write=False)
    return index


FLIP: np.ndarray = _flip()
"""int64 (133,): mirroring a picture turns keypoints into `keypoints[:, FLIP]` with x replaced by width - 1 - x."""

# OpenPose's 18 body points: nose, neck, right arm, left arm, right leg, left leg, eyes and ears (right before left).
NECK = 1
_NECK_PARENTS = (INDEX["left_shoulder"], INDEX["right_shoulder"])
_OPENPOSE_BODY = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)

LIMBS: tuple[tuple[int, int], ...] = (
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
    (0, 14),
    (14, 16),
    (0, 15),
    (15, 17),
)
"""Pairs of OpenPose-18 points in drawing order; limb i has colour `COLOURS[i]`, and so has point i."""

COLOURS: tuple[tuple[int, int, int], ...] = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
    (170, 0, 255),
    (255, 0, 255),
    (255, 0, 170),
    (255, 0, 85),
)

HAND_EDGES: tuple[tuple[int, int], ...] = tuple(
    (0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1) for finger in range(5) for joint in range(4)
)
"""Pairs of a hand's 21 points, from the root along each finger."""


def _rainbow(count: int) -> tuple[tuple[int, int, int], ...]:
    colours = (colorsys.hsv_to_rgb(i / count, 1.0, 1.0) for i in range(count))
    return tuple((int(255 * r), int(255 * g), int(255 * b)) for r, g, b in colours)


HAND_COLOURS: tuple[tuple[int, int, int], ...] = _rainbow(len(HAND_EDGES))
HAND_POINT_COLOUR = (0, 0, 255)
FACE_COLOUR = (255, 255, 255)


def openpose_body(keypoints: np.ndarray) -> np.ndarray:
    """OpenPose's 18 body points from the 133.

    Args:
        keypoints: (..., 133, 3): x, y and score.

    Returns:
        (..., 18, 3). The neck is the mean of the shoulders with the lower of their scores, so that it passes a
        threshold where both of them do, as in DWPose.
    """
    shoulders = keypoints[..., _NECK_PARENTS, :]
    neck = np.concatenate([shoulders[..., :2].mean(-2), shoulders[..., 2:].min(-2)], axis=-1)
    body = keypoints[..., [0 if source is None else source for source in _OPENPOSE_BODY], :]
    body[..., NECK, :] = neck
    return body
