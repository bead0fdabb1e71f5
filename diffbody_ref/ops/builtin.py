"""The model that comes with the package."""

from __future__ import annotations

from pathlib import Path

NANO_FOLDER = Path(__file__).parents[1] / "weights" / "nano"
"""nano: a DiffBody pipeline folder in diffusers' layout, and a bundle."""
