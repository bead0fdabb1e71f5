"""The pipeline's components: how each is built at a preset's size, and loaded from a folder in diffusers' layout."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from diffbody_ref.models import parts, pose, swinir
from diffbody_ref.models.control import ControlBranch
from diffbody_ref.models.graphs import GRAPH, GraphDetector, GraphEstimator
from diffbody_ref.models.text import PAD_TOKENS, build_text_encoder, build_tokenizer
from diffbody_ref.models.unet import build_unet
from diffbody_ref.models.vae import build_vae
from diffbody_ref.ops.files import replace_folder
from diffbody_ref.ops.options import ModelSettings, check_preset
from diffbody_ref.ops.samplers import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS
from diffbody_ref.schedulers import load_scheduler

COMPONENT_CLASSES: dict[str, type[Any]] = {
    "swinir": swinir.SwinIR,
    "pose_detector": pose.PersonDetector,
    "pose": pose.PoseEstimator,
    "parts": parts.PartNet,
    "tokenizer": CLIPTokenizer,
    "text_encoder": CLIPTextModel,
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "control": ControlBranch,
    "scheduler": DDPMScheduler,
}
GRAPH_CLASSES: dict[str, type[Any]] = {"pose_detector": GraphDetector, "pose": GraphEstimator}
"""Components that may also be an ONNX graph."""


def build_scheduler(preset: str) -> DDPMScheduler:
    """Stable Diffusion's noise schedule (scaled-linear betas, ε-prediction), the same at both sizes."""
    return DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        variance_type="fixed_small",
        clip_sample=False,
        prediction_type="epsilon",
        steps_offset=1,
        timestep_spacing="leading",
    )


BUILDERS: dict[str, Callable[[str], Any]] = {
    "swinir": lambda preset: swinir.SwinIR(_sized(swinir, preset)),
    "pose_detector": lambda preset: pose.PersonDetector(
        {"sd21": pose.SD21_DETECTOR, "nano": pose.NANO_DETECTOR}[preset]
    ),
    "pose": lambda preset: pose.PoseEstimator({"sd21": pose.SD21_POSE, "nano": pose.NANO_POSE}[preset]),
    "parts": lambda preset: parts.PartNet(_sized(parts, preset)),
    "tokenizer": lambda preset: build_tokenizer(PAD_TOKENS[preset]),
    "text_encoder": build_text_encoder,
    "vae": build_vae,
    "unet": build_unet,
    "control": lambda preset: ControlBranch.from_unet(
        build_unet(preset), len(parts.part_names(_sized(parts, preset).part_set))
    ),
    "scheduler": build_scheduler,
}


def build_component(name: str, preset: str) -> Any:
    """One component at a preset's size, with random weights (torch's global generator draws them).

    Raises:
        ValueError: unknown preset.
    """
    check_preset(preset)
    return BUILDERS[name](preset)


def load_component(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """One component from `folder/name`, its weights as `dtype`.

    Raises:
        FileNotFoundError: the folder does not hold it.
        ValueError: what it holds is no such component.
    """
    if not (folder / name).is_dir():
        raise FileNotFoundError(f"{folder}: no component {name!r} there; train or import it first")
    kind = component_class(folder, name)
    try:
        if name == "scheduler":
            return load_scheduler(folder / name)
        if not issubclass(kind, torch.nn.Module):
            return kind.from_pretrained(folder / name)
        return kind.from_pretrained(folder / name, torch_dtype=dtype, use_safetensors=True)
    except MemoryError:
        raise
    except Exception as error:  # what the libraries raise for a broken file has no common class
        raise ValueError(f"{folder / name}: no {kind.__name__}: {_one_line(error)}") from error


def component_class(folder: Path, name: str) -> type[Any]:
    """The class of the component in `folder/name`."""
    graph = name in GRAPH_CLASSES and (folder / name / GRAPH).is_file()
    return GRAPH_CLASSES[name] if graph else COMPONENT_CLASSES[name]


def read_settings(folder: Path) -> ModelSettings:
    """What a pipeline's folder says of every call; what it leaves out is the default.

    Raises:
        FileNotFoundError: the folder has no model_index.json.
        ValueError: a setting of another type, or out of its range; names it.
    """
    import msgspec

    path = folder / "model_index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not a DiffBody pipeline folder, it has no model_index.json")
    try:
        index = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        names = [field.name for field in dataclasses.fields(ModelSettings)]
        settings = msgspec.convert({name: index[name] for name in names if name in index}, ModelSettings)
        settings.options()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from None
    return settings


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def load_or_build_component(folder: Path, name: str, preset: str) -> Any:
    """From the folder where it is there, else fresh at the preset's size."""
    return load_component(folder, name) if (folder / name).is_dir() else build_component(name, preset)


def save_component(folder: Path, name: str, component: Any) -> None:
    """Write `folder/name`, replacing what was there only once the new one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    component.save_pretrained(fresh)
    replace_folder(fresh, folder / name)


def _sized(module: Any, preset: str) -> Any:
    return {"sd21": module.SD21, "nano": module.NANO}[preset]
