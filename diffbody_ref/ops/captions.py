"""Captions of people in a fixed order, from top to bottom (DiffBody section 3.3)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """What is seen of a person. Every field is a short phrase; an empty one is left out of the sentence."""

    look: str = ""
    """Overall look with sex and age: "a young woman"."""
    hair: str = ""
    face: str = ""
    """With accessories: "round glasses"."""
    upper: str = ""
    lower: str = ""
    hands: str = ""
    """With what they hold."""
    shoes: str = ""
    pose: str = ""
    background: str = ""

    def sentence(self) -> str:
        """The phrases that are there, joined by commas, in the order of the fields; "" if none is there."""
        phrases = (" ".join(getattr(self, field.name).split()).strip(" ,.;") for field in dataclasses.fields(self))
        return ", ".join(phrase for phrase in phrases if phrase)
