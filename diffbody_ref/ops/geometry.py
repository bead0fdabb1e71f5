"""The numbers that tie a model's stages together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Sizes that several stages share.

    Attributes:
        multiple: sides of working pictures are multiples of it, so that the latent grid halves cleanly down the U-Net.
        factor: pixels per latent cell along a side.
        latent_channels: of the latents.
        text_length: token ids of one chunk of a prompt, with its frame and padding.
        detector_size: side in pixels of the detector's square input; 0 where the model has no detector.
        pose_height: of the pose network's crops, in pixels; 0 where the model has no pose network.
        pose_width: see `pose_height`.
        part_names: the K parts, in the order of the attention maps; none where the model has no part network.
    """

    multiple: int
    factor: int
    latent_channels: int
    text_length: int
    detector_size: int
    pose_height: int
    pose_width: int
    part_names: tuple[str, ...]
