"""Weights: the nano pipeline that comes with the package, and importers of public checkpoints."""

from pathlib import Path

NANO_FOLDER = Path(__file__).parent / "nano"
"""A DiffBody pipeline folder in diffusers' layout."""
