"""The training loop, one for all stages: accelerate, EMA, exact resume, log, sample pictures.

All randomness of a step comes from `Stage.item(index, serial)`, whose serial number is the position of the sample in
the run; so data order, degradations and noise depend neither on the number of processes nor on where a run was cut.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset, Sampler

from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.muon import Muon, muon_groups
from diffbody_ref.training.stages import Stage, build_stage

KEPT_CHECKPOINTS = 2


class _Items(Dataset):
    """`Stage.item` as a torch dataset over (index, serial) pairs; holds the stage without its networks' gradients."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        return self.stage.item(*key)


class OrderedBatches(Sampler):
    """Batches of (index, serial) from `start` on: a seeded permutation of the data per epoch, cut among processes.

    Args:
        order: `Stage.order`, gives the indices of one epoch.
        samples: serial numbers to go through, batch_size × steps.
        start: first serial number.
        micro_batch: samples per process and accumulation round.
    """

    def __init__(self, stage: Stage, start: int, samples: int, micro_batch: int, rank: int, world: int) -> None:
        self.stage, self.start, self.samples = stage, start, samples
        self.micro_batch, self.rank, self.world = micro_batch, rank, world

    def __len__(self) -> int:
        return (self.samples - self.start) // (self.micro_batch * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch_size = len(self.stage.order(0))
        epoch, order = -1, np.empty(0, np.int64)
        for first in range(self.start, self.samples, self.micro_batch * self.world):
            mine = range(first + self.rank * self.micro_batch, first + (self.rank + 1) * self.micro_batch)
            batch = []
            for serial in mine:
                if serial // epoch_size != epoch:
                    epoch = serial // epoch_size
                    order = self.stage.order(epoch)
                batch.append((int(order[serial % epoch_size]), serial))
            yield batch


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Factor on the peak rate: linear warm-up, then a half cosine from 1 to `final_rate`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_rate + (1.0 - config.final_rate) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def train(config: TrainConfig, stop_after: int | None = None) -> Path:
    """Train one stage to its last step, from its newest checkpoint where there is one.

    Args:
        stop_after: stop at this step with a checkpoint, as if cut (the learning rate still follows `config.steps`).

    Returns:
        The pipeline folder; it holds the trained components once the last step is done.

    Raises:
        ValueError, FileNotFoundError: configuration, data or a component it needs is missing or wrong.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulation)
    per_round = config.batch_size // config.accumulation
    if per_round % accelerator.num_processes:
        raise ValueError(
            f"batch_size / accumulation = {per_round} does not divide among {accelerator.num_processes} processes"
        )
    torch.manual_seed(config.seed)
    stage = build_stage(config)
    stage.prepare(accelerator)
    output = Path(config.output)
    (output / "samples").mkdir(parents=True, exist_ok=True)

    parameters = [p for p in stage.parameters() if p.requires_grad]
    if config.optimizer == "muon":
        optimizer = Muon(muon_groups(stage), lr=config.learning_rate, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    stage.to(accelerator.device, memory_format=torch.channels_last)
    model, optimizer = accelerator.prepare(stage, optimizer)
    ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    start = _load_newest(output, stage, optimizer, ema)

    batches = OrderedBatches(
        stage,
        start * config.batch_size,
        config.steps * config.batch_size,
        per_round // accelerator.num_processes,
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = DataLoader(
        _Items(stage),
        batch_sampler=batches,
        num_workers=config.workers,
        persistent_workers=False,
        worker_init_fn=_one_thread,
    )
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    with _progress_bar(disable=not accelerator.is_main_process) as bar:
        sums: dict[str, float] = {}
        task = bar.add_task(f"{config.stage}", total=config.steps, completed=start, status="")
        step, count = start, 0
        for batch in loader if start < last else ():
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_at(step, config)
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    losses = model(batch)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
                    if not torch.isfinite(norm):
                        raise ValueError(
                            f"the gradient is not finite at step {step}; lower learning_rate {config.learning_rate}"
                        )
                optimizer.step()
                optimizer.zero_grad()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            count += 1
            if not accelerator.sync_gradients:
                continue
            ema.step(parameters)
            step += 1
            if step % config.log_every == 0 or step == last:
                means = {name: value / count for name, value in sums.items()}
                bar.update(task, status=f"loss {means['loss']:.4f}")
                if accelerator.is_main_process:
                    _log(output, {"step": step, **means})
                sums, count = {}, 0
            bar.update(task, completed=step)
            if accelerator.is_main_process and (step % config.sample_every == 0 or step == last):
                with averaged(ema, parameters), torch.no_grad():
                    _save_picture(output / "samples" / f"{step:07d}.png", stage.preview(batch))
            if accelerator.is_main_process and (step % config.checkpoint_every == 0 or step == last):
                _save_checkpoint(output, step, stage, optimizer, ema)
            if step == last:
                break
    accelerator.wait_for_everyone()
    if last == config.steps and accelerator.is_main_process:
        with averaged(ema, parameters), torch.no_grad():
            stage.finish(Path(config.pipeline))
    return Path(config.pipeline)


class averaged:  # noqa: N801 - reads as a verb in `with averaged(ema, parameters):`
    """The parameters hold their moving average inside the block, and what they held before after it."""

    def __init__(self, ema: EMAModel, parameters: list[torch.nn.Parameter]) -> None:
        self.ema, self.parameters = ema, parameters

    def __enter__(self) -> None:
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)

    def __exit__(self, *error: object) -> None:
        self.ema.restore(self.parameters)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _progress_bar(disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        disable=disable,
    )


def _log(output: Path, record: dict[str, float]) -> None:
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def _save_picture(path: Path, picture: np.ndarray) -> None:
    Image.fromarray(np.uint8(np.round(np.clip(picture, 0.0, 1.0) * 255.0))).save(path)


def _trained_state(stage: Stage) -> dict[str, Any]:
    return {name: getattr(stage, name).state_dict() for name in stage.trained}


def _save_checkpoint(output: Path, step: int, stage: Stage, optimizer: Any, ema: EMAModel) -> None:
    """`checkpoints/step-N.pt`, complete or not there; the older ones beyond `KEPT_CHECKPOINTS` go."""
    folder = output / "checkpoints"
    folder.mkdir(exist_ok=True)
    state = {
        "step": step,
        "stage": _trained_state(stage),
        "optimizer": optimizer.state_dict(),
        "ema": {"shadow": ema.shadow_params, "optimization_step": ema.optimization_step},
    }
    path = folder / f"step-{step:07d}.pt"
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT_CHECKPOINTS]:
        old.unlink()


def _load_newest(output: Path, stage: Stage, optimizer: Any, ema: EMAModel) -> int:
    """Restore the newest checkpoint into the objects and return its step; 0 where there is none."""
    checkpoints = sorted((output / "checkpoints").glob("step-*.pt"))
    if not checkpoints:
        return 0
    state = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)
    for name, values in state["stage"].items():
        getattr(stage, name).load_state_dict(values)
    optimizer.load_state_dict(state["optimizer"])
    ema.shadow_params = [
        value.to(own.device) for value, own in zip(state["ema"]["shadow"], ema.shadow_params, strict=True)
    ]
    ema.optimization_step = state["ema"]["optimization_step"]
    _drop_log_after(output / "log.jsonl", state["step"])
    return state["step"]


def _drop_log_after(path: Path, step: int) -> None:
    """Lines written after the checkpoint describe steps that will be taken again."""
    if path.is_file():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.with_suffix(".tmp").write_text("".join(line + "\n" for line in lines))
        shutil.move(path.with_suffix(".tmp"), path)
