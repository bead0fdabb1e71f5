"""The denoising stages: the prompt's embedding and ε_θ."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from diffbody_ref.models.control import ControlBranch, denoise
from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.options import ModelSettings
from diffbody_ref.ops.samplers import NUM_TRAIN_TIMESTEPS
from diffbody_ref.ops.tensors import TensorSpec
from diffbody_ref.stages.base import BATCH, CHUNKS, Signature, Stage, as_weights, grid_sizes, latents_shape, normal


class TextEncoder(Stage):
    """Token ids (B, 77) to the text embedding (B, 77, D)."""

    components = ("text_encoder",)

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.text_encoder(token_ids).last_hidden_state.float()

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        length, config = geometry.text_length, self.text_encoder.config
        return Signature(
            (TensorSpec("token_ids", "int64", ("batch", length)),),
            (TensorSpec("text", "float32", ("batch", length, config.hidden_size)),),
            {"batch": BATCH},
            {"token_ids": lambda rng, shape: rng.integers(0, config.vocab_size, shape)},
        )


class Denoiser(Stage):
    """ε_θ of eq. 4, control branch and U-Net in one graph.

    Its output is called noise, but is what the model's `NoiseProcess` says: ε, v or z_0.
    """

    components = ("unet", "control")

    def __init__(self, unet: UNet2DConditionModel, control: ControlBranch) -> None:
        super().__init__()
        self.unet, self.control = unet, control

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        latents, text, condition = (as_weights(self.unet, tensor) for tensor in (latents, text, condition))
        return denoise(self.unet, self.control, latents, timesteps, text, condition).float()

    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        latents = latents_shape(geometry)
        condition = (latents[0], self.control.controlnet_cond_embedding.in_channels, *latents[2:])
        text = ("batch", f"{geometry.text_length}*chunks", self.unet.config.cross_attention_dim)
        return Signature(
            (
                TensorSpec("latents", "float32", latents),
                TensorSpec("timesteps", "int64", ("batch",)),
                TensorSpec("text", "float32", text),
                TensorSpec("condition", "float32", condition),
            ),
            (TensorSpec("noise", "float32", latents),),
            {**grid_sizes(geometry, settings), "chunks": CHUNKS},
            {
                "latents": normal,
                "timesteps": lambda rng, shape: rng.integers(0, NUM_TRAIN_TIMESTEPS, shape),
                "text": normal,
                "condition": normal,
            },
        )
