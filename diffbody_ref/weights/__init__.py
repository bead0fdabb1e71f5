"""Weights: the nano pipeline that comes with the package, and importers of public checkpoints."""
