"""What must stay the same from a run's first step to its last, so that its result is that of one configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from typing import Any

from diffbody_ref.training.config import TrainConfig

# Settings that do not change what a step learns, or that people change in the middle of a run on purpose: how long it
# goes on, how it computes, where it is, and what is written on the way.
MAY_CHANGE = (
    "steps",
    "minutes",
    "gradient_checkpointing",
    "compile",
    "workers",
    "output",
    "tensorboard",
    "checkpoint_every",
    "sample_every",
    "log_every",
    "held_out",
    "measure_every",
)
# Batch norm, and losses that compare the pictures of a batch, make another result of another number of rounds.
BATCHES_COUNT = ("pose", "parts")
# Settings without which a checkpoint's tensors do not fit; they cannot even be allowed to change.
FIXED = ("stage", "preset", "optimizer", "tuning", "lora_rank")
CONTENTS = {  # settings that are paths: what is in them counts, under any name
    "data": "other pictures or labels",
    "pipeline": "other networks that the stage builds on",
}
CAN_BE_ALLOWED = tuple(
    field.name for field in dataclasses.fields(TrainConfig) if field.name not in (*MAY_CHANGE, *FIXED)
)
LONGEST = 60  # characters of a value in a message
UNKNOWN = "not recorded"


def run_settings(config: TrainConfig, data: str, networks: str) -> dict[str, Any]:
    """Everything that a run's result depends on, as values of JSON.

    Args:
        config: the configuration.
        data: checksum of the contents of `config.data`.
        networks: checksum of the components in `config.pipeline` that the stage does not train.
    """
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in MAY_CHANGE}
    if config.stage not in BATCHES_COUNT:
        del values["accumulation"]
    return json.loads(json.dumps({**values, "data": data, "pipeline": networks}))


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that differs from that of the run's earlier steps.

    Attributes:
        name: name of the setting.
        was: its earlier value.
        now: its value now.
    """

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        if self.name in CONTENTS:
            return CONTENTS[self.name] if self.was != UNKNOWN else f"{self.name} {UNKNOWN}"
        if isinstance(self.was, dict) and isinstance(self.now, dict):
            inner = [n for n in self.now if self.was.get(n) != self.now[n]]
            return ", ".join(f"{self.name}.{n} {_short(self.was.get(n))} (now {_short(self.now[n])})" for n in inner)
        return f"{self.name} {_short(self.was)} (now {_short(self.now)})"


def changes(was: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """The settings that differ."""
    return [Change(name, was.get(name, UNKNOWN), value) for name, value in now.items() if was.get(name) != value]


def check_agreement(where: object, found: list[Change], allowed: Collection[str]) -> None:
    """Check that settings changed only where that is allowed.

    Args:
        where: the checkpoint, for the message.
        found: what changed.
        allowed: names of settings that may change.

    Raises:
        ValueError: other settings changed; the message names each with its values, and what would help.
    """
    refused = [change for change in found if change.name in FIXED or change.name not in allowed]
    if not refused:
        return
    names = [change.name for change in refused if change.name not in FIXED]
    allow = ", or allow it by " + " ".join(f"--allow-change {name}" for name in names)
    raise ValueError(
        f"{where} is from a run with {', '.join(map(str, refused))}; give this run another output"
        + (allow if len(names) == len(refused) else "")
    )


def check_allowed(names: Collection[str]) -> None:
    """Check names of settings that are allowed to change.

    Raises:
        ValueError: a name is unknown, may change anyway, or can never change.
    """
    for name in names:
        if name in FIXED:
            raise ValueError(f"{name} cannot change within a run; give this run another output")
        if name in MAY_CHANGE:
            raise ValueError(f"{name} may change without being allowed to")
        if name not in CAN_BE_ALLOWED:
            raise ValueError(f"unknown setting {name!r} of --allow-change; known are {', '.join(CAN_BE_ALLOWED)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
