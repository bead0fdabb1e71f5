"""The report on one restored picture, a JSON file beside it: who was found, and who they still are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffbody_ref import __version__
from diffbody_ref.ops.identity import IDENTITY_THRESHOLD, PersonIdentity

if TYPE_CHECKING:
    from runtime.restore import Restoration

DIGITS = 4


def report_of(result: Restoration, people: Sequence[PersonIdentity] | None, notices: Sequence[str]) -> bytes:
    """The report's file. `docs/restoring.md` explains its fields.

    Args:
        result: the restored picture.
        people: the identity distance of each person that was found; None where the model has no part network.
        notices: what whoever asked should know.
    """
    found = result.intermediates
    values: dict[str, Any] = {
        "diffbody": __version__,
        "size": list(result.pixels.shape[:2]),
        "working_size": list(found.regression.shape[:2]),
        "people": [
            {
                "box": [round(float(side), 1) for side in box[:4]],
                "score": round(float(box[4]), DIGITS),
                "identity": None if people is None else _identity(people[number]),
            }
            for number, box in enumerate(found.boxes)
        ],
        "identity_threshold": IDENTITY_THRESHOLD,
        "loss_curve": [[timestep, loss] for timestep, loss in found.loss_curve],
        "notices": list(notices),
    }
    return (json.dumps(values, indent=1) + "\n").encode()


def _identity(person: PersonIdentity) -> dict[str, Any]:
    return {
        "distance": _rounded(person.distance),
        "parts": {name: _rounded(distance) for name, distance in person.parts.items()},
        "differs": person.differs,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
