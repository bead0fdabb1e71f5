"""Checkpoints of a run: whole or not there, loaded without running code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.stages import Stage

KEPT = 2
# Settings under which a checkpoint's tensors, and the samples it has seen, mean the same.
MUST_AGREE = ("stage", "preset", "optimizer", "batch_size", "seed", "tuning", "lora_rank", "variants")


@dataclass
class RunState:
    """All that changes while a run goes on. Random numbers have no state: they hang on the step and the sample.

    Attributes:
        scaler: the loss scaler of fp16, else None.
        step, seconds: optimizer steps done, and time spent on them over all calls.
    """

    stage: Stage
    optimizer: Any
    ema: EMAModel
    scaler: Any = None
    step: int = 0
    seconds: float = 0.0

    def save(self, config: TrainConfig) -> None:
        """Write `checkpoints/step-N.pt`; the older ones beyond `KEPT` go."""
        folder = Path(config.output) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "config": {name: getattr(config, name) for name in MUST_AGREE},
            "stage": trained_state(self.stage),
            "optimizer": self.optimizer.state_dict(),
            "ema": {"shadow": self.ema.shadow_params, "optimization_step": self.ema.optimization_step},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        path = folder / f"step-{self.step:07d}.pt"
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
            old.unlink()

    def load_newest(self, config: TrainConfig) -> None:
        """Take over the newest checkpoint, where there is one.

        Raises:
            ValueError: it is of a run with other settings.
        """
        checkpoints = sorted((Path(config.output) / "checkpoints").glob("step-*.pt"))
        if not checkpoints:
            return
        state = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)
        changed = [
            f"{n} {v!r} (now {getattr(config, n)!r})" for n, v in state["config"].items() if v != getattr(config, n)
        ]
        if changed:
            raise ValueError(f"{checkpoints[-1]} is of a run with {', '.join(changed)}; give this run another output")
        own = trained_state(self.stage)
        if own.keys() != state["stage"].keys() or any(own[n].shape != v.shape for n, v in state["stage"].items()):
            raise ValueError(f"{checkpoints[-1]} is of networks of other sizes; give this run another output")
        self.stage.load_state_dict(state["stage"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.shadow_params = [
            value.to(own.device) for value, own in zip(state["ema"]["shadow"], self.ema.shadow_params, strict=True)
        ]
        self.ema.optimization_step = state["ema"]["optimization_step"]
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]


def trained_state(stage: Stage) -> dict[str, Any]:
    """Trained parameters, and the buffers (batch norm statistics) of networks that are not frozen."""
    trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    parameters = {name for name, _ in stage.named_parameters()}
    return {
        name: value
        for name, value in stage.state_dict().items()
        if name in trained or (name not in parameters and name.split(".")[0] not in stage.frozen)
    }
