"""Names of the body parts, written here only: the renderer's label map and the part sets of part networks."""

from __future__ import annotations

PART_LABELS: tuple[str, ...] = ("background", "head", "torso", "arms", "legs", "feet")
"""Label i of a part map (uint8, H×W) is PART_LABELS[i]; arms are with hands."""

PART_SETS: dict[str, tuple[str, ...]] = {
    # The parts of the paper's eq. 6, which the synthetic people are labelled with.
    "paper": PART_LABELS[1:],
    # BPBReID's vertical five, of its public checkpoints: the trunk is cut at the elbows.
    "five_v": ("head", "upper_arms_torso", "lower_arms_torso", "legs", "feet"),
    "eight": ("head", "left_arm", "right_arm", "torso", "left_leg", "right_leg", "left_foot", "right_foot"),
}
"""Part names by part set, in the order of a part network's maps (its background map comes before them)."""


def mirrored_parts(part_set: str) -> tuple[int, ...]:
    """Number of the part that each part of a person's mirror image is: left and right change places.

    Raises:
        ValueError: unknown part set.
    """
    names = part_names(part_set)
    sides = {"left": "right", "right": "left"}
    partners = ["_".join(sides.get(word, word) for word in name.split("_")) for name in names]
    return tuple(names.index(partner) for partner in partners)


def part_names(part_set: str) -> tuple[str, ...]:
    """The K part names of a part set.

    Raises:
        ValueError: unknown part set.
    """
    if part_set not in PART_SETS:
        raise ValueError(f"unknown part set {part_set!r}; known are {', '.join(PART_SETS)}")
    return PART_SETS[part_set]
