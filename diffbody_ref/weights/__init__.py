"""Weights: importers of public checkpoints, and in `nano/` the pipeline whose trained weights are part of this package.

`diffbody_ref.models.NANO_FOLDER` is the path of `nano/`.
"""
