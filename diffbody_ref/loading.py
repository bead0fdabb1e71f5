"""From a model's name or folder to a pipeline on a device. Importable without torch: a wrong name fails at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffbody_ref.ops.builtin import NANO_FOLDER

if TYPE_CHECKING:
    from diffbody_ref.pipeline import DiffBodyPipeline


def model_folder(name: str) -> Path:
    """The folder of a preset's name or of a path.

    Raises:
        ValueError: neither.
    """
    folder = NANO_FOLDER if name == "nano" else Path(name)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.is_dir():
        hint = "`diffbody release` makes one of the pipeline folder of a training"
        raise ValueError(f"{folder}: not a DiffBody model, it has no model_index.json; {hint}")
    if name == "nano":
        raise ValueError("the weights of 'nano' are not in this installation; give a model's folder by --model")
    raise ValueError(f"unknown --model {name!r}: neither the preset 'nano' nor a folder with a model_index.json")


def load_pipeline(folder: Path, device: str) -> DiffBodyPipeline:
    """A `DiffBodyPipeline` on a device.

    Raises:
        ValueError: CUDA was asked for and is not there.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from diffbody_ref.models.devices import cuda_is_usable
    from diffbody_ref.pipeline import DiffBodyPipeline

    available = cuda_is_usable()
    if device == "cuda" and not available:
        raise ValueError("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    pipeline = DiffBodyPipeline.from_pretrained(folder).to("cuda" if available and device != "cpu" else "cpu")
    pipeline.register_to_config(_name_or_path=str(folder))
    return pipeline
