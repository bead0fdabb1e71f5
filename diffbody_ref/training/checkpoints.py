"""Checkpoints of a run: files that are complete or not there, and are loaded without running code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from diffbody_ref.ops.files import remove_leftovers, whole_file
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.stages.base import TrainingStage

KEPT = 2  # number of checkpoints that stay on disk
# If one of these settings changes, a checkpoint's tensors or the samples it has seen are not those of the run.
MUST_AGREE = ("stage", "preset", "optimizer", "batch_size", "seed", "tuning", "lora_rank", "variants")


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
    """

    stage: TrainingStage
    optimizer: Any
    ema: EMAModel
    scaler: Any = None
    step: int = 0
    seconds: float = 0.0

    def save(self, config: TrainConfig) -> None:
        """Write `checkpoints/step-N.pt` and remove all but the `KEPT` newest checkpoints."""
        folder = Path(config.output) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)  # a checkpoint of a large model that was not written completely fills the disk
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "config": {name: getattr(config, name) for name in MUST_AGREE},
            "stage": trained_state(self.stage),
            "optimizer": self.optimizer.state_dict(),
            "ema": {"shadow": self.ema.shadow_params, "optimization_step": self.ema.optimization_step},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        # torch.save writes a path's name into the file, but not the name of an open file.
        with whole_file(folder / f"step-{self.step:07d}.pt") as temporary, temporary.open("wb") as file:
            torch.save(state, file)
        for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
            old.unlink()

    def load_newest(self, config: TrainConfig) -> None:
        """Load the newest checkpoint, if there is one.

        Raises:
            ValueError: the checkpoint is from a run with other settings or from networks of other sizes.
        """
        checkpoints = sorted((Path(config.output) / "checkpoints").glob("step-*.pt"))
        if not checkpoints:
            return
        state = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)
        changed = [
            f"{n} {v!r} (now {getattr(config, n)!r})" for n, v in state["config"].items() if v != getattr(config, n)
        ]
        if changed:
            raise ValueError(f"{checkpoints[-1]} is from a run with {', '.join(changed)}; give this run another output")
        own = trained_state(self.stage)
        if own.keys() != state["stage"].keys() or any(own[n].shape != v.shape for n, v in state["stage"].items()):
            raise ValueError(f"{checkpoints[-1]} is from networks of other sizes; give this run another output")
        self.stage.load_state_dict(state["stage"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.shadow_params = [
            value.to(own.device) for value, own in zip(state["ema"]["shadow"], self.ema.shadow_params, strict=True)
        ]
        self.ema.optimization_step = state["ema"]["optimization_step"]
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]


def trained_state(stage: TrainingStage) -> dict[str, Any]:
    """The trained parameters, and the buffers (batch norm statistics) of networks that are not frozen, by name."""
    trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    parameters = {name for name, _ in stage.named_parameters()}
    return {
        name: value
        for name, value in stage.state_dict().items()
        if name in trained or (name not in parameters and name.split(".")[0] not in stage.frozen)
    }
