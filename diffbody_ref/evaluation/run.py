"""The run of `diffbody evaluate`: degrade pictures by a seeded draw, restore them by each method, measure, report."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbody_ref import __version__
from diffbody_ref.data.datasets import READING_THREADS, content_checksum
from diffbody_ref.data.degradations import DegradationConfig, degrade
from diffbody_ref.data.parallel import map_in_order
from diffbody_ref.data.recipes import DEGRADATIONS, Recipe, model_recipe
from diffbody_ref.evaluation.checksums import configuration_checksum, weights_checksum
from diffbody_ref.evaluation.figures import kept_path
from diffbody_ref.evaluation.identity import identity_values
from diffbody_ref.evaluation.methods import METHODS, Context, Degraded, Restore, fit
from diffbody_ref.evaluation.metrics import Measure, available_metrics
from diffbody_ref.evaluation.notices import degradation_notices, size_notices
from diffbody_ref.evaluation.packages import UnavailableError
from diffbody_ref.evaluation.report import EvaluationReport, QualityReport, StructureReport
from diffbody_ref.evaluation.rows import EvaluationRows, Row
from diffbody_ref.evaluation.structure import StructureProbe
from diffbody_ref.evaluation.subjects import Subject, Subjects
from diffbody_ref.evaluation.suites import FULL, SUITES
from diffbody_ref.ops.identity import identity_notices
from diffbody_ref.ops.images import write_image
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.progress import Progress
from diffbody_ref.ops.results import OPTIONAL_STAGES

if TYPE_CHECKING:
    from diffbody_ref.pipeline import DiffBodyPipeline

OWN = "model"  # as a degradation: that of the model's training
# Tags of this module's random streams; training uses [seed, epoch], [seed, 1, ...] and [seed, 2, ...].
DEGRADATION_STREAM, SELECTION_STREAM = 3, 4

Probe = Callable[[np.ndarray, Subject], dict[str, Any]]
"""(restored picture at the original's size, subject) → measured values by name."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate. Restoration options that are None have the pipeline's defaults.

    Attributes:
        suite: name of a suite in `suites.SUITES`.
        methods: names of methods in `METHODS`; None is the suite's methods.
        seed: picture i is degraded by a generator keyed by (seed, i) and restored with noise of seed `seed + i`.
        count: number of pictures to measure, drawn at random by the seed; a larger count continues a smaller one.
            None is all pictures.
        degradation: ranges of the degradations: "model" (those that the model was trained on), or a key of
            `DEGRADATIONS`.
        num_inference_steps: see `RestoreOptions`.
        guidance_scale: see `RestoreOptions`.
        body_guidance_scale: see `RestoreOptions`.
        strength: see `RestoreOptions`.
        sampler: see `RestoreOptions`.
        colour_fix: see `RestoreOptions`.
        use_residual: see `RestoreOptions`.
        use_captions: give the pipeline each picture's caption as its prompt.
        batch_size: pictures per call of a method.
        grid_rows: number of pictures in grid.png.

    Raises:
        ValueError: a value is out of its range.
    """

    suite: str = "stages"
    methods: tuple[str, ...] | None = None
    seed: int = 0
    count: int | None = None
    degradation: str = OWN
    num_inference_steps: int = RestoreOptions.num_inference_steps
    guidance_scale: float | None = None
    body_guidance_scale: float | None = None
    strength: float | None = None
    sampler: str = RestoreOptions.sampler
    colour_fix: str = RestoreOptions.colour_fix
    use_residual: bool | None = None
    use_captions: bool = True
    batch_size: int = 1
    grid_rows: int = 8

    def __post_init__(self) -> None:
        least = {"seed": 0, "count": 1, "batch_size": 1, "grid_rows": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        if self.degradation not in (OWN, *DEGRADATIONS):
            known = ", ".join((OWN, *DEGRADATIONS))
            raise ValueError(f"unknown degradation {self.degradation!r}, choose one of {known}")
        if self.suite not in SUITES:
            raise ValueError(f"unknown suite {self.suite!r}, choose one of {', '.join(SUITES)}")
        for name in self.methods or ():
            if name not in METHODS:
                raise ValueError(f"unknown method {name!r}, choose of {', '.join(METHODS)}")

    @property
    def method_names(self) -> tuple[str, ...]:
        """The names of the methods to evaluate."""
        return self.methods or SUITES[self.suite].methods

    def options(self) -> dict[str, Any]:
        """The fields that are options of `RestoreOptions`, by name."""
        own = [field.name for field in dataclasses.fields(RestoreOptions) if hasattr(self, field.name)]
        return {name: getattr(self, name) for name in own}


def evaluate(
    pipeline: DiffBodyPipeline,
    subjects: Subjects,
    config: EvaluateConfig,
    out: Path,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measure a suite's methods on pictures of people that were not trained on, and write the report to `out`.

    Methods and metrics that this machine lacks are left out, and the report says why. The evaluation can be resumed:
    each result is written to out/rows.jsonl as soon as it is there, and a later call with the same settings and weights
    only computes the missing ones, and those of pictures that are not the same any more.

    Args:
        pipeline: the model.
        subjects: the pictures: photographs, or people from `diffbody synth` with another seed than that of training.
        config: what to evaluate.
        out: folder of the report, created if needed; see `EvaluationReport.write` for its contents.
        progress: called with (done restorations, all restorations, method at work); the first call counts the results
            of earlier calls.

    Raises:
        ValueError: an option is out of its range, body guidance is off but its effect is to be measured, there are too
            few pictures or labels are missing, or `out` holds results of other settings.
    """
    suite, options = SUITES[config.suite], pipeline.settings.options(**config.options())
    names = config.method_names
    if options.body_guidance_scale == 0 and {FULL, "without-sampler"} <= set(names):
        raise ValueError("body_guidance_scale is 0, so diffbody would be without-sampler; it must be above 0")
    if suite.structure:
        subjects.require_labels()
    restores, absent = _build_methods(names, Context(pipeline, options), subjects, config)
    probe: Probe = StructureProbe(pipeline) if suite.structure else (quality := Quality())
    if not suite.structure:
        absent |= quality.absent
    # A pipeline's name_or_path is the folder it was loaded from, or "None".
    folder, size = Path(str(pipeline.name_or_path)), (pipeline.settings.base_height, pipeline.settings.base_width)
    model = {
        "name": folder.name,
        "weights": weights_checksum(pipeline),
        "configuration": configuration_checksum(pipeline),
        "base_size": list(size),
    }
    own = model_recipe(folder, *size)
    recipe = own
    if config.degradation != OWN:
        recipe = Recipe(DEGRADATIONS[config.degradation], "as asked")
    notices = degradation_notices(recipe, own)
    settings = {"model": model, "options": dataclasses.asdict(options)}
    return evaluate_with(restores, probe, settings, subjects, config, recipe, out, progress, absent, notices)


class Quality:
    """The probe that computes all metrics that this machine has.

    Attributes:
        measures: the measures by metric name.
        absent: metrics that this machine lacks, and the reasons.

    Args:
        measures: the measures to use; None is all that this machine has.
    """

    def __init__(self, measures: dict[str, Measure] | None = None) -> None:
        self.absent: dict[str, str] = {}
        if measures is None:
            measures, self.absent = available_metrics()
        self.measures = measures

    def __call__(self, picture: np.ndarray, subject: Subject) -> dict[str, float]:
        """The values by metric name."""
        return {name: measure(picture, subject.pixels) for name, measure in self.measures.items()}


def evaluate_with(
    restores: Mapping[str, Restore],
    probe: Probe,
    settings: dict[str, Any],
    subjects: Subjects,
    config: EvaluateConfig,
    recipe: Recipe,
    out: Path,
    progress: Progress | None = None,
    absent: dict[str, str] | None = None,
    notices: Sequence[str] = (),
) -> EvaluationReport:
    """Evaluate any functions that restore pictures, in the same way as `evaluate`.

    Args:
        restores: the functions by method name, in the order of the tables.
        probe: measures a restored picture.
        settings: what the results of `restores` depend on: {"model": {"name", "weights"}, "options": {...}}.
        subjects: see `evaluate`.
        config: see `evaluate`.
        recipe: how the pictures are degraded.
        out: see `evaluate`.
        progress: see `evaluate`.
        absent: methods and metrics that are left out, and the reasons.
        notices: what whoever reads the report should know.

    Raises:
        ValueError: see `evaluate`.
    """
    suite, chosen = SUITES[config.suite], choose(len(subjects), config)
    settings = {**settings, **_data_settings(subjects, config, recipe)}
    contents = dict(zip(chosen, map_in_order(subjects.content, chosen, READING_THREADS), strict=True))
    results = EvaluationRows(out / "rows.jsonl", settings)
    shown = [] if suite.structure else chosen[: config.grid_rows]
    metrics = set(probe.measures) if isinstance(probe, Quality) else set()

    def missing(index: int, name: str) -> bool:
        """Whether a result is not there, is of another picture, or lacks a metric or a picture that the grid needs."""
        row = results.rows.get((index, name))
        incomplete = row is None or row.content != contents[index] or bool(metrics - row.values.keys())
        return incomplete or (index in shown and not kept_path(out, index, name).exists())

    total = len(chosen) * len(restores)
    done = sum(not missing(index, name) for index in chosen for name in restores)
    if progress is not None:
        progress(done, total, "")
    for first in range(0, len(chosen), config.batch_size):
        batch = chosen[first : first + config.batch_size]
        for name, restore in restores.items():
            todo = [index for index in batch if missing(index, name)]
            if progress is not None and todo:
                progress(done, total, name)
            for row, picture, original in _measure(name, restore, probe, subjects, config, recipe, todo, contents):
                if row.index in shown:
                    kept_path(out, row.index, name).parent.mkdir(parents=True, exist_ok=True)
                    write_image(kept_path(out, row.index, name), picture, overwrite=True)
                    write_image(kept_path(out, row.index, "original"), original, overwrite=True)
                results.add(row)
                done += 1
                if progress is not None:
                    progress(done, total, name)
    names = {index: subjects.people.entry(index).name for index in chosen}  # the same picture may have another name now
    rows = [dataclasses.replace(results.rows[i, name], image=names[i]) for i in chosen for name in restores]
    settings["data"] |= {"checksum": content_checksum(contents[index] for index in chosen)[:16]}
    kind = StructureReport if suite.structure else QualityReport
    said = [*notices, *size_notices(rows, settings["model"].get("base_size"))]
    report = kind(config.suite, settings, _versions(), list(restores), rows, absent or {}, said)
    report.write(out, shown)
    return report


def choose(available: int, config: EvaluateConfig) -> list[int]:
    """Draw the indices of the pictures to measure at random by the seed, without repetition.

    Args:
        available: number of pictures in the data.
        config: its count and seed are used.

    Raises:
        ValueError: there are fewer than `config.count` pictures, or none.
    """
    count = available if config.count is None else config.count
    if not 1 <= count <= available:
        raise ValueError(f"cannot evaluate {count} pictures, the data holds {available}")
    return np.random.default_rng([config.seed, SELECTION_STREAM]).permutation(available)[:count].tolist()


def degraded(truth: np.ndarray, index: int, seed: int, degradation: DegradationConfig) -> np.ndarray:
    """The low-quality version of picture `index`, float32 (h, w, 3) in [0, 1]; it depends on the seed and the index."""
    return degrade(truth, np.random.default_rng([seed, DEGRADATION_STREAM, index]), degradation)


def _build_methods(
    names: Sequence[str], context: Context, subjects: Subjects, config: EvaluateConfig
) -> tuple[dict[str, Restore], dict[str, str]]:
    """Build the available methods, and return them with the reasons why the others are not available."""
    restores, absent = {}, {}
    captions = config.use_captions and any(subjects.captions())
    for name in names:
        if METHODS[name].needs_captions and not captions:
            absent[name] = "there are no captions to leave out"
            continue
        if lacking := [stage for stage in METHODS[name].needs_stages if stage in context.pipeline.lacking]:
            absent[name] = f"the model has no {' and no '.join(OPTIONAL_STAGES[stage] for stage in lacking)}"
            continue
        try:
            restores[name] = METHODS[name].build(context)
        except UnavailableError as error:
            absent[name] = str(error)
    return restores, absent


def _measure(
    name: str,
    restore: Restore,
    probe: Probe,
    subjects: Subjects,
    config: EvaluateConfig,
    recipe: Recipe,
    indices: Sequence[int],
    contents: Mapping[int, str],
) -> list[tuple[Row, np.ndarray, np.ndarray]]:
    """Restore and measure pictures by one method; returns (row, restored picture, original) of each."""
    chosen = [subjects[i] for i in indices]
    tasks = [
        Degraded(
            low=degraded(subject.pixels, i, config.seed, recipe.degradation),
            original=subject.pixels,
            prompt=subject.person.caption if config.use_captions else "",
            seed=config.seed + i,
        )
        for i, subject in zip(indices, chosen, strict=True)
    ]
    started = time.perf_counter()
    results = restore(tasks) if tasks else []
    seconds = (time.perf_counter() - started) / max(len(tasks), 1)
    rows = []
    for i, subject, task, result in zip(indices, chosen, tasks, results, strict=True):
        picture = fit(result.picture, subject.pixels)
        row = Row(
            index=i,
            method=name,
            image=subject.person.name,
            content=contents[i],
            identity=subject.person.identity,
            seed=task.seed,
            size=list(subject.pixels.shape[:2]),
            low_size=list(task.low.shape[:2]),
            seconds=round(seconds, 3),
            values={**probe(picture, subject), **identity_values(result.people)},
            notices=[*result.notices, *identity_notices(result.people or [])],
        )
        rows.append((row, picture, subject.pixels))
    return rows


def _data_settings(subjects: Subjects, config: EvaluateConfig, recipe: Recipe) -> dict[str, Any]:
    """What the results depend on beside the methods and each picture's contents, which are in its rows; without what
    may change on resume (count, methods, grid)."""
    return {
        "structure": SUITES[config.suite].structure,
        "seed": config.seed,
        "use_captions": config.use_captions,
        "degradation": {"name": config.degradation, "origin": recipe.origin, **dataclasses.asdict(recipe.degradation)},
        "data": {
            "folders": [Path(folder).name for folder in subjects.people.folders],
            "pictures": len(subjects),
            "longest_side": subjects.longest_side,
        },
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "diffusers", "transformers", "numpy", "pillow", "scikit-image")
    return {"diffbody": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
