"""The identity distance between the regression result and the restored picture, and the report that holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffbody import cli
from diffbody_ref.guidance import PartFeatures, body_part_loss
from diffbody_ref.ops.identity import IDENTITY_THRESHOLD, compare_people, identity_notices, restored_identity

SAMPLE = Path(__file__).parent.parent / "samples" / "degraded" / "synthetic_1.jpg"
PARTS = ("head", "torso", "arms", "legs", "feet")


def test_the_distance_is_that_of_equation_6() -> None:
    """Against the loss that guides; parts that are not visible do not count, and a person without any has none."""
    rng = np.random.default_rng(0)
    before, after = (np.abs(rng.standard_normal((3, 5, 16))).astype(np.float32) for _ in range(2))
    visibility = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], np.float32)
    people = compare_people(PARTS, before, visibility, after)
    tensors = [torch.from_numpy(array) for array in (before, after, visibility)]
    loss = body_part_loss(PartFeatures(tensors[1], tensors[2]), PartFeatures(tensors[0], tensors[2]))
    # Float32 against float64.
    assert [person.distance for person in people[:2]] == pytest.approx(loss[:2].tolist(), rel=1e-5)
    assert people[2].distance is None
    assert [name for name, distance in people[1].parts.items() if distance is None] == ["torso", "arms", "feet"]
    assert not people[2].differs


def test_notices_name_the_person_and_the_part() -> None:
    same = np.ones((3, 5, 4), np.float32)
    other = same.copy()
    other[1, 0, :3] = 0  # 1 − cos = 0.5 at the head
    other[1, 1:, :2] = 0
    visibility = np.array([[1] * 5, [1] * 5, [0] * 5], np.float32)
    far, unknown = identity_notices(compare_people(PARTS, same, visibility, other))
    assert "person 2" in far
    assert "head (0.50)" in far
    assert f"{IDENTITY_THRESHOLD:g}" in far
    assert "person 3" in unknown


def test_a_picture_of_another_size_is_compared_at_that_of_the_regression() -> None:
    seen: list[tuple[int, ...]] = []

    def embed(picture: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(picture.shape)
        return np.ones((1, 5, 4), np.float32), np.ones((1, 5), np.float32)

    boxes = np.array([[0, 0, 8, 8, 1]], np.float32)
    (person,) = restored_identity(embed, PARTS, np.zeros((16, 8, 3), np.float32), np.zeros((40, 20, 3)), boxes)
    assert seen == [(16, 8, 3)] * 2
    assert person.distance == pytest.approx(0, abs=1e-6)  # the norms' ε
    assert restored_identity(embed, PARTS, np.zeros((16, 8, 3)), np.zeros((16, 8, 3)), boxes[:0]) == []


def test_both_ways_of_restoring_report_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch and the built-in bundle; a second run with other options has files in its way."""
    reports: dict[str, Any] = {}
    for name, options in (("torch", ["--model", "nano"]), ("bundle", [])):
        out = tmp_path / f"{name}.png"
        with pytest.raises(SystemExit) as stop:
            cli.main(["restore", str(SAMPLE), "-o", str(out), "--report", "--steps", "2", "--size", "128x64", *options])
        assert not stop.value.code
        reports[name] = json.loads((tmp_path / f"{name}_report.json").read_text())
        assert f"{name}_report.json" in capsys.readouterr().out
    ours, theirs = (reports[name]["people"] for name in ("torch", "bundle"))
    assert len(ours) == len(theirs) == 1
    assert ours[0]["identity"]["differs"] is False
    assert ours[0]["identity"]["parts"].keys() == set(PARTS)
    # Four digits are kept; graphs and networks agree to float32's rounding.
    assert ours[0]["identity"]["distance"] == pytest.approx(theirs[0]["identity"]["distance"], abs=2e-4)
    assert reports["torch"]["working_size"] == reports["bundle"]["working_size"]
