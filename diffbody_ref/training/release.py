"""From trained components to a model folder that can be handed out: half precision, settings, a small tokenizer.

What a model may lack (`components.OPTIONAL`) is left out where the components do not hold it.

The model's training.json says how its training pictures were degraded, which is how `diffbody evaluate` measures it,
and of which components it was made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch

from diffbody_ref.components import COMPONENT_CLASSES, OPTIONAL, STAGE_OF, load_component, load_or_build_component
from diffbody_ref.data import recipes
from diffbody_ref.libraries import silence_libraries
from diffbody_ref.models.control import with_parts
from diffbody_ref.models.text import save_tokenizer
from diffbody_ref.ops.files import replace_folder
from diffbody_ref.ops.options import check_preset
from diffbody_ref.ops.results import lack_notices
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.training.curves import plot_losses
from diffbody_ref.training.disk import writing
from diffbody_ref.training.encoded import networks_checksum
from diffbody_ref.training.lora import FOLDER as LORA_FOLDER
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
        OSError: the model cannot be written; the one in `out` is as it was.
        ValueError: unknown preset.
    """
    silence_libraries()
    check_complete(components)
    settings, lacking = check_preset(preset).of_pipeline(), left_out(components)
    parts = {
        name: load_or_build_component(components, name, preset)
        if name in UNTRAINED
        else load_component(components, name, torch.float32 if name == "unet" else torch.float16)
        for name in COMPONENT_CLASSES
        if name not in lacking
    }
    if "parts" in parts:
        parts["control"] = with_parts(parts["control"], len(parts["parts"].part_names))
    merge_lora(parts["unet"], components)  # in float32: half precision would round most of an update away
    parts["unet"].half()
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with writing(out):
            DiffBodyPipeline(**parts, **settings).save_pretrained(fresh)
            for config in fresh.glob("*/config.json"):
                _forget_origin(config)
            shutil.rmtree(fresh / "tokenizer")
            save_tokenizer(parts["tokenizer"], fresh / "tokenizer")
            record = {**recipes.read_record(components), "components": _checksum(components, preset)}
            recipes.write_record(fresh, {"stages": {}, **record})
        if runs is not None:
            plot_losses(runs, fresh / "losses.png")
        if (out / MODEL_CARD).is_file():
            shutil.copy2(out / MODEL_CARD, fresh / MODEL_CARD)
        replace_folder(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return out


def is_released(components: Path, out: Path, preset: str) -> bool:
    """Whether the model in `out` was made of these components, as they are now, and is complete."""
    complete = (out / "model_index.json").is_file()
    return complete and recipes.read_record(out).get("components") == _checksum(components, preset)


def check_complete(components: Path) -> None:
    """Check that a folder holds everything that a model is made of.

    Raises:
        FileNotFoundError: it does not; the message names all that is missing.
    """
    if lacking := missing(components):
        raise FileNotFoundError(f"{components}: {', '.join(lacking)} not there yet; train or import first")


def missing(components: Path) -> list[str]:
    """The components that a model cannot do without and that a pipeline's folder does not hold."""
    needed = [name for name in COMPONENT_CLASSES if name not in (*UNTRAINED, *OPTIONAL)]
    return [name for name in needed if not (components / name).is_dir()]


def left_out(components: Path) -> list[str]:
    """Those of `components.OPTIONAL` that a pipeline's folder does not hold."""
    return [name for name in OPTIONAL if not (components / name).is_dir()]


def release_notices(components: Path) -> list[str]:
    """What a model of these components cannot do, one line each."""
    return lack_notices([STAGE_OF[name] for name in left_out(components)])


def _checksum(components: Path, preset: str) -> str:
    """A checksum of all that `release` reads."""
    recipe = (components / recipes.RECORD).read_bytes() if (components / recipes.RECORD).is_file() else b""
    networks = networks_checksum(components, (*COMPONENT_CLASSES, LORA_FOLDER))
    return hashlib.sha256(f"{preset} {networks} ".encode() + recipe).hexdigest()


def _forget_origin(config: Path) -> None:
    """Drop the folder of the trainer's machine that diffusers writes into a component's configuration."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
