"""Everything from nothing: render people, train all stages, release the model, evaluate it.

Each step is skipped where it is done and goes on where it was cut, so the same call can be made until all is done.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbody_ref.data.synthetic.dataset import synthesize
from diffbody_ref.training.config import TrainConfig, load_config, read_toml
from diffbody_ref.training.loop import FINISHED, is_finished, train

ORDER = ("swinir", "vae", "pose", "parts", "diffusion")

Progress = Callable[[int, int, str], None]
"""Called with (done, in all, what is at work)."""


@dataclass(frozen=True)
class RenderConfig:
    """A set of synthetic people: see `diffbody_ref.data.synthetic.dataset.synthesize`. `out` is its folder."""

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
    """Shares of the minutes; what is left of 1 is for starting programs, releasing and evaluating."""

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
    """What `diffbody evaluate` is asked for; the reports go to `out`/WEIGHTS, a folder for each model."""

    out: str
    count: int = 40
    steps: int = 50
    batch_size: int = 1


@dataclass(frozen=True)
class PlanConfig:
    """A plan. Paths are relative to the folder where the command runs, those of `stages` to the plan's own.

    Attributes:
        stages: a configuration of each of `ORDER`, in this order.
        train, held_out: the sets to train on and to evaluate on; one that is there is taken as it is.
        model: folder of the released model.
        evaluation: how it is measured.
        minutes: for everything, over all calls; 0: no limit, all steps are taken. A set that is not rendered when its
            share is used up becomes smaller, and a stage is finished with its share (`TrainConfig.minutes`).
        shares: how the minutes are divided.
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
            raise ValueError(f"minutes is {self.minutes}; it must be a number from 0")


def load_plan(path: Path, minutes: float | None = None) -> tuple[PlanConfig, list[TrainConfig]]:
    """The plan in a TOML file and the configurations of its stages, each with its share of the minutes.

    Args:
        minutes: instead of the file's.

    Raises:
        ValueError, FileNotFoundError: a file is missing or wrong, or they do not fit together.
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
    """Do what is not done, and say of each step how it stands; ends early when `call_minutes` are over.

    Raises:
        ValueError, FileNotFoundError, OSError: as the steps themselves.
    """
    deadline = time.monotonic() + 60.0 * call_minutes
    share = 60.0 * plan.minutes * plan.shares.render if plan.minutes else math.inf
    for name, people in (("held_out", plan.held_out), ("train", plan.train)):
        if not render(people, share, deadline, show):
            yield f"{people.out}: rendering goes on with the next call"
            return
        yield f"{people.out}: {name} set rendered"
    for config in stages:
        if not is_finished(config) and time.monotonic() < deadline:
            # A process of its own: its memory is free afterwards, on the GPU too.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                alone.submit(train, config, None, deadline).result()
        if not is_finished(config):
            yield f"{config.stage}: goes on with the next call"
            return
        yield f"{config.stage}: trained"
    if time.monotonic() >= deadline:
        yield f"{plan.model}: is released with the next call"
        return
    yield f"{release_if_older(plan, stages)}: released"
    yield f"{measure(plan, show)}: evaluated"


def render(config: RenderConfig, share: float, deadline: float, show: Progress) -> bool:
    """Render a set that is not there; False where the deadline (of `time.monotonic`) came first.

    Args:
        share: seconds over all calls after which the set is made of those people that are rendered by then.

    Raises:
        ValueError: not one was rendered by then.
    """
    out = Path(config.out)
    if (out / "metadata.jsonl").is_file():
        return True
    spent_file = out / "seconds.json"  # over earlier calls
    before = json.loads(spent_file.read_text()) if spent_file.is_file() else 0.0
    start = time.monotonic()
    limit = min(deadline, start + share - before)

    def watch(done: int, total: int) -> None:
        show(done, total, f"rendering {out}")
        if time.monotonic() >= limit:
            raise _TimeUpError

    try:
        synthesize(**_named(config), progress=watch)
        return True
    except _TimeUpError:
        pass
    spent_file.write_text(json.dumps(before + time.monotonic() - start))
    if before + time.monotonic() - start < share:
        return False
    done = rendered_in_a_row(config)
    if not done:
        raise ValueError(f"{out}: not one person was rendered in {share / 60:.1f} minutes; allow more")
    synthesize(**_named(dataclasses.replace(config, identities=done, workers=1)))  # writes the index only
    return True


class _TimeUpError(Exception):
    """Ends a rendering from inside its progress report."""


def _named(config: RenderConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config), "out": Path(config.out)}


def rendered_in_a_row(config: RenderConfig) -> int:
    """Identities whose pictures are all there, from the first one on without a gap."""
    labels = Path(config.out) / "labels"
    numbers = range(config.first_identity, config.first_identity + config.identities)
    missing = (i for i, number in enumerate(numbers) if not (labels / f"{number:06d}.json").is_file())
    return next(missing, config.identities)


def release_if_older(plan: PlanConfig, stages: list[TrainConfig]) -> Path:
    """The model's folder, made anew unless it is younger than all that it is made of."""
    from diffbody_ref.release import release

    out, index = Path(plan.model), Path(plan.model) / "model_index.json"
    trained = max((Path(stage.output) / FINISHED).stat().st_mtime for stage in stages)
    if not index.is_file() or index.stat().st_mtime < trained:
        release(Path(stages[0].pipeline), out, stages[0].preset)
    return out


def measure(plan: PlanConfig, show: Progress) -> Path:
    """The report of the released model; pictures that are measured already are not measured again."""
    from diffbody_ref.evaluation.run import EvaluateConfig, evaluate, weights_checksum
    from diffbody_ref.evaluation.subjects import Subjects
    from diffbody_ref.loading import load_pipeline

    asked, people = plan.evaluation, Subjects([Path(plan.held_out.out)])
    pipeline = load_pipeline(Path(plan.model), "auto")
    out = Path(asked.out) / weights_checksum(pipeline)[:8]
    config = EvaluateConfig(
        count=min(asked.count, len(people)), num_inference_steps=asked.steps, batch_size=asked.batch_size
    )
    evaluate(pipeline, people, config, out, lambda done, total, method: show(done, total, "evaluating"))
    return out / "report.md"
