"""How a model's training pictures were degraded: kept in a file of the pipeline's folder, and read for evaluation."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffbody_ref.data.degradations import NANO, PAPER, DegradationConfig
from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.options import PRESETS

RECORD = "training.json"
"""In a pipeline folder of training runs: a record of each stage's run. In a model's folder: the same, from release."""
RESTORING = ("diffusion", "swinir")  # the stages that learn to undo the degradation, the one that counts first
DEGRADATIONS = {"nano": NANO, "paper": PAPER}
BY_PRESET = {"nano": "nano", "sd21": "paper"}


@dataclass(frozen=True)
class Recipe:
    """A degradation, and where it is from.

    Attributes:
        degradation: the ranges.
        origin: whose it is, for reports.
    """

    degradation: DegradationConfig
    origin: str


def read_record(folder: Path) -> dict[str, Any]:
    """The file `RECORD` of a folder; {} if there is none.

    Raises:
        ValueError: the file is not such a record.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for stage in record["stages"].values():
            _degradation(stage["degradation"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a record of a training: {str(error)[:200]}") from None
    return record


def record_stage(folder: Path, stage: str, values: dict[str, Any]) -> None:
    """Write a stage's run, with its "degradation", to a folder's record; those of other stages stay."""
    stages = read_record(folder).get("stages", {})
    write_record(folder, {"stages": {**stages, stage: values}})


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write a folder's record."""
    write_whole(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")


def trained_degradation(folder: Path, stages: Sequence[str] = RESTORING) -> DegradationConfig | None:
    """The degradation that the networks of a pipeline's folder learnt to undo; None if the folder does not say.

    Args:
        folder: the folder.
        stages: the first of these stages that the folder has a record of counts.

    Raises:
        ValueError: see `read_record`.
    """
    known = read_record(folder).get("stages", {})
    found = next((known[name] for name in stages if name in known), None)
    return None if found is None else _degradation(found["degradation"])


def model_recipe(folder: Path, base_height: int, base_width: int) -> Recipe:
    """A model's own recipe: that of its training, or, where its folder does not say, that of the preset of its size.

    Args:
        folder: the model's folder.
        base_height: see `ModelSettings`.
        base_width: see `ModelSettings`.

    Raises:
        ValueError: see `read_record`.
    """
    if (found := trained_degradation(folder)) is not None:
        return Recipe(found, f"the model's own, of its {RECORD}")
    area = base_height * base_width
    preset = min(BY_PRESET, key=lambda n: abs(math.log(area / (PRESETS[n].base_height * PRESETS[n].base_width))))
    name = BY_PRESET[preset]
    return Recipe(DEGRADATIONS[name], f"that of preset {preset}, as the model has no {RECORD} of its own")


def differences(one: DegradationConfig, other: DegradationConfig) -> list[str]:
    """The fields of `one` that differ from `other`, each with both values."""
    a, b = dataclasses.asdict(one), dataclasses.asdict(other)
    return [f"{name} {_text(a[name])} against {_text(b[name])}" for name in a if a[name] != b[name]]


def describe(degradation: DegradationConfig) -> str:
    """The ranges on one line."""
    return ", ".join(f"{name} {_text(value)}" for name, value in dataclasses.asdict(degradation).items())


def _text(value: Any) -> str:
    return f"{value[0]:g}–{value[1]:g}" if isinstance(value, tuple) else f"{value:g}"


def _degradation(values: Any) -> DegradationConfig:
    arguments: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return DegradationConfig(**arguments)
