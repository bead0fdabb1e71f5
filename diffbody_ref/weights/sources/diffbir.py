"""DiffBIR's control branch (IRControlNet) of v1, v2 and v2.1, by itself or in a full checkpoint.

The full checkpoint's other parts are found by the sources "Stable Diffusion" and "SwinIR".
"""

from __future__ import annotations

import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from diffbody_ref.models.control import ControlBranch
from diffbody_ref.models.parts import SD21
from diffbody_ref.ops.parts import part_names
from diffbody_ref.weights import ldm
from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.filling import below, fill, without_weights
from diffbody_ref.weights.found import Found, Imported

NAME = "DiffBIR"
LICENCE = "Apache-2.0 (DiffBIR)"
PREFIXES = ("control_model.", "")  # in a full checkpoint, and by itself
ENCODER = "cond_encoder."  # a full checkpoint's copy of the autoencoder's encoder, which makes z_r
PARTS = len(part_names(SD21.part_set))


def detect(checkpoint: Checkpoint) -> list[Found]:
    """A ControlNet that reads z_t ⊕ z_r, twice the latent channels, on the latent grid.

    Raises:
        ValueError: it is a ControlNet of another kind.
    """
    for prefix in PREFIXES:
        tensors = below(checkpoint.tensors, prefix)
        if "zero_convs.0.0.weight" not in tensors or "input_blocks.0.0.weight" not in tensors:
            continue
        if any(name.startswith("input_hint_block.") for name in tensors):
            raise ValueError(f"{checkpoint.path}: a ControlNet with a hint encoder; DiffBody reads DiffBIR's, without")
        config = ldm.encoder_config(tensors)
        latent = tensors["input_blocks.0.0.weight"].shape[1] // 2
        what = f"control branch of {config['block_out_channels'][0]} channels, reads z_t and z_r"
        prefixes = (prefix,) if prefix == "" else (prefix, ENCODER)
        return [Found("control", what, {"prefix": prefix, "latent": latent, "sizes": config}, prefixes)]
    return []


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """The control branch; its weights for the inputs that DiffBIR does not have (pose, attention) are zero.

    Raises:
        ValueError: a tensor is missing, left over or of another shape.
    """
    prefix, latent = found.config["prefix"], found.config["latent"]
    tensors = below(checkpoint.tensors, prefix)
    sizes = {name: value for name, value in found.config["sizes"].items() if name != "up_block_types"}
    branch = without_weights(lambda: ControlBranch(part_count=PARTS, in_channels=latent, **sizes))
    first = tensors["input_blocks.0.0.weight"]
    condition = first.new_zeros(branch.controlnet_cond_embedding.weight.shape)
    condition[:, :latent] = first[:, latent:]
    own = convert_controlnet_checkpoint(dict(tensors), branch.config)
    known = {tensor.data_ptr() for tensor in own.values() if tensor is not None}
    passed = {name: tensor for name, tensor in tensors.items() if tensor.data_ptr() not in known}
    own = {name: tensor for name, tensor in own.items() if tensor is not None} | passed
    own |= {"conv_in.weight": first[:, :latent].contiguous(), "controlnet_cond_embedding.weight": condition}
    return Imported(fill(branch, own, checkpoint.path), _same_encoder(checkpoint) if prefix else {}, LICENCE)


def _same_encoder(checkpoint: Checkpoint) -> dict[str, str]:
    """That the condition's encoder is the autoencoder's, as in DiffBody.

    Raises:
        ValueError: it is another one.
    """
    theirs = below(checkpoint.tensors, ENCODER)
    own = below(checkpoint.tensors, ldm.VAE)
    for name, tensor in theirs.items():
        if name not in own or not torch.equal(tensor, own[name]):
            raise ValueError(f"{checkpoint.path}: {ENCODER}{name} is not the autoencoder's; DiffBody has one encoder")
    return {ENCODER + name: "a copy of the autoencoder's" for name in theirs}
