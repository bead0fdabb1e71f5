"""The control branch: a copy of the U-Net's encoder that reads z_t ⊕ z_r ⊕ pose ⊕ attention.

Sources: ControlNet (Zhang et al. 2023) for the copy and its zero convolutions, DiffBIR (Lin et al. 2023) for the
condition concatenated on the latent grid, without a hint encoder.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, ModelMixin, UNet2DConditionModel  # noqa: F401  # see models.parts
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

COPIED = (
    "in_channels",
    "down_block_types",
    "block_out_channels",
    "layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "norm_num_groups",
    "use_linear_projection",
    "upcast_attention",
)


class ControlBranch(ControlNetModel):
    """diffusers' ControlNet whose input convolution also reads the condition.

    A convolution over concatenated channels is the sum of convolutions over each group, so conv_in(z_t ⊕ condition) is
    `conv_in(z_t) + controlnet_cond_embedding(condition)` with a bias-free second convolution: ControlNet's own
    forward, with its hint encoder replaced. DiffBIR's `input_blocks.0.0.weight` [320, 8, 3, 3] is the concatenation of
    these two weights: `conv_in` [:, :4], and the first 4 channels of the condition.

    Args:
        part_count: K; the condition has in_channels (z_r) + 3 (pose) + K + 1 (attention) channels. All other arguments
            are those of the U-Net (diffusers' `UNet2DConditionModel`).
    """

    @register_to_config
    def __init__(
        self,
        part_count: int,
        in_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_head_dim: int | tuple[int, ...] = (5, 10, 20, 20),
        cross_attention_dim: int = 1024,
        norm_num_groups: int = 32,
        use_linear_projection: bool = True,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            attention_head_dim=attention_head_dim,
            cross_attention_dim=cross_attention_dim,
            norm_num_groups=norm_num_groups,
            use_linear_projection=use_linear_projection,
            upcast_attention=upcast_attention,
            conditioning_embedding_out_channels=(norm_num_groups,),
        )
        channels = in_channels + 3 + part_count + 1
        self.controlnet_cond_embedding = nn.Conv2d(channels, block_out_channels[0], 3, padding=1, bias=False)
        nn.init.zeros_(self.controlnet_cond_embedding.weight)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Build from a saved configuration. Values that the parent class registered are derived, and so ignored."""
        ours = {name: config[name] for name in ("part_count", *COPIED) if name in config}
        return super().from_config(ours, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, part_count: int) -> ControlBranch:
        """A branch with the weights of the U-Net's encoder; condition and output convolutions are zero.

        Raises:
            ValueError: a setting of the U-Net that is not in `COPIED` differs from the branch's.
        """
        branch = cls(part_count=part_count, **{name: unet.config[name] for name in COPIED})
        shared = [name for name in branch.config if name in unet.config and name[0] != "_" and name not in COPIED]
        for name in shared:
            if unet.config[name] != branch.config[name]:
                raise ValueError(f"the U-Net's {name} is {unet.config[name]!r}; it must be {branch.config[name]!r}")
        theirs, ours = unet.state_dict(), branch.state_dict()
        branch.load_state_dict({name: theirs.get(name, value) for name, value in ours.items()})
        return branch


def with_parts(branch: ControlBranch, part_count: int) -> ControlBranch:
    """The branch for another number of body parts: itself, or one with so many attention channels of zero weight.

    Raises:
        ValueError: the branch was trained with attention maps of other parts, so that their number cannot change.
    """
    had = branch.config.part_count
    if had == part_count:
        return branch
    before, kept = branch.controlnet_cond_embedding.weight.detach(), branch.config.in_channels + 3
    if before[:, kept:].any():
        raise ValueError(
            f"the control branch was trained with attention maps of {had} parts, the part network has {part_count}"
        )
    ours = {name: branch.config[name] for name in COPIED}
    with torch.device("meta"):
        fresh = ControlBranch(part_count=part_count, **ours)
    weight = before.new_zeros(before.shape[0], kept + part_count + 1, *before.shape[2:])
    weight[:, :kept] = before[:, :kept]
    fresh.load_state_dict({**branch.state_dict(), "controlnet_cond_embedding.weight": weight}, assign=True)
    return fresh.train(branch.training)


def condition_latents(z_r: Tensor, pose: Tensor, attention: Tensor) -> Tensor:
    """The condition on the latent grid.

    Args:
        z_r: (B, C, h, w), the latents of the regression result.
        pose: (B, 3, H, W) in [0, 1]; averaged to h×w.
        attention: (B, K+1, H, W) in [0, 1]; averaged to h×w.

    Returns:
        (B, C + 3 + K + 1, h, w).
    """
    maps = torch.cat([pose, attention], dim=1).to(z_r)
    return torch.cat([z_r, F.interpolate(maps, size=z_r.shape[-2:], mode="area")], dim=1)


def denoise(
    unet: UNet2DConditionModel,
    control: ControlBranch,
    z_t: Tensor,
    timesteps: Tensor,
    text: Tensor,
    condition: Tensor,
) -> Tensor:
    """ε_θ(z_t, t, c, z_r, P, A) of eq. 4.

    Args:
        unet: the U-Net.
        control: the control branch.
        z_t: (B, C, h, w), the noisy latents.
        timesteps: int64 (B,).
        text: (B, L, D), text embeddings.
        condition: (B, C + 3 + K + 1, h, w), from `condition_latents`.

    Returns:
        (B, C, h, w).
    """
    common: dict[str, Any] = {"encoder_hidden_states": text, "return_dict": False}
    down, mid = control(z_t.to(condition), timesteps, controlnet_cond=condition, **common)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return unet(z_t.to(condition), timesteps, **residuals, **common)[0]
