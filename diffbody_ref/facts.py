"""What a pipeline's components and configuration say of the model: settings, noise process, sizes, what it lacks."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffbody_ref.components import OPTIONAL, STAGE_OF
from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.options import ModelSettings
from diffbody_ref.ops.samplers import NoiseProcess
from diffbody_ref.schedulers import noise_process_of, sampler_of


class ModelFacts:
    """Properties of a `DiffBodyPipeline`."""

    config: Any
    scheduler: Any
    text_encoder: Any
    vae: Any
    unet: Any
    pose_detector: Any
    pose: Any
    parts: Any

    @property
    def settings(self) -> ModelSettings:
        """What the model says of every call on it.

        Raises:
            ValueError: the scheduler is one that no sampler stands for.
        """
        return dataclasses.replace(ModelSettings.read(self.config), sampler=sampler_of(self.scheduler))

    @property
    def noise_process(self) -> NoiseProcess:
        """What the denoiser was trained on, and what it predicts.

        Raises:
            ValueError: the scheduler is one that no sampler stands for.
        """
        return noise_process_of(self.scheduler)

    @property
    def geometry(self) -> Geometry:
        """The numbers that tie the stages together; of a network that is not there, 0 or none."""
        return Geometry(
            multiple=self.multiple,
            factor=self.factor,
            latent_channels=self.vae.config.latent_channels,
            text_length=self.text_encoder.config.max_position_embeddings,
            detector_size=0 if self.pose_detector is None else self.pose_detector.config.size,
            pose_height=0 if self.pose is None else self.pose.config.height,
            pose_width=0 if self.pose is None else self.pose.config.width,
            part_names=() if self.parts is None else tuple(self.parts.part_names),
        )

    @property
    def lacking(self) -> tuple[str, ...]:
        """The stages that the model has no networks of, among `ops.results.OPTIONAL_STAGES`."""
        return tuple(STAGE_OF[name] for name in OPTIONAL if getattr(self, name) is None)

    @property
    def factor(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Sides of what the stages see are multiples of this, so that the latent grid halves cleanly down the U-Net."""
        return self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
