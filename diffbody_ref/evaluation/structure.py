"""Measures of what the structure networks find in a picture: keypoints, body parts and identity.

The values of a picture are counts, which `summarise` adds up over pictures, so that every keypoint and every pixel has
the same weight:

- PCK@α (Yang & Ramanan 2013): share of labelled keypoints inside the picture, including hidden ones, whose prediction
  is within α times the longer side of the person's true box. The pose is that of the detected person whose box
  overlaps the true one most; if nobody is detected or no box overlaps, all keypoints of the picture count as missed.
- part IoU: intersection over union of predicted and true labels. A pixel's label is the likeliest of background and
  parts; outside the windows of detected people it is background.
- ReID: for each picture, the undegraded versions of all other pictures are ranked by the distance of the part network's
  embeddings in the window of the true box. Rank-1 is the share of pictures whose nearest picture shows the same person;
  mAP is the mean average precision.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffbody_ref.data.datasets import Person
from diffbody_ref.ops.keypoints import FACE, FEET, LEFT_HAND, RIGHT_HAND
from diffbody_ref.ops.parts import PART_LABELS
from diffbody_ref.ops.pose import person_crop
from diffbody_ref.ops.results import FINDERS, OPTIONAL_STAGES
from diffbody_ref.structure import structure_maps

if TYPE_CHECKING:
    from diffbody_ref.evaluation.subjects import Subject
    from diffbody_ref.models.parts import PartNet
    from diffbody_ref.pipeline import DiffBodyPipeline

KEYPOINT_GROUPS: dict[str, slice] = {
    "head": slice(0, 5),
    "arms": slice(5, 11),
    "legs": slice(11, 17),
    "feet": FEET,
    "face": FACE,
    "hands": slice(LEFT_HAND.start, RIGHT_HAND.stop),
}
FRACTIONS = (0.1, 0.05)  # values of α
DETECTED_IOU = 0.5  # overlap from which a person counts as detected

Count = tuple[int, int]
"""(correct ones, all)."""


def keypoint_hits(
    found: np.ndarray | None, truth: np.ndarray, box: np.ndarray, size: tuple[int, int], fraction: float
) -> dict[str, Count]:
    """Count the correctly predicted and all labelled keypoints inside the picture, by group.

    Args:
        found: (133, ≥ 2), predicted x and y in pixels; None if the person was not detected.
        truth: (133, 3), x, y and visibility; 0 is unlabelled.
        box: (≥ 4,), x0, y0, x1, y1 of the person in pixels.
        size: (H, W) of the picture.
        fraction: α.
    """
    height, width = size
    inside = ((truth[:, :2] >= -0.5) & (truth[:, :2] <= (width - 0.5, height - 0.5))).all(axis=1)
    labelled = (truth[:, 2] > 0) & inside
    near = np.zeros(len(truth), bool)
    if found is not None:
        reach = fraction * max(box[2] - box[0], box[3] - box[1])
        near = np.hypot(*(found[:, :2] - truth[:, :2]).T) <= reach
    return {
        name: (int((near & labelled)[group].sum()), int(labelled[group].sum()))
        for name, group in KEYPOINT_GROUPS.items()
    }


def part_overlaps(labels: np.ndarray, truth: np.ndarray) -> dict[str, Count]:
    """Count the pixels in the intersection and in the union of each of `PART_LABELS`; both maps are integer (H, W)."""
    return {
        name: (int(((labels == i) & (truth == i)).sum()), int(((labels == i) | (truth == i)).sum()))
        for i, name in enumerate(PART_LABELS)
    }


def box_overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union (N,) in [0, 1] of boxes (N, ≥ 4), x0, y0, x1, y1, with one box (≥ 4,)."""
    corner0, corner1 = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:4], box[2:4])
    common = np.prod(np.maximum(corner1 - corner0, 0), axis=1)
    areas = np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1) + np.prod(box[2:4] - box[:2])
    return common / np.maximum(areas - common, 1e-9)


def embedding_distances(
    queries: np.ndarray, query_visible: np.ndarray, gallery: np.ndarray, gallery_visible: np.ndarray
) -> np.ndarray:
    """BPBReID's distance: the mean of 1 − cosine over the embeddings that are visible in both pictures.

    Args:
        queries: (Q, E, D), E embeddings of length D for each query.
        query_visible: (Q, E), 1 or 0.
        gallery: (G, E, D), E embeddings of length D for each gallery entry.
        gallery_visible: (G, E), 1 or 0.

    Returns:
        (Q, G); 1 if no embedding is visible in both.
    """
    unit = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (queries, gallery)]
    distance = 1 - np.einsum("qed,ged->qge", *unit)
    both = query_visible[:, None] * gallery_visible[None]
    total = both.sum(axis=-1)
    return np.where(total > 0, (distance * both).sum(axis=-1) / np.maximum(total, 1), 1.0)


def retrieval(distances: np.ndarray, relevant: np.ndarray, excluded: np.ndarray) -> tuple[float, float]:
    """Rank-1 and mean average precision of queries (rows) in a gallery (columns).

    Average precision is the mean, over a query's relevant entries, of the precision at their ranks. Queries without a
    relevant entry are left out.

    Args:
        distances: (Q, G).
        relevant: bool (Q, G), whether an entry shows the query's person.
        excluded: bool (Q, G), whether an entry is left out of that query's gallery.

    Raises:
        ValueError: no query has a relevant entry.
    """
    firsts, precisions = [], []
    for row, is_relevant, is_excluded in zip(distances, relevant, excluded, strict=True):
        order = np.argsort(row[~is_excluded], kind="stable")
        hits = is_relevant[~is_excluded][order]
        if not hits.any():
            continue
        firsts.append(bool(hits[0]))
        ranks = np.flatnonzero(hits) + 1
        precisions.append(float(np.mean(np.arange(1, len(ranks) + 1) / ranks)))
    if not firsts:
        raise ValueError("no person has two pictures, so nobody can be found again")
    return float(np.mean(firsts)), float(np.mean(precisions))


class StructureProbe:
    """The probe of the structure networks; its values can be written as JSON.

    The values are "detected" (0 or 1), "pck" ({α: {group: count}}), "iou" ({part: count}, absent if the part network's
    parts are not those of the labels), "embedding" and "visible" (foreground first, then the parts).
    """

    def __init__(self, pipeline: DiffBodyPipeline) -> None:
        """
        Raises:
            ValueError: the model lacks one of these networks.
        """
        if lacking := [OPTIONAL_STAGES[stage] for stage in pipeline.lacking if stage in FINDERS]:
            raise ValueError(f"the model has no {' and no '.join(lacking)}, by which the structure suite measures")
        self.detector, self.pose, self.parts = pipeline.pose_detector, pipeline.pose, pipeline.parts
        self.placement = {"device": pipeline.device, "dtype": pipeline.vae.dtype}
        self.same_parts = self.parts.part_names == PART_LABELS[1:]

    def __call__(self, pixels: np.ndarray, subject: Subject) -> dict[str, Any]:
        """Measure a picture.

        Args:
            pixels: float32 (H, W, 3) in [0, 1].
            subject: the original with all labels.
        """
        picture = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].to(**self.placement)
        height, width = pixels.shape[:2]
        person = subject.person
        assert person.keypoints is not None
        assert person.parts is not None
        assert person.box is not None
        found = structure_maps(self.detector, self.pose, self.parts, picture)
        overlaps = box_overlap(found.boxes, person.box)
        best = int(overlaps.argmax()) if len(overlaps) and overlaps.max() > 0 else None
        keypoints = None if best is None else found.keypoints[best]
        values: dict[str, Any] = {
            "detected": int(best is not None and overlaps[best] >= DETECTED_IOU),
            "pck": {
                str(f): keypoint_hits(keypoints, person.keypoints, person.box, (height, width), f) for f in FRACTIONS
            },
        }
        if self.same_parts:
            # The part masks of a window and its background sum to 1; the attention maps leave out the background.
            maps = found.attention[0, :-1].float()
            labels = torch.cat([1 - maps.sum(dim=0, keepdim=True), maps]).argmax(dim=0).cpu().numpy()
            values["iou"] = part_overlaps(labels, person.parts)
        return values | _embedding(self.parts, picture, person)


@torch.no_grad()
def _embedding(parts: PartNet, picture: torch.Tensor, person: Person) -> dict[str, Any]:
    """The values "embedding" and "visible" of a picture (1, 3, H, W)."""
    assert person.box is not None
    x0, y0, x1, y1 = person_crop(person.box, *picture.shape[-2:])
    output = parts(picture[..., y0:y1, x0:x1])
    embeddings = torch.cat([output.foreground[:, None], output.embeddings], dim=1)[0].float().cpu().numpy()
    visible = [1, *(int(v) for v in output.visibility[0].tolist())]
    return {"embedding": base64.b64encode(embeddings.astype("<f4").tobytes()).decode(), "visible": visible}


def read_embedding(values: Mapping[str, Any]) -> np.ndarray:
    """The embeddings, float32 (E, D), in the values of a picture."""
    flat = np.frombuffer(base64.b64decode(values["embedding"]), "<f4")
    return flat.reshape(len(values["visible"]), -1)


def summarise(
    values: Sequence[Mapping[str, Any]], identities: Sequence[int], clean: Sequence[Mapping[str, Any]]
) -> dict[str, float | None]:
    """The numbers of one method over all pictures, by column name; None if there is nothing to count.

    Args:
        values: values of the method's pictures.
        identities: numbers of the people shown.
        clean: values of the same pictures before degradation, in the same order.
    """
    numbers: dict[str, float | None] = {"detected": float(np.mean([v["detected"] for v in values]))}
    for fraction in map(str, FRACTIONS):
        groups = {name: _share([v["pck"][fraction][name] for v in values]) for name in KEYPOINT_GROUPS}
        numbers |= {f"pck@{fraction} {name}": share for name, share in groups.items()}
        numbers[f"pck@{fraction} mean"] = _mean(list(groups.values()))
    if all("iou" in v for v in values):
        overlaps = {name: _share([v["iou"][name] for v in values]) for name in PART_LABELS}
        numbers |= {f"iou {name}": share for name, share in overlaps.items()}
        numbers["iou mean"] = _mean([overlaps[name] for name in PART_LABELS[1:]])
    sides = [
        array
        for side in (values, clean)
        for array in (np.stack([read_embedding(v) for v in side]), np.array([v["visible"] for v in side]))
    ]
    people = np.array(identities)
    try:
        rank1, precision = retrieval(
            embedding_distances(*sides), people[:, None] == people[None], np.eye(len(people), dtype=bool)
        )
    except ValueError:
        return numbers
    return numbers | {"rank-1": rank1, "mAP": precision}


def _share(counts: Sequence[Sequence[int]]) -> float | None:
    """The share of correct ones in all counts together; None if there is nothing to count."""
    correct, total = np.sum(np.array(counts, np.int64).reshape(-1, 2), axis=0)
    return float(correct / total) if total else None


def _mean(shares: Sequence[float | None]) -> float | None:
    """The mean of the shares that are not None; None if there are none."""
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None
