"""What a run goes on with: its own settings, pictures and networks, or what was allowed to change by name."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from diffbody import cli
from diffbody_ref.components import build_component, save_component
from diffbody_ref.data.degradations import DegradationConfig
from diffbody_ref.training.agreement import CAN_BE_ALLOWED, FIXED, MAY_CHANGE, changes, check_agreement, run_settings
from diffbody_ref.training.config import TrainConfig, load_config
from diffbody_ref.training.loop import is_finished, train
from tests.people import write_people
from tests.test_training import config_for
from tests.test_training_runs import diffusion_config, environment, prepared, toml
from tests.waiting import HANG

OTHERS = {
    "structure": False,
    "caption_dropout": 0.5,
    "snr_gamma": 5.0,
    "crop": 64,
    "degradation": DegradationConfig(blur_sigma=(0.1, 3.0)),
    "learning_rate": 0.5,
    "mixed_precision": "bf16",
    "ema_decay": 0.5,
    "batch_size": 4,
    "seed": 7,
    "variants": 2,
    "height": 512,
    "relative_loss": True,
    "timestep_power": 2.0,
    "final_rate": 0.1,
    "cache_text": False,
}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people") / "data")


def change_picture(folder: Path) -> None:
    """Another picture under a name that was there."""
    path = folder / "images" / "000001_0.png"
    pixels = np.asarray(Image.open(path))
    Image.fromarray(255 - pixels).save(path)


def one_line(error: str) -> str:
    """The only line of stderr beside progress; it is bounded."""
    (line,) = [line for line in error.splitlines() if "progress:" not in line]
    assert len(line) < 600
    return line


def test_every_setting_must_agree_or_says_that_it_need_not() -> None:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(MAY_CHANGE) | set(FIXED) | set(CAN_BE_ALLOWED) == fields
    assert len(MAY_CHANGE) + len(FIXED) + len(CAN_BE_ALLOWED) == len(fields)
    assert {"steps", "minutes", "workers", "log_every"} <= set(MAY_CHANGE)
    assert OTHERS.keys() <= set(CAN_BE_ALLOWED)


@pytest.mark.parametrize("name", OTHERS)
def test_what_changes_the_result_must_agree_or_be_allowed(name: str) -> None:
    config, other = config_for("diffusion", Path("data"), Path("work")), cast("dict[str, Any]", {name: OTHERS[name]})
    was = run_settings(config, "pictures", "networks")
    found = changes(was, run_settings(dataclasses.replace(config, **other), "pictures", "networks"))
    assert [change.name for change in found] == [name]
    with pytest.raises(ValueError, match=rf"^here is from a run with {name}.* allow it by --allow-change {name}$"):
        check_agreement("here", found, ())
    check_agreement("here", found, [name])


def test_what_does_not_change_the_result_may_change() -> None:
    config = config_for("diffusion", Path("data"), Path("work"))
    other = dataclasses.replace(
        config, steps=9, minutes=3.0, accumulation=2, workers=5, compile=True, tensorboard=True, log_every=7, output="o"
    )
    assert run_settings(config, "a", "b") == run_settings(other, "a", "b")
    batches = [config_for("parts", Path("data"), Path("work"), accumulation=count) for count in (1, 2)]
    was, now = (run_settings(parts, "a", "b") for parts in batches)
    assert [str(change) for change in changes(was, now)] == ["accumulation 1 (now 2)"]  # it has batch norm
    moved = dataclasses.replace(config, data=("elsewhere",), pipeline="there")  # what is in them counts
    assert run_settings(config, "a", "b") == run_settings(moved, "a", "b")


def test_a_run_goes_on_with_its_own_settings_and_pictures(people: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(people, data)
    config = config_for("vae", data, tmp_path)
    assert not train(config, stop_after=1).finished
    with pytest.raises(ValueError, match=r"crop 32 \(now 48\).*--allow-change crop"):
        train(dataclasses.replace(config, crop=48))
    moved = dataclasses.replace(config, data=(str(data.rename(tmp_path / "moved")),))
    assert train(moved, stop_after=2).step == 2  # the same pictures, elsewhere
    change_picture(tmp_path / "moved")
    with pytest.raises(ValueError, match="other pictures or labels"):
        train(moved)
    result = train(moved, allowed=["data"])
    assert result.finished
    assert is_finished(moved)
    ended = json.loads((tmp_path / "vae" / "finished.json").read_text())
    assert [(change["name"], change["step"]) for change in ended["mixed"]] == [("data", 2)]
    record = json.loads((tmp_path / "pipeline" / "training.json").read_text())["stages"]["vae"]
    assert record["mixed"] == ended["mixed"]  # whoever gets the networks can see it
    assert not is_finished(dataclasses.replace(moved, snr_gamma=1.0))  # another run
    change_picture(tmp_path / "moved")
    assert not is_finished(moved)


def test_a_run_goes_on_with_its_own_networks(people: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_component(tmp_path / "pipeline", "pose_detector", build_component("pose_detector", "nano"))
    config = config_for("pose", people, tmp_path, crop=0, tuning="keypoints", steps=2)
    train(config, stop_after=1)
    save_component(tmp_path / "pipeline", "pose_detector", build_component("pose_detector", "nano"))
    with pytest.raises(ValueError, match=r"other networks that the stage builds on.*--allow-change pipeline"):
        train(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("optimizer", "cannot change within a run"),
        ("steps", "may change without"),
        ("stepz", "unknown setting 'stepz'"),
    ],
)
def test_a_wrong_allowance_is_named(name: str, message: str, people: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(config_for("vae", people, tmp_path), allowed=[name])


def test_a_broken_checkpoint_is_named(people: Path, tmp_path: Path) -> None:
    config = config_for("vae", people, tmp_path)
    path = train(config, stop_after=1).checkpoint
    assert path is not None
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"step-0000001\.pt: not a checkpoint") as caught:
        train(config)
    assert "\n" not in str(caught.value)


def test_encoded_rows_are_those_of_the_pictures_whatever_their_names(people: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(people, data)
    config = diffusion_config(data, tmp_path, tuning="control")
    first = prepared(config)
    (data / "images" / "000000_0.png").rename(data / "images" / "renamed.png")
    index = data / "metadata.jsonl"
    index.write_text(index.read_text().replace("images/000000_0.png", "images/renamed.png"))
    assert prepared(config).encoded.folder == first.encoded.folder
    change_picture(data)
    other = prepared(config)
    assert other.encoded.folder != first.encoded.folder
    assert np.abs(other.encoded.read(2)["mean"] - first.encoded.read(2)["mean"]).max() > 0.1
    settings = tmp_path / "pipeline" / "vae" / "config.json"
    settings.write_text(settings.read_text().replace("scaling_factor", "scaling_factor_of_old"))
    assert prepared(config).encoded.folder != other.encoded.folder  # configurations count as weights do


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_one_line_that_names_it(workers: int, people: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(people, data)
    path = data / "images" / "000001_0.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"000001_0\.png: truncated, corrupt or unsupported") as caught:
        train(config_for("vae", data, tmp_path, workers=workers))
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_corrupt_mask_and_a_missing_picture_are_named(people: Path, tmp_path: Path) -> None:
    for name, breaks, message in (
        ("mask", lambda folder: (folder / "parts" / "000001_0.png").write_bytes(b"PNG"), "000001_0.png: its part mask"),
        ("gone", lambda folder: (folder / "images" / "000002_1.png").unlink(), "000002_1.png"),
    ):
        data = tmp_path / name
        shutil.copytree(people, data)
        breaks(data)
        with pytest.raises((ValueError, OSError), match=message):
            train(config_for("pose", data, tmp_path / f"{name}-work", crop=0, workers=1))


def run_with_little_space(arguments: list[str], limit: int) -> subprocess.CompletedProcess[str]:
    """The command where no file may exceed `limit` bytes: writing fails as it does on a full disk."""
    return subprocess.run(
        [sys.executable, "-m", "diffbody", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(people: Path, tmp_path: Path) -> None:
    config = config_for("vae", people, tmp_path, steps=4, checkpoint_every=2)
    train(config, stop_after=2)
    path = str(toml(config, tmp_path / "vae.toml"))
    before = sorted(p for p in tmp_path.rglob("*"))
    done = run_with_little_space(["train", "vae", "--config", path], 300_000)
    assert done.returncode == 2
    assert one_line(done.stderr).endswith("step-0000004.pt: File too large")
    left = sorted(p for p in tmp_path.rglob("*"))
    assert {p.name for p in left} - {p.name for p in before} == {"0000004.png"}  # the sample picture, whole
    assert train(config).finished  # and with space it goes on
    done = run_with_little_space(["release", str(tmp_path / "pipeline"), str(tmp_path / "model")], 300_000)
    assert done.returncode == 2
    assert "not there yet" in one_line(done.stderr)
    assert not (tmp_path / "model").exists()


def test_a_release_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    from diffbody_ref.ops.builtin import NANO_FOLDER

    done = run_with_little_space(["release", str(NANO_FOLDER), str(tmp_path / "model")], 300_000)
    assert done.returncode == 2
    assert one_line(done.stderr).endswith(f"{tmp_path / 'model'}: File too large")
    assert list(tmp_path.iterdir()) == []


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str, int]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    output = capsys.readouterr()
    return output.out, output.err, int(stop.value.code or 0)


def test_train_says_what_is_there(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(toml(config_for("vae", people, tmp_path), tmp_path / "vae.toml"))
    pipeline = tmp_path / "pipeline"
    out, _, code = said(capsys, "train", "vae", "--config", path, "--stop-after", "2")
    assert code == 0
    assert out.startswith(f"stopped vae at step 2 of 4; its checkpoint is {tmp_path}/vae/checkpoints/step-0000002.pt")
    assert "trained" not in out
    assert not pipeline.exists()
    out, error, _ = said(capsys, "train", "vae", "--config", path)
    assert out.splitlines() == [
        f"trained vae: {pipeline}/vae",
        f"{pipeline}: not there yet: swinir, pose_detector, pose, parts, text_encoder, unet, control",
    ]
    assert "%|" not in error  # no bar of a library
    out, error, code = said(capsys, "train", "vae", "--config", path, "--allow-change", "nonsense")
    assert (out, code) == ("", 2)
    assert "unknown setting 'nonsense'" in one_line(error)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('data = "data/people"', "data is 'data/people'; it must be an array"),
        ("[degradation]\nblur_sigma = [2.2]", "blur_sigma has 1 values; it must have 2"),
        ("[degradation]\ndownscale = [0.5, 4.0]", "downscale is 0.5 to 4; it must rise, from 1"),
        ("[degradation]\njpeg_quality = [90, 30]", "jpeg_quality is 90 to 30"),
        ("[degradation]\nanisotropic_probability = 3.0", "anisotropic_probability is 3.0; it must be 0 to 1"),
    ],
)
def test_wrong_values_in_arrays_and_tables_are_named(lines: str, message: str, tmp_path: Path) -> None:
    head = (
        'stage = "vae"\npreset = "nano"\npipeline = "p"\noutput = "o"\nsteps = 1\nbatch_size = 1\nlearning_rate = 1.0\n'
    )
    path = tmp_path / "config.toml"
    path.write_text(head + ("" if lines.startswith("data") else 'data = ["d"]\n') + lines + "\n")
    with pytest.raises(ValueError, match=message):
        load_config(path)
