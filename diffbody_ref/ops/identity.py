"""Whether a restored person still is the one of the regression result: the distance of eq. 6, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffbody_ref.ops.images import resize

# Measured with nano's part network on rendered people: docs/evaluation.md, "Identity". A model with another part
# network has distances of its own, which `diffbody evaluate --suite structure` tells.
IDENTITY_THRESHOLD = 0.12
Embed = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(picture (H, W, 3) in [0, 1], boxes (P, ≥ 4)) → φ (P, K, D) and v (P, K) of the people in them."""

NORM_EPS = 1e-6  # eq. 6's, see `diffbody_ref.guidance`


@dataclass(frozen=True)
class PersonIdentity:
    """How far a person of the result is from the same person of the regression result.

    Attributes:
        distance: eq. 6, the mean of 1 − cosine over the parts that are visible in the regression result, in [0, 2];
            None where no part is.
        parts: 1 − cosine of each part by name; None for a part that is not visible.
    """

    distance: float | None
    parts: dict[str, float | None]

    @property
    def differs(self) -> bool:
        """Whether that is farther than the threshold."""
        return self.distance is not None and self.distance > IDENTITY_THRESHOLD


def compare_people(
    part_names: Sequence[str], before: np.ndarray, visibility: np.ndarray, after: np.ndarray
) -> list[PersonIdentity]:
    """The identity distance of P people.

    Args:
        part_names: K of them.
        before: φ(r) (P, K, D), embeddings in the regression result.
        visibility: v (P, K) in [0, 1], of the parts in the regression result.
        after: φ (P, K, D) in the result.
    """
    before, after, visibility = (np.asarray(values, np.float64) for values in (before, after, visibility))
    norms = [np.sqrt(np.square(side).sum(axis=2) + NORM_EPS) for side in (before, after)]
    distances = 1.0 - (before * after).sum(axis=2) / (norms[0] * norms[1])
    people = []
    for row, weights in zip(distances, visibility, strict=True):
        total = float(weights.sum())
        parts = {
            name: float(distance) if weight > 0 else None
            for name, distance, weight in zip(part_names, row, weights, strict=True)
        }
        people.append(PersonIdentity(float(row @ weights) / total if total > 0 else None, parts))
    return people


def restored_identity(
    embed: Embed, part_names: Sequence[str], regression: np.ndarray, restored: np.ndarray, boxes: np.ndarray
) -> list[PersonIdentity]:
    """The identity distance of each person between the regression result and the restored picture.

    Args:
        embed: of the model.
        part_names: K of them.
        regression: r, float32 (H, W, 3) in [0, 1].
        restored: float32 (H', W', 3) in [0, 1] of any size; it is compared at the size of r.
        boxes: float32 (P, ≥ 4) of the people in r.
    """
    if not len(boxes):
        return []
    if restored.shape != regression.shape:
        restored = np.clip(resize(restored, regression.shape[0], regression.shape[1]), 0.0, 1.0)
    before, visibility = embed(regression, boxes)
    return compare_people(part_names, before, visibility, embed(restored, boxes)[0])


def identity_notices(people: Sequence[PersonIdentity]) -> list[str]:
    """A line for each person who may have become somebody else, and one for those of whom nothing can be said."""
    told = []
    for number, person in enumerate(people, 1):
        if person.distance is None:
            told.append(f"identity of person {number}: no body part is visible, so nothing can be said of it")
        elif person.differs:
            known = {name: distance for name, distance in person.parts.items() if distance is not None}
            worst = max(known, key=lambda name: known[name])
            told.append(
                f"identity of person {number}: distance {person.distance:.2f} from the regression result, above "
                f"{IDENTITY_THRESHOLD:g}; most at the {worst} ({known[worst]:.2f}); less --strength, or more "
                "--body-guidance-scale, keeps people nearer"
            )
    return told
