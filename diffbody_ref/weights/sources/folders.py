"""Folders in diffusers' layout, in any variant: pipelines of Stable Diffusion and of DiffBody, single components."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors import SafetensorError, safe_open

from diffbody_ref.components import COMPONENT_CLASSES
from diffbody_ref.models.text import build_tokenizer
from diffbody_ref.weights import schedules
from diffbody_ref.weights.checkpoint import Checkpoint, open_checkpoint
from diffbody_ref.weights.found import Found, Imported
from diffbody_ref.weights.sources import lora

NAME = "diffusers folder"
LICENCE = "see its model card"
LORA_FOLDER, LORA_FILE = "unet_lora", "pytorch_lora_weights.safetensors"
CLASSES: dict[str, type[Any]] = {**COMPONENT_CLASSES, "tiny_vae": AutoencoderTiny}
# A file of weights: a variant such as "fp16" comes before or after the numbers of a shard.
WEIGHTS = (
    r"^(diffusion_pytorch_model|model|pytorch_model)(\.(?P<variant>\w+))??(-\d+-of-\d+)?(\.(?P<late>\w+))?"
    r"(?P<suffix>\.safetensors|\.bin)$"
)
LAST = ("non_ema",)  # variants that are only taken where there is no other


def detect(checkpoint: Checkpoint) -> list[Found]:
    """The components in the folder's folders, or the folder itself if it is a component."""
    if not checkpoint.folder:
        return []
    single = _component(checkpoint.path)
    if single is not None:
        return [single]
    folders = sorted(path for path in checkpoint.path.iterdir() if path.is_dir() and path.name != LORA_FOLDER)
    by_folder = {folder.name: _component(folder) for folder in folders if not folder.name.startswith(".")}
    found = [one for one in by_folder.values() if one is not None]
    if found:
        unused = {name: "no part of DiffBody" for name, one in by_folder.items() if one is None}
        found[0] = replace(found[0], config={**found[0].config, "unused": unused})
    if (checkpoint.path / LORA_FOLDER / LORA_FILE).is_file():
        path = checkpoint.path / LORA_FOLDER / LORA_FILE
        found += [Found(f.component, f.what, {"path": path}) for f in lora.detect(open_checkpoint(path))]
    return found


def _component(folder: Path) -> Found | None:
    """What a folder holds, by the class that its configuration names."""
    if (folder / "scheduler_config.json").is_file():
        config = read_json(folder / "scheduler_config.json")
        try:
            prediction = schedules.prediction_of(config)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        what = f"{config.get('_class_name', 'scheduler')}, predicts {prediction}"
        return Found("scheduler", what, {"path": folder, "stated": prediction})
    if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
        pad = _pad_token(folder)
        return Found("tokenizer", f"CLIP's vocabulary, padded with {pad!r}", {"path": folder, "pad": pad})
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    names = [config.get("_class_name"), *(config.get("architectures") or [])]
    for component, kind in CLASSES.items():
        if kind.__name__ in names:
            variant, suffix = _variant(folder)
            label = f"{kind.__name__}{f', variant {variant}' if variant else ''}"
            return Found(component, label, {"path": folder, "variant": variant, "suffix": suffix})
    return None


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """One of the components, in the number format of its file.

    Raises:
        ValueError: the component cannot be loaded, or a tensor is missing or left over.
    """
    imported = _read(found)
    return replace(imported, ignored={**imported.ignored, **found.config.get("unused", {})})


def _read(found: Found) -> Imported:
    folder = found.config["path"]
    if found.component == "lora":
        return replace(lora.read(open_checkpoint(folder), found), files=(folder,))
    if found.component == "scheduler":
        config = read_json(folder / "scheduler_config.json")
        prediction = found.config.get("prediction", found.config["stated"])
        return Imported(schedules.scheduler(prediction, config), {}, LICENCE, (folder / "scheduler_config.json",))
    if found.component == "tokenizer":
        _check_vocabulary(folder)
        names = ("vocab.json", "merges.txt", "tokenizer.json")
        files = tuple(folder / name for name in names if (folder / name).is_file())
        return Imported(build_tokenizer(found.config["pad"]), {}, "MIT (CLIP)", files)
    return Imported(_network(folder, found), {}, LICENCE, tuple(weight_files(folder)))


def _network(folder: Path, found: Found) -> Any:
    kind, variant = CLASSES[found.component], found.config["variant"]
    safe = found.config["suffix"] == ".safetensors"
    try:
        network, notes = kind.from_pretrained(
            folder,
            torch_dtype=stored_dtype(folder),
            variant=variant,
            use_safetensors=safe,
            local_files_only=True,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # what the libraries raise for a broken file has no common class
        raise ValueError(f"{folder}: no {kind.__name__}: {' '.join(str(error).split())[:200]}") from None
    for wrong, word in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "left over"),
        ("mismatched_keys", "of another shape"),
    ):
        names = [name for name in notes.get(wrong, ()) if not re.search(r"position_ids$", str(name))]
        if names:
            raise ValueError(f"{folder}: {len(names)} tensors are {word}, {sorted(map(str, names))[0]} first")
    return network


def weight_files(folder: Path) -> list[Path]:
    """The files of a component's weights: one, or all shards, of the variant that is read."""
    variant, suffix = _variant(folder)
    return [path for path, found in _candidates(folder) if found == (variant, suffix)]


def _variant(folder: Path) -> tuple[str | None, str]:
    """Variant and suffix of the weights to read: safetensors before pickles, the plain ones before variants.

    Raises:
        ValueError: there are no weights.
    """
    kinds = {kind for _, kind in _candidates(folder)}
    if not kinds:
        raise ValueError(f"{folder}: a config.json without weights (.safetensors or .bin); download them, too")
    return min(kinds, key=lambda kind: (kind[0] in LAST, kind[1] != ".safetensors", kind[0] or ""))


def _candidates(folder: Path) -> list[tuple[Path, tuple[str | None, str]]]:
    matches = ((path, re.match(WEIGHTS, path.name)) for path in sorted(folder.iterdir()))
    return [(path, (m["variant"] or m["late"], m["suffix"])) for path, m in matches if m]


def stored_dtype(folder: Path) -> torch.dtype:
    """The number format of the largest tensor of a component's weights."""
    path = weight_files(folder)[0]
    if path.suffix != ".safetensors":
        tensors = list(open_checkpoint(path).tensors.values())
        return max(tensors, key=lambda t: (t.is_floating_point(), t.numel())).dtype
    try:
        with safe_open(path, framework="pt") as file:
            largest = max(file.keys(), key=lambda name: torch.Size(file.get_slice(name).get_shape()).numel())
            return file.get_tensor(largest).dtype
    except SafetensorError:
        open_checkpoint(path)  # says what is wrong with the file
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        ValueError: it holds none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be an object of settings")
    return values


def _pad_token(folder: Path) -> str:
    """The padding of a tokenizer, which its configuration says, or else CLIP's."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    return "<|endoftext|>"


def _check_vocabulary(folder: Path) -> None:
    """That a tokenizer's vocabulary is CLIP's, which comes with DiffBody.

    Raises:
        ValueError: it is another one.
    """
    own = build_tokenizer().get_vocab()
    if (folder / "vocab.json").is_file():
        theirs = read_json(folder / "vocab.json")
    else:
        model = read_json(folder / "tokenizer.json").get("model")
        theirs = model.get("vocab", {}) if isinstance(model, dict) else {}
    if theirs != own:
        raise ValueError(f"{folder}: its vocabulary is not CLIP's; DiffBody's text encoders read CLIP's")
