"""The training loop: what it learns, what a cut and a resume leave, what a wrong configuration says."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffbody_ref.data.degradations import NANO, DegradationConfig, degrade
from diffbody_ref.training.batches import OrderedBatches
from diffbody_ref.training.config import TrainConfig, load_config
from diffbody_ref.training.loop import learning_rate_at, train
from diffbody_ref.training.muon import Muon, muon_groups, orthogonalised
from diffbody_ref.training.stages import build_stage
from diffbody_ref.training.stages.restoration import RestorationStage
from tests.people import write_people

CONFIGS = sorted((Path(__file__).parents[1] / "diffbody_ref" / "training" / "configs").glob("*/[!a]*.toml"))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people") / "data")


def config_for(stage: str, people: Path, work: Path, **changes: object) -> TrainConfig:
    values: dict = {
        "stage": stage,
        "preset": "nano",
        "pipeline": str(work / "pipeline"),
        "data": (str(people),),
        "output": str(work / stage),
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "crop": 32,
        "workers": 0,
        "log_every": 1,
        "degradation": NANO,
    }
    return TrainConfig(**{**values, **changes})


def weights(folder: Path, component: str) -> dict[str, torch.Tensor]:
    return load_file(folder / component / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_cut_and_resumed_run_ends_with_the_same_weights(people: Path, tmp_path: Path, optimizer: str) -> None:
    whole = config_for("vae", people, tmp_path / "whole", optimizer=optimizer)
    cut = config_for("vae", people, tmp_path / "cut", optimizer=optimizer)
    train(whole)
    train(cut, stop_after=2)
    assert not (tmp_path / "cut" / "pipeline").exists()  # an unfinished run publishes nothing
    train(cut)
    ours, theirs = weights(tmp_path / "cut" / "pipeline", "vae"), weights(tmp_path / "whole" / "pipeline", "vae")
    assert ours.keys() == theirs.keys()
    # Bit for bit: every random number hangs on the sample's serial number alone.
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    logged = [json.loads(line)["step"] for line in (tmp_path / "cut" / "vae" / "log.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("stage", "tuning", "component", "kept"),
    [("vae", "decoder", "vae", ("encoder.", "quant_conv.")), ("pose", "keypoints", "pose", ())],
)
def test_tuning_leaves_the_rest_as_it_was(
    stage: str, tuning: str, component: str, kept: tuple[str, ...], people: Path, tmp_path: Path
) -> None:
    train(config_for(stage, people, tmp_path, steps=1))
    pipeline = tmp_path / "pipeline"
    before = {path: path.read_bytes() for path in pipeline.glob("*/*")}
    old = weights(pipeline, component)
    train(config_for(stage, people, tmp_path, steps=2, tuning=tuning, output=str(tmp_path / "tuned")))
    new = weights(pipeline, component)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {name for name in old if name.startswith(kept)} == old.keys() - changed if kept else changed
    rewritten = {path.parent.name for path, content in before.items() if path.read_bytes() != content}
    assert rewritten == {component}
    path = pipeline / component / "config.json"
    sizes, new_sizes = (
        {name: value for name, value in json.loads(text).items() if not name.startswith("_")}  # "_": where it came from
        for text in (before[path], path.read_bytes())
    )
    assert sizes == new_sizes  # a VAE's scaling factor among them


def test_accumulation_gives_the_step_of_the_whole_batch(people: Path, tmp_path: Path) -> None:
    whole = config_for("swinir", people, tmp_path / "a", steps=2, batch_size=4)
    parts = config_for("swinir", people, tmp_path / "b", steps=2, batch_size=4, accumulation=2)
    first, second = (weights(train(c).pipeline, "swinir") for c in (whole, parts))
    # Sums in another order: float32 rounding, which Adam's division makes as large as a few 1e-5 of the step 1e-3.
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_the_relative_loss_counts_mild_and_heavy_degradations_alike(people: Path, tmp_path: Path) -> None:
    stage = RestorationStage(config_for("swinir", people, tmp_path, crop=0, relative_loss=True))
    plain = RestorationStage(config_for("swinir", people, tmp_path, crop=0))
    for index in range(2):
        items = [s.item(index, index) for s in (stage, plain)]
        batches = [{name: torch.as_tensor(value)[None] for name, value in item.items()} for item in items]
        relative, absolute = (float(s(b)["loss"].detach()) for s, b in zip((stage, plain), batches, strict=True))
        # An untrained nano SwinIR returns its input: its error is the degradation's own.
        assert relative == pytest.approx(1.0, rel=1e-3)
        assert absolute == pytest.approx(float(np.square(items[1]["high"] - items[1]["low"]).mean()), rel=1e-3)


@pytest.mark.parametrize("shape", [(32, 200), (200, 32), (64, 64)])
def test_orthogonalising_keeps_the_singular_vectors_alone(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.diag(u.T @ orthogonalised(matrix) @ vh.T)
    # The polynomial lifts singular values over about 1/100 of the largest to 0.7..1.2; bfloat16 adds a few percent.
    assert ((found > 0.6) & (found < 1.3))[s > 0.05 * s.max()].all()


def test_muon_steps_matrices_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3), torch.nn.GroupNorm(4, 32), torch.nn.Conv2d(32, 3, 1))
    matrices, others = muon_groups(model)
    assert matrices["params"] == [model[0].weight]  # the last convolution has 3 outputs only
    assert len(others["params"]) == 5
    before = [p.detach().clone() for p in model.parameters()]
    twin = [p.detach().clone().requires_grad_() for p in others["params"]]
    model(torch.randn(2, 16, 8, 8)).square().mean().backward()
    for copy, own in zip(twin, others["params"], strict=True):
        copy.grad = own.grad.clone()
    Muon([matrices, others], lr=1e-2, weight_decay=0.0).step()
    torch.optim.AdamW(twin, lr=1e-2, weight_decay=0.0).step()
    assert all(torch.equal(copy, own) for copy, own in zip(twin, others["params"], strict=True))
    step = (model[0].weight - before[0]).flatten(1)
    # 32 singular values of about 1, times 0.2·√144, over 32·144 entries: 0.2 learning rates each, as AdamW's steps.
    assert float(step.detach().square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.2)


def test_the_reconstruction_loss_falls(people: Path, tmp_path: Path) -> None:
    train(config_for("vae", people, tmp_path, steps=30, batch_size=4, learning_rate=2e-3))
    losses = [json.loads(line)["pixels"] for line in (tmp_path / "vae" / "log.jsonl").read_text().splitlines()]
    # Random weights give grey for pictures of contrast; a few steps are enough for the mean colours.
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert (tmp_path / "vae" / "samples" / "0000030.png").is_file()


def test_every_stage_trains_and_the_pipeline_folder_fills(people: Path, tmp_path: Path) -> None:
    for stage in ("swinir", "vae", "pose", "parts", "diffusion"):
        train(config_for(stage, people, tmp_path, steps=2, crop=0 if stage in ("pose", "parts", "diffusion") else 32))
    held = {path.name for path in (tmp_path / "pipeline").iterdir()}
    assert {"swinir", "vae", "pose", "pose_detector", "parts", "text_encoder", "unet", "control"} <= held
    control = weights(tmp_path / "pipeline", "control")
    assert control["controlnet_cond_embedding.weight"].abs().max() > 0  # zero at the start, so it learnt


@pytest.mark.parametrize("name", ["swinir", "vae", "pose", "parts"])
def test_a_step_stays_on_its_device_and_waits_for_nothing(name: str, people: Path, tmp_path: Path) -> None:
    """On the device "meta" a tensor left on the CPU is refused, and so is a look at a value, which a GPU waits for."""
    stage = build_stage(config_for(name, people, tmp_path, crop=0 if name in ("pose", "parts") else 32))
    items = [stage.item(index, index) for index in range(2)]
    stage.to("meta")
    batch = {key: torch.from_numpy(np.stack([item[key] for item in items])).to("meta") for key in items[0]}
    losses = stage(batch)
    losses["loss"].backward()
    assert {loss.device.type for loss in losses.values()} == {"meta"}
    trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


def test_a_label_that_the_network_has_no_part_for_is_named(tmp_path: Path) -> None:
    folder = write_people(tmp_path / "data", identities=1, views=1)
    path = folder / "parts" / "000000_0.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[labels == 5] = 9
    Image.fromarray(labels).save(path)
    stage = build_stage(config_for("parts", folder, tmp_path))
    with pytest.raises(ValueError, match=r"000000_0.*label 9 in its part map; the network knows 0 to 5"):
        stage.item(0, 0)


def test_processes_share_a_batch_without_overlap() -> None:
    class Data:
        def order(self, epoch: int) -> np.ndarray:
            return np.random.default_rng(epoch).permutation(10)

    ranks = [list(OrderedBatches(Data(), 0, 24, 2, rank, 3)) for rank in range(3)]  # type: ignore[arg-type]
    together = [key for batches in zip(*ranks, strict=True) for batch in batches for key in batch]
    assert together == [key for batch in OrderedBatches(Data(), 0, 24, 6, 0, 1) for key in batch]  # type: ignore[arg-type]
    assert sorted(index for index, serial in together if serial < 10) == list(range(10))


def test_learning_rate_warms_up_and_falls() -> None:
    config = config_for("vae", Path(), Path(), steps=100, warmup_steps=10, final_rate=0.1)
    assert learning_rate_at(0, config) == pytest.approx(0.1)
    assert learning_rate_at(10, config) == pytest.approx(1.0)
    assert learning_rate_at(55, config) == pytest.approx(0.55)  # half of the cosine: midway between 1 and 0.1
    assert learning_rate_at(100, config) == pytest.approx(0.1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_shipped_configurations_load(path: Path) -> None:
    config = load_config(path)
    assert config.preset == ("nano" if path.parent.name.startswith("nano") else "sd21")
    assert config.output.startswith("runs/")
    assert path.stem.startswith(config.stage)


def stated_memory(path: Path) -> dict[int, float]:
    """GiB by number of devices, as the recipe's comment states them."""
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("# Memory, counted: ")]
    found = re.findall(r"([\d.]+) GiB on (one device|each of (\d))", line)
    return {int(count or 1): float(need) for need, _, count in found}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recipes_state_a_memory_that_there_is(path: Path) -> None:
    stated = stated_memory(path)
    # A tenth is for what is not counted: the allocator's gaps, workspaces, CUDA's context, 1 to 3 GiB in experience.
    assert stated[1] < (1 if path.parent.name == "nano" else 0.9 * 80)
    assert stated.get(4, 0.0) < 0.9 * 40  # the paper's GPUs
    if path.parent.name in ("paper", "diffbir"):
        assert 4 in stated


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_stated_memory_is_what_is_counted(path: Path) -> None:
    from benchmarks.training_memory import describe_recipe

    assert f"# {describe_recipe(load_config(path))}" in path.read_text().splitlines()


def test_the_papers_recipe_is_the_papers() -> None:
    paper = next(path for path in CONFIGS if path.parent.name == "paper" and path.stem == "diffusion")
    config = load_config(paper)
    assert (config.steps, config.batch_size, config.weight_decay) == (10_000, 128, 0.0)  # §4.2; Adam: no decay
    assert (config.tuning, config.structure) == ("control", True)


def test_the_ablation_differs_in_structure_alone() -> None:
    folder = next(path.parent for path in CONFIGS if path.parent.name == "paper")
    paper, ablation = (load_config(folder / f"{name}.toml") for name in ("diffusion", "diffusion_no_structure"))
    assert dataclasses.replace(ablation, structure=True, pipeline=paper.pipeline, output=paper.output) == paper


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stepz = 3", "unknown key 'stepz'"),
        ("steps = 0", "steps is 0"),
        ("steps = 'many'", "steps is 'many'"),
        ("learning_rate = nan", "learning_rate is nan"),
        ("mixed_precision = 'fp8'", "one of no, bf16, fp16"),
        ("tuning = 'lora'", "the stage 'vae' has full, decoder"),
        ("minutes = -1", "minutes is -1"),
        ("optimizer = 'sgd'", "one of adamw, muon"),
        ("steps = ", "config.toml"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, line: str, message: str) -> None:
    base = {
        "stage": "'vae'",
        "preset": "'nano'",
        "pipeline": "'p'",
        "data": "['d']",
        "output": "'o'",
        "steps": "1",
        "batch_size": "1",
        "learning_rate": "1.0",
    }
    base.pop(line.split(" = ")[0], None)
    path = tmp_path / "config.toml"
    path.write_text("\n".join([*(f"{k} = {v}" for k, v in base.items()), line]))
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_degradation_is_seeded_and_stays_in_range() -> None:
    picture = np.random.default_rng(0).random((64, 48, 3), dtype=np.float32)
    first, again, other = (degrade(picture, np.random.default_rng(seed), NANO) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1


def test_degradation_grows_with_its_ranges() -> None:
    y, x = np.mgrid[:64, :64]
    picture = np.repeat((((x // 4 + y // 4) % 2) * 0.8 + 0.1)[..., None], 3, axis=2).astype(np.float32)
    mild = DegradationConfig((0.1, 0.2), (1.0, 1.0001), (0.0, 0.1), (98, 100), 0.0)
    harsh = DegradationConfig((3.0, 4.0), (1.0, 1.0001), (10.0, 15.0), (30, 40), 0.0)
    errors = [np.abs(degrade(picture, np.random.default_rng(3), c) - picture).mean() for c in (mild, harsh)]
    assert errors[0] < 0.03 < errors[1]  # near lossless against a checkerboard blurred flat (0.4 off)
