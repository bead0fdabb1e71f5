"""Identity in an evaluation: how far people moved away from the regression result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffbody_ref.ops.identity import IDENTITY_THRESHOLD, PersonIdentity

VALUE = "identity"  # of a row: the mean distance of the picture's people


def identity_values(people: Sequence[PersonIdentity] | None) -> dict[str, Any]:
    """The values of a picture's row: the mean distance, how many are beyond the threshold, and all by person and part.

    Empty where nobody was compared.
    """
    known = [person for person in people or [] if person.distance is not None]
    distances = [person.distance for person in known if person.distance is not None]
    if not distances:
        return {}
    return {
        VALUE: float(np.mean(distances)),
        "identity_differs": sum(person.differs for person in known),
        "people": [{"distance": person.distance, "parts": person.parts} for person in known],
    }


def identity_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """A table of the methods that have identity distances: all people of all pictures, in all and by part.

    Args:
        rows: values of the pictures by method.

    Returns:
        The heading and a row a method; no rows where no method has any.
    """
    people = {name: [person for row in values for person in row.get("people", [])] for name, values in rows.items()}
    people = {name: found for name, found in people.items() if found}
    parts = list(dict.fromkeys(part for found in people.values() for person in found for part in person["parts"]))
    head = ["Method", "people", "mean", "largest", f"above {IDENTITY_THRESHOLD:g}", *parts]
    lines = []
    for name, found in people.items():
        distances = [person["distance"] for person in found]
        by_part = [
            [person["parts"][part] for person in found if person["parts"].get(part) is not None] for part in parts
        ]
        lines.append(
            [
                name,
                str(len(found)),
                f"{np.mean(distances):.3f}",
                f"{np.max(distances):.3f}",
                str(sum(distance > IDENTITY_THRESHOLD for distance in distances)),
                *(f"{np.mean(values):.3f}" if values else "n/a" for values in by_part),
            ]
        )
    return [head, *lines]
