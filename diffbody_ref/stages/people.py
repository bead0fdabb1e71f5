"""Stages that find people in a picture: their boxes, their poses, their body parts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffbody_ref.models.parts import PartNet, attention_map
from diffbody_ref.models.pose import PersonDetector, PoseEstimator
from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.keypoints import COUNT as KEYPOINTS
from diffbody_ref.ops.options import ModelSettings
from diffbody_ref.ops.pose import (
    MEAN,
    NMS_THRESHOLD,
    PAD_VALUE,
    PERSON,
    SCORE_THRESHOLD,
    SPLIT_RATIO,
    STD,
    detector_cells,
)
from diffbody_ref.ops.tensors import SizeRange, TensorSpec
from diffbody_ref.stages.base import BATCH, PEOPLE, Signature, Stage, as_weights, uniform

CANDIDATES = 256  # best-scoring boxes that suppression looks at
SUPPRESSION_ROUNDS = 32


class Detector(Stage):
    """Person boxes with their suppression (`ops.pose.select_people`) in the graph.

    Greedy suppression keeps a box unless a kept box of a better score overlaps it. With all overlaps in a matrix this
    is a fixed point: keep_i = no j < i with keep_j and overlap_ji. Each round settles at least the next link of every
    chain of overlapping boxes, so `SUPPRESSION_ROUNDS` of them are exact for chains of that length.
    """

    components = ("pose_detector",)

    def __init__(self, detector: PersonDetector) -> None:
        super().__init__()
        self.detector = detector
        cells, strides = detector_cells(detector.config.size)
        self.register_buffer("cells", torch.from_numpy(cells), persistent=False)
        self.register_buffer("strides", torch.from_numpy(strides)[:, None], persistent=False)
        self.candidates = min(CANDIDATES, len(cells))

    def forward(self, square: Tensor, ratio: Tensor) -> Tensor:
        """Args: square (B, 3, S, S) and ratio (B,) of `ops.pose.letterbox`.

        Returns:
            (B, CANDIDATES, 5): x0, y0, x1, y1 in pixels of the picture and the score, best first; score 0 is no box.
        """
        raw = self.detector(as_weights(self.detector, square)).float()
        scores, order = (raw[..., 4] * raw[..., 5 + PERSON]).topk(self.candidates, dim=1)
        centre = (raw[..., :2] + self.cells) * self.strides
        half = 0.5 * raw[..., 2:4].exp() * self.strides
        boxes = torch.cat([centre - half, centre + half], dim=2) / ratio[:, None, None]
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        keep = self._suppress(boxes, (scores > SCORE_THRESHOLD).to(boxes))
        # Nothing of what is no box: in the background many scores are almost equal, and their order is chance.
        return torch.cat([boxes, scores[..., None]], dim=2).where(keep[..., None] > 0, 0.0)

    def _suppress(self, boxes: Tensor, candidate: Tensor) -> Tensor:
        """1 for boxes (B, N, 4), sorted by score, that stay; DWPose's inclusive pixels: a side is x1 − x0 + 1."""
        low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
        high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
        common = (high - low + 1).clamp_min(0).prod(dim=3)
        area = (boxes[..., 2:] - boxes[..., :2] + 1).prod(dim=2)
        better = torch.ones(self.candidates, self.candidates, device=boxes.device, dtype=boxes.dtype).triu(1)
        # Without a division: an overflowing box must not turn the quotient into NaN.
        overlap = (common > NMS_THRESHOLD * (area[:, :, None] + area[:, None, :] - common)).to(boxes) * better
        keep = candidate
        for _ in range(SUPPRESSION_ROUNDS):
            suppressed = (keep[:, None, :] @ overlap)[:, 0]
            keep = candidate * (suppressed < 0.5).to(boxes)
        return keep

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        size = geometry.detector_size
        return Signature(
            (TensorSpec("square", "float32", ("batch", 3, size, size)), TensorSpec("ratio", "float32", ("batch",))),
            (TensorSpec("boxes", "float32", ("batch", self.candidates, 5)),),
            {"batch": BATCH},
            {
                "square": lambda rng, shape: np.where(rng.random(shape) < 0.2, PAD_VALUE, 255.0 * rng.random(shape)),
                "ratio": lambda rng, shape: rng.uniform(0.5, 2.0, shape),
            },
        )


class Pose(Stage):
    """Crops (P, 3, h, w) of `ops.pose.crop_people` to SimCC scores (P, 133, 2w) and (P, 133, 2h)."""

    components = ("pose",)

    def __init__(self, pose: PoseEstimator) -> None:
        super().__init__()
        self.pose = pose

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        simcc_x, simcc_y = self.pose(as_weights(self.pose, crops))
        return simcc_x.float(), simcc_y.float()

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        height, width = geometry.pose_height, geometry.pose_width
        return Signature(
            (TensorSpec("crops", "float32", ("people", 3, height, width)),),
            (
                TensorSpec("simcc_x", "float32", ("people", KEYPOINTS, int(SPLIT_RATIO * width))),
                TensorSpec("simcc_y", "float32", ("people", KEYPOINTS, int(SPLIT_RATIO * height))),
            ),
            {"people": PEOPLE},
            {"crops": _normalised_crops},
        )


class Parts(Stage):
    """Pictures (P, 3, H, W) of one person each to attention maps (P, K+1, H, W), φ (P, K, D) and v (P, K)."""

    components = ("parts",)

    def __init__(self, parts: PartNet) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, person: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = as_weights(self.parts, person)
        output = self.parts(images)
        attention = attention_map(self.parts.attention_masks(images, output), *person.shape[-2:])
        return attention.float(), output.embeddings.float(), output.visibility.float()

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        count, dim = len(geometry.part_names), self.parts.settings.embedding_dim
        return Signature(
            (TensorSpec("person", "float32", ("people", 3, "height", "width")),),
            (
                TensorSpec("attention", "float32", ("people", count + 1, "height", "width")),
                TensorSpec("embeddings", "float32", ("people", count, dim)),
                TensorSpec("visibility", "float32", ("people", count)),
            ),
            {
                "people": PEOPLE,
                "height": SizeRange(8, settings.base_height, settings.tile_size),
                "width": SizeRange(8, settings.base_width, settings.tile_size),
            },
            {"person": uniform},
        )


def _normalised_crops(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    pixels = (255.0 * rng.random(shape)).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(0, 3, 1, 2))
