"""`diffbody train-all`: everything from nothing, and only what is not done."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbody import cli
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.everything import (
    ORDER,
    RenderConfig,
    load_plan,
    render,
    rendered_in_a_row,
)
from tests.people import write_people
from tests.test_training_runs import toml

CONFIGS = Path(__file__).parents[1] / "diffbody_ref" / "training" / "configs"


def write_plan(work: Path, **changes: object) -> Path:
    """A plan over tiny sets that are there, of two steps a stage."""
    people = {name: write_people(work / name, seed=seed) for seed, name in enumerate(("train", "held"))}
    for stage in ORDER:
        values: dict[str, Any] = {
            "stage": stage,
            "preset": "nano",
            "pipeline": str(work / "pipeline"),
            "output": str(work / stage),
        }
        values |= {"data": (str(people["train"]),), "steps": 2, "batch_size": 2, "learning_rate": 1e-4, "workers": 0}
        values |= {"crop": 32 if stage in ("swinir", "vae") else 0, "warmup_steps": 1, **changes}
        toml(TrainConfig(**values), work / f"{stage}.toml")
    lines = [f"stages = {json.dumps([f'{stage}.toml' for stage in ORDER])}", f'model = "{work}/model"']
    lines += ["[train]", f'out = "{people["train"]}"', "identities = 3"]
    lines += ["[held_out]", f'out = "{people["held"]}"', "identities = 3"]
    lines += ["[evaluation]", f'out = "{work}/evaluation"', "count = 1", "steps = 2"]
    (work / "all.toml").write_text("\n".join(lines) + "\n")
    return work / "all.toml"


@pytest.mark.slow
def test_everything_once_and_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(tmp_path)
    command = ["train-all", "--config", str(plan)]

    def run(*more: str) -> list[str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, *more])
        assert stop.value.code == 0
        return capsys.readouterr().out.splitlines()

    assert run("--call-minutes", "0")[-1] == "swinir: training continues with the next call"
    said = run()
    assert [f"{stage}: trained" for stage in ORDER] == said[2:7]
    report = Path(said[-1].removesuffix(": evaluated"))
    assert "swinir" in report.read_text()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors") in done
    assert run() == said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == done


def test_a_stages_error_reaches_the_user_as_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(tmp_path, crop=4096)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train-all", "--config", str(plan)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("diffbody: error: crop is 4096")


def test_rendering_ends_with_its_share_and_goes_on_after_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renderer itself is tested elsewhere; here it writes labels, at a person a second of a clock of its own."""
    from diffbody_ref.training import everything

    calls: list[int] = []
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(everything, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def slowly(out: Path, identities: int, progress: object = None, **others: object) -> None:
        calls.append(identities)
        (out / "labels").mkdir(parents=True, exist_ok=True)
        missing = [n for n in range(identities) if not (out / "labels" / f"{n:06d}.json").is_file()]
        for n in missing:
            clock.now += 1.0
            (out / "labels" / f"{n:06d}.json").write_text("{}")
            progress(n + 1, identities, f"person {n}")  # type: ignore[operator]
        (out / "metadata.jsonl").write_text("{}\n" * identities)

    monkeypatch.setattr(everything, "synthesize", slowly)
    config = RenderConfig(str(tmp_path / "set"), identities=1000)
    assert not render(config, share=10.0, deadline=clock.now + 3.5, show=lambda *_: None)
    assert rendered_in_a_row(config) == 4  # the deadline is looked at after each person
    assert not (tmp_path / "set" / "metadata.jsonl").exists()
    clock.now += 50.0  # between the calls
    assert render(config, share=10.0, deadline=clock.now + 1000, show=lambda *_: None)
    assert len((tmp_path / "set" / "metadata.jsonl").read_text().splitlines()) == 10
    assert rendered_in_a_row(config) == 10  # ten seconds, of which the first call used four
    assert calls == [1000, 1000, 10]
    assert render(config, share=10.0, deadline=0.0, show=lambda *_: None)  # it is there
    assert len(calls) == 3


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/all.toml")), ids=lambda path: path.parent.name)
def test_the_shipped_plans_load(path: Path) -> None:
    plan, stages = load_plan(path)
    assert plan.minutes == (25.0 if path.parent.name == "nano_h100" else 0.0)
    assert sum(stage.minutes for stage in stages) < max(plan.minutes, 1e-9) or plan.minutes == 0
    _, halved = load_plan(path, minutes=10.0)
    assert [s.minutes for s in halved] == pytest.approx([10.0 * getattr(plan.shares, s.stage) for s in stages])
    assert len({stage.output for stage in stages}) == len(ORDER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("swinir.toml", "vae.toml"), "they must be swinir, vae"),
        (('out = "', 'out = "other/'), "not on other/"),
        (("[evaluation]", "[shares]\nrender = 0.9\n[evaluation]"), "the shares are 1.6"),
    ],
)
def test_a_wrong_plan_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = write_plan(tmp_path)
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ValueError, match=message) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)
