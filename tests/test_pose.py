"""Keypoint order, DWPose's pre- and post-processing, drawing."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from diffbody_ref.ops import keypoints as kp
from diffbody_ref.ops import pose
from diffbody_ref.ops.drawing import draw_pose


def smooth_picture(height: int, width: int) -> np.ndarray:
    """float32 (H, W, 3) in [0, 1] whose slope is under 0.1 per pixel and axis."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(0.19 * x + 0.05 * y), np.cos(0.11 * x - 0.17 * y), np.sin(0.07 * x) * np.cos(0.13 * y)]
    return (0.5 + 0.5 * np.stack(waves, axis=-1)).astype(np.float32)


# Keypoints


def test_names_sit_at_the_published_places() -> None:
    published = {0: "nose", 9: "left_wrist", 16: "right_ankle", 17: "left_big_toe", 22: "right_heel", 23: "face_0"}
    published |= {91: "left_hand_root", 95: "left_thumb4", 112: "right_hand_root", 132: "right_pinky_finger4"}
    assert {i: kp.NAMES[i] for i in published} == published
    assert len(set(kp.NAMES)) == kp.COUNT


def test_flip_swaps_sides() -> None:
    # Pairs read off the iBUG-68 chart: chin, jaw ends, brows, outer and inner eye corners, lids, mouth corners.
    pairs = [(8, 8), (0, 16), (17, 26), (30, 30), (31, 35), (36, 45), (39, 42), (37, 44), (41, 46), (48, 54), (61, 63)]
    assert all(kp.FLIP[23 + a] == 23 + b and kp.FLIP[23 + b] == 23 + a for a, b in pairs)
    assert [kp.FLIP[i] for i in (0, 5, 17, 22, 91, 132)] == [0, 6, 20, 19, 112, 111]
    np.testing.assert_array_equal(kp.FLIP[kp.FLIP], np.arange(kp.COUNT))


def test_openpose_body_is_dwposes_permutation() -> None:
    people = np.random.default_rng(0).random((2, 133, 3))
    with_neck = np.insert(people, 17, people[:, [5, 6]].mean(1), axis=1)
    expected = with_neck.copy()
    expected[:, [1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17]] = with_neck[
        :, [17, 6, 8, 10, 7, 9, 12, 14, 16, 13, 15, 2, 1, 4, 3]
    ]
    body = kp.openpose_body(people)
    np.testing.assert_allclose(body[..., :2], expected[:, :18, :2])
    np.testing.assert_array_equal(body[:, 1, 2], np.minimum(people[:, 5, 2], people[:, 6, 2]))


# Pre- and post-processing


def test_ops_need_no_torch() -> None:
    code = "import sys, diffbody_ref.ops.drawing, diffbody_ref.ops.pose as p; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("height", "width"), [(90, 51), (37, 200), (64, 64), (256, 128)])
def test_letterbox_matches_opencv(height: int, width: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    square, ratio = pose.letterbox(picture.astype(np.float32) / 255, 64)
    assert ratio == min(64 / height, 64 / width)
    new_height, new_width = int(height * ratio), int(width * ratio)
    expected = np.full((64, 64, 3), 114, np.uint8)
    expected[:new_height, :new_width] = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    assert square.dtype == np.float32
    # OpenCV rounds to 8 bits (½); its weights of 11 bits and its truncated rows in between cost up to ½ more.
    np.testing.assert_allclose(square.transpose(1, 2, 0), expected, atol=1.0)


def test_box_of_one_cell_by_hand() -> None:
    raw = np.zeros((84, 6), np.float32)  # 8×8 + 4×4 + 2×2 cells
    raw[64 + 4 * 2 + 3] = [0.5, -0.25, np.log(2), np.log(3), 0.8, 0.9]  # stride 16, row 2, column 3
    # Centre ((3 + ½)·16, (2 - ¼)·16) = (56, 28), sides 32 and 48, then divided by the ratio ½.
    np.testing.assert_allclose(pose.select_people(raw, 64, 0.5), [[80, 8, 144, 104, 0.72]], rtol=1e-5)
    with pytest.raises(ValueError, match="size 64 has 84"):
        pose.decode_boxes(raw[:60], 64)
    with pytest.raises(ValueError, match="multiple of 32"):
        pose.detector_cells(72)


def literal_dwpose(boxes: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """Class-aware suppression among scores over 0.1, then class 0 and 0.3; one pair of boxes at a time."""
    kept: list[tuple[int, int]] = []
    for c in range(scores.shape[1]):
        for i in np.argsort(-scores[:, c]):
            if scores[i, c] > 0.1 and all(inclusive_iou(boxes[i], boxes[j]) <= 0.45 for j, d in kept if d == c):
                kept.append((int(i), c))
    return [[*boxes[i], scores[i, c]] for i, c in kept if c == 0 and scores[i, c] > 0.3]


def inclusive_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    area = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area - width * height)


def test_select_people_matches_the_literal_procedure() -> None:
    rng = np.random.default_rng(2)
    raw = np.concatenate([rng.normal(0, 1, (336, 2)), rng.normal(1, 0.4, (336, 2)), rng.random((336, 3))], axis=1)
    raw = raw.astype(np.float32)
    people = pose.select_people(raw, 128, 1.0)
    expected = literal_dwpose(pose.decode_boxes(raw, 128), raw[:, 4:5] * raw[:, 5:])
    assert 5 < len(people) < 100  # some are suppressed, some not
    np.testing.assert_allclose(people, expected, rtol=1e-6)
    assert pose.select_people(0 * raw, 128, 1.0).shape == (0, 5)


@pytest.mark.parametrize("box", [(30.0, 20.0, 70.0, 110.0), (-20.0, 60.0, 90.0, 95.0)])
def test_crop_matches_opencv(box: tuple[float, ...]) -> None:
    picture = smooth_picture(120, 100)
    height, width = 96, 72
    crop, inverse = pose.crop_affine(picture, np.array(box), height, width)
    centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    sides = np.array([box[2] - box[0], box[3] - box[1]]) * 1.25
    sides = np.maximum(sides, [sides[1] * width / height, sides[0] * height / width])
    middle = np.array([width, height]) / 2
    source = np.array([centre, centre - [0, sides[0] / 2], centre - [sides[0] / 2, 0]], np.float32)
    target = np.array([middle, middle - [0, width / 2], middle - [width / 2, 0]], np.float32)
    warp = cv2.getAffineTransform(source, target)
    expected = cv2.warpAffine(picture, warp, (width, height), flags=cv2.INTER_LINEAR)
    # OpenCV rounds positions to 1/32 pixel: 1/64 off on each axis; a slope of 0.1 inside, up to 1 at the black border.
    inside = cv2.erode(cv2.warpAffine(np.ones((120, 100)), warp, (width, height)), np.ones((3, 3))) > 0.99
    error = np.abs(crop.transpose(1, 2, 0) * pose.STD + pose.MEAN - 255 * expected) / 255
    assert error[inside].max() < 2 * 0.1 / 64
    assert error.max() < 2 * 1.1 / 64
    # The way back is DWPose's formula for keypoints.
    point = np.array([10.5, 40.0])
    np.testing.assert_allclose(inverse @ [*point, 1], point / [width, height] * sides + centre - sides / 2, atol=1e-4)


@pytest.mark.parametrize("box", [(5, 5, 5, 20), (0, 0, np.nan, 9)])
def test_crop_refuses_an_empty_box(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="box is"):
        pose.crop_affine(smooth_picture(20, 20), np.array(box), 8, 8)


def test_simcc_decoding_by_hand() -> None:
    simcc_x, simcc_y = np.full((2, 3, 20), -1.0), np.full((2, 3, 30), -1.0)
    simcc_x[1, 2, 7], simcc_y[1, 2, 11] = 0.9, 0.6
    inverses = np.array([[[2, 0, 5], [0, 2, -3]], [[4, 0, 100], [0, 4, 200]]], np.float32)
    points = pose.decode_simcc(simcc_x, simcc_y, inverses)
    np.testing.assert_allclose(points[1, 2], [100 + 4 * 3.5, 200 + 4 * 5.5, 0.6], rtol=1e-6)
    # Nothing positive: bin -1, as in DWPose.
    np.testing.assert_allclose(points[0, 0], [5 - 1, -3 - 1, -1.0])


# Drawing


def arm(scale: float = 1.0, score: float = 1.0) -> np.ndarray:
    """One person of whom a right elbow and wrist are known."""
    people = np.zeros((1, 133, 3), np.float32)
    people[0, kp.INDEX["right_elbow"]] = [100 * scale, 60 * scale, score]
    people[0, kp.INDEX["right_wrist"]] = [300 * scale, 210 * scale, score]
    return people


def test_limb_matches_opencvs_ellipse() -> None:
    drawing = draw_pose(arm(), 1024, 512)
    expected = np.zeros((1024, 512, 3), np.uint8)
    angle = int(np.degrees(np.arctan2(150, 200)))
    corners = cv2.ellipse2Poly((200, 135), (125, 4), angle, 0, 360, 1)
    cv2.fillConvexPoly(expected, corners, [int(0.6 * c) for c in (255, 255, 0)])
    cv2.circle(expected, (100, 60), 4, (255, 255, 0), -1)
    cv2.circle(expected, (300, 210), 4, (170, 255, 0), -1)
    ours, theirs = drawing.max(-1) > 0, expected.max(-1) > 0
    # The ellipse is about 1570 pixels large, its outline 500 long: they may differ along it (OpenCV cuts the angle).
    assert (ours & theirs).sum() > 0.75 * (ours | theirs).sum()
    both = ours & theirs
    np.testing.assert_allclose(drawing[135, 200], expected[135, 200] / 255, atol=1e-6)
    assert (np.abs(drawing[both] - expected[both] / 255) < 1e-6).all(-1).mean() > 0.95


def test_small_canvas_is_a_small_version_of_a_large_one() -> None:
    large = draw_pose(arm(), 512, 512)
    small = draw_pose(arm(0.5), 256, 256)
    halved = cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA)
    # Both are drawn 2 pixels wide on the small grid; half a pixel of outline is all that may differ.
    assert np.abs(small - halved).mean() < 0.15 * halved.mean()
    tiny = draw_pose(arm(0.125), 64, 64)
    assert tiny[17, 25, 1] > 0.5  # the middle of the limb: half a pixel wide if scaled, two pixels with the floor


def test_unsure_points_are_not_drawn() -> None:
    assert draw_pose(arm(score=0.3), 128, 128).max() == 0
    assert draw_pose(np.zeros((0, 133, 3), np.float32), 16, 8).shape == (16, 8, 3)
    people = arm()
    people[0, kp.INDEX["right_wrist"], 0] = np.nan
    assert draw_pose(people, 128, 512)[60, 150].max() == 0  # no limb; the elbow stays
    assert draw_pose(people, 128, 512)[60, 100].max() > 0.9
    with pytest.raises(ValueError, match="shape"):
        draw_pose(np.zeros((133, 3)), 8, 8)


def test_hands_and_face_have_their_colours() -> None:
    people = np.zeros((1, 133, 3), np.float32)
    people[0, kp.FACE.start + 30] = [30, 20, 1]
    people[0, kp.RIGHT_HAND.start] = [100, 100, 1]
    people[0, kp.RIGHT_HAND.start + 1] = [200, 100, 1]
    drawing = draw_pose(people, 1024, 512)
    np.testing.assert_array_equal(drawing[20, 30], [1, 1, 1])
    np.testing.assert_array_equal(drawing[100, 100], [0, 0, 1])
    np.testing.assert_array_equal(drawing[100, 150], [1, 0, 0])
