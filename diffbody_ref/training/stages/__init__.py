"""The training stages, one file each."""

from __future__ import annotations

import importlib

from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.stages.base import TrainingStage

# Module and class of each stage, imported when it is built.
STAGES: dict[str, str] = {
    "swinir": "diffbody_ref.training.stages.restoration:RestorationStage",
    "vae": "diffbody_ref.training.stages.autoencoder:AutoencoderStage",
    "pose": "diffbody_ref.training.stages.pose:PoseStage",
    "parts": "diffbody_ref.training.stages.parts:PartsStage",
    "diffusion": "diffbody_ref.training.stages.diffusion:DiffusionStage",
}

__all__ = ["STAGES", "TrainingStage", "build_stage"]


def build_stage(config: TrainConfig) -> TrainingStage:
    """Build the stage named by `config.stage`; its components are loaded or built.

    Raises:
        ValueError: the stage is unknown.
    """
    if config.stage not in STAGES:
        raise ValueError(f"unknown stage {config.stage!r}; known stages are {', '.join(STAGES)}")
    module, name = STAGES[config.stage].split(":")
    return getattr(importlib.import_module(module), name)(config)
