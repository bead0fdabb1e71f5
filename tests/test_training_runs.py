"""Runs as they are in earnest: several processes, killed ones, and the ways to fine-tune the diffusion stage."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from diffbody_ref.components import build_component, load_component
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.structure import batch_structure_maps, structure_maps
from diffbody_ref.training import loop
from diffbody_ref.training.batches import OrderedBatches
from diffbody_ref.training.checkpoints import trained_state
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.encoded import SHARD, EncodedRows, encode_missing
from diffbody_ref.training.loaders import load_batches
from diffbody_ref.training.loop import is_finished, learning_rate_at, train
from diffbody_ref.training.release import release
from diffbody_ref.training.stages import TrainingStage, build_stage
from tests.people import write_people
from tests.test_training import config_for, weights
from tests.waiting import HANG, wait_until

ALONE = SimpleNamespace(
    device=torch.device("cpu"),
    process_index=0,
    num_processes=1,
    is_main_process=True,
    wait_for_everyone=lambda: None,
)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people") / "data")


def diffusion_config(people: Path, work: Path, **changes: object) -> TrainConfig:
    """A configuration of the diffusion stage, and a pipeline folder with nano's networks but for its control branch."""
    for name in ("swinir", "vae", "pose_detector", "pose", "parts", "text_encoder", "unet"):
        if not (work / "pipeline" / name).exists():
            shutil.copytree(NANO_FOLDER / name, work / "pipeline" / name)
    return config_for("diffusion", people, work, **{"crop": 0, "steps": 2, **changes})


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


def prepared(config: TrainConfig) -> TrainingStage:
    torch.manual_seed(config.seed)
    stage = build_stage(config)
    stage.prepare(ALONE)
    return stage


def first_batch(stage: TrainingStage, count: int = 2) -> dict[str, torch.Tensor]:
    return next(load_batches(stage.item, OrderedBatches(stage, 0, count, count, 0, 1), workers=0))


def toml(config: TrainConfig, path: Path) -> Path:
    """The configuration as a file; TOML writes these values as JSON does."""
    values = dataclasses.asdict(config)
    degradation = values.pop("degradation")
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    lines += ["[degradation]", *(f"{name} = {json.dumps(value)}" for name, value in degradation.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def test_two_processes_train_as_one(people: Path, tmp_path: Path) -> None:
    changes = {"steps": 4, "batch_size": 4, "accumulation": 2, "tuning": "lora", "sample_every": 1000}
    alone, shared = (diffusion_config(people, tmp_path / name, **changes) for name in ("alone", "shared"))
    train(alone)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["-m", "diffbody", "train", "diffusion", "--config", str(toml(shared, tmp_path / "shared.toml"))]
    done = subprocess.run([*launcher, *command], env=environment(), capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained") == 1  # one process speaks
    one, two = losses(Path(alone.output)), losses(Path(shared.output))
    assert len(one) == len(two) == 4
    # The same samples and random numbers; sums of float32 in another order, 1e-7 of a gradient. Adam's division makes
    # whole steps of the rounding in weights whose gradient is next to nothing, which move the loss as little.
    assert one == pytest.approx(two, rel=1e-5)
    assert one[0] != one[-1]


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(people: Path, tmp_path: Path) -> None:
    changes = {"steps": 40, "checkpoint_every": 2, "sample_every": 1000}
    whole = config_for("vae", people, tmp_path / "whole", **changes)
    killed = config_for("vae", people, tmp_path / "killed", **changes)
    path = toml(killed, tmp_path / "killed.toml")
    command = [sys.executable, "-m", "diffbody", "train", "vae", "--config", str(path)]
    checkpoints = Path(killed.output) / "checkpoints"
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        wait_until(lambda: list(checkpoints.glob("step-*[4-9].pt")), while_true=lambda: run.poll() is None)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert not is_finished(killed)
    with (Path(killed.output) / "log.jsonl").open("a") as log:
        log.write('{"step": 5')  # a line that the kill cut
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=HANG)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes: sums over threads are of another order
    train(whole)
    torch.set_num_threads(threads)
    ours, theirs = weights(Path(killed.pipeline), "vae"), weights(Path(whole.pipeline), "vae")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert is_finished(killed)
    assert len(losses(Path(killed.output))) == 40


def test_the_identity_head_of_a_cut_run_goes_on(people: Path, tmp_path: Path) -> None:
    """It is no component of the pipeline, but trained: without it in the checkpoint a resumed run would differ."""
    whole = config_for("parts", people, tmp_path / "whole", crop=0, steps=3)
    cut = config_for("parts", people, tmp_path / "cut", crop=0, steps=3)
    train(whole)
    train(cut, stop_after=2)
    train(cut)
    assert losses(Path(cut.output)) == losses(Path(whole.output))


@pytest.fixture
def own_precision() -> Iterator[None]:
    """accelerate keeps the precision of a process's first run for all of its runs."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("own_precision")
def test_only_control_learns_in_control_tuning(people: Path, tmp_path: Path) -> None:
    config = diffusion_config(people, tmp_path, tuning="control", mixed_precision="bf16")
    frozen = {name: (tmp_path / "pipeline" / name).stat().st_mtime_ns for name in ("unet", "text_encoder")}
    train(config)
    assert {name: (tmp_path / "pipeline" / name).stat().st_mtime_ns for name in frozen} == frozen
    control, unet = weights(tmp_path / "pipeline", "control"), weights(tmp_path / "pipeline", "unet")
    assert control["controlnet_cond_embedding.weight"].abs().max() > 0  # zero at the start
    # A fresh branch is the U-Net's encoder; two steps of 1e-3 and the moving average keep it near.
    assert (control["conv_in.weight"] - unet["conv_in.weight"].float()).abs().max() < 5e-3
    state = torch.load(tmp_path / "diffusion" / "checkpoints" / "step-0000002.pt", weights_only=True)["stage"]
    assert {name.split(".")[0] for name in state} == {"control"}


def test_lora_changes_low_rank_updates_that_diffusers_reads(people: Path, tmp_path: Path) -> None:
    config = diffusion_config(people, tmp_path, tuning="lora", lora_rank=4, steps=3)
    before = load_file(tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    train(config)
    pipeline = tmp_path / "pipeline"
    after = load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    checkpoint = torch.load(tmp_path / "diffusion" / "checkpoints" / "step-0000003.pt", weights_only=True)
    names = set(checkpoint["stage"])
    assert {name.split(".")[0] for name in names} == {"control", "unet"}
    assert all("lora_" in name for name in names if name.startswith("unet."))

    # Independent of peft: W + B·A of every projection.
    file = load_file(pipeline / "unet_lora" / "pytorch_lora_weights.safetensors")
    assert any(value.abs().max() > 0 for name, value in file.items() if "lora_B" in name or "lora.up" in name)
    merged = load_component(pipeline, "unet")
    plain = load_component(pipeline, "unet")
    with torch.no_grad():
        for name in [name for name in file if name.endswith("lora_A.weight")]:
            target = merged.get_submodule(name.removeprefix("unet.").removesuffix(".lora_A.weight"))
            assert file[name].shape[0] == 4
            target.weight += file[name.replace("lora_A", "lora_B")] @ file[name]

    stock = StableDiffusionPipeline(
        vae=load_component(pipeline, "vae"),
        text_encoder=load_component(pipeline, "text_encoder"),
        tokenizer=build_component("tokenizer", "nano"),
        unet=load_component(pipeline, "unet"),
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.load_lora_weights(pipeline / "unet_lora")
    again = build_stage(config).unet  # a later run goes on from them
    outputs = {name: predicted(unet) for name, unet in (("stock", stock.unet), ("again", again), ("merged", merged))}
    assert (outputs["merged"] - predicted(plain)).abs().max() > 1e-4
    for name in ("stock", "again"):
        # x·W + (x·A)·B against x·(W + A·B), float32 through a dozen layers.
        torch.testing.assert_close(outputs[name], outputs["merged"], atol=1e-5, rtol=1e-4)

    release(pipeline, tmp_path / "model", "nano")
    released = weights(tmp_path / "model", "unet")
    assert not any("lora" in name for name in released)
    for name, value in merged.state_dict().items():
        # Half precision: 11 bits.
        torch.testing.assert_close(released[name].float(), value, atol=1e-7, rtol=2**-11)
    with pytest.raises(ValueError, match="tuning = 'lora'"):
        build_stage(dataclasses.replace(config, tuning="control"))
    with pytest.raises(ValueError, match="rank 4, the configuration's lora_rank is 8"):
        build_stage(dataclasses.replace(config, lora_rank=8))


@torch.no_grad()
def predicted(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, unet.config.in_channels, 16, 8, generator=generator)
    text = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator)
    return unet.eval()(z, torch.tensor([10, 900]), text).sample


def test_cached_captions_are_the_encoders(people: Path, tmp_path: Path) -> None:
    config = diffusion_config(people, tmp_path, tuning="control", caption_dropout=0.5)
    cached, live = prepared(config), prepared(dataclasses.replace(config, cache_text=False))
    assert cached.text_encoder is None  # its memory is for training
    batches = first_batch(cached, 6), first_batch(live, 6)
    with torch.no_grad():
        text = live.text_encoder(batches[1]["tokens"]).last_hidden_state
        # float16 on disk: 11 bits of every number.
        torch.testing.assert_close(batches[0]["text"], text, atol=1e-6, rtol=2**-11)
        assert not torch.equal(text[0], text[1]) or not torch.equal(text[0], text[2])
        one, two = (float(s(b)["loss"]) for s, b in zip((cached, live), batches, strict=True))
    assert one == pytest.approx(two, rel=2**-11)


def test_captions_that_are_cut_are_counted(people: Path, tmp_path: Path) -> None:
    folder = tmp_path / "people"
    shutil.copytree(people, folder)
    assert prepared(diffusion_config(folder, tmp_path)).notices() == []
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for record, words in zip(records, (75, 76, 200), strict=False):  # a token a word; 75 go in
        record["caption"] = "shoe " * words
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    (notice,) = prepared(diffusion_config(folder, tmp_path)).notices()
    assert notice == f"2 of {len(records)} captions are longer than 75 tokens: training read their beginnings"


@pytest.mark.parametrize("stage", ["swinir", "vae", "diffusion"])
def test_gradient_checkpointing_changes_memory_only(people: Path, tmp_path: Path, stage: str) -> None:
    if stage == "diffusion":
        config = diffusion_config(people, tmp_path, cache_text=False)
    else:
        config = config_for(stage, people, tmp_path)
    gradients, kept = [], []
    for again in (False, True):
        run = prepared(config)
        if again:
            run.checkpoint_gradients()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            loss = run(first_batch(run))["loss"]
        kept.append(sum(sizes))
        loss.backward()
        gradients.append({name: p.grad for name, p in run.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    # The same operators on the same numbers in the same order: equal but for an accumulation's order.
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-8, rtol=1e-5)
    assert kept[1] < 0.85 * kept[0]  # nano's SwinIR is mostly convolutions, which keep theirs


def test_networks_that_cannot_checkpoint_say_so(people: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pose_detector does not support"):
        train(config_for("pose", people, tmp_path, crop=0, gradient_checkpointing=True))


def test_tensorboard_holds_the_log(people: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config_for("vae", people, tmp_path, steps=4, sample_every=2, tensorboard=True)
    train(config, stop_after=2)
    train(config)
    events = EventAccumulator(str(tmp_path / "vae" / "tensorboard"))
    events.Reload()
    assert {"loss", "pixels", "learning_rate"} <= set(events.Tags()["scalars"])
    seen = {event.step: event.value for event in events.Scalars("loss")}
    assert seen == pytest.approx(dict(zip(range(1, 5), losses(tmp_path / "vae"), strict=True)), rel=1e-6)
    assert {image.step for image in events.Images("samples")} == {2, 4}


def test_a_run_ends_with_its_minutes_and_its_rate(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a second goes by from one look at it to the next; the loop looks after each step."""
    seconds = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    config = config_for("vae", people, tmp_path, steps=100_000, minutes=0.1, final_rate=0.1)
    train(config)
    rows = [json.loads(line) for line in (tmp_path / "vae" / "log.jsonl").read_text().splitlines()]
    assert is_finished(config)
    assert len(rows) == 5  # of six seconds the first goes by before there is a step
    # The warm-up's step, and the cosine at the share of the minutes that was over when each other step began.
    expected = [1e-3 * learning_rate_at(i, config, spent=(i + 1) / 6) for i in range(5)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)
    assert expected[-1] < 0.3 * expected[0]  # by steps alone it would not have moved
    assert weights(tmp_path / "pipeline", "vae")
    assert not is_finished(dataclasses.replace(config, minutes=1000.0))
    assert learning_rate_at(5, config, spent=1.0) == pytest.approx(0.1)


def test_a_deadline_leaves_a_run_to_go_on_with(people: Path, tmp_path: Path) -> None:
    config = config_for("vae", people, tmp_path, steps=4)
    train(config, deadline=time.monotonic())
    assert not (tmp_path / "pipeline").exists()
    train(config)
    assert len(losses(tmp_path / "vae")) == 4


def test_a_checkpoint_of_other_settings_is_refused(people: Path, tmp_path: Path) -> None:
    train(config_for("vae", people, tmp_path, steps=1))
    with pytest.raises(ValueError, match=r"step-0000001\.pt is from a run with batch_size 2 \(now 4\)"):
        train(config_for("vae", people, tmp_path, batch_size=4))


def test_processes_share_an_encoding_pass_that_was_cut(tmp_path: Path) -> None:
    rows, seen = 3 * SHARD + 10, list[int]()

    def encode(batch: dict[str, torch.Tensor]) -> list[dict[str, np.ndarray]]:
        seen.extend(batch["row"].tolist())
        if len(seen) > SHARD + 5:
            raise KeyboardInterrupt
        return [{"double": np.full((2, 3), 2.0 * row)} for row in batch["row"].tolist()]

    def run(process: int, settings: dict[str, int]) -> EncodedRows:
        store = EncodedRows(tmp_path, rows, settings)
        share = SimpleNamespace(**{**vars(ALONE), "process_index": process, "num_processes": 2})
        encode_missing(store, lambda row: {"row": np.asarray(row)}, encode, share, 16, 0, "")
        return store

    with pytest.raises(KeyboardInterrupt):
        run(0, {"seed": 0})
    seen.clear()
    run(1, {"seed": 0})  # of the three that are left, the second
    assert seen == list(range(2 * SHARD, 3 * SHARD))
    seen.clear()
    while (store := run(0, {"seed": 0})).missing():
        seen.clear()
    assert not store.missing()
    assert [store.read(row)["double"][1, 2] for row in (0, SHARD, rows - 1)] == [0, 2 * SHARD, 2 * (rows - 1)]
    assert len(EncodedRows(tmp_path, rows, {"seed": 1}).missing()) == 4  # others' rows are not taken for ours


def test_structure_of_a_batch_is_that_of_each_picture(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffbody_ref.data.datasets import PeopleFolder

    data = PeopleFolder([people])
    pictures = torch.stack([torch.from_numpy(data[i].picture.transpose(2, 0, 1) / np.float32(255)) for i in (0, 2, 4)])
    networks = [load_component(NANO_FOLDER, name).eval() for name in ("pose_detector", "pose", "parts")]
    single = [structure_maps(*networks, picture[None]) for picture in pictures]
    together = batch_structure_maps(*networks, pictures)
    for one, many in zip(single, together, strict=True):
        assert one.crops == many.crops
        np.testing.assert_allclose(many.boxes, one.boxes, atol=1e-2)  # hundredths of a pixel
        torch.testing.assert_close(many.attention, one.attention, atol=1e-4, rtol=0.0)
        assert (many.pose != one.pose).float().mean() < 1e-3  # a line's edge may fall on the next pixel


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one(people: Path, tmp_path: Path) -> None:
    plain, fused = (config_for("vae", people, tmp_path / name, compile=name == "fused") for name in ("plain", "fused"))
    for config in (plain, fused):
        train(config)
    # Fused operators round elsewhere.
    assert losses(Path(fused.output)) == pytest.approx(losses(Path(plain.output)), rel=1e-3)
    assert weights(Path(fused.pipeline), "vae").keys() == weights(Path(plain.pipeline), "vae").keys()


def test_what_a_checkpoint_holds(people: Path, tmp_path: Path) -> None:
    stage = build_stage(config_for("parts", people, tmp_path, crop=0))
    left_out = stage.state_dict().keys() - trained_state(stage).keys()  # else weights, head, running statistics
    assert {name.rsplit(".", 1)[1] for name in left_out} == {"bias"}  # zero for good, before a classifier
    assert all(not stage.get_parameter(name).requires_grad for name in left_out)
