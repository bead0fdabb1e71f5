"""Equation 3: the structure maps P = pose(r) and A = parts(r) of a picture with any number of people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from diffbody_ref.models.parts import PartNet, attention_map
from diffbody_ref.models.pose import PersonDetector, PoseEstimator, detect_people, estimate_pose
from diffbody_ref.models.resizing import resize
from diffbody_ref.ops.drawing import draw_pose
from diffbody_ref.ops.identity import Embed
from diffbody_ref.ops.keypoints import unseen
from diffbody_ref.ops.pose import crop_people, decode_simcc, letterbox, person_crop, select_people


@dataclass(frozen=True)
class Structure:
    """What was found in one picture of H×W pixels.

    Attributes:
        boxes: float32 (N, 5): x0, y0, x1, y1 in pixels and the detector's score.
        keypoints: float32 (N, 133, 3): x, y in pixels and a score, which is 0 without a pose network.
        crops: N pixel windows (x0, y0, x1, y1) that the part network looks at, inside the picture.
        pose: (1, 3, H, W) in [0, 1], the OpenPose-style drawing; black where nobody is.
        attention: (1, K+1, H, W) in [0, 1], K part maps and their foreground map; 0 where nobody is.
    """

    boxes: np.ndarray
    keypoints: np.ndarray
    crops: list[tuple[int, int, int, int]]
    pose: torch.Tensor
    attention: torch.Tensor


@torch.no_grad()
def structure_maps(
    detector: PersonDetector | None,
    estimator: PoseEstimator | None,
    parts: PartNet | None,
    picture: torch.Tensor,
    part_count: int = 0,
) -> Structure:
    """Detect people, draw their poses, and lay their part maps over one another (maximum).

    Without a detector nobody is found, without the other networks their maps are empty.

    Args:
        picture: (1, 3, H, W), RGB in [0, 1]: the regression result r.
        part_count: K of the attention map where there is no part network.
    """
    part_count = part_count if parts is None else len(parts.part_names)
    if detector is None:
        return empty_structure(picture, part_count)
    height, width = picture.shape[-2:]
    pixels = picture[0].clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    boxes = detect_people(detector, pixels)
    keypoints = unseen(len(boxes)) if estimator is None else estimate_pose(estimator, pixels, boxes)
    drawing = torch.from_numpy(draw_pose(keypoints, height, width)).permute(2, 0, 1)[None]
    attention = picture.new_zeros(1, part_count + 1, height, width)
    crops = [person_crop(box, height, width) for box in boxes]
    for x0, y0, x1, y1 in crops if parts is not None else ():
        assert parts is not None
        person = picture[..., y0:y1, x0:x1]
        maps = attention_map(parts.attention_masks(person, parts(person)), y1 - y0, x1 - x0)
        window = attention[..., y0:y1, x0:x1]
        window.copy_(torch.maximum(window, maps.to(window)))
    return Structure(boxes, keypoints, crops, drawing.to(picture), attention)


@torch.no_grad()
def batch_structure_maps(
    detector: PersonDetector | None,
    estimator: PoseEstimator | None,
    parts: PartNet | None,
    pictures: torch.Tensor,
    part_count: int = 0,
) -> list[Structure]:
    """`structure_maps` of each of (B, 3, H, W) pictures of one size, each network called once: fast on a GPU.

    The same up to rounding, in evaluation mode: in a batch, sums are of another order.
    """
    part_count = part_count if parts is None else len(parts.part_names)
    if detector is None:
        return [empty_structure(picture[None], part_count) for picture in pictures]
    height, width = pictures.shape[-2:]
    pixels = list(pictures.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy())
    size = detector.settings.size
    squares, ratios = zip(*(letterbox(picture, size) for picture in pixels), strict=True)
    raw = detector(torch.from_numpy(np.stack(squares)).to(detector.device, detector.dtype)).float().cpu().numpy()
    boxes = [select_people(rows, size, ratio) for rows, ratio in zip(raw, ratios, strict=True)]
    owners = [owner for owner, found in enumerate(boxes) for _ in found]
    crops = [person_crop(box, height, width) for found in boxes for box in found]
    keypoints = _batch_keypoints(estimator, pixels, boxes)
    attention = pictures.new_zeros(len(pictures), part_count + 1, height, width)
    if crops and parts is not None:
        people = torch.cat(
            [
                resize(pictures[i : i + 1, :, y0:y1, x0:x1], *parts.input_size)
                for i, (x0, y0, x1, y1) in zip(owners, crops, strict=True)
            ]
        )
        masks = parts.attention_masks(people, parts(people))
        for i, (x0, y0, x1, y1), person in zip(owners, crops, masks, strict=True):
            window = attention[i : i + 1, :, y0:y1, x0:x1]
            window.copy_(torch.maximum(window, attention_map(person[None], y1 - y0, x1 - x0).to(window)))
    return [
        Structure(
            boxes=boxes[i],
            keypoints=keypoints[i],
            crops=[crop for owner, crop in zip(owners, crops, strict=True) if owner == i],
            pose=torch.from_numpy(draw_pose(keypoints[i], height, width)).permute(2, 0, 1)[None].to(pictures),
            attention=attention[i : i + 1],
        )
        for i in range(len(pictures))
    ]


def _batch_keypoints(
    estimator: PoseEstimator | None, pixels: list[np.ndarray], boxes: list[np.ndarray]
) -> list[np.ndarray]:
    """`estimate_pose` of each picture, of one call of the network."""
    if estimator is None or not sum(len(found) for found in boxes):
        return [unseen(len(found)) for found in boxes]
    size = estimator.settings.height, estimator.settings.width
    crops, inverses = zip(*(crop_people(p, b, *size) for p, b in zip(pixels, boxes, strict=True)), strict=True)
    simcc = estimator(torch.from_numpy(np.concatenate(crops)).to(estimator.device, estimator.dtype))
    simcc_x, simcc_y = (scores.float().cpu().numpy() for scores in simcc)
    keypoints = decode_simcc(simcc_x, simcc_y, np.concatenate(inverses))
    return np.split(keypoints, np.cumsum([len(found) for found in boxes])[:-1])


def empty_structure(picture: torch.Tensor, part_count: int) -> Structure:
    """Structure of a picture (1, 3, H, W) in which nobody is looked for."""
    attention = picture.new_zeros(1, part_count + 1, *picture.shape[-2:])
    return Structure(np.zeros((0, 5), np.float32), unseen(0), [], torch.zeros_like(picture), attention)


def part_embedder(parts: PartNet, device: torch.device | str) -> Embed:
    """What embeds the body parts of people in a picture, in the windows that eq. 6 looks at.

    Args:
        parts: in evaluation mode.
        device: of the network.
    """

    @torch.no_grad()
    def embed(pixels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        picture = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32))[None].to(device)
        crops = [person_crop(box, *picture.shape[-2:]) for box in boxes]
        outputs = [parts(picture[..., y0:y1, x0:x1]) for x0, y0, x1, y1 in crops]
        if not outputs:
            count = len(parts.part_names)
            return np.zeros((0, count, 1), np.float32), np.zeros((0, count), np.float32)
        columns = ([output.embeddings for output in outputs], [output.visibility for output in outputs])
        embeddings, visibility = (torch.cat(column).float().cpu().numpy() for column in columns)
        return embeddings, visibility

    return embed
