"""Stages that turn pictures into pictures or latents, and back."""

from __future__ import annotations

from diffusers import AutoencoderKL
from torch import Tensor

from diffbody_ref.models.swinir import SwinIR
from diffbody_ref.models.vae import decode, encode_mode
from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.options import ModelSettings
from diffbody_ref.ops.tensors import TensorSpec
from diffbody_ref.stages.base import (
    Signature,
    Stage,
    as_weights,
    grid_sizes,
    latents_shape,
    normal,
    picture_shape,
    uniform,
)


class Restorer(Stage):
    """y to r, step 1 of the method: (B, 3, H, W) in [0, 1] to the same."""

    components = ("swinir",)

    def __init__(self, swinir: SwinIR) -> None:
        super().__init__()
        self.swinir = swinir

    def forward(self, picture: Tensor) -> Tensor:
        return self.swinir(as_weights(self.swinir, picture)).float().clamp(0.0, 1.0)

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        shape = picture_shape(geometry)
        return Signature(
            (TensorSpec("picture", "float32", shape),),
            (TensorSpec("regression", "float32", shape),),
            grid_sizes(geometry, settings),
            {"picture": uniform},
        )


class VaeEncoder(Stage):
    """Pictures (B, 3, H, W) in [0, 1] to scaled latents (B, C, h, w): z_r."""

    components = ("vae",)

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, picture: Tensor) -> Tensor:
        return encode_mode(self.vae, as_weights(self.vae, picture * 2.0 - 1.0)).float()

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        return Signature(
            (TensorSpec("picture", "float32", picture_shape(geometry)),),
            (TensorSpec("latents", "float32", latents_shape(geometry)),),
            grid_sizes(geometry, settings),
            {"picture": uniform},
        )


class VaeDecoder(Stage):
    """Scaled latents (B, C, h, w) to pictures (B, 3, H, W), about [0, 1], not clamped."""

    components = ("vae",)

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return decode(self.vae, as_weights(self.vae, latents)).float() / 2.0 + 0.5

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        return Signature(
            (TensorSpec("latents", "float32", latents_shape(geometry)),),
            (TensorSpec("picture", "float32", picture_shape(geometry)),),
            grid_sizes(geometry, settings),
            {"latents": normal},
        )
