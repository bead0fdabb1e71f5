"""Weights: importers of public checkpoints, and in `nano/` the pipeline whose trained weights are part of this package.

`diffbody_ref.ops.builtin.NANO_FOLDER` is the path of `nano/`.
"""
