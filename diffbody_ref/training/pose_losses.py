"""Losses of the person detector (YOLOX with SimOTA assignment) and of the keypoint network (SimCC)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from diffbody_ref.ops.pose import PERSON, SPLIT_RATIO, detector_cells

# YOLOX's constants.
CENTRE_RADIUS = 1.5  # distance from a box's centre, in strides, within which a cell may predict the box
CANDIDATES = 10
OVERLAP_COST = 3.0
BOX_WEIGHT = 5.0

SIMCC_SHARPNESS = 10.0  # RTMPose's softmax temperature β, for predictions and labels alike


def detector_loss(logits: torch.Tensor, boxes: torch.Tensor, size: int) -> dict[str, torch.Tensor]:
    """YOLOX's loss: 5·(1 - IoU²) and class cross-entropy over the assigned cells, objectness cross-entropy over all.

    The class target of an assigned cell is the IoU of its box, so that the score learns to rank boxes.

    Args:
        logits: (B, A, 5 + classes), from `PersonDetector.logits`.
        boxes: (B, n, 4), n ≥ 1: x0, y0, x1, y1 of the people in pixels of the detector's input; rows of NaN fill up
            pictures with fewer than n people.
        size: side of the detector's input in pixels.

    Returns:
        Scalars "loss" (the sum of the others), "box", "objectness", "class"; each a mean over the assigned cells.
    """
    logits = logits.float()
    cells, strides = (torch.from_numpy(a).to(logits.device) for a in detector_cells(size))
    predicted = _decode(logits[..., :4], cells, strides)
    person, assigned = assign_cells(predicted.detach(), logits.detach(), boxes.to(predicted), cells, strides)
    true_boxes = boxes.to(predicted).gather(1, person[..., None].expand(-1, -1, 4))
    mask = assigned[..., None]
    # `where` instead of a product keeps the predictions of unassigned cells out of the gradient.
    overlap = _iou(torch.where(mask, true_boxes, 1.0), torch.where(mask, predicted, 1.0))
    target = torch.zeros_like(logits[..., 5:])
    target[..., PERSON] = overlap.detach()
    classes = F.binary_cross_entropy_with_logits(logits[..., 5:], target, reduction="none")
    count = assigned.sum().clamp(min=1)
    losses = {
        "box": BOX_WEIGHT * (assigned * (1 - overlap.square())).sum() / count,
        "objectness": F.binary_cross_entropy_with_logits(logits[..., 4], assigned.float(), reduction="sum") / count,
        "class": (mask * classes).sum() / count,
    }
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


@torch.no_grad()
def assign_cells(
    predicted: torch.Tensor, logits: torch.Tensor, people: torch.Tensor, cells: torch.Tensor, strides: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """SimOTA (YOLOX, section 2.1): which cells should predict which person.

    A cell is a candidate for a person if its centre lies within 1.5 strides of the box's centre. A person is assigned
    the k candidates of least cost (class cross-entropy + 3·(-log IoU)), where k is the sum of the ten best overlaps,
    at least 1. A cell that several people would get is assigned to the one of least cost.

    Args:
        predicted: (B, A, 4) corners in pixels.
        logits: (B, A, 5 + classes).
        people: (B, n, 4) corners in pixels, NaN for nobody.
        cells: positions of the cells, from `ops.pose.detector_cells`.
        strides: strides of the cells, from `ops.pose.detector_cells`.

    Returns:
        int64 (B, A), number of the person, and bool (B, A), whether the cell is assigned to this person.
    """
    exists = ~people.isnan().any(dim=-1)
    people = torch.where(exists[..., None], people, 0.0)
    centres = (cells + 0.5) * strides[:, None]
    middle = 0.5 * (people[..., :2] + people[..., 2:])
    offset = (centres - middle[:, :, None]).abs().amax(-1)
    candidate = (offset < CENTRE_RADIUS * strides) & exists[..., None]
    overlap = _iou(people[:, :, None], predicted[:, None]) * candidate
    score = (logits[..., 4].sigmoid() * logits[..., 5 + PERSON].sigmoid()).sqrt()
    cost = -torch.log(score + 1e-8)[:, None] - OVERLAP_COST * torch.log(overlap + 1e-8)
    cost = cost.masked_fill(~candidate, torch.inf)
    count = overlap.topk(min(CANDIDATES, len(cells)), dim=2).values.sum(2).int().clamp(min=1)
    rank = cost.argsort(dim=2).argsort(dim=2)
    chosen = (rank < count[..., None]) & candidate
    return cost.masked_fill(~chosen, torch.inf).argmin(dim=1), chosen.any(dim=1)


def simcc_loss(
    simcc_x: torch.Tensor, simcc_y: torch.Tensor, keypoints: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """RTMPose's loss: Kullback-Leibler divergence from Gaussian labels, for x and for y.

    The labels are Gaussians of height 1 with σ = √(side / 8) bins, side in crop pixels (6 and 6.93 bins for 288×384).
    Labels and predictions are sharpened by β = 10 in the softmax, so that a prediction learns to *be* its label and its
    maximum can serve as a score. Unlike in mmpose, labels are centred on the exact position and not on the nearest bin,
    and the divergence is summed over bins and averaged by weight, so it does not depend on crop or batch size.

    Args:
        simcc_x: (B, K, 2W), from `PoseEstimator`.
        simcc_y: (B, K, 2H), from `PoseEstimator`.
        keypoints: (B, K, ≥ 2): x, y in crop pixels.
        weights: (B, K), ≥ 0; points outside the crop always have weight 0.

    Returns:
        Scalar; 0 if all weights are 0.
    """
    position = keypoints[..., :2].float() * SPLIT_RATIO
    bins = torch.tensor([simcc_x.shape[-1], simcc_y.shape[-1]], device=position.device)
    inside = ((position >= 0) & (position <= bins - 1)).all(-1)
    weights = weights.float() * inside
    position = torch.where(inside[..., None], position, 0.0)  # a NaN would pass through a weight of 0
    divergence = sum(_divergence(scores, position[..., axis]) for axis, scores in enumerate((simcc_x, simcc_y)))
    return (weights * divergence).sum() / weights.sum().clamp(min=1e-6)


def _divergence(scores: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The divergence (B, K) of scores (B, K, bins) from the labels at positions (B, K) in bins."""
    bins = scores.shape[-1]
    sigma2 = bins / SPLIT_RATIO / 8
    offset = torch.arange(bins, device=scores.device) - position[..., None]
    label = (SIMCC_SHARPNESS * torch.exp(-offset.square() / (2 * sigma2))).log_softmax(-1)
    predicted = (SIMCC_SHARPNESS * scores.float()).log_softmax(-1)
    return F.kl_div(predicted, label, reduction="none", log_target=True).sum(-1)


def _decode(output: torch.Tensor, cells: torch.Tensor, strides: torch.Tensor) -> torch.Tensor:
    """The same as `ops.pose.decode_boxes`, with a gradient."""
    centre = (output[..., :2] + cells) * strides[:, None]
    half = 0.5 * output[..., 2:].exp() * strides[:, None]
    return torch.cat([centre - half, centre + half], dim=-1)


def _iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes (..., 4); the leading dimensions are broadcast."""
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return common / (areas - common).clamp(min=1e-6)
