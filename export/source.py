"""The model that is exported: what its folder holds, and its stages, one of them in memory at a time."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from diffbody_ref.components import load_component, weights_variant
from diffbody_ref.loading import load_pipeline
from diffbody_ref.ops.files import files_below
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.stages import BoundStage, bind_stages, build_stage
from diffbody_ref.storage import empty_pipeline, network_names

LARGE_FROM = 1 << 30  # bytes of weights: from here on, what is done to a model is done in small pieces


@dataclass(frozen=True)
class Source:
    """A pipeline's folder, in which everything is there that an export needs.

    Attributes:
        folder: of the pipeline.
        pipeline: its settings, sizes and tokenizer, with networks that have no weights.
        stages: its stages, with modules that have no weights.
        large: its weights are too many for several networks, or large pictures, to be handled at a time.
    """

    folder: Path
    pipeline: DiffBodyPipeline
    stages: tuple[BoundStage, ...]
    large: bool

    @classmethod
    def open(cls, folder: Path) -> Source:
        """Look at a pipeline's folder. No weights are read but the heads of their files.

        Raises:
            FileNotFoundError: the folder is no pipeline's, or a component is missing.
            ValueError: a link leads nowhere, weights are missing or cut off, a configuration is none, or the tokenizer
                is of another kind than the runtime's.
        """
        files = files_below(folder)
        weights = [path for path in files if path.suffix == ".safetensors"]
        if not weights:
            raise ValueError(f"{folder}: holds no weights (*.safetensors)")
        for path in weights:
            _check_whole(path)
        for path in files:
            if path.name.endswith(".safetensors.index.json"):
                _check_shards(path)
        pipeline = empty_pipeline(folder)
        for name in network_names(folder):
            try:
                weights_variant(folder / name)
            except ValueError as error:
                raise ValueError(f"{folder / name}: {error}") from None
        _check_tokenizer(pipeline)
        large = sum(path.stat().st_size for path in weights) >= LARGE_FROM
        return cls(folder, pipeline, bind_stages(pipeline), large)

    def load(self, stage: str, dtype: torch.dtype = torch.float32) -> BoundStage:
        """A stage with its weights, which nothing else holds."""
        (empty,) = (each for each in self.stages if each.name == stage)
        networks = network_names(self.folder)
        components = {
            name: load_component(self.folder, name, dtype) if name in networks else self.pipeline.components[name]
            for name in empty.module.components
        }
        return BoundStage(stage, build_stage(stage, components), empty.signature)

    def load_pipeline(self) -> DiffBodyPipeline:
        """The reference in float32, of a large model with one large network in memory at a time."""
        return load_pipeline(self.folder, "cpu", "float32", low_memory=self.large)


def check_disk(out: Path, size: int) -> None:
    """
    Raises:
        OSError: there is less room than `size` bytes where `out` is to be.
    """
    place = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < size:
        raise OSError(f"{out}: the bundle takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")


def _check_tokenizer(pipeline: DiffBodyPipeline) -> None:
    """
    Raises:
        ValueError: the tokenizer is not one of byte pairs, or has tokens that the text encoder does not know.
    """
    tokenizer = pipeline.tokenizer
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("type") != "BPE":
        name = type(tokenizer).__name__
        raise ValueError(f"tokenizer: {name} is {model.get('type')}; only byte-pair encoding, as CLIP's, is exported")
    most, known = max(model["vocab"].values(), default=0), pipeline.text_encoder.config.vocab_size
    if most >= known:
        raise ValueError(f"tokenizer: has a token of id {most}, the text encoder knows ids below {known}")


def _check_whole(path: Path) -> None:
    """See that a safetensors file is as long as its head says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size, 1 << 27):
                raise ValueError
            head = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: no safetensors file; download or import it again") from None
    if size != (whole := 8 + length + max(ends, default=0)):
        raise ValueError(f"{path}: cut off, {size:,} of {whole:,} bytes are there; download or import it again")


def _check_shards(index: Path) -> None:
    """See that the files that an index names are there."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, RecursionError, KeyError, AttributeError):
        raise ValueError(f"{index}: no index of weights; download or import it again") from None
    for name in sorted(map(str, names)):
        if not (index.parent / name).is_file():
            raise ValueError(f"{index}: names {name}, which is not there; download or import it again")
