"""The training loop of all stages: accelerate, EMA, exact resume, log, sample pictures.

All randomness of a step comes from `TrainingStage.item(index, serial)`, whose serial number is the position of the
sample in the run, and from torch's generators, which are seeded by the step. So data order, degradations and noise
depend neither on the number of processes nor on where a run was interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast
from diffusers.training_utils import EMAModel

from diffbody_ref.data import recipes
from diffbody_ref.data.datasets import Content, PeopleFolder, content_checksum
from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.training.agreement import check_allowed, run_settings
from diffbody_ref.training.batches import OrderedBatches
from diffbody_ref.training.checkpoints import RunState, check_newest, newest_checkpoint
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.encoded import networks_checksum
from diffbody_ref.training.loaders import load_batches
from diffbody_ref.training.muon import Muon, muon_groups
from diffbody_ref.training.record import Record
from diffbody_ref.training.stages import TrainingStage, build_stage, stage_class

MAX_WAIT = timedelta(hours=12)  # how long a process waits for the others to encode their share of the data
TORCH_STREAM = 5  # tag of torch's seeds; the stages' random streams are [seed, epoch] and [seed, 1 or 2, ...]
FINISHED = "finished.json"


@dataclass(frozen=True)
class TrainingResult:
    """What a call of `train` leaves.

    Attributes:
        pipeline: the pipeline's folder.
        trained: the components that the run writes there when it is finished.
        step: number of completed steps.
        finished: whether the components are written.
        checkpoint: the newest checkpoint.
        notices: what whoever uses the result should know.
    """

    pipeline: Path
    trained: tuple[str, ...]
    step: int
    finished: bool
    checkpoint: Path | None
    notices: list[str] = field(default_factory=list)


def train(
    config: TrainConfig,
    stop_after: int | None = None,
    deadline: float = math.inf,
    allowed: Collection[str] = (),
    progress: Progress = silent,
) -> TrainingResult:
    """Train one stage to its end, starting from its newest checkpoint if there is one.

    Args:
        config: the configuration of the run.
        stop_after: stop at this step with a checkpoint, as if interrupted (the learning rate still follows
            `config.steps`).
        deadline: stop with a checkpoint at this time of `time.monotonic`.
        allowed: names of settings that may differ from those of the checkpoint; see `training.agreement`.
        progress: called with (completed steps, all steps, stage and loss), and before that about the data.

    Raises:
        FileNotFoundError: data or a required component is missing.
        OSError: a file cannot be read or written.
        ValueError: configuration, data or a component is wrong, the checkpoint is from a run with other settings, or
            the gradient is not finite.
    """
    check_allowed(allowed)
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
    show = progress if main else silent
    data = data_checksum(stage.contents(accelerator, show))
    networks = networks_checksum(Path(config.pipeline), (*stage.frozen, *stage.configured))
    settings = run_settings(config, data, networks)
    check_newest(config, settings, allowed)
    stage.prepare(accelerator, show)
    state, model, optimizer = _set_up(config, stage, accelerator, settings, allowed)
    parameters, adversaries = _trained_parameters(stage)
    clock.before = state.seconds
    record = Record(Path(config.output), state.step, config.tensorboard) if main else None

    position = (per_process, accelerator.process_index, accelerator.num_processes)
    start, end = state.step * config.batch_size, config.steps * config.batch_size
    batches = load_batches(stage.item, OrderedBatches(stage, start, end, *position), config.workers)
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    spent, stopped = clock.read(accelerator)
    sums: dict[str, torch.Tensor] = {}
    count, at_work = 0, config.stage
    show(state.step, config.steps, at_work)
    if record and config.held_out and state.step == 0:
        _measure(stage, state, record)
    for batch in batches if state.step < last and not stopped else ():
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
        share = learning_rate_at(state.step, config, spent)
        rate = config.learning_rate * share
        if count % config.accumulation == 0:
            _seed_torch(config.seed, state.step, accelerator.process_index)
            for group in optimizer.param_groups:
                group["lr"] = config.adversary_learning_rate * share if group.get("adversary") else rate
        with accelerator.accumulate(model):
            with accelerator.autocast():
                losses = model(batch)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
                if adversaries:  # by itself: its gradient says nothing about the size of the other
                    torch.nn.utils.clip_grad_norm_(adversaries, config.max_grad_norm)
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
            at_work = f"{config.stage}, loss {means['loss']:.4f}"
            if record:
                record.scalars(state.step, {**means, "learning_rate": rate})
            sums, count = {}, 0
        show(state.step, config.steps, at_work)
        if record and (state.step % config.sample_every == 0 or done):
            with averaged(state.ema, parameters), torch.no_grad():
                record.picture(state.step, stage.preview(batch))
        if record and config.held_out and (state.step % config.measure_every == 0 or done):
            _measure(stage, state, record)
        if main and (state.step % config.checkpoint_every == 0 or done):
            state.save(config)
        if done:
            break
    finished = state.step == config.steps or spent >= 1.0
    notices = [*stage.notices(), *_degradation_notices(config)]
    if main and finished:
        with averaged(state.ema, parameters), torch.no_grad():
            stage.finish(Path(config.pipeline))
        _record_end(config, state, stage)
    if record:
        record.close()
    accelerator.wait_for_everyone()
    return TrainingResult(
        Path(config.pipeline), stage.trained, state.step, finished, newest_checkpoint(config), notices
    )


def is_finished(config: TrainConfig) -> bool:
    """Whether an earlier call with the same settings, data and networks came to the run's last step or minute.

    Raises:
        ValueError: the run's mark is broken.
    """
    marker = Path(config.output) / FINISHED
    if not marker.is_file():
        return False
    try:
        done = json.loads(marker.read_text())
        ended = done["step"] >= config.steps or 0 < config.minutes * 60 <= done["seconds"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{marker}: not the mark of a finished run: {error}; remove it to go on") from None
    data = data_checksum(PeopleFolder(config.data).contents())
    kind = stage_class(config.stage)
    networks = networks_checksum(Path(config.pipeline), (*kind.components(config)[1], *kind.configured))
    return ended and done.get("settings") == run_settings(config, data, networks)


def _record_end(config: TrainConfig, state: RunState, stage: TrainingStage) -> None:
    """Write that a run is finished, for the next call; and how the components were trained, for who uses them."""
    done = {"step": state.step, "mixed": state.mixed}
    ended = {**done, "seconds": state.seconds, "settings": state.settings}
    write_whole(Path(config.output) / FINISHED, json.dumps(ended) + "\n")
    trained = {"degradation": asdict(config.degradation), "size": stage.people.size, "structure": config.structure}
    recipes.record_stage(Path(config.pipeline), config.stage, {**trained, **done})


def _degradation_notices(config: TrainConfig) -> list[str]:
    """A line if the diffusion learns to undo another degradation than the regression before it."""
    stages = recipes.read_record(Path(config.pipeline)).get("stages", {})
    if config.stage != "diffusion" or "swinir" not in stages:
        return []
    other = recipes.trained_degradation(Path(config.pipeline), ("swinir",))
    assert other is not None
    found = recipes.differences(config.degradation, other)
    return [f"swinir was trained on other degradations than diffusion: {'; '.join(found)}"] if found else []


def data_checksum(contents: Sequence[Content]) -> str:
    """One checksum of all pictures and labels of a run."""
    return content_checksum(value for content in contents for value in content)


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


def _set_up(
    config: TrainConfig,
    stage: TrainingStage,
    accelerator: Accelerator,
    settings: dict[str, Any],
    allowed: Collection[str],
) -> tuple[RunState, Any, Any]:
    """Prepare a run: its state from the newest checkpoint, the stage wrapped for the processes, the optimizer."""
    if config.gradient_checkpointing:
        stage.checkpoint_gradients()
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # In place; batch norm then uses statistics of the whole batch, as with one process.
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(stage)
    parameters, adversaries = _trained_parameters(stage)
    own = set(parameters)
    optimizer: torch.optim.Optimizer
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if config.optimizer == "muon":
        groups = [{**group, "params": [p for p in group["params"] if p in own]} for group in muon_groups(stage)]
    if adversaries:
        groups.append({"params": adversaries, "orthogonal": False, "adversary": True})
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    optimizer = kind(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    stage.to(accelerator.device, memory_format=torch.channels_last)
    if config.compile:
        for module in stage.compiled():
            module.compile()
    model, optimizer = accelerator.prepare(stage, optimizer)
    ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    state = RunState(stage, optimizer, ema, accelerator.scaler, settings=settings)
    state.load_newest(config, allowed)
    return state, model, optimizer


def _trained_parameters(stage: TrainingStage) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The parameters that the run trains to keep, and those of the adversaries."""
    kept: list[torch.nn.Parameter] = []
    adversaries: list[torch.nn.Parameter] = []
    for name, parameter in stage.named_parameters():
        if parameter.requires_grad:
            (adversaries if name.split(".")[0] in stage.adversaries else kept).append(parameter)
    return kept, adversaries


def _measure(stage: TrainingStage, state: RunState, record: Record) -> None:
    """Measure the averaged weights on the held-out pictures."""
    with averaged(state.ema, _trained_parameters(stage)[0]), torch.no_grad():
        record.scalars(state.step, stage.measure())


def _seed_torch(seed: int, step: int, process: int) -> None:
    """Seed torch's generators, from which networks draw, for example for dropout."""
    torch.manual_seed(int(np.random.SeedSequence([seed, TORCH_STREAM, step, process]).generate_state(1)[0]))
