"""Measures against hand computation, and an evaluation with stand-ins for the pipeline."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from diffbody_ref.data.datasets import PeopleFolder
from diffbody_ref.evaluation import (
    METHODS,
    RESTORED,
    EvaluateConfig,
    Report,
    Restored,
    degraded,
    evaluate,
    evaluate_with,
)
from diffbody_ref.evaluation.measures import detail_error, psnr, sharpness, ssim
from diffbody_ref.ops.contact import labelled_grid
from diffbody_ref.ops.images import read_image
from diffbody_ref.ops.options import RestoreOptions

HEIGHT, WIDTH, PICTURES = 48, 32, 6
SETTINGS = {"model": {"name": "stand-in", "weights": "0"}, "options": {"num_inference_steps": 2}}


def scene(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """float32 (H, W, 3): soft colours, a hard-edged box and a patch of texture, as pictures of dressed people have."""
    rng = np.random.default_rng(seed)
    picture = gaussian_filter(rng.random((height, width, 3)), (6, 6, 0))
    picture[height // 4 : height // 2, width // 4 : -width // 4] += 0.4
    picture[height // 2 :, : width // 2] += 0.3 * (rng.random((height - height // 2, width // 2, 1)) - 0.5)
    return np.clip(picture, 0, 1).astype(np.float32)


@pytest.fixture
def people(tmp_path: Path) -> PeopleFolder:
    folder = tmp_path / "people"
    folder.mkdir()
    lines = []
    for i in range(PICTURES):
        Image.fromarray(np.uint8(scene(i) * 255)).save(folder / f"{i}.png")
        Image.new("L", (WIDTH, HEIGHT)).save(folder / f"{i}-parts.png")
        record = {"image": f"{i}.png", "parts": f"{i}-parts.png", "identity": i // 2, "caption": f"person {i}"}
        lines.append(json.dumps({**record, "keypoints": [[0, 0, 0]] * 133, "box": [0, 0, 1, 1]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return PeopleFolder([folder])


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(picture, (sigma, sigma, 0))


class StandIn:
    """A way to restore that only blurs, and remembers by seed what it was given."""

    def __init__(self) -> None:
        self.given: dict[int, tuple[np.ndarray, str]] = {}
        self.batches: list[int] = []

    def __call__(self, pictures: list[np.ndarray], prompts: list[str], seeds: list[int]) -> list[Restored]:
        assert not self.given.keys() & set(seeds)
        self.given |= dict(zip(seeds, zip(pictures, prompts, strict=True), strict=True))
        self.batches.append(len(pictures))
        sigmas = dict(zip(RESTORED, (2.0, 1.0, 0.5), strict=True))
        return [Restored({name: blur(p, sigma) for name, sigma in sigmas.items()}, ["a notice"]) for p in pictures]


# --- measures


def test_psnr_by_hand() -> None:
    truth = np.zeros((12, 12, 3), np.float32)
    picture = truth.copy()
    picture[:6] = 0.2  # mean squared error 0.5 · 0.04 = 0.02
    assert psnr(picture, truth) == pytest.approx(10 * np.log10(1 / 0.02), abs=1e-4)  # float32 holds 0.2 to 1e-8


def test_ssim_by_hand() -> None:
    """An 11×11 picture has one full window (scikit-image leaves the 5-pixel border out): Wang et al.'s eq. 13 there."""
    rng = np.random.default_rng(0)
    truth, picture = rng.random((2, 11, 11, 3))
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps)[:, :, None] / taps.sum() ** 2

    def weighted(values: np.ndarray) -> np.ndarray:
        return (window * values).sum(axis=(0, 1))

    mx, my = weighted(truth), weighted(picture)
    vx, vy, vxy = weighted(truth**2) - mx**2, weighted(picture**2) - my**2, weighted(truth * picture) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(picture, truth) == pytest.approx(expected.mean(), abs=1e-9)  # float64 throughout


def test_sharpness_by_hand() -> None:
    """One dot of height a away from the edges: H is a·(δ − k⊗k), k = [1 2 1]/4, so the ratio is the heights' square."""
    truth, picture = np.zeros((2, 24, 24, 3), np.float32)
    truth[4, 4], picture[4, 4] = 0.8, 0.4
    assert sharpness(picture, truth) == pytest.approx(0.25, rel=1e-5)
    assert detail_error(picture, truth) == pytest.approx(0.75, rel=1e-5)
    # As much detail as asked for, but in another block: all of it missing, and all of it too much.
    moved = np.roll(truth, 16, axis=1)
    assert sharpness(moved, truth) == pytest.approx(1.0, rel=1e-5)
    assert detail_error(moved, truth) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_sharpness_orders_blur_truth_and_noise(seed: int) -> None:
    truth = scene(seed, 128, 64)
    mild, strong = (gaussian_filter(truth, (s, s, 0)) for s in (0.7, 1.5))
    noisy = truth + 0.05 * np.random.default_rng(seed).standard_normal(truth.shape).astype(np.float32)
    assert sharpness(truth, truth) == 1.0
    assert detail_error(truth, truth) == 0.0
    assert sharpness(strong, truth) < sharpness(mild, truth) < 1.0 < sharpness(noisy, truth)
    assert detail_error(strong, truth) > detail_error(mild, truth) > 0.0
    # Noise of σ 0.05 has a seventh to a half of these scenes' detail energy.
    assert detail_error(noisy, truth) > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_noise_does_not_pass_for_detail(seed: int) -> None:
    """A blurred picture with noise up to the original's energy is 'sharp', but no nearer to it."""
    truth = scene(seed, 128, 64)
    blurred = gaussian_filter(truth, (1.5, 1.5, 0))
    noise = np.random.default_rng(seed).standard_normal((128, 64, 1)).astype(np.float32).repeat(3, axis=2)
    level = np.sqrt((1 - sharpness(blurred, truth)) / sharpness(noise, truth))
    noisy = blurred + level * noise
    assert sharpness(noisy, truth) == pytest.approx(1.0, abs=0.1)  # blur and noise correlate a little by chance
    # Half of these scenes' area is as good as flat, so what noise wins in the rest it loses there. The real details do
    # win, even a pixel beside their place: about an eighth of a block's texture leaves it and another eighth comes in.
    assert detail_error(noisy, truth) > 0.9 * detail_error(blurred, truth)
    assert detail_error(np.roll(truth, 1, axis=1), truth) < 0.5 * detail_error(blurred, truth)


def test_flat_original_is_refused() -> None:
    flat = np.full((32, 32, 3), 0.7, np.float32)
    with pytest.raises(ValueError, match="flat"):
        sharpness(flat, flat)


# --- evaluation


def run(restore: StandIn, people: PeopleFolder, out: Path, config: EvaluateConfig, settings: Any = SETTINGS) -> Report:
    return evaluate_with(restore, settings, people, config, out)


def test_report_measures_what_was_restored(people: PeopleFolder, tmp_path: Path) -> None:
    config = EvaluateConfig(seed=5, count=4, batch_size=3)
    stand_in, steps = StandIn(), []
    report = evaluate_with(stand_in, SETTINGS, people, config, tmp_path, lambda *done_of: steps.append(done_of))
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert stand_in.batches == [3, 1]
    for row in report.rows:
        picture, caption = stand_in.given[row.seed]
        assert caption == f"person {row.index}"
        truth = people[row.index].picture.astype(np.float32) / 255
        # float32 pictures: 1e-6 of 30 dB and of 1 at most
        assert row.measures["bicubic"]["psnr"] == pytest.approx(psnr(picture, truth), abs=1e-4)
        assert row.measures["swinir"]["ssim"] == pytest.approx(ssim(blur(picture, 2.0), truth), abs=1e-5)
        assert row.low_size == list(degraded(truth, row.index, config).shape[:2])

    gains = np.array([row.measures["swinir"]["psnr"] - row.measures["bicubic"]["psnr"] for row in report.rows])
    error = np.sqrt(((gains - gains.mean()) ** 2).sum() / 3 / 4)
    assert report.estimate("swinir", "psnr", minus="bicubic") == pytest.approx((gains.mean(), error))
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["rows"] == [asdict(row) for row in report.rows]
    assert list(saved["methods"]) == list(METHODS)
    assert saved["counts"] == {"pictures": 4, "identities": len({r.identity for r in report.rows}), "with_notices": 4}
    assert f"| swinir − bicubic | {gains.mean():+.2f} ± {error:.2f} |" in (tmp_path / "report.md").read_text()


def test_captions_can_be_left_out(people: PeopleFolder, tmp_path: Path) -> None:
    stand_in = StandIn()
    run(stand_in, people, tmp_path, EvaluateConfig(count=2, use_captions=False))
    assert [caption for _, caption in stand_in.given.values()] == ["", ""]
    assert "Prompt: empty." in (tmp_path / "report.md").read_text()


def test_degradations_depend_on_seed_and_index_only(people: PeopleFolder, tmp_path: Path) -> None:
    few, all_in_batches, other = StandIn(), StandIn(), StandIn()
    run(few, people, tmp_path / "a", EvaluateConfig(count=3))
    run(all_in_batches, people, tmp_path / "b", EvaluateConfig(batch_size=4))
    run(other, people, tmp_path / "c", EvaluateConfig(seed=1))
    assert sorted(all_in_batches.given) == list(range(PICTURES))  # every picture once: the seed is 0 + index
    assert len(few.given) == 3
    for seed, (picture, _) in few.given.items():
        np.testing.assert_array_equal(picture, all_in_batches.given[seed][0])
    assert not any(np.array_equal(all_in_batches.given[i][0], other.given[i + 1][0]) for i in range(PICTURES))


def test_resume_does_the_rest_only(people: PeopleFolder, tmp_path: Path) -> None:
    whole = run(StandIn(), people, tmp_path / "whole", EvaluateConfig(count=4, grid_rows=2))
    out = tmp_path / "cut"
    first, second, third = StandIn(), StandIn(), StandIn()
    run(first, people, out, EvaluateConfig(count=2, grid_rows=2))
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"index": 3, "ima')  # the next row was being written when the run was cut
    resumed = run(second, people, out, EvaluateConfig(count=4, grid_rows=2))
    run(third, people, out, EvaluateConfig(count=4, grid_rows=1, batch_size=2))
    assert len(first.given) == len(second.given) == 2
    assert not first.given.keys() & second.given.keys()
    assert third.given == {}
    assert resumed == whole
    assert (tmp_path / "whole" / "report.json").read_bytes() == (out / "report.json").read_bytes()


def test_a_larger_grid_restores_the_pictures_it_lacks(people: PeopleFolder, tmp_path: Path) -> None:
    again = StandIn()
    run(StandIn(), people, tmp_path, EvaluateConfig(count=4, grid_rows=1))
    small = read_image(tmp_path / "grid.png").pixels
    run(again, people, tmp_path, EvaluateConfig(count=4, grid_rows=3))
    large = read_image(tmp_path / "grid.png").pixels
    assert len(again.given) == 2
    np.testing.assert_array_equal(large[: len(small)], small)
    assert len(large) == len(small) + 2 * (2 * HEIGHT + 4)  # twice enlarged, 4 pixels between rows


def test_other_settings_are_refused(people: PeopleFolder, tmp_path: Path) -> None:
    run(StandIn(), people, tmp_path, EvaluateConfig(count=2))
    retrained = {**SETTINGS, "model": {"name": "stand-in", "weights": "1"}}
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        run(StandIn(), people, tmp_path, EvaluateConfig(count=2), retrained)
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        run(StandIn(), people, tmp_path, EvaluateConfig(count=2, seed=1))
    (tmp_path / "rows.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match="not rows of an evaluation"):
        run(StandIn(), people, tmp_path, EvaluateConfig(count=2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"degradation": "none"}, "unknown degradation 'none'"),
    ],
)
def test_bad_config(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**wrong)


def test_more_pictures_than_there_are(people: PeopleFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot evaluate 99 pictures, the data holds {PICTURES}"):
        run(StandIn(), people, tmp_path, EvaluateConfig(count=99))


# --- with a pipeline


class FakePipeline:
    """A pipeline's interface: what it returns says how it was called."""

    name_or_path = "/somewhere/tiny"

    def __init__(self, body_guidance_scale: float = 0.5) -> None:
        self.scale = body_guidance_scale
        self.components = {"net": torch.nn.Linear(2, 1), "tokenizer": None}

    def options(self, **asked: Any) -> RestoreOptions:
        asked = {name: value for name, value in asked.items() if value is not None}
        return RestoreOptions(**{"body_guidance_scale": self.scale, **asked})

    def __call__(self, pictures: list[np.ndarray], *, body_guidance_scale: float, **call: Any) -> Any:
        assert call["output_type"] == "np"
        assert len(call["prompt"]) == len(call["seed"]) == len(pictures)
        images = [np.clip(picture + 0.2 * body_guidance_scale, 0, 1) for picture in pictures]
        # r of a larger base size, as where the pictures are smaller than it
        found = [SimpleNamespace(regression=picture.repeat(2, axis=0).repeat(2, axis=1)) for picture in pictures]
        return SimpleNamespace(images=images, intermediates=found, notices=[[] for _ in pictures])


def test_evaluate_a_pipeline(people: PeopleFolder, tmp_path: Path) -> None:
    pipeline: Any = FakePipeline()
    report = evaluate(pipeline, people, EvaluateConfig(count=3, batch_size=2, guidance_scale=2.0), tmp_path)
    assert report.settings["model"]["name"] == "tiny"
    assert report.settings["options"]["body_guidance_scale"] == 0.5
    assert report.settings["options"]["guidance_scale"] == 2.0
    assert report.counts["with_notices"] == 0
    for row in report.rows:
        assert row.measures["diffbody-unguided"] == row.measures["bicubic"]  # the fake without guidance changes nothing
        assert row.measures["diffbody"]["psnr"] < row.measures["bicubic"]["psnr"] - 1  # 0.1 brighter
        # Enlarged by repetition and shrunk by bicubic, r is a little smoother than it was, and no more.
        assert row.measures["swinir"]["psnr"] == pytest.approx(row.measures["bicubic"]["psnr"], abs=1.0)
    # Retrained weights in the same folder are another model.
    torch.nn.init.zeros_(pipeline.components["net"].weight)
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        evaluate(pipeline, people, EvaluateConfig(count=3, guidance_scale=2.0), tmp_path)


def test_guidance_must_be_on(people: PeopleFolder, tmp_path: Path) -> None:
    pipeline: Any = FakePipeline(body_guidance_scale=0.0)
    with pytest.raises(ValueError, match="body_guidance_scale is 0"):
        evaluate(pipeline, people, EvaluateConfig(), tmp_path)


# --- contact sheets


def test_labelled_grid_places_pictures_in_order() -> None:
    shades = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
    sizes = [[(5, 7), (6, 8), (5, 7)], [(9, 3), (9, 4), (9, 50)]]
    rows = [
        [np.full((*size, 3), shade) for shade, size in zip(*pair, strict=True)]
        for pair in zip(shades, sizes, strict=True)
    ]
    grid = labelled_grid(rows, ["a", "b", "a rather long label"], scale=3)
    assert grid.dtype == np.float32
    corners = np.zeros((2, 3, 2), int)
    for i, j in np.ndindex(2, 3):
        places = np.argwhere((grid == shades[i, j]).all(axis=2))
        corners[i, j] = places.min(axis=0)
        extent = places.max(axis=0) - corners[i, j] + 1
        assert tuple(extent) == (3 * sizes[i][j][0], 3 * sizes[i][j][1])
        assert len(places) == extent.prod()  # whole: nothing lies over it
    assert (np.diff(corners[:, :, 1], axis=1) > 0).all()  # left to right
    assert (np.diff(corners[:, :, 0], axis=0) > 0).all()  # top to bottom
    assert (corners[0] == corners[0, :, :] * [0, 1] + [corners[0, 0, 0], 0]).all()  # a row's tops are level
    header = grid[: corners[0, 0, 0]]
    ink = [header[:, left : left + 50].min() < 0.5 for left in corners[0, :, 1]]
    assert ink == [True] * 3  # a label above each


@pytest.mark.parametrize(
    ("rows", "labels", "scale", "message"),
    [
        ([], ["a"], 1, "at least one row"),
        ([[np.zeros((4, 4, 3))]], ["a", "b"], 1, "1 pictures for 2 labels"),
        ([[np.zeros((4, 4))]], ["a"], 1, r"shape \(H, W, 3\)"),
        ([[np.zeros((4, 4, 3))]], ["a"], 0, "scale must be at least 1"),
    ],
)
def test_labelled_grid_refuses(rows: Any, labels: list[str], scale: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_grid(rows, labels, scale)
