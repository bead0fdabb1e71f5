"""The training losses of the part network, from BPBReID (Somers et al., WACV 2023, arXiv:2211.03679, section 3.3).

Pixel cross-entropy trains the part maps, optionally together with a loss on their overlap with the true maps (Wang et
al., NeurIPS 2023, arXiv:2302.05666). Identity cross-entropy on holistic embeddings and a triplet loss on part
embeddings train the embeddings to distinguish people.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffbody_ref.models.parts import PartNetConfig, PartOutput
from diffbody_ref.models.resizing import resize
from diffbody_ref.ops.parts import part_names


@dataclass(frozen=True)
class PartLossConfig:
    """Weights and settings of the loss terms; the defaults are BPBReID's.

    Attributes:
        pixel_weight: weight of the pixel cross-entropy.
        overlap_weight: weight of the overlap loss, which BPBReID does not have.
        identity_weight: weight of the identity cross-entropy of each of the three embeddings.
        triplet_weight: weight of the triplet loss.
        margin: margin of the triplet loss.
        label_smoothing: label smoothing of both cross-entropies.
    """

    pixel_weight: float = 0.35
    overlap_weight: float = 0.0
    identity_weight: float = 1.0
    triplet_weight: float = 1.0
    margin: float = 0.3
    label_smoothing: float = 0.1


class BatchNormClassifier(nn.Module):
    """Batch norm without a shift, then a linear classifier without a bias (the BNNeck of Luo et al. 2019)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)
        self.bn.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, dim) -> logits (B, classes)."""
        return self.classifier(self.bn(embedding))


class IdentityHead(nn.Module):
    """Classifiers of the identity from the global, the foreground and the concatenated part embeddings.

    Used in training only.
    """

    def __init__(self, num_identities: int, config: PartNetConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.global_ = BatchNormClassifier(dim, num_identities)
        self.foreground = BatchNormClassifier(dim, num_identities)
        self.parts = BatchNormClassifier(dim * len(part_names(config.part_set)), num_identities)

    def forward(self, output: PartOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, num_identities) of the global, foreground and concatenated part embeddings."""
        parts = self.parts(output.embeddings.flatten(1))
        return self.global_(output.global_), self.foreground(output.foreground), parts


def part_losses(
    output: PartOutput,
    identity_logits: tuple[Tensor, ...],
    labels: Tensor,
    identities: Tensor,
    config: PartLossConfig | None = None,
) -> dict[str, Tensor]:
    """All loss terms and their weighted sum.

    Args:
        output: output of the part network in training mode.
        identity_logits: output of `IdentityHead`.
        labels: integer (B, H, W), label maps of the same crops at any size; 0 is background, k is the k-th part.
        identities: int64 (B,); the batch should contain several pictures of each person.
        config: weights of the terms; None is the default.

    Returns:
        Scalars "total", "pixels", "overlap", "identity" (the mean over the three embeddings) and "triplet".
    """
    config = config or PartLossConfig()
    targets = cell_targets(labels, *output.logits.shape[1:])
    pixels = F.cross_entropy(output.logits.float(), targets, label_smoothing=config.label_smoothing)
    identity = torch.stack(
        [
            F.cross_entropy(logits.float(), identities, label_smoothing=config.label_smoothing)
            for logits in identity_logits
        ]
    )
    # A part's visibility is how much of its fullest cell it fills, in the true and not in the predicted maps.
    visibility = targets[:, 1:].amax(dim=(2, 3))
    triplet = part_triplet_loss(output.embeddings.float(), visibility, identities, config.margin)
    overlap = overlap_loss(output.masks.float(), targets)
    total = (
        config.pixel_weight * pixels
        + config.overlap_weight * overlap
        + config.identity_weight * identity.sum()
        + config.triplet_weight * triplet
    )
    return {"total": total, "pixels": pixels, "overlap": overlap, "identity": identity.mean(), "triplet": triplet}


def overlap_loss(masks: Tensor, targets: Tensor) -> Tensor:
    """Jaccard metric loss: 1 − intersection over union, for shares instead of labels.

    The loss is 1 − (|m| + |t| − |m − t|) / (|m| + |t| + |m − t|), where |·| are sums over batch and cells, averaged
    over the classes. So a thin part counts as much as a wide one.

    Args:
        masks: (B, classes, h, w), predicted shares that sum to 1 over the classes.
        targets: (B, classes, h, w), true shares that sum to 1 over the classes.

    Returns:
        Scalar in [0, 1]; 0 if masks and targets are equal.
    """
    total, difference = ((a.flatten(2).sum(dim=(0, 2))) for a in (masks + targets, (masks - targets).abs()))
    return (1 - (total - difference) / (total + difference).clamp_min(1e-6)).mean()


def cell_targets(labels: Tensor, classes: int, height: int, width: int) -> Tensor:
    """The share of each class in each cell of a coarser grid. Unlike a majority vote, shares keep feet and hands.

    Args:
        labels: integer (B, H, W), each below `classes`.
        classes: number of classes.
        height: height of the grid in cells.
        width: width of the grid in cells.

    Returns:
        float32 (B, classes, height, width), sums to 1 over the classes.
    """
    shares = F.one_hot(labels.long(), classes).permute(0, 3, 1, 2)
    # In float64, which autocast does not change: shares are sums of many small weights.
    return resize(shares.double(), height, width).float()


def part_triplet_loss(embeddings: Tensor, visibility: Tensor, identities: Tensor, margin: float) -> Tensor:
    """Batch-hard triplet loss (Hermans et al. 2017, arXiv:1703.07737) on the mean distance of the common parts.

    Args:
        embeddings: (B, K, D).
        visibility: (B, K) in [0, 1]; a part's distance is weighted by the product of its two visibilities.
        identities: int64 (B,).
        margin: how much farther than the farthest positive the nearest negative should be.

    Returns:
        Scalar: the mean over anchors that have both a positive and a negative with a part in common; 0 if there are
        no such anchors.
    """
    distance, comparable = pairwise_part_distance(embeddings, visibility)
    same = identities[:, None] == identities[None]
    positive = same & comparable & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    negative = ~same & comparable
    farthest = distance.masked_fill(~positive, 0.0).amax(dim=1)
    nearest = distance.masked_fill(~negative, torch.inf).amin(dim=1)
    anchors = positive.any(dim=1) & negative.any(dim=1)
    losses = F.relu(farthest - torch.where(anchors, nearest, 0.0) + margin)
    return (losses * anchors).sum() / anchors.sum().clamp_min(1)


def pairwise_part_distance(embeddings: Tensor, visibility: Tensor) -> tuple[Tensor, Tensor]:
    """Visibility-weighted mean of the parts' Euclidean distances, for all pairs of pictures.

    Args:
        embeddings: (B, K, D).
        visibility: (B, K) in [0, 1].

    Returns:
        The distances (B, B), 0 for pictures without a common visible part, and bool (B, B): whether two pictures have
        a common visible part.
    """
    parts = embeddings.transpose(0, 1)
    distance = torch.cdist(parts, parts, compute_mode="donot_use_mm_for_euclid_dist")  # (K, B, B), exact near 0
    weights = (visibility[:, None] * visibility[None]).permute(2, 0, 1)
    total = weights.sum(dim=0)
    comparable = total > 0
    return (weights * distance).sum(dim=0) / torch.where(comparable, total, 1.0), comparable
