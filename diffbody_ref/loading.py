"""From a model's name or folder to a pipeline on a device. Importable without torch: a wrong name fails at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.progress import Progress, silent

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


def load_pipeline(
    folder: Path,
    device: str,
    dtype: str | None = None,
    *,
    low_memory: bool = False,
    progress: Progress = silent,
) -> DiffBodyPipeline:
    """A `DiffBodyPipeline` on a device.

    Args:
        folder: of the model.
        device: "cpu", "cuda", or "auto", a GPU where there is one.
        dtype: number format in which weights are kept, a name of `ops.devices.PRECISIONS`. None is float32, and
            float16 with `low_memory`. A CPU without arithmetic of that format computes in float32, for which it casts a
            layer's weights when it comes to the layer; see `diffbody_ref.storage.upcasts`.
        low_memory: read each network from disk when it is needed, and let go of it for the next one; see
            `diffbody_ref.storage.OnDemand`.
        progress: called before a network is read. With `low_memory` that happens during restorations, too.

    Raises:
        ValueError: CUDA was asked for and is not there, or the folder's components are none.
    """
    from diffbody_ref.libraries import silence_libraries
    from diffbody_ref.models.devices import cuda_is_usable
    from diffbody_ref.storage import load_networks

    available = cuda_is_usable()
    if device == "cuda" and not available:
        raise ValueError("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    silence_libraries()
    at = "cuda" if available and device != "cpu" else "cpu"
    pipeline = load_networks(folder, at, dtype or ("float16" if low_memory else "float32"), low_memory, progress)
    pipeline.register_to_config(_name_or_path=str(folder))
    return pipeline
