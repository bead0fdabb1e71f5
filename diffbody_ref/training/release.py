"""From trained components to a pipeline folder that can be handed out: half precision, settings, a small tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from diffbody_ref.components import COMPONENT_CLASSES, load_component, load_or_build_component
from diffbody_ref.models.text import TOKENIZER_FOLDER
from diffbody_ref.ops.files import replace_folder
from diffbody_ref.ops.options import check_preset
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.training.curves import plot_losses
from diffbody_ref.training.lora import merge_lora

UNTRAINED = ("tokenizer", "scheduler")
MODEL_CARD = "README.md"


def release(components: Path, out: Path, preset: str, runs: Path | None = None) -> Path:
    """Write `out` in diffusers' layout from a training run's pipeline folder, replacing what was there when complete.

    Weights are float16; LoRA weights in `components` are merged into the U-Net. The model card that is in `out` already
    stays; its graphs go, they are of other weights.

    Args:
        runs: folder of the runs; their loss curves are drawn to losses.png.

    Raises:
        FileNotFoundError: a trained component is missing.
        ValueError: unknown preset.
    """
    settings = check_preset(preset).of_pipeline()
    parts = {
        name: load_or_build_component(components, name, preset)
        if name in UNTRAINED
        else load_component(components, name, torch.float32 if name == "unet" else torch.float16)
        for name in COMPONENT_CLASSES
    }
    merge_lora(parts["unet"], components)  # in float32: half precision would round most of an update away
    parts["unet"].half()
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    DiffBodyPipeline(**parts, **settings).save_pretrained(fresh)
    for config in fresh.glob("*/config.json"):
        _forget_origin(config)
    # The vocabulary's two source files are a third of the size of the one file that transformers writes.
    shutil.rmtree(fresh / "tokenizer")
    shutil.copytree(TOKENIZER_FOLDER, fresh / "tokenizer")
    if runs is not None:
        plot_losses(runs, fresh / "losses.png")
    if (out / MODEL_CARD).is_file():
        shutil.copy2(out / MODEL_CARD, fresh / MODEL_CARD)
    replace_folder(fresh, out)
    return out


def _forget_origin(config: Path) -> None:
    """Drop the folder of the trainer's machine that diffusers writes into a component's configuration."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
