"""`diffbody evaluate`: how well a pipeline restores pictures of people it was not trained on.

Every picture is degraded by a seeded draw and restored; each of `METHODS` is measured against the original:

- PSNR and SSIM: fidelity. The regression stage is trained for the first and blurs what it cannot know.
- sharpness and detail error: see `diffbody_ref.measures`. A picture is sharper in earnest when its sharpness
  is nearer to 1 *and* its detail error is no higher: then most of the detail that it has more is where it was missing.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from diffbody_ref import __version__
from diffbody_ref.data.datasets import PeopleFolder
from diffbody_ref.data.degradations import NANO, PAPER, degrade
from diffbody_ref.measures import MEASURES
from diffbody_ref.ops.contact import labelled_grid
from diffbody_ref.ops.images import resize, write_image

if TYPE_CHECKING:
    from diffbody_ref.pipeline import DiffBodyPipeline

METHODS = ("input", "bicubic", "swinir", "diffbody-unguided", "diffbody")
RESTORED = METHODS[2:]
COLUMNS = (*METHODS, "ground truth")
PAIRS = (("swinir", "bicubic"), ("diffbody", "swinir"), ("diffbody", "diffbody-unguided"))
DEGRADATIONS = {"nano": NANO, "paper": PAPER}

SMALL_WIDTH = 256  # pictures narrower than this are shown twice as large in the grid
# Tags of this module's random streams; training uses [seed, epoch], [seed, 1, ...] and [seed, 2, ...].
DEGRADATION_STREAM, SELECTION_STREAM = 3, 4


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate; restoration options left at None are the pipeline's defaults.

    Attributes:
        seed: picture i is degraded by a generator keyed by (seed, i) and restored with noise of the seed `seed + i`.
        count: pictures to measure, drawn at random by the seed; a larger count continues a smaller one. None: all.
        degradation: ranges of the degradations, one of `DEGRADATIONS`.
        num_inference_steps, guidance_scale, body_guidance_scale, strength, sampler, colour_fix: see `RestoreOptions`.
        use_captions: give the pipeline each picture's caption as its prompt.
        batch_size: pictures per call of the pipeline.
        grid_rows: pictures shown in grid.png.

    Raises:
        ValueError: a value out of its range.
    """

    seed: int = 0
    count: int | None = None
    degradation: str = "nano"
    num_inference_steps: int = 50
    guidance_scale: float | None = None
    body_guidance_scale: float | None = None
    strength: float | None = None
    sampler: str = "ddpm"
    colour_fix: str = "wavelet"
    use_captions: bool = True
    batch_size: int = 1
    grid_rows: int = 8

    def __post_init__(self) -> None:
        least = {"seed": 0, "count": 1, "batch_size": 1, "grid_rows": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        if self.degradation not in DEGRADATIONS:
            raise ValueError(f"unknown degradation {self.degradation!r}, choose one of {', '.join(DEGRADATIONS)}")

    def options(self) -> dict[str, Any]:
        """The fields that are `RestoreOptions`."""
        names = ("num_inference_steps", "guidance_scale", "body_guidance_scale", "strength", "sampler", "colour_fix")
        return {name: getattr(self, name) for name in names}


class Restored(NamedTuple):
    """One picture's restorations, float32 (H, W, 3) in [0, 1] by `RESTORED`, and the pipeline's notices about it."""

    pictures: dict[str, np.ndarray]
    notices: list[str]


# (degraded pictures brought to the original's size, prompts, seeds) → one `Restored` a picture
Restore = Callable[[list[np.ndarray], list[str], list[int]], list[Restored]]


@dataclass(frozen=True)
class Row:
    """One picture's results: `measures[method][measure]`; index counts the data's pictures; low_size is (h, w)."""

    index: int
    image: str
    identity: int | None
    seed: int
    low_size: list[int]
    measures: dict[str, dict[str, float]]
    notices: list[str]


class Estimate(NamedTuple):
    """A mean over pictures and its standard error (None for a single picture)."""

    mean: float
    standard_error: float | None


@dataclass(frozen=True)
class Report:
    """Settings (all that the results depend on), versions of software, counts, and the rows they summarise."""

    settings: dict[str, Any]
    versions: dict[str, str]
    counts: dict[str, int]
    rows: list[Row]

    def estimate(self, method: str, measure: str, minus: str | None = None) -> Estimate:
        """Of a method; with `minus`, of the paired difference from another method, picture by picture."""
        values = np.array([row.measures[method][measure] for row in self.rows])
        if minus is not None:
            values -= [row.measures[minus][measure] for row in self.rows]
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        return Estimate(float(values.mean()), error)

    def as_dict(self) -> dict[str, Any]:
        """What report.json holds."""
        methods = {m: {k: self.estimate(m, k)._asdict() for k in MEASURES} for m in METHODS}
        pairs = {f"{a} - {b}": {k: self.estimate(a, k, b)._asdict() for k in MEASURES} for a, b in PAIRS}
        known = {"settings": self.settings, "versions": self.versions, "counts": self.counts}
        return {**known, "methods": methods, "differences": pairs, "rows": [dataclasses.asdict(r) for r in self.rows]}

    def as_markdown(self) -> str:
        """What report.md holds: the settings in a few lines, and the two tables."""
        settings, counts = self.settings, self.counts
        model, folders = settings["model"], ", ".join(settings["data"]["folders"])
        captions = "each picture's caption" if settings["use_captions"] else "empty"
        lines = [
            "# Evaluation",
            "",
            f"Model `{model['name']}` (weights {model['weights']}), data {folders}: {counts['pictures']} pictures "
            f"of {counts['identities']} people, degradation `{settings['degradation']['name']}`, "
            f"seed {settings['seed']}. Prompt: {captions}. "
            f"{counts['with_notices']} pictures with a notice (such as no person found).",
            "",
            "Options: " + ", ".join(f"{name} {value}" for name, value in settings["options"].items()) + ".",
            "",
            "Mean ± standard error. Sharpness is the energy of the finest details over the original's: 1 is as sharp, "
            "less is over-smoothed. Detail error is the detail energy missing or too much per 8×8 block, over the "
            "original's: 0 is best; it rises where noise passes for sharpness.",
            "",
            *self._table("Method", {m: [self.estimate(m, k) for k in MEASURES] for m in METHODS}, sign=""),
            "",
            "Differences, picture by picture:",
            "",
            *self._table("Pair", {f"{a} − {b}": [self.estimate(a, k, b) for k in MEASURES] for a, b in PAIRS}, "+"),
            "",
            "Versions: " + ", ".join(f"{name} {number}" for name, number in self.versions.items()) + ".",
        ]
        return "\n".join(lines) + "\n"

    @staticmethod
    def _table(head: str, lines: dict[str, list[Estimate]], sign: str) -> Iterator[str]:
        yield f"| {head} | PSNR (dB) ↑ | SSIM ↑ | Sharpness → 1 | Detail error ↓ |"
        yield "|---|---:|---:|---:|---:|"
        for name, estimates in lines.items():
            cells = [
                f"{e.mean:{sign}.{digits}f}" + ("" if e.standard_error is None else f" ± {e.standard_error:.{digits}f}")
                for e, digits in zip(estimates, (2, 4, 3, 3), strict=True)
            ]
            yield f"| {name} | {' | '.join(cells)} |"


def evaluate(
    pipeline: DiffBodyPipeline,
    people: PeopleFolder,
    config: EvaluateConfig,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Measure `METHODS` on held-out people; write report.json, report.md and grid.png to `out`.

    Resumable: a picture's results are in out/rows.jsonl as soon as it is done, and a later call with the same
    settings, weights and data does the rest only.

    Args:
        people: pictures of identities that were not trained on (another seed of `diffbody synth` makes them so).
        out: folder, made where it is missing.
        progress: called with (pictures done, pictures in all), at first with what an earlier call left.

    Raises:
        ValueError: an option out of its range, body guidance off (its two methods would be one), too few pictures, or
            results of other settings in `out`.
    """
    options = pipeline.options(**config.options())
    if options.body_guidance_scale == 0:
        raise ValueError("body_guidance_scale is 0, so diffbody would be diffbody-unguided; it must be above 0")
    asked = dataclasses.asdict(options)

    def restore(pictures: list[np.ndarray], prompts: list[str], seeds: list[int]) -> list[Restored]:
        call = {"prompt": prompts, "seed": seeds, "output_type": "np"}
        full = pipeline(pictures, **call, **asked, return_intermediates=True)
        unguided = pipeline(pictures, **call, **{**asked, "body_guidance_scale": 0.0})
        columns = ([found.regression for found in full.intermediates or []], unguided.images, full.images)
        names = [dict(zip(RESTORED, row, strict=True)) for row in zip(*columns, strict=True)]
        return [Restored(row, notices) for row, notices in zip(names, full.notices, strict=True)]

    # A pipeline's name_or_path is the folder it was loaded from, or "None".
    model = {"name": Path(str(pipeline.name_or_path)).name, "weights": weights_checksum(pipeline)}
    return evaluate_with(restore, {"model": model, "options": asked}, people, config, out, progress)


def evaluate_with(
    restore: Restore,
    settings: dict[str, Any],
    people: PeopleFolder,
    config: EvaluateConfig,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """`evaluate` of any way to restore.

    Args:
        settings: what the results of `restore` depend on: {"model": {"name", "weights"}, "options": {...}}.

    Raises:
        ValueError: as `evaluate`.
    """
    chosen = choose(len(people), config)
    # Through JSON, so that they compare with those of an earlier run's file.
    settings = json.loads(json.dumps({**settings, **_data_settings(people, config)}))
    (out / "rows").mkdir(parents=True, exist_ok=True)
    rows = _open_rows(out / "rows.jsonl", settings)
    shown = chosen[: config.grid_rows]
    # Rows that the grid needs but an earlier, smaller grid did not keep are done again.
    missing = [i for i in chosen if i not in rows or (i in shown and not _strip_path(out, i).exists())]
    done = len(chosen) - len(missing)
    if progress is not None:
        progress(done, len(chosen))
    for first in range(0, len(missing), config.batch_size):
        batch = missing[first : first + config.batch_size]
        for row, strip in _measure(restore, people, config, batch):
            if row.index in shown:
                write_image(_strip_path(out, row.index), np.concatenate(strip, axis=1), overwrite=True)
            with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row), allow_nan=False) + "\n")
            rows[row.index] = row
            done += 1
            if progress is not None:
                progress(done, len(chosen))
    report = _report(settings, [rows[i] for i in chosen])
    _write_whole(out / "report.json", json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")
    _write_whole(out / "report.md", report.as_markdown())
    if shown:
        write_image(out / "grid.png", _grid([_strip_path(out, i) for i in shown]), overwrite=True)
    return report


def choose(available: int, config: EvaluateConfig) -> list[int]:
    """Indices of the pictures to measure, in order: a random draw by the seed, without repetition.

    Raises:
        ValueError: there are fewer than `config.count` pictures, or none.
    """
    count = available if config.count is None else config.count
    if not 1 <= count <= available:
        raise ValueError(f"cannot evaluate {count} pictures, the data holds {available}")
    return np.random.default_rng([config.seed, SELECTION_STREAM]).permutation(available)[:count].tolist()


def degraded(truth: np.ndarray, index: int, config: EvaluateConfig) -> np.ndarray:
    """The low-quality version of picture `index`, float32 (h, w, 3) in [0, 1]: a function of the seed and the index."""
    rng = np.random.default_rng([config.seed, DEGRADATION_STREAM, index])
    return degrade(truth, rng, DEGRADATIONS[config.degradation])


def _measure(
    restore: Restore, people: PeopleFolder, config: EvaluateConfig, batch: Sequence[int]
) -> Iterator[tuple[Row, list[np.ndarray]]]:
    """Rows of a batch of pictures, each with its pictures in the order of `COLUMNS`."""
    persons = [people[i] for i in batch]
    truths = [person.picture.astype(np.float32) / np.float32(255) for person in persons]
    lows = [degraded(truth, i, config) for truth, i in zip(truths, batch, strict=True)]
    # The pipeline would bring a small picture to its base size itself, by the same filter; the original's size keeps
    # the pixels of all methods aligned where rounding the aspect would not.
    bicubic = [_fit(low, truth) for low, truth in zip(lows, truths, strict=True)]
    prompts = [person.caption if config.use_captions else "" for person in persons]
    results = restore(bicubic, prompts, [config.seed + i for i in batch])
    for index, person, truth, low, large, result in zip(batch, persons, truths, lows, bicubic, results, strict=True):
        height, width = truth.shape[:2]
        pictures = {"input": resize(low, height, width, "nearest"), "bicubic": large}
        pictures |= {name: _fit(result.pictures[name], truth) for name in RESTORED}
        measures = {m: {k: measure(pictures[m], truth) for k, measure in MEASURES.items()} for m in METHODS}
        seed, image = config.seed + index, people.entry(index).name
        row = Row(index, image, person.identity, seed, list(low.shape[:2]), measures, result.notices)
        yield row, [*(pictures[m] for m in METHODS), truth]


def _fit(picture: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`picture` at the size of `truth`, by bicubic where it differs (a pipeline's base size may be larger)."""
    height, width = truth.shape[:2]
    return picture if picture.shape == truth.shape else np.clip(resize(picture, height, width), 0.0, 1.0)


def _grid(strips: list[Path]) -> np.ndarray:
    rows = [np.asarray(Image.open(strip), np.float32) / np.float32(255) for strip in strips]
    pictures = [np.split(row, len(COLUMNS), axis=1) for row in rows]
    widest = max(row[0].shape[1] for row in pictures)
    return labelled_grid(pictures, COLUMNS, scale=2 if widest < SMALL_WIDTH else 1)


def weights_checksum(pipeline: DiffBodyPipeline) -> str:
    """CRC-32 over all tensors of all networks, as hexadecimal: tells a retrained model in the same folder apart."""
    checksum = 0
    for name, component in sorted(pipeline.components.items()):
        for key, tensor in component.state_dict().items() if isinstance(component, torch.nn.Module) else ():
            checksum = zlib.crc32(f"{name}.{key}".encode(), checksum)
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            checksum = zlib.crc32(memoryview(raw.numpy()), checksum)
    return f"{checksum:08x}"


def _data_settings(people: PeopleFolder, config: EvaluateConfig) -> dict[str, Any]:
    """What the results depend on beside the way to restore. Not `count` and `grid_rows`: those may grow on resume."""
    entries = [people.entry(i) for i in range(len(people))]
    records = json.dumps([(entry.name, entry.caption, entry.identity) for entry in entries])
    folders = [Path(folder).name for folder in people.folders]
    return {
        "seed": config.seed,
        "use_captions": config.use_captions,
        "degradation": {"name": config.degradation, **dataclasses.asdict(DEGRADATIONS[config.degradation])},
        "data": {"folders": folders, "pictures": len(people), "metadata": f"{zlib.crc32(records.encode()):08x}"},
    }


def _open_rows(path: Path, settings: dict[str, Any]) -> dict[int, Row]:
    """Rows done so far, by index. The file's first line is the settings; one is started where there is none.

    Raises:
        ValueError: the file is of other settings, or not such a file.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # a run that was cut may leave half a line
    if not whole:
        _write_whole(path, json.dumps({"settings": settings}) + "\n")
        return {}
    try:
        head, *lines = [json.loads(line) for line in whole.splitlines()]
        before, rows = head["settings"], [Row(**line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not rows of an evaluation: {error}") from None
    if before != settings:
        changed = ", ".join(sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k)))
        raise ValueError(f"{path}: made with other settings ({changed}); choose another output folder or remove it")
    if whole != text:
        _write_whole(path, whole)
    return {row.index: row for row in rows}


def _write_whole(path: Path, text: str) -> None:
    """A reader, or a run that is cut, never meets half a file."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _strip_path(out: Path, index: int) -> Path:
    """The pictures of one row of the grid side by side, kept for a resumed run."""
    return out / "rows" / f"{index:06d}.png"


def _report(settings: dict[str, Any], rows: list[Row]) -> Report:
    packages = ("torch", "diffusers", "transformers", "numpy", "pillow", "scikit-image")
    versions = {"diffbody": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
    counts = {
        "pictures": len(rows),
        "identities": len({row.identity for row in rows} - {None}),
        "with_notices": sum(bool(row.notices) for row in rows),
    }
    return Report(settings, versions, counts, rows)
