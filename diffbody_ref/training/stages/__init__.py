"""What can be trained: one file a stage."""

from __future__ import annotations

import importlib

from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.stages.base import Stage

STAGES: dict[str, str] = {
    "swinir": "diffbody_ref.training.stages.restoration:RestorationStage",
    "vae": "diffbody_ref.training.stages.autoencoder:AutoencoderStage",
    "pose": "diffbody_ref.training.stages.pose:PoseStage",
    "parts": "diffbody_ref.training.stages.parts:PartsStage",
    "diffusion": "diffbody_ref.training.stages.diffusion:DiffusionStage",
}

__all__ = ["STAGES", "Stage", "build_stage"]


def build_stage(config: TrainConfig) -> Stage:
    """The stage that `config.stage` names, its components loaded or built.

    Raises:
        ValueError: unknown stage.
    """
    if config.stage not in STAGES:
        raise ValueError(f"unknown stage {config.stage!r}; known are {', '.join(STAGES)}")
    module, name = STAGES[config.stage].split(":")
    return getattr(importlib.import_module(module), name)(config)
