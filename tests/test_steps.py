"""Steps of many pictures at once: each gets what it gets alone; and body guidance of pictures larger than a tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffbody_ref.ops.builtin import NANO_FOLDER
from runtime.engines import EngineConfig
from runtime.restore import Parts, Restorer
from runtime.steps import Sampling, Target, advance, views

CALLS: list[dict[str, Any]] = [
    {"num_inference_steps": 5, "seed": 1, "strength": 1.0},
    {"num_inference_steps": 3, "seed": 2, "guidance_scale": 2.0, "sampler": "dpm++", "strength": 1.0},
    {"num_inference_steps": 4, "seed": 3, "sampler": "ddim", "strength": 1.0, "body_guidance_scale": 0.0},
    {"num_inference_steps": 5, "seed": 4, "body_guidance_every": 2, "strength": 0.5},
]


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.open(NANO_FOLDER, EngineConfig(threads=1))


def random_target(rng: np.random.Generator, parts: int, windows: list[tuple[float, float, float, float]]) -> Target:
    """People in these windows, all of whose parts are seen."""
    embeddings = np.abs(rng.standard_normal((len(windows), parts, 64), np.float32))
    return Target(embeddings, np.ones((len(windows), parts), np.float32), np.array(windows, np.float32))


# Random embeddings are many times further away than a picture's own. At nano's 100 the steps are so long that the
# rounding of one ReLU at its kink (1e-2 of a gradient in float32) grows to 0.2; at 2 guidance still moves latents by
# 0.01 to 0.03.
GUIDANCE = {"body_guidance_scale": 2.0}


def begin(restorer: Restorer, call: dict[str, Any], height: int = 64, width: int = 64) -> Sampling:
    """A sampling of random latents with one person in the picture."""
    asked = {**GUIDANCE, **{name: value for name, value in call.items() if name != "seed"}}
    seed, options = call["seed"], restorer.settings.options(**asked)
    rng = np.random.default_rng(seed)
    geometry = restorer.geometry
    draw = lambda *shape: np.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
    z_r = draw(1, geometry.latent_channels, height // geometry.factor, width // geometry.factor)
    pose = np.zeros((1, 3, height, width), np.float32)
    attention = np.zeros((1, len(geometry.part_names) + 1, height, width), np.float32)
    target = random_target(rng, len(geometry.part_names), [(4, 0, width - 4, height)])
    text = restorer.encode_text(f"person {seed}", "", options)
    return restorer.begin(z_r, pose, Parts(attention, target), text, options, seed)


def finish(restorer: Restorer, batch: list[Sampling]) -> list[np.ndarray]:
    """Steps until all are done; who is done leaves."""
    going = list(batch)
    while going:
        advance(going, restorer.infer, restorer.manifest)
        going = [sampling for sampling in going if not sampling.done]
    return [sampling.latents for sampling in batch]


def test_what_is_batched_is_what_it_is_alone(restorer: Restorer) -> None:
    """Others of the same size, of another size, one that joins later: all with settings of their own."""
    alone = [finish(restorer, [begin(restorer, call)])[0] for call in CALLS]
    other = finish(restorer, [begin(restorer, CALLS[0], width=96)])[0]
    batch = [begin(restorer, call) for call in CALLS[:3]]
    wide = begin(restorer, CALLS[0], width=96)
    advance([*batch, wide], restorer.infer, restorer.manifest)
    late = begin(restorer, CALLS[3])
    together = finish(restorer, [*batch, wide, late])
    for found, wanted in zip(together, [*alone[:3], other, alone[3]], strict=True):
        # float32 sums may run in another order in a batch; latents are of the size 1.
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_what_fails_leaves_all_as_they_were(restorer: Restorer) -> None:
    def fail_at_guidance(stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if stage == "guidance":
            raise MemoryError
        return restorer.infer(stage, feed)

    batch = [begin(restorer, call) for call in CALLS]
    before = [sampling.latents for sampling in batch]
    with pytest.raises(MemoryError):
        advance(batch, fail_at_guidance, restorer.manifest)
    assert [sampling.step for sampling in batch] == [0] * len(batch)
    assert all(np.array_equal(s.latents, z) for s, z in zip(batch, before, strict=True))


def target_of(*windows: tuple[float, float, float, float]) -> Target:
    return random_target(np.random.default_rng(0), 5, list(windows))


def test_a_small_picture_is_looked_at_as_a_whole(restorer: Restorer) -> None:
    target = target_of((0, 0, 100, 200), (50, 10, 90, 200))
    (view,) = views(target, (256 // restorer.geometry.factor, 128 // restorer.geometry.factor), 256, restorer.geometry)
    assert view.target is target
    assert view.weight == 1.0


def test_of_a_large_picture_each_person_is_looked_at(restorer: Restorer) -> None:
    """Each within a tile, at the same place of the picture; those larger than a tile are left out."""
    geometry = restorer.geometry
    people = [(10.0, 20.0, 110.0, 240.0), (700.0, 300.0, 790.0, 500.0), (0.0, 0.0, 100.0, 300.0)]
    found = views(target_of(*people), (512 // geometry.factor, 800 // geometry.factor), 256, geometry)
    assert len(found) == 2
    for view, (x0, y0, x1, y1) in zip(found, people, strict=False):
        _, rows, columns = view.cells
        top, left = rows.start * geometry.factor, columns.start * geometry.factor
        assert (rows.stop - rows.start) * geometry.factor == (columns.stop - columns.start) * geometry.factor == 256
        assert top % geometry.multiple == left % geometry.multiple == 0
        assert top + 256 <= 512
        assert left + 256 <= 800
        assert view.target.windows.tolist() == [[x0 - left, y0 - top, x1 - left, y1 - top]]
        assert view.target.windows.min() >= 0
        assert view.target.windows.max() <= 256
        assert view.weight == pytest.approx(1 / 3)


def test_a_view_is_guided_as_the_same_picture_would_be(restorer: Restorer) -> None:
    """Beside the view nothing moves; in it, what moves a picture of the view alone, but for the person's weight."""
    geometry = restorer.geometry
    rng = np.random.default_rng(3)
    cells = 512 // geometry.factor
    z0 = rng.standard_normal((1, geometry.latent_channels, cells, 256 // geometry.factor), np.float32)
    target = target_of((20, 300, 100, 500))
    (view,) = views(target, z0.shape[2:], 256, geometry)
    options = restorer.settings.options(tile_size=256, num_inference_steps=2)
    moved = []
    for latents, own in ((z0, [view]), (z0[view.cells], views(view.target, z0[view.cells].shape[2:], 256, geometry))):
        sampling = begin(restorer, {"seed": 0})
        sampling.options, sampling.views = options, own
        moved.append(guided(restorer, sampling, latents))
    whole, part = moved
    np.testing.assert_array_equal(whole[view.cells], part)
    outside = np.ones(z0.shape[2:], bool)
    outside[view.cells[1:]] = False
    assert not whole[0][:, outside].any()
    assert np.abs(part).max() > 0


def guided(restorer: Restorer, sampling: Sampling, latents: np.ndarray) -> np.ndarray:
    """How far body guidance moves the latents."""
    from runtime.steps import _guide

    z0 = {0: latents}
    _guide([sampling], z0, restorer.infer, restorer.manifest)
    return z0[0] - latents


def test_what_is_decoded_at_once_is_a_tile_at_most(restorer: Restorer) -> None:
    seen: list[tuple[int, ...]] = []

    def watch(stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if stage == "guidance":
            seen.append(feed["latents"].shape)
        return restorer.infer(stage, feed)

    call = {"seed": 1, "num_inference_steps": 2, "tile_size": 128}
    advance([begin(restorer, call) for _ in range(6)], watch, restorer.manifest)
    # Four pictures of 64×64 pixels are a tile of 128×128.
    assert [shape[0] for shape in seen] == [4, 2]
