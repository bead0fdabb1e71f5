"""Random views of labelled people: labels must go where the pixels go."""

from __future__ import annotations

import numpy as np
import pytest

from diffbody_ref.data.datasets import Person
from diffbody_ref.data.degradations import DegradationConfig
from diffbody_ref.ops.keypoints import COUNT
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.views import View, random_view

CONFIG = TrainConfig(
    stage="pose",
    preset="nano",
    pipeline="pipeline",
    data=("data",),
    output="out",
    steps=1,
    batch_size=1,
    learning_rate=1.0,
    degradation=DegradationConfig(
        blur_sigma=(0.1, 0.8), downscale=(1.0, 1.5), noise=(0.0, 3.0), jpeg_quality=(80, 100)
    ),
)
SIDES = (96, 64)


def dotted(count: int, seed: int) -> Person:
    """A grey picture with a white dot of 3×3 at each of `count` keypoints, all of them in one label."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(6 * 3)[:count]
    points = np.stack([16 + 14 * (cells % 3), 16 + 12 * (cells // 3)], axis=1)
    picture, parts = np.full((*SIDES, 3), 40, np.uint8), np.zeros(SIDES, np.uint8)
    for x, y in points:
        picture[y - 1 : y + 2, x - 1 : x + 2] = 255
        parts[y - 1 : y + 2, x - 1 : x + 2] = 2
    keypoints = np.zeros((COUNT, 3), np.float32)
    keypoints[:count] = np.column_stack([points, np.full(count, 2)])
    box = np.array([*(points.min(0) - 1), *(points.max(0) + 1)], np.float32)
    return Person("dotted", picture, parts=parts, keypoints=keypoints, box=box)


@pytest.fixture(scope="module")
def views() -> list[View]:
    return [random_view(dotted(9, seed), np.random.default_rng(seed), CONFIG) for seed in range(200)]


def test_keypoints_and_parts_stay_on_their_pixels(views: list[View]) -> None:
    for view in views:
        assert view.keypoints is not None
        assert view.parts is not None
        known = view.keypoints[view.keypoints[:, 2] > 0, :2]
        assert len(known) == 9
        bright, labelled = view.picture.mean(axis=2), view.parts > 0
        for x, y in known:
            window = np.s_[round(float(y)) - 4 : round(float(y)) + 5, round(float(x)) - 4 : round(float(x)) + 5]
            shine = np.clip(bright[window] - np.median(bright), 0, None)
            shine[shine < 0.4 * shine.max()] = 0  # what noise and JPEG leave around it
            rows, columns = np.mgrid[window]
            centre = [float((shine * axis).sum() / shine.sum()) for axis in (columns, rows)]
            # Half a pixel of a wrong centre of rotation would move a dot by at most 0.13; a wrong sign, by 20.
            # Degraded pictures move a dot's centre by up to a pixel.
            assert np.hypot(centre[0] - x, centre[1] - y) < 1.2
            assert labelled[round(float(y)), round(float(x))]


def test_the_box_holds_the_parts(views: list[View]) -> None:
    for view in views:
        assert view.parts is not None
        rows, columns = np.nonzero(view.parts)
        assert view.box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_a_sixth_of_the_views_is_the_plain_picture_or_its_mirror_image(views: list[View]) -> None:
    plain = 0
    for seed, view in enumerate(views):
        picture = dotted(9, seed).picture.astype(np.float32) / 255.0
        plain += np.array_equal(view.picture, picture) or np.array_equal(view.picture, picture[:, ::-1])
    # 0.5 · 0.5 · 0.7 of 200 is 35, three standard deviations 16.
    assert 19 <= plain <= 51
    assert len({view.picture.tobytes() for view in views}) == len(views)


def test_mirroring_swaps_left_and_right() -> None:
    person = dotted(9, 0)
    assert person.keypoints is not None
    person.keypoints[1, 2] = 0  # the left eye's; the right one has index 2
    views = [random_view(person, np.random.default_rng(seed), CONFIG) for seed in range(20)]
    hidden = {tuple(np.flatnonzero(v.keypoints[:9, 2] == 0)) for v in views if v.keypoints is not None}
    assert hidden == {(1,), (2,)}


def test_the_same_seed_gives_the_same_view() -> None:
    a, b = (random_view(dotted(9, 1), np.random.default_rng(5), CONFIG) for _ in range(2))
    assert np.array_equal(a.picture, b.picture)
    assert np.array_equal(a.box, b.box)
