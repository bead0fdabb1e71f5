"""What whoever reads a report should know about the task that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from diffbody_ref.data.recipes import Recipe, differences
from diffbody_ref.evaluation.rows import Row

NOTABLE_AREA = 2.0  # ratio of a picture's area to that of the model's base size, from which the report says so


def degradation_notices(recipe: Recipe, own: Recipe) -> list[str]:
    """A line if the pictures are degraded otherwise than those that the model was trained on."""
    found = differences(recipe.degradation, own.degradation)
    line = f"the degradation is not the one that the model was trained to undo ({own.origin}): {'; '.join(found)}"
    return [line] if found else []


def size_notices(rows: Sequence[Row], base: Sequence[int] | None) -> list[str]:
    """A line if the pictures are much smaller or larger than what the model works on."""
    if base is None:
        return []
    areas = {row.index: row.size[0] * row.size[1] for row in rows}
    usual = base[0] * base[1]
    small = sum(area < usual / NOTABLE_AREA for area in areas.values())
    large = sum(area > usual * NOTABLE_AREA for area in areas.values())
    size, many = f"the model's {base[0]}×{base[1]}", len(areas)
    lines = []
    if small:
        lines.append(
            f"{small} of {many} pictures have less than half the pixels of {size}: they are enlarged, restored and "
            "shrunk again, and small photographs are seldom sharp enough to stand for the truth"
        )
    if large:
        lines.append(
            f"{large} of {many} pictures have more than twice the pixels of {size}: the same blur in pixels hides less "
            "of them than of the pictures that the model was trained on (--longest-side shrinks them)"
        )
    return lines
