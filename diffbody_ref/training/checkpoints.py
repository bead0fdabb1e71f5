"""Checkpoints of a run: files that are complete or not there, and are loaded without running code."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from diffbody_ref.ops.files import remove_leftovers, whole_file
from diffbody_ref.training.agreement import changes, check_agreement
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.disk import Recorded, writing
from diffbody_ref.training.stages.base import TrainingStage

KEPT = 2  # number of checkpoints that stay on disk


@dataclass
class RunState:
    """The state of a run. Random numbers have no state: they depend only on the step and the sample.

    Attributes:
        stage: the stage with its networks.
        optimizer: the optimizer.
        ema: the moving average of the trained parameters.
        scaler: the loss scaler of fp16, else None.
        step: number of completed optimizer steps.
        seconds: training time so far, over all calls.
        settings: everything that the run's result depends on, see `agreement.run_settings`.
        mixed: settings that were allowed to change: {"step", "name", "was", "now"} of each change.
    """

    stage: TrainingStage
    optimizer: Any
    ema: EMAModel
    scaler: Any = None
    step: int = 0
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    mixed: list[dict[str, Any]] = field(default_factory=list)

    def save(self, config: TrainConfig) -> None:
        """Write `checkpoints/step-N.pt` and remove all but the `KEPT` newest checkpoints.

        Raises:
            OSError: the checkpoint cannot be written; earlier ones are as they were.
        """
        folder = Path(config.output) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)  # a checkpoint of a large model that was not written completely fills the disk
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": self.settings,
            "mixed": self.mixed,
            "stage": trained_state(self.stage),
            "optimizer": self.optimizer.state_dict(),
            "ema": {"shadow": self.ema.shadow_params, "optimization_step": self.ema.optimization_step},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        # torch.save writes a path's name into the file, but not the name of an open file.
        path = folder / f"step-{self.step:07d}.pt"
        with writing(path), whole_file(path) as temporary, temporary.open("wb") as file:
            recorded = Recorded(file)
            try:
                torch.save(state, recorded)
            except RuntimeError:
                raise (recorded.error or OSError(errno.EIO, os.strerror(errno.EIO))) from None
        for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
            old.unlink()

    def load_newest(self, config: TrainConfig, allowed: Collection[str] = ()) -> None:
        """Load the newest checkpoint, if there is one.

        Args:
            config: the configuration of the run.
            allowed: names of settings that may differ from those of the checkpoint.

        Raises:
            ValueError: the checkpoint is from a run with other settings or from networks of other sizes.
        """
        path = newest_checkpoint(config)
        if path is None:
            return
        state = _read(path)
        changed = changes(state["settings"], self.settings)
        check_agreement(path, changed, allowed)
        own = trained_state(self.stage)
        if own.keys() != state["stage"].keys() or any(own[n].shape != v.shape for n, v in state["stage"].items()):
            raise ValueError(f"{path} is from networks of other sizes; give this run another output")
        self.stage.load_state_dict(state["stage"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.shadow_params = [
            value.to(own.device) for value, own in zip(state["ema"]["shadow"], self.ema.shadow_params, strict=True)
        ]
        self.ema.optimization_step = state["ema"]["optimization_step"]
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.mixed = state["mixed"] + [{"step": self.step, **vars(change)} for change in changed]


def newest_checkpoint(config: TrainConfig) -> Path | None:
    """The file of a run's newest checkpoint, None if there is none."""
    return max((Path(config.output) / "checkpoints").glob("step-*.pt"), default=None)


def check_newest(config: TrainConfig, settings: dict[str, Any], allowed: Collection[str]) -> None:
    """Check, before any work, that the run's newest checkpoint is of the same settings; raises as `load_newest`."""
    if (path := newest_checkpoint(config)) is not None:
        check_agreement(path, changes(_read(path, mmap=True)["settings"], settings), allowed)


def _read(path: Path, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint.

    Args:
        path: its file.
        mmap: leave the tensors on disk.

    Raises:
        ValueError: the file is no checkpoint of this version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        state["settings"], state["mixed"]
    except (RuntimeError, KeyError, TypeError, pickle.UnpicklingError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which torch finds a short file to be
            raise
        reason = str(error).splitlines()[0][:120] if not isinstance(error, KeyError) else f"it has no {error}"
        raise ValueError(f"{path}: not a checkpoint that this version can go on from: {reason}") from None
    return state


def trained_state(stage: TrainingStage) -> dict[str, Any]:
    """The trained parameters, and the buffers (batch norm statistics) of networks that are not frozen, by name."""
    trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    parameters = {name for name, _ in stage.named_parameters()}
    return {
        name: value
        for name, value in stage.state_dict().items()
        if name in trained or (name not in parameters and name.split(".")[0] not in stage.frozen)
    }
