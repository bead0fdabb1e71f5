"""Import of public checkpoints into a pipeline folder. Parameter names are translated; no code in a file is run.

| component               | source                                                                               |
|-------------------------|--------------------------------------------------------------------------------------|
| unet, vae, text_encoder | a Stable Diffusion 2.1-base folder in diffusers' layout                              |
| control                 | DiffBIR's ControlNet (`v1_general.pth`), or `control_model.` of `general_full_v1.ckpt` |
| swinir                  | DiffBIR's (`general_swinir_v1.ckpt`), or `preprocess_model.` of the full one          |
| parts                   | BPBReID with HRNet-W32 or ResNet-50                                                  |
| pose                    | mmpose's whole-body RTMPose-l of 384×288, DWPose's among them (`.pth`)               |
| pose_detector           | YOLOX-l (`yolox_l.pth`)                                                              |
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffbody_ref.components import build_component, load_component, save_component
from diffbody_ref.models.control import ControlBranch
from diffbody_ref.models.parts import SD21 as HRNET
from diffbody_ref.models.parts import SD21_RESNET50 as RESNET50
from diffbody_ref.models.parts import PartNet

WRAPPERS = ("state_dict", "model", "params_ema", "params")  # keys under which files keep their tensors
COUNTERS = r"num_batches_tracked$"  # counters of batch norm, which are not used
# Tensors in the checkpoints that neither part maps nor embeddings need: see `diffbody_ref.models.parts`.
PARTS_UNUSED = (
    r"identity_classifier",
    r"^background_after_pooling",
    r"cls_head",
    r"classifier\.(weight|bias)$",
    COUNTERS,
)

State = dict[str, Tensor]


def import_stable_diffusion(folder: Path, out: Path) -> list[str]:
    """Import U-Net, VAE and text encoder from a folder in diffusers' layout, and return their names."""
    names = ["unet", "vae", "text_encoder"]
    for name in names:
        save_component(out, name, load_component(folder, name))
    return names


def import_file(component: str, path: Path, out: Path) -> list[str]:
    """Import one component at the size of sd21 from a checkpoint, and return its name.

    Args:
        component: name of the component, a key of `READERS`.
        path: the checkpoint.
        out: the pipeline folder.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the checkpoint does not contain the component.
    """
    network = READERS[component](read_checkpoint(path), path)
    save_component(out, component, network)
    return [component]


def read_checkpoint(path: Path) -> State:
    """Read the tensors of a .pth, .ckpt, .pt or .safetensors file, by name without the prefix of parallel training.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a checkpoint, or can only be loaded by running its code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).split("\n")[0][:160]
        raise ValueError(f"{path}: not a checkpoint that loads without running code: {reason}") from None
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = {n: v for n, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise ValueError(f"{path}: holds no tensors")
    return {re.sub(r"^module\.", "", name): value for name, value in tensors.items()}


def _unpickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def load_state(network: nn.Module, state: State, path: Path, unused: tuple[str, ...] = (COUNTERS,)) -> nn.Module:
    """Load tensors into a network with the same names and shapes, and return the network.

    Args:
        network: the network.
        state: the tensors by name.
        path: the checkpoint, for error messages.
        unused: patterns of names that may be in the state although the network does not have them.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; the message names the first one.
    """
    own = network.state_dict()
    state = {name: value for name, value in state.items() if name in own or not any(re.search(u, name) for u in unused)}
    missing = [name for name in own if name not in state and not re.search(COUNTERS, name)]
    if missing:
        raise ValueError(
            f"{path}: not a {type(network).__name__} of this size: {len(missing)} tensors are missing, "
            f"{missing[0]} first"
        )
    for name, value in state.items():
        if name not in own:
            raise ValueError(f"{path}: not a {type(network).__name__} of this size: it has no {name}")
        if value.shape != own[name].shape:
            shapes = f"{name} is {tuple(value.shape)}, must be {tuple(own[name].shape)}"
            raise ValueError(f"{path}: not a {type(network).__name__} of this size: {shapes}")
    network.load_state_dict(state, strict=False)
    return network


def with_prefix(state: State, prefix: str) -> State:
    """The tensors whose names have the prefix, without it; all tensors if no name has it."""
    selected = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return selected or state


def control_state(state: State, branch: ControlBranch, path: Path) -> State:
    """DiffBIR's ControlNet with this project's names; weights of the inputs that it lacks (pose, attention) are zero.

    Args:
        state: tensors of the checkpoint.
        branch: the control branch that they are for.
        path: the checkpoint, for error messages.

    Raises:
        ValueError: the checkpoint is not a ControlNet that reads z_t ⊕ z_r.
    """
    state = with_prefix(state, "control_model.")
    first, latent = state.get("input_blocks.0.0.weight"), branch.config["in_channels"]
    if first is None or first.shape[1] != 2 * latent:
        found = "has no input_blocks.0.0.weight" if first is None else f"reads {first.shape[1]} channels"
        raise ValueError(f"{path}: not DiffBIR's ControlNet, which reads {2 * latent} channels: it {found}")
    own = convert_controlnet_checkpoint(dict(state), branch.config)
    condition = torch.zeros_like(branch.controlnet_cond_embedding.weight)
    condition[:, :latent] = first[:, latent:]
    return {**own, "conv_in.weight": first[:, :latent].contiguous(), "controlnet_cond_embedding.weight": condition}


def _control(state: State, path: Path) -> nn.Module:
    branch = build_component("control", "sd21")
    return load_state(branch, control_state(state, branch, path), path)


def _parts(state: State, path: Path) -> nn.Module:
    resnet = "backbone_appearance_feature_extractor.layer4.0.conv1.weight" in state
    return load_state(PartNet(RESNET50 if resnet else HRNET), state, path, PARTS_UNUSED)


def _plain(component: str, prefix: str = "") -> Callable[[State, Path], nn.Module]:
    """A reader of a component whose parameters have the names in the checkpoint, except for the prefix."""
    return lambda state, path: load_state(build_component(component, "sd21"), with_prefix(state, prefix), path)


# By component, the function that builds it from the tensors of a checkpoint.
READERS: dict[str, Callable[[State, Path], nn.Module]] = {
    "control": _control,
    "swinir": _plain("swinir", "preprocess_model."),
    "parts": _parts,
    "pose": _plain("pose"),
    "pose_detector": _plain("pose_detector"),
}
