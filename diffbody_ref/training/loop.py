"""The training loop of all stages: accelerate, EMA, exact resume, log, sample pictures.

All randomness of a step comes from `TrainingStage.item(index, serial)`, whose serial number is the position of the
sample in the run, and from torch's generators, which are seeded by the step. So data order, degradations and noise
depend neither on the number of processes nor on where a run was interrupted.
"""

from __future__ import annotations

import json
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast
from diffusers.training_utils import EMAModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffbody_ref.ops.files import write_whole
from diffbody_ref.training.batches import OrderedBatches, item_loader
from diffbody_ref.training.checkpoints import RunState
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.muon import Muon, muon_groups
from diffbody_ref.training.record import Record
from diffbody_ref.training.stages import TrainingStage, build_stage

MAX_WAIT = timedelta(hours=12)  # how long a process waits for the others to encode their share of the data
TORCH_STREAM = 5  # tag of torch's seeds; the stages' random streams are [seed, epoch] and [seed, 1 or 2, ...]
FINISHED = "finished.json"


def train(config: TrainConfig, stop_after: int | None = None, deadline: float = math.inf) -> Path:
    """Train one stage to its end, starting from its newest checkpoint if there is one.

    Args:
        config: the configuration of the run.
        stop_after: stop at this step with a checkpoint, as if interrupted (the learning rate still follows
            `config.steps`).
        deadline: stop with a checkpoint at this time of `time.monotonic`.

    Returns:
        The pipeline folder; it contains the trained components once the run is finished.

    Raises:
        FileNotFoundError: data or a required component is missing.
        ValueError: configuration, data or a component is wrong, or the gradient is not finite.
    """
    clock = _Clock(config.minutes, deadline)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # without it, processes on a CPU do not find each other
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=MAX_WAIT),
            # Buffers are constants, or batch norm statistics that SyncBatchNorm already keeps equal.
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )
    per_process = micro_batch(config, accelerator.num_processes)
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)
    stage = build_stage(config)
    stage.prepare(accelerator)
    state, model, optimizer = _set_up(config, stage, accelerator)
    parameters = _trained_parameters(stage)
    clock.before = state.seconds
    record = Record(Path(config.output), state.step, config.tensorboard) if main else None

    position = (per_process, accelerator.process_index, accelerator.num_processes)
    start, end = state.step * config.batch_size, config.steps * config.batch_size
    loader = item_loader(stage, OrderedBatches(stage, start, end, *position), config.workers)
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    spent, stopped = clock.read(accelerator)
    with _progress_bar(disable=not main) as bar:
        task = bar.add_task(config.stage, total=config.steps, completed=state.step, status="")
        sums: dict[str, torch.Tensor] = {}
        count = 0
        for batch in loader if state.step < last and not stopped else ():
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
            rate = config.learning_rate * learning_rate_at(state.step, config, spent)
            if count % config.accumulation == 0:
                _seed_torch(config.seed, state.step, accelerator.process_index)
                for group in optimizer.param_groups:
                    group["lr"] = rate
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    losses = model(batch)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
                    # fp16 overflows now and then; its scaler then skips the step.
                    if state.scaler is None and not torch.isfinite(norm):
                        raise ValueError(f"the gradient is not finite at step {state.step}; lower learning_rate {rate}")
                optimizer.step()
                optimizer.zero_grad()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
            count += 1
            if not accelerator.sync_gradients:
                continue
            if not accelerator.optimizer_step_was_skipped:
                state.ema.step(parameters)
            state.step += 1
            spent, stopped = clock.read(accelerator)
            state.seconds = clock.seconds
            done = state.step == last or stopped
            if state.step % config.log_every == 0 or done:
                means = {name: float(accelerator.reduce(value, "mean")) / count for name, value in sums.items()}
                bar.update(task, status=f"loss {means['loss']:.4f}")
                if record:
                    record.scalars(state.step, {**means, "learning_rate": rate})
                sums, count = {}, 0
            bar.update(task, completed=state.step)
            if record and (state.step % config.sample_every == 0 or done):
                with averaged(state.ema, parameters), torch.no_grad():
                    record.picture(state.step, stage.preview(batch))
            if main and (state.step % config.checkpoint_every == 0 or done):
                state.save(config)
            if done:
                break
    if main and (state.step == config.steps or spent >= 1.0):
        with averaged(state.ema, parameters), torch.no_grad():
            stage.finish(Path(config.pipeline))
        write_whole(Path(config.output) / FINISHED, json.dumps({"step": state.step, "seconds": state.seconds}) + "\n")
    if record:
        record.close()
    accelerator.wait_for_everyone()
    return Path(config.pipeline)


def is_finished(config: TrainConfig) -> bool:
    """Whether an earlier call completed the run's last step, or used up its minutes."""
    marker = Path(config.output) / FINISHED
    if not marker.is_file():
        return False
    done = json.loads(marker.read_text())
    return done["step"] >= config.steps or 0 < config.minutes * 60 <= done["seconds"]


def micro_batch(config: TrainConfig, processes: int) -> int:
    """Pictures per process and accumulation round.

    Raises:
        ValueError: the batch cannot be divided evenly.
    """
    per_round = config.batch_size // config.accumulation
    if per_round % processes:
        raise ValueError(f"batch_size / accumulation = {per_round} does not divide among {processes} processes")
    return per_round // processes


def learning_rate_at(step: int, config: TrainConfig, spent: float = 0.0) -> float:
    """The factor on the peak learning rate: linear warm-up, then a half cosine from 1 to `final_rate`.

    Args:
        step: number of completed steps.
        config: the configuration of the run.
        spent: share of `config.minutes` that is used up; the cosine follows it if it is ahead of the steps.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = max(spent, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return config.final_rate + (1.0 - config.final_rate) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


class averaged:  # noqa: N801 - reads as a verb in `with averaged(ema, parameters):`
    """A context manager: inside the block the parameters are their moving averages, after it they are as before."""

    def __init__(self, ema: EMAModel, parameters: list[torch.nn.Parameter]) -> None:
        self.ema, self.parameters = ema, parameters

    def __enter__(self) -> None:
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)

    def __exit__(self, *error: object) -> None:
        self.ema.restore(self.parameters)


class _Clock:
    """How long a run has trained, and whether it must stop; all processes use the clock of the first one.

    Attributes:
        before: seconds of training in earlier calls.
        seconds: seconds of training over all calls, at the last reading.

    Args:
        minutes: training time over all calls; 0 is no limit.
        deadline: time of `time.monotonic` at which this call must stop.
    """

    def __init__(self, minutes: float, deadline: float) -> None:
        self.minutes, self.deadline = minutes, deadline
        self.start = time.monotonic()
        self.before = self.seconds = 0.0

    def read(self, accelerator: Accelerator) -> tuple[float, bool]:
        """The share of the run's minutes that is used up (0 without a limit), and whether to stop now."""
        now = time.monotonic()
        self.seconds = self.before + now - self.start
        spent = self.seconds / (60.0 * self.minutes) if self.minutes else 0.0
        stop = spent >= 1.0 or now >= self.deadline
        if accelerator.num_processes > 1 and (self.minutes or self.deadline < math.inf):
            agreed = torch.tensor([spent, float(stop)], dtype=torch.float32, device=accelerator.device)
            spent, stop = float((agreed := broadcast(agreed))[0]), bool(agreed[1])
        return spent, stop


def _set_up(config: TrainConfig, stage: TrainingStage, accelerator: Accelerator) -> tuple[RunState, Any, Any]:
    """Prepare a run: its state from the newest checkpoint, the stage wrapped for the processes, the optimizer."""
    if config.gradient_checkpointing:
        stage.checkpoint_gradients()
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # In place; batch norm then uses statistics of the whole batch, as with one process.
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(stage)
    parameters = _trained_parameters(stage)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "muon":
        optimizer = Muon(muon_groups(stage), lr=config.learning_rate, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    stage.to(accelerator.device, memory_format=torch.channels_last)
    if config.compile:
        for module in stage.compiled():
            module.compile()
    model, optimizer = accelerator.prepare(stage, optimizer)
    ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    state = RunState(stage, optimizer, ema, accelerator.scaler)
    state.load_newest(config)
    return state, model, optimizer


def _trained_parameters(stage: TrainingStage) -> list[torch.nn.Parameter]:
    return [parameter for parameter in stage.parameters() if parameter.requires_grad]


def _seed_torch(seed: int, step: int, process: int) -> None:
    """Seed torch's generators, from which networks draw, for example for dropout."""
    torch.manual_seed(int(np.random.SeedSequence([seed, TORCH_STREAM, step, process]).generate_state(1)[0]))


def _progress_bar(disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        disable=disable,
    )
