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

__all__ = ["STAGES", "TrainingStage", "build_stage", "stage_class"]


def stage_class(name: str) -> type[TrainingStage]:
    """The class of a stage.

    Raises:
        ValueError: the stage is unknown.
    """
    if name not in STAGES:
        raise ValueError(f"unknown stage {name!r}; known stages are {', '.join(STAGES)}")
    module, attribute = STAGES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def build_stage(config: TrainConfig) -> TrainingStage:
    """Build the stage named by `config.stage`; its components are loaded or built.

    Raises:
        ValueError: the stage is unknown.
    """
    return stage_class(config.stage)(config)
