"""One denoising step of many pictures at once, each at a step, with a prompt and with options of its own.

`runtime.restore.Restorer` calls `advance` with one picture, a server with all that are there: the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.samplers import NoiseSource, Schedule, StepInfo, next_latents, predict_z0
from diffbody_ref.ops.tiling import WHOLE, Cells, in_tiles, tile_side
from runtime.bundle import Manifest
from runtime.engines import Infer


@dataclass(frozen=True)
class Target:
    """What body guidance aims at.

    Attributes:
        embeddings: φ (P, K, D) of the P people in r.
        visibility: v (P, K) of their parts.
        windows: (P, 4), their windows x0, y0, x1, y1 in whole pixels.
    """

    embeddings: np.ndarray
    visibility: np.ndarray
    windows: np.ndarray

    def only(self, person: int, left: int, top: int) -> Target:
        """The target of one person, in a part of the picture that begins at pixel (left, top)."""
        one = slice(person, person + 1)
        shift = np.array([left, top, left, top], np.float32)
        return Target(self.embeddings[one], self.visibility[one], self.windows[one] - shift)


@dataclass(frozen=True)
class View:
    """A part of a picture that body guidance decodes at once.

    Attributes:
        cells: index of its latents.
        target: the people in it.
        weight: its share in the picture's loss.
    """

    cells: Cells
    target: Target
    weight: float


def views(target: Target, size: tuple[int, ...], tile_size: int, geometry: Geometry) -> list[View]:
    """What body guidance decodes: the whole picture; of a picture larger than a tile, each person on their own.

    A person larger than a tile is left out: the gradient passes through the decoder, where each pixel takes thousands
    of times the memory that it has.

    Args:
        size: height and width of the latents.
        tile_size: side of a tile in pixels.
    """
    side = tile_side(tile_size, geometry.multiple)
    height, width = (cells * geometry.factor for cells in size)
    if max(height, width) <= side:
        return [View(WHOLE, target, 1.0)]
    found = []
    for person, (x0, y0, x1, y1) in enumerate(target.windows.tolist()):
        spans = [_span(y0, y1, height, side, geometry.multiple), _span(x0, x1, width, side, geometry.multiple)]
        if spans[0] is None or spans[1] is None:
            continue
        rows, columns = (slice(span[0] // geometry.factor, span[1] // geometry.factor) for span in spans if span)
        own = target.only(person, left=spans[1][0], top=spans[0][0])
        found.append(View((..., rows, columns), own, 1.0 / len(target.windows)))
    return found


def _span(start: float, stop: float, size: int, side: int, multiple: int) -> tuple[int, int] | None:
    """A tile's side, or the whole size, around start..stop; None where that is longer."""
    if size <= side:
        return 0, size
    first = int(np.clip(round(((start + stop - side) / 2) / multiple) * multiple, 0, size - side))
    return (first, first + side) if first <= start and stop <= first + side else None


@dataclass
class Sampling:
    """A picture that is being sampled.

    Attributes:
        schedule: the steps that run.
        latents: z (1, C, h, w) at step `step`, and after the last step z_0.
        noise: see `NoiseSource`.
        condition: z_r, pose and attention, (1, C', h, w).
        text: (1, L, D), or (2, L, D) with the negative prompt's; L is 77 for each chunk of the longer one.
        options: of the restoration.
        views: what body guidance looks at; empty where it is off or nobody was found.
        loss_curve: (timestep, loss of eq. 6) of the guided steps so far.
        step: number of steps that are done.
        previous: z_0 of the step before, or None.
    """

    schedule: Schedule
    latents: np.ndarray
    noise: NoiseSource
    condition: np.ndarray
    text: np.ndarray
    options: RestoreOptions
    views: list[View] = field(default_factory=list)
    loss_curve: list[tuple[int, float]] = field(default_factory=list)
    step: int = 0
    previous: np.ndarray | None = None

    def __post_init__(self) -> None:
        # Not to be written to, so that an engine on a GPU copies them there once (see runtime.engines.onnxruntime).
        self.text = constant(self.text)
        self.condition = constant(np.repeat(self.condition, len(self.text), axis=0))

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step == len(self.schedule)

    @property
    def timestep(self) -> int:
        """t of the coming step."""
        return self.schedule.timesteps[self.step]

    @property
    def guided(self) -> bool:
        """Whether body guidance is active at the coming step."""
        return bool(self.views) and self.options.guides(self.timestep, self.step)

    def advance(self, z0: np.ndarray, loss: np.ndarray | None) -> StepInfo:
        """Go to the next step by the (guided) z_0 of this one, whose loss (1,) is kept."""
        step, t = self.step, self.timestep
        self.latents = next_latents(self.schedule, step, self.latents, z0, self.previous, self.noise)
        self.previous, self.step = z0, step + 1
        if loss is not None:
            self.loss_curve.append((t, float(loss[0])))
        return StepInfo(step, len(self.schedule), t, z0, self.latents, loss)


def advance(batch: Sequence[Sampling], infer: Infer, manifest: Manifest) -> list[StepInfo]:
    """Do one step of each; those of one size go through the networks together. It fails for all, or for none.

    Those whose prompts are of different lengths do not: a longer text is another result, whoever else is there.
    """
    by_size: dict[tuple[object, ...], list[int]] = {}
    for index, sampling in enumerate(batch):
        by_size.setdefault((*sampling.latents.shape, sampling.text.shape[1], sampling.options.tile_size), []).append(
            index
        )
    z0: dict[int, np.ndarray] = {}
    losses: dict[int, np.ndarray] = {}
    for indices in by_size.values():
        outputs = _denoise([batch[index] for index in indices], infer, manifest)
        for index, output in zip(indices, outputs, strict=True):
            z0[index] = predict_z0(batch[index].schedule, batch[index].step, batch[index].latents, output)
        guided = {index: z0[index] for index in indices}
        losses |= _guide(batch, guided, infer, manifest)
        z0 |= guided
    return [sampling.advance(z0[index], losses.get(index)) for index, sampling in enumerate(batch)]


def _denoise(group: Sequence[Sampling], infer: Infer, manifest: Manifest) -> list[np.ndarray]:
    """ε_θ of each, with classifier-free guidance, ε_∅ + w·(ε_c − ε_∅) (Ho & Salimans 2022), tiled on large latents.

    Of v or z_0, which are linear in ε, the same mixture is the same guidance.
    """
    counts = [len(sampling.text) for sampling in group]
    latents = _join([np.repeat(s.latents, len(s.text), axis=0) for s in group])
    timesteps = np.concatenate([np.full(len(s.text), s.timestep, np.int64) for s in group])
    condition, text = (_join([getattr(s, name) for s in group]) for name in ("condition", "text"))
    most = manifest.stages["denoiser"].sizes["batch"].most

    def one_tile(cells: Cells) -> np.ndarray:
        tile = {"latents": latents[cells], "condition": condition[cells], "timesteps": timesteps, "text": text}
        parts = []
        for rows in (slice(start, start + most) for start in range(0, len(text), most)):
            feed = {name: np.ascontiguousarray(array[rows]) for name, array in tile.items()}
            parts.append(infer("denoiser", feed)["noise"])
        return _join(parts)

    geometry, tile_size = manifest.geometry, group[0].options.tile_size
    noise = in_tiles(one_tile, latents.shape[2:], tile_size, geometry.multiple, cell=geometry.factor)
    mixed = []
    for sampling, own in zip(group, np.split(noise, np.cumsum(counts)[:-1]), strict=True):
        if len(own) == 2:
            own = own[1:] + np.float32(sampling.options.guidance_scale) * (own[:1] - own[1:])
        mixed.append(own)
    return mixed


def _guide(
    batch: Sequence[Sampling], z0: dict[int, np.ndarray], infer: Infer, manifest: Manifest
) -> dict[int, np.ndarray]:
    """Move the z̃_0 of those that are guided, z̃_0 ← z̃_0 − s·∇L; their losses (1,) by index."""
    losses: dict[int, np.ndarray] = {}
    asked = [(index, view) for index in z0 if batch[index].guided for view in batch[index].views]
    before = {index: z0[index] for index, _ in asked}
    if not asked:
        return losses
    sizes = manifest.stages["guidance"].sizes
    # What is decoded at once is a tile at most: of its memory, the gradient takes gigabytes.
    index, view = asked[0]
    cells = z0[index][view.cells][0, 0].size
    side = batch[index].options.tile_size // manifest.geometry.factor
    for together in _at_once(asked, max(1, min(sizes["batch"].most, side**2 // cells)), sizes["people"].most):
        targets = [view.target for _, view in together]
        scales = [view.weight * batch[index].options.body_guidance_scale for index, view in together]
        feed = {
            "latents": np.ascontiguousarray(_join([before[index][view.cells] for index, view in together])),
            "embeddings": _join([target.embeddings for target in targets]),
            "visibility": _join([target.visibility for target in targets]),
            "windows": _join([target.windows for target in targets]),
            "owners": np.repeat(np.eye(len(targets), dtype=np.float32), [len(t.windows) for t in targets], axis=0),
            "scale": np.array(scales, np.float32),
        }
        result = infer("guidance", feed)
        for row, (index, view) in enumerate(together):
            step = np.zeros_like(z0[index])
            step[view.cells] = result["gradient"][row : row + 1]
            z0[index] = z0[index] - step
            losses[index] = losses.get(index, np.float32(0)) + view.weight * result["loss"][row : row + 1]
    return losses


def _at_once(asked: Sequence[tuple[int, View]], most: int, most_people: int) -> Iterator[list[tuple[int, View]]]:
    """Views, all of one size, at most so many and with so many people at once, but one at least."""
    together: list[tuple[int, View]] = []
    people = 0
    for index, view in asked:
        count = len(view.target.windows)
        if together and (len(together) == most or people + count > most_people):
            yield together
            together, people = [], 0
        together.append((index, view))
        people += count
    if together:
        yield together


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Along the first axis; one alone stays what it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def constant(array: np.ndarray) -> np.ndarray:
    """The array, as one that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
