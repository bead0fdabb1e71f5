"""The detector and the keypoint network: names and sizes of the public checkpoints, losses, learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffbody_ref.models.pose import (
    NANO_DETECTOR,
    NANO_POSE,
    SD21_DETECTOR,
    SD21_POSE,
    DetectorConfig,
    PersonDetector,
    PoseConfig,
    PoseEstimator,
    detect_people,
    estimate_pose,
)
from diffbody_ref.ops import pose
from diffbody_ref.training.pose_losses import assign_cells, detector_loss, simcc_loss

TINY_DETECTOR = DetectorConfig(size=64, depth=0.11, width=0.125, num_classes=1)
TINY_POSE = PoseConfig(64, 48, widen=0.25, deepen=0.1, stages=3, final_kernel=3, hidden=64, attention_dim=32)


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def count(model: torch.nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def test_detector_has_the_public_checkpoints_names_and_sizes() -> None:
    with torch.device("meta"):
        detector = PersonDetector(SD21_DETECTOR)
    assert count(detector) == pytest.approx(54.2, abs=0.05)  # YOLOX's table: YOLOX-l has 54.2 M
    public = {
        "backbone.backbone.stem.conv.conv.weight": (64, 12, 3, 3),
        "backbone.backbone.dark3.1.m.8.conv2.bn.running_var": (128,),
        "backbone.backbone.dark5.1.conv2.conv.weight": (1024, 2048, 1, 1),
        "backbone.backbone.dark5.2.m.2.conv1.conv.weight": (512, 512, 1, 1),
        "backbone.C3_p4.conv1.conv.weight": (256, 1024, 1, 1),
        "backbone.C3_n4.conv3.bn.bias": (1024,),
        "backbone.bu_conv2.conv.weight": (256, 256, 3, 3),
        "head.cls_convs.1.1.conv.weight": (256, 256, 3, 3),
        "head.cls_preds.2.weight": (80, 256, 1, 1),
        "head.obj_preds.0.bias": (1,),
        "head.stems.2.conv.weight": (256, 1024, 1, 1),
    }
    found = shapes(detector)
    assert {name: found.get(name) for name in public} == public


def test_estimator_has_the_public_checkpoints_names_and_sizes() -> None:
    with torch.device("meta"):
        estimator = PoseEstimator(SD21_POSE)
    public = {
        "backbone.stem.0.conv.weight": (32, 3, 3, 3),
        "backbone.stage1.1.blocks.2.conv2.depthwise_conv.conv.weight": (64, 1, 5, 5),
        "backbone.stage2.1.attention.fc.weight": (256, 256, 1, 1),
        "backbone.stage4.1.conv2.conv.weight": (1024, 2048, 1, 1),
        "backbone.stage4.2.blocks.0.conv2.pointwise_conv.bn.weight": (512,),
        "head.final_layer.weight": (133, 1024, 7, 7),
        "head.mlp.0.g": (1,),
        "head.mlp.1.weight": (256, 108),
        "head.gau.uv.weight": (1152, 256),
        "head.gau.gamma": (2, 128),
        "head.gau.res_scale.scale": (256,),
        "head.cls_x.weight": (576, 256),
        "head.cls_y.weight": (768, 256),
    }
    # dw-ll_ucoco_384.onnx is 134,399,116 bytes of float32, batch norms folded into the convolutions.
    assert count(estimator) == pytest.approx(134.4 / 4, abs=0.1)
    found = shapes(estimator)
    assert {name: found.get(name) for name in public} == public


def test_nano_fits_its_budget() -> None:
    with torch.device("meta"):
        assert count(PersonDetector(NANO_DETECTOR)) < 0.5
        assert count(PoseEstimator(NANO_POSE)) < 1.2


def test_detector_forward_is_the_logits_after_the_sigmoid() -> None:
    torch.manual_seed(0)
    detector = PersonDetector(replace(TINY_DETECTOR, depthwise=True, num_classes=3)).eval()
    images = 255 * torch.rand(2, 3, 64, 64)
    raw, logits = detector(images), detector.logits(images)
    assert raw.shape == (2, 84, 8)
    torch.testing.assert_close(torch.special.logit(raw[..., 4:]), logits[..., 4:], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(raw[..., :4], logits[..., :4])


def test_cells_are_ordered_as_the_decoder_reads_them() -> None:
    """A change in one corner of the picture changes most the cells that `detector_cells` places there."""
    torch.manual_seed(0)
    detector = PersonDetector(TINY_DETECTOR).eval()
    images = torch.full((2, 3, 64, 64), 128.0)
    images[1, :, :8, 56:] = 255.0  # top right
    change = (detector.logits(images)[1] - detector.logits(images)[0]).abs().sum(-1)[:64]
    cells, _ = pose.detector_cells(64)
    column, row = cells[int(change.argmax())]
    assert column >= 5
    assert row <= 2


def test_saved_networks_load_again(tmp_path: Path) -> None:
    PersonDetector(TINY_DETECTOR).save_pretrained(tmp_path)
    loaded = PersonDetector.from_pretrained(tmp_path)
    assert loaded.config.width == TINY_DETECTOR.width
    estimator = PoseEstimator(TINY_POSE).eval()
    estimator.save_pretrained(tmp_path / "pose")
    again = PoseEstimator.from_pretrained(tmp_path / "pose").eval()
    crops = torch.rand(1, 3, 64, 48)
    torch.testing.assert_close(again(crops), estimator(crops), rtol=0, atol=0)


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="size is 100"):
        PersonDetector(replace(TINY_DETECTOR, size=100))
    with pytest.raises(ValueError, match="stages is 5"):
        PoseEstimator(replace(TINY_POSE, stages=5))


# Losses


def test_assignment_by_hand() -> None:
    cells, strides = (torch.from_numpy(a) for a in pose.detector_cells(64))
    people = torch.tensor([[2.0, 2.0, 22.0, 22.0], [40.0, 40.0, 56.0, 56.0]])
    predicted = torch.zeros(84, 4)
    predicted[9] = people[0]  # stride 8, row 1, column 1: centre (12, 12), the first person's
    predicted[1] = people[1]  # fits the second person, but lies far from it
    logits = torch.zeros(84, 6)
    two, nobody = torch.stack([predicted] * 2), torch.full_like(people, torch.nan)
    person, assigned = assign_cells(two, torch.stack([logits] * 2), torch.stack([people, nobody]), cells, strides)
    pairs = {cell: int(person[0, cell]) for cell in assigned[0].nonzero()[:, 0].tolist()}
    assert not assigned[1].any()
    assert pairs[9] == 0
    assert 1 not in pairs
    assert sorted(pairs.values()) == [0, 1]  # k = 1 each: the overlaps sum to 1 and to 0


def test_detector_loss_vanishes_for_a_perfect_answer() -> None:
    people = torch.tensor([[[16.0, 16.0, 40.0, 56.0]], [[torch.nan] * 4]])
    cells = torch.from_numpy(pose.detector_cells(64)[0])
    logits = torch.full((2, 84, 6), -20.0)
    logits[..., :4] = -8  # boxes of no size, so that only one cell has an overlap
    cell = 3 * 8 + 3  # stride 8; the box's centre is (28, 36)
    centre, sides = torch.tensor([28.0, 36.0]), torch.tensor([24.0, 40.0])
    logits[0, cell, :2], logits[0, cell, 2:4] = centre / 8 - cells[cell], (sides / 8).log()
    logits[0, cell, 4:] = 20.0
    losses = detector_loss(logits, people, 64)
    assert losses["loss"] < 1e-4  # 168 sigmoids of ±20, each off by 2e-9, and rounding of the IoU
    logits[0, cell, 4] = 0.0
    worse = detector_loss(logits, people, 64)
    assert worse["objectness"] == pytest.approx(np.log(2), rel=1e-4)
    empty = detector_loss(logits[1:], people[1:], 64)
    assert torch.isfinite(empty["loss"])


def test_simcc_loss_is_zero_at_the_label_only() -> None:
    sigma = np.sqrt(np.array([48, 64]) / 8)
    points = torch.tensor([[[10.0, 20.0], [40.0, 50.0]]])
    bins_x, bins_y = torch.arange(96), torch.arange(128)
    simcc_x = torch.exp(-((bins_x - 2 * points[..., :1]) ** 2) / (2 * sigma[0] ** 2))
    simcc_y = torch.exp(-((bins_y - 2 * points[..., 1:]) ** 2) / (2 * sigma[1] ** 2))
    weights = torch.ones(1, 2)
    assert simcc_loss(simcc_x, simcc_y, points, weights) < 1e-5  # float32 sums over 128 bins
    moved = points + torch.tensor([3.0, 0.0])
    assert simcc_loss(simcc_x, simcc_y, moved, weights) > 0.1
    # Points without weight, outside or not a number leave no trace, in the gradient either.
    simcc_x.requires_grad_()
    points[0, 1] = torch.tensor([torch.nan, 5.0])
    loss = simcc_loss(simcc_x, simcc_y, points, weights)
    loss.backward()
    assert loss < 1e-5
    assert torch.isfinite(simcc_x.grad).all()
    assert simcc_loss(simcc_x, simcc_y, points + 100, weights) == 0


def overfit(model: torch.nn.Module, loss: Callable[[], torch.Tensor], steps: int, rate: float) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()
    model.eval()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    common = np.prod(np.maximum(np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2]), 0))
    return float(common / (np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]) - common))


def rectangles(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """128×128 pictures of noise with one or two bright rectangles, and their boxes."""
    rng = np.random.default_rng(3)
    examples = []
    for i in range(count):
        picture = (0.4 * rng.random((128, 128, 3))).astype(np.float32)
        boxes = []
        for half in range(1 + i % 2):
            width, height = rng.integers(30, 50), rng.integers(60, 110)
            x0, y0 = rng.integers(0, 60 - width) + 64 * half, rng.integers(0, 126 - height)
            picture[y0 : y0 + height, x0 : x0 + width] += 0.6
            boxes.append([x0, y0, x0 + width, y0 + height])
        examples.append((picture, np.array(boxes)))
    return examples


def test_detector_learns() -> None:
    torch.manual_seed(0)
    examples = rectangles(24)
    detector = PersonDetector(TINY_DETECTOR)
    # Half the pictures' size, so that the way there and back through the letterbox counts.
    images = torch.stack([torch.from_numpy(pose.letterbox(picture, 64)[0]) for picture, _ in examples])
    boxes = [torch.from_numpy(boxes).float() / 2 for _, boxes in examples]
    targets = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True, padding_value=torch.nan)
    overfit(detector, lambda: detector_loss(detector.logits(images), targets, 64)["loss"], 100, 8e-3)
    found = [detect_people(detector, picture) for picture, _ in examples]
    overlaps = [
        max((overlap(box, other) for other in people), default=0.0)
        for people, (_, boxes) in zip(found, examples, strict=True)
        for box in boxes
    ]
    # Off by one cell (16 picture pixels of about 40 × 85) on both axes would be 0.3; an untrained one finds nobody.
    # Training multiplies rounding until it acts as another seed does: over seeds, processors and numbers of threads the
    # mean is 0.94 to 0.98, and at most one picture has a box too many or too few.
    assert np.mean(overlaps) > 0.7
    assert sum(len(people) != len(boxes) for people, (_, boxes) in zip(found, examples, strict=True)) <= 4


def test_estimator_learns() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(4)
    pictures = [rng.random((80, 60, 3)).astype(np.float32) for _ in range(4)]
    boxes = np.array([[6.0, 8.0, 54.0, 72.0]])
    truth = rng.uniform([10, 10], [50, 70], (4, 133, 2))
    pairs = [pose.crop_affine(picture, boxes[0], 64, 48) for picture in pictures]
    crops = torch.from_numpy(np.stack([crop for crop, _ in pairs]))
    inverse = pairs[0][1]
    points = torch.from_numpy((truth - inverse[:, 2]) / inverse[0, 0]).float()
    estimator = PoseEstimator(TINY_POSE)
    weights = torch.ones(4, 133)

    def loss() -> torch.Tensor:
        simcc_x, simcc_y = estimator(crops)
        return simcc_loss(simcc_x, simcc_y, points, weights)

    overfit(estimator, loss, 100, 5e-3)
    found = np.concatenate([estimate_pose(estimator, picture, boxes) for picture in pictures])
    assert found.shape == (4, 133, 3)
    # A bin is 0.6 picture pixels; a mean error of 1.5 is two bins (an untrained network is off by 25).
    assert np.linalg.norm(found[..., :2] - truth, axis=-1).mean() < 1.5
    assert np.median(found[..., 2]) > pose.SCORE_THRESHOLD  # scores are usable as they are
    assert estimate_pose(estimator, pictures[0], np.zeros((0, 5))).shape == (0, 133, 3)
