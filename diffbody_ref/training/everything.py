"""All steps from nothing to an evaluated model: render people, train all stages, release the model, evaluate it.

Each step is skipped if it is done and resumes where it was interrupted, so the same call can be repeated until
everything is done.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbody_ref.data.synthetic.dataset import check_set, synthesize
from diffbody_ref.libraries import silence_libraries
from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.progress import Progress
from diffbody_ref.training.config import TrainConfig, load_config, read_toml
from diffbody_ref.training.loop import TrainingResult, is_finished, train

ORDER = ("swinir", "vae", "pose", "parts", "diffusion")


@dataclass(frozen=True)
class RenderConfig:
    """A set of synthetic people; see the arguments of `diffbody_ref.data.synthetic.dataset.synthesize`.

    Attributes:
        out: folder of the set.
        identities: number of people.
        views: pictures per person.
        seed: seed of everything random.
        height: height of the pictures in pixels.
        width: width of the pictures in pixels.
        first_identity: number of the first person.
        workers: number of processes.
    """

    out: str
    identities: int
    views: int = 4
    seed: int = 0
    height: int = 256
    width: int = 128
    first_identity: int = 0
    workers: int = 2


@dataclass(frozen=True)
class Shares:
    """The shares of the steps in the minutes of a plan; the rest is for starting programs, releasing and evaluating.

    Attributes:
        render: share of rendering each set of people.
        swinir: share of training SwinIR.
        vae: share of training the autoencoder.
        pose: share of training person detector and keypoint network.
        parts: share of training the part network.
        diffusion: share of training text encoder, U-Net and control branch.

    Raises:
        ValueError: a share is not between 0 and 1, or the sum exceeds 1.
    """

    render: float = 0.18
    swinir: float = 0.15
    vae: float = 0.15
    pose: float = 0.09
    parts: float = 0.09
    diffusion: float = 0.22

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        for name, value in values.items():
            if not 0 < value < 1:
                raise ValueError(f"the share {name} is {value}; it must be above 0 and below 1")
        if sum(values.values()) > 1:
            raise ValueError(f"the shares are {sum(values.values()):g} in all; they must be at most 1")


@dataclass(frozen=True)
class MeasureConfig:
    """How the released model is evaluated.

    Attributes:
        out: folder of the reports; each model's report is in a subfolder named by its weights' checksum.
        count: number of pictures.
        steps: sampling steps.
        batch_size: pictures per call of the pipeline.
    """

    out: str
    count: int = 40
    steps: int = RestoreOptions.num_inference_steps
    batch_size: int = 1


@dataclass(frozen=True)
class PlanConfig:
    """A plan. Paths are relative to the folder where the command runs, those in `stages` to the folder of the plan.

    Attributes:
        stages: configuration files of the stages in `ORDER`, in this order.
        train: the set of people to train on; an existing set is used as it is.
        held_out: the set of people to evaluate on; an existing set is used as it is.
        model: folder of the released model.
        evaluation: how the released model is evaluated.
        minutes: time for all steps over all calls; 0 is no limit. If a set's share is used up before all people are
            rendered, the set becomes smaller; if a stage's share is used up, it is finished (`TrainConfig.minutes`).
        shares: how the minutes are divided among the steps.
    """

    stages: tuple[str, ...]
    train: RenderConfig
    held_out: RenderConfig
    model: str
    evaluation: MeasureConfig
    minutes: float = 0.0
    shares: Shares = field(default_factory=Shares)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minutes) and self.minutes >= 0):
            raise ValueError(f"minutes is {self.minutes}; it must be at least 0")


def load_plan(path: Path, minutes: float | None = None) -> tuple[PlanConfig, list[TrainConfig]]:
    """Read a plan from a TOML file, and the configurations of its stages, each with its share of the minutes.

    Args:
        path: the file.
        minutes: replaces the minutes in the file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is wrong, or the files do not fit together.
    """
    plan = read_toml(path, PlanConfig)
    if minutes is not None:
        plan = dataclasses.replace(plan, minutes=minutes)
    stages = [load_config(path.parent / name) for name in plan.stages]
    if tuple(stage.stage for stage in stages) != ORDER:
        raise ValueError(f"{path}: stages are {[s.stage for s in stages]}; they must be {', '.join(ORDER)}")
    for stage in stages:
        if plan.train.out not in stage.data:
            raise ValueError(f"{path}: {stage.stage} trains on {', '.join(stage.data)}, not on {plan.train.out}")
        if (stage.pipeline, stage.preset) != (stages[0].pipeline, stages[0].preset):
            raise ValueError(f"{path}: {stage.stage} has another pipeline or preset than {ORDER[0]}")
    if plan.minutes:
        shares = dataclasses.asdict(plan.shares)
        stages = [dataclasses.replace(s, minutes=plan.minutes * shares[s.stage]) for s in stages]
    return plan, stages


def train_everything(
    plan: PlanConfig, stages: list[TrainConfig], show: Progress, call_minutes: float = math.inf
) -> Iterator[str]:
    """Take all steps that are not done yet, and yield a line about each step's state.

    Args:
        plan: the plan.
        stages: the configurations of its stages.
        show: called with (done, total, what is being worked on).
        call_minutes: time after which this call ends early.

    Raises:
        ValueError: a step fails; see its function.
        FileNotFoundError: a step's input is missing.
        OSError: a file cannot be read or written.
    """
    deadline = time.monotonic() + 60.0 * call_minutes
    share = 60.0 * plan.minutes * plan.shares.render if plan.minutes else math.inf
    for name, people in (("held_out", plan.held_out), ("train", plan.train)):
        if not render(people, share, deadline, show):
            yield f"{people.out}: rendering continues with the next call"
            return
        yield f"{people.out}: {name} set rendered"
    for config in stages:
        if not is_finished(config) and time.monotonic() < deadline:
            result = train_apart(config, deadline, show)
            for notice in result.notices:
                yield f"{config.stage}: notice: {notice}"
        if not is_finished(config):
            yield f"{config.stage}: training continues with the next call"
            return
        yield f"{config.stage}: trained"
    if time.monotonic() >= deadline:
        yield f"{plan.model}: will be released by the next call"
        return
    yield f"{release_if_other(plan, stages)}: released"
    yield f"{measure(plan, show)}: evaluated"


def train_apart(config: TrainConfig, deadline: float, show: Progress) -> TrainingResult:
    """`train` in a process of its own, whose memory is free afterwards, on the GPU too."""
    context = multiprocessing.get_context("spawn")
    steps: Any = context.Queue()
    with ProcessPoolExecutor(1, context, initializer=_use_queue, initargs=(steps,)) as pool:
        future = pool.submit(_train_here, config, deadline)
        future.add_done_callback(lambda _: steps.put(None))
        for step in iter(steps.get, None):
            show(*step)
        try:
            return future.result()
        except BrokenProcessPool:
            raise MemoryError(f"{config.stage}: its process was killed, most likely because memory ran out") from None


_steps: Any = None  # in the process of `train_apart`: where its progress goes


def _use_queue(steps: Any) -> None:
    global _steps
    _steps = steps
    _steps.cancel_join_thread()  # nobody reads what is left when the training is over


def _train_here(config: TrainConfig, deadline: float) -> TrainingResult:
    silence_libraries()
    return train(config, deadline=deadline, progress=lambda *step: _steps.put(step))


def render(config: RenderConfig, share: float, deadline: float, show: Progress) -> bool:
    """Render a set if it does not exist yet.

    Args:
        config: the set.
        share: seconds over all calls after which the set is limited to the people rendered so far.
        deadline: time of `time.monotonic` at which this call must stop.
        show: called with (done, total, what is being worked on).

    Returns:
        Whether the set is complete; False if the deadline came first.

    Raises:
        ValueError: nobody was rendered within the share, or the folder holds another set.
    """
    out = Path(config.out)
    if (out / "metadata.jsonl").is_file():
        check_set(out, config.seed, config.height, config.width, config.views, config.first_identity)
        return True
    spent_file = out / "seconds.json"  # time spent by earlier calls
    before = json.loads(spent_file.read_text()) if spent_file.is_file() else 0.0
    start = time.monotonic()
    limit = min(deadline, start + share - before)

    def check_time(done: int, total: int, _: str) -> None:
        show(done, total, f"rendering {out}")
        if time.monotonic() >= limit:
            raise _TimeUpError

    try:
        synthesize(**_synthesis_arguments(config), progress=check_time)
        return True
    except _TimeUpError:
        pass
    write_whole(spent_file, json.dumps(before + time.monotonic() - start))
    if before + time.monotonic() - start < share:
        return False
    done = rendered_in_a_row(config)
    if not done:
        raise ValueError(f"{out}: not one person was rendered in {share / 60:.1f} minutes; allow more time")
    smaller = dataclasses.replace(config, identities=done, workers=1)
    synthesize(**_synthesis_arguments(smaller))  # only writes the index
    return True


class _TimeUpError(Exception):
    """Ends a rendering from its progress callback."""


def _synthesis_arguments(config: RenderConfig) -> dict[str, Any]:
    """The arguments of `synthesize` for a set."""
    return {**dataclasses.asdict(config), "out": Path(config.out)}


def rendered_in_a_row(config: RenderConfig) -> int:
    """Number of identities whose pictures are complete, counted from the first one up to the first gap."""
    labels = Path(config.out) / "labels"
    numbers = range(config.first_identity, config.first_identity + config.identities)
    missing = (i for i, number in enumerate(numbers) if not (labels / f"{number:06d}.json").is_file())
    return next(missing, config.identities)


def release_if_other(plan: PlanConfig, stages: list[TrainConfig]) -> Path:
    """Release the model unless it is made of these components already, and return its folder."""
    from diffbody_ref.training.release import is_released, release

    components, out = Path(stages[0].pipeline), Path(plan.model)
    if not is_released(components, out, stages[0].preset):
        release(components, out, stages[0].preset)
    return out


def measure(plan: PlanConfig, show: Progress) -> Path:
    """Evaluate the released model and return the path of the report; measured pictures are not measured again."""
    from diffbody_ref.evaluation.checksums import weights_checksum
    from diffbody_ref.evaluation.run import EvaluateConfig, evaluate
    from diffbody_ref.evaluation.subjects import Subjects
    from diffbody_ref.loading import load_pipeline

    requested, people = plan.evaluation, Subjects([Path(plan.held_out.out)])
    pipeline = load_pipeline(Path(plan.model), "auto")
    out = Path(requested.out) / weights_checksum(pipeline)[:8]
    config = EvaluateConfig(
        count=min(requested.count, len(people)), num_inference_steps=requested.steps, batch_size=requested.batch_size
    )
    evaluate(pipeline, people, config, out, lambda done, total, method: show(done, total, "evaluating"))
    return out / "report.md"
