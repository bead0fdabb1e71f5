"""Low-rank updates of the U-Net's attention (Hu et al. 2021, arXiv:2106.09685), in diffusers' file format.

`StableDiffusionPipeline.load_lora_weights(FOLDER)` and `UNet2DConditionModel.load_lora_adapter(FOLDER)` read it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from diffbody_ref.ops.files import replace_folder

FOLDER = "unet_lora"
FILE = "pytorch_lora_weights.safetensors"
AS_SAVED = {"prefix": "unet", "adapter_name": "default", "weight_name": FILE, "use_safetensors": True}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def add_lora(unet: UNet2DConditionModel, folder: Path, rank: int) -> None:
    """Freeze the U-Net and add trainable float32 updates: those in `folder/unet_lora`, or fresh ones that are zero.

    Args:
        unet: the U-Net, changed in place.
        folder: the pipeline folder.
        rank: rank of the updates.

    Raises:
        ValueError: the updates in the folder have another rank.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    if (folder / FOLDER / FILE).is_file():
        unet.load_lora_adapter(folder / FOLDER, **AS_SAVED)
        found = unet.peft_config["default"].r
        if found != rank:
            raise ValueError(
                f"{folder / FOLDER}: LoRA weights of rank {found}, the configuration's lora_rank is {rank}"
            )
    else:
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION))
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(torch.float32)


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write the updates to `folder/unet_lora`; an old folder is replaced once the new one is complete."""
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    fresh = folder / f".{FOLDER}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    # The state has peft's names; diffusers adds the prefix that distinguishes the U-Net from the text encoder.
    StableDiffusionPipeline.save_lora_weights(
        fresh,
        unet_lora_layers={name: value.contiguous() for name, value in get_peft_model_state_dict(unet).items()},
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    replace_folder(fresh, folder / FOLDER)


def merge_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Add the updates in `folder/unet_lora`, if there are any, to the U-Net's weights."""
    if (folder / FOLDER / FILE).is_file():
        unet.load_lora_adapter(folder / FOLDER, **AS_SAVED)
        unet.fuse_lora()
        unet.unload_lora()
