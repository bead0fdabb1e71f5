"""One denoising step of many pictures at once, each at a step, with a prompt and with settings of its own.

`runtime.restore.Restorer` does so with one picture, a server with all that are there: the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from runtime.bundle import Manifest
from runtime.engines import Infer
from runtime.sampling import Step, Trajectory
from runtime.tiles import Cells, in_tiles


@dataclass(frozen=True)
class Target:
    """What body guidance aims at: φ (P, K, D) and v (P, K) of the P people in r, and their windows (P, 4) in pixels."""

    embeddings: np.ndarray
    visibility: np.ndarray
    windows: np.ndarray


@dataclass
class Sampling:
    """A picture that is being sampled.

    Attributes:
        trajectory: latents (1, C, h, w) and their schedule.
        condition: z_r, pose and attention (1, C', h, w). text: (1, L, D), or (2, L, D) with the negative prompt's.
        options: checked ones, with a tile size.
        target: None where guidance is off or nobody was found.
        loss_curve: (timestep, loss of eq. 6) of the guided steps so far.
    """

    trajectory: Trajectory
    condition: np.ndarray
    text: np.ndarray
    options: RestoreOptions
    target: Target | None = None
    loss_curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Not to be written to, so that an engine on a GPU copies them there once (see runtime.engines.onnxruntime).
        self.text = constant(self.text)
        self.condition = constant(np.repeat(self.condition, len(self.text), axis=0))

    @property
    def guided(self) -> bool:
        """The coming step is one that body guidance is active at."""
        options, trajectory = self.options, self.trajectory
        active = options.body_guidance_stop < trajectory.t < options.body_guidance_start
        return self.target is not None and active and trajectory.step % options.body_guidance_every == 0


def advance(batch: Sequence[Sampling], infer: Infer, manifest: Manifest) -> list[Step]:
    """One step of each; those of one size go through the networks together. Fails for all, or for none."""
    by_size: dict[tuple[object, ...], list[int]] = {}
    for index, sampling in enumerate(batch):
        key = (*sampling.trajectory.latents.shape, sampling.options.tile_size)
        by_size.setdefault(key, []).append(index)
    z0: dict[int, np.ndarray] = {}
    losses: dict[int, np.ndarray] = {}
    for indices in by_size.values():
        noise = _predict_noise([batch[index] for index in indices], infer, manifest)
        predicted = {index: batch[index].trajectory.predict_z0(eps) for index, eps in zip(indices, noise, strict=True)}
        losses |= _guide(batch, predicted, infer, manifest)
        z0 |= predicted
    steps = []
    for index, sampling in enumerate(batch):
        step = sampling.trajectory.advance(z0[index], losses.get(index))
        if step.loss is not None:
            sampling.loss_curve.append((step.timestep, float(step.loss[0])))
        steps.append(step)
    return steps


def _predict_noise(group: Sequence[Sampling], infer: Infer, manifest: Manifest) -> list[np.ndarray]:
    """ε_θ of each, with classifier-free guidance, ε_∅ + w·(ε_c − ε_∅) (Ho & Salimans 2022), tiled on large latents."""
    counts = [len(sampling.text) for sampling in group]
    latents = _join([np.repeat(s.trajectory.latents, len(s.text), axis=0) for s in group])
    timesteps = np.concatenate([np.full(len(s.text), s.trajectory.t, np.int64) for s in group])
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
    assert tile_size is not None  # the bundle's, see Restorer.options()
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
    for indices in _people_together(batch, [index for index in z0 if batch[index].guided], manifest):
        targets = [target for index in indices if (target := batch[index].target) is not None]
        owners = np.repeat(np.eye(len(targets), dtype=np.float32), [len(t.windows) for t in targets], axis=0)
        feed = {
            "latents": _join([z0[index] for index in indices]),
            "embeddings": _join([target.embeddings for target in targets]),
            "visibility": _join([target.visibility for target in targets]),
            "windows": _join([target.windows for target in targets]),
            "owners": owners,
            "scale": np.array([batch[index].options.body_guidance_scale for index in indices], np.float32),
        }
        result = infer("guidance", feed)
        for row, index in enumerate(indices):
            z0[index] = z0[index] - result["gradient"][row : row + 1]
            losses[index] = result["loss"][row : row + 1]
    return losses


def _people_together(batch: Sequence[Sampling], indices: Sequence[int], manifest: Manifest) -> Iterator[list[int]]:
    """As many at once as the guidance stage takes, pictures and people."""
    sizes = manifest.stages["guidance"].sizes
    together: list[int] = []
    people = 0
    for index in indices:
        target = batch[index].target
        assert target is not None
        if together and (len(together) == sizes["batch"].most or people + len(target.windows) > sizes["people"].most):
            yield together
            together, people = [], 0
        together.append(index)
        people += len(target.windows)
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
