"""Poses drawn as ControlNet's OpenPose condition, the way DWPose's annotator does it, with Pillow."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from diffbody_ref.ops.keypoints import (
    COLOURS,
    COUNT,
    FACE,
    FACE_COLOUR,
    HAND_COLOURS,
    HAND_EDGES,
    HAND_POINT_COLOUR,
    LEFT_HAND,
    LIMBS,
    RIGHT_HAND,
    openpose_body,
)
from diffbody_ref.ops.pose import SCORE_THRESHOLD

# Sizes at a short side of 512 pixels, where ControlNet's annotators draw.
BASE_SIDE = 512
JOINT_RADIUS = 4.0  # body joints, hand points, and half the width of a limb
FACE_RADIUS = 3.0
HAND_EDGE_WIDTH = 2.0
LIMB_BRIGHTNESS = 0.6

# Canvases under this are drawn larger and averaged, so that marks thinner than a pixel fade and do not vanish or swell.
FINE_PIXELS = 1024 * 512
SUPERSAMPLING = 4

Colour = tuple[int, int, int]


def draw_pose(keypoints: np.ndarray, height: int, width: int, threshold: float = SCORE_THRESHOLD) -> np.ndarray:
    """People as OpenPose-style figures on black: body limbs and joints, hands, face points; feet are not drawn.

    Marks scale with the short side of the canvas; limbs and joints are never thinner than two pixels.

    Args:
        keypoints: (N, 133, 3): x, y in pixels of the canvas and a score; N may be 0.
        height, width: size of the canvas.
        threshold: points that do not score above it, or are not finite, are left out, and so is what they carry.

    Returns:
        float32 (height, width, 3), RGB in [0, 1].

    Raises:
        ValueError: the keypoints do not have that shape.
    """
    if keypoints.ndim != 3 or keypoints.shape[1:] != (COUNT, 3):
        raise ValueError(f"keypoints have shape {keypoints.shape}; (N, {COUNT}, 3) is needed")
    factor = SUPERSAMPLING if height * width < FINE_PIXELS else 1
    image = Image.new("RGB", (width * factor, height * factor))
    draw = ImageDraw.Draw(image)
    shown = (keypoints[..., 2] > threshold) & np.isfinite(keypoints).all(-1)
    people = np.array(keypoints, np.float64)
    people[..., :2] = factor * people[..., :2] + 0.5 * (factor - 1)  # the centre of a pixel's factor² samples
    people[..., 2] = shown
    unit = factor * min(height, width) / BASE_SIDE
    _draw_bodies(draw, [openpose_body(person) for person in people], max(JOINT_RADIUS * unit, factor))
    for person in people:
        for hand in (person[LEFT_HAND], person[RIGHT_HAND]):
            _draw_hand(draw, hand, unit)
    for person in people:
        _draw_points(draw, person[FACE], FACE_RADIUS * unit, [FACE_COLOUR] * len(person[FACE]))
    image = image.reduce(factor) if factor > 1 else image
    return np.asarray(image, np.float32) / 255.0


def _draw_bodies(draw: ImageDraw.ImageDraw, bodies: list[np.ndarray], radius: float) -> None:
    """Limb by limb over all people, so that a later limb covers an earlier one of anybody; then the joints."""
    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        dimmed = tuple(int(LIMB_BRIGHTNESS * value) for value in colour)
        for body in bodies:
            if body[start, 2] and body[end, 2]:
                draw.polygon(_ellipse(body[start, :2], body[end, :2], radius), fill=dimmed)
    for body in bodies:
        _draw_points(draw, body, radius, COLOURS)


def _draw_hand(draw: ImageDraw.ImageDraw, hand: np.ndarray, unit: float) -> None:
    line_width = max(1, round(HAND_EDGE_WIDTH * unit))
    for (start, end), colour in zip(HAND_EDGES, HAND_COLOURS, strict=True):
        if hand[start, 2] and hand[end, 2]:
            draw.line([tuple(hand[start, :2]), tuple(hand[end, :2])], fill=colour, width=line_width)
    _draw_points(draw, hand, JOINT_RADIUS * unit, [HAND_POINT_COLOUR] * len(hand))


def _draw_points(
    draw: ImageDraw.ImageDraw, points: np.ndarray, radius: float, colours: list[Colour] | tuple[Colour, ...]
) -> None:
    for (x, y, shown), colour in zip(points, colours, strict=True):
        if shown:
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _ellipse(start: np.ndarray, end: np.ndarray, radius: float) -> list[tuple[float, float]]:
    """Corners of an ellipse with one axis from start to end and half the other one `radius`."""
    centre, along = 0.5 * (start + end), 0.5 * (end - start)
    length = math.hypot(*along)
    across = np.array([-along[1], along[0]]) * (radius / length) if length > 0 else np.zeros(2)
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)[:, None]
    corners = centre + np.cos(turn) * along + np.sin(turn) * across
    return [(float(x), float(y)) for x, y in corners]
