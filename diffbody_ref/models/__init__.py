"""The networks, one file each, and the folder of the pipeline whose trained weights are part of this package."""

from pathlib import Path

NANO_FOLDER = Path(__file__).parent.parent / "weights" / "nano"
"""A DiffBody pipeline folder in diffusers' layout."""
