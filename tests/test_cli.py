"""The command line: what bad input is told, and that the command starts without slow imports."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import diffbody
from diffbody import cli
from diffbody.cli.app import app
from diffbody.cli.restorers import tell_of_slow_precision
from diffbody_ref.ops.images import decode_image, read_image
from runtime.engines.config import EngineConfig
from tests.waiting import HANG

SLOW = ("torch", "diffusers", "transformers", "scipy", "onnxruntime", "PIL")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that passes for a model as long as nothing is loaded from it: bad input must be found before that."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return str(folder)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run `diffbody` with bad input: exit code 2 and one line on stderr, which is returned."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("diffbody: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def bomb(path: Path, side: int = 30_000) -> Path:
    """A valid black PNG of side × side pixels in about 100 kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def broken_picture(kind: str, photo: Path) -> Path:
    path = photo.with_name(f"{kind}.png")
    if kind == "truncated":
        path.write_bytes(photo.read_bytes()[:1000])
    elif kind == "corrupt":
        data = bytearray(photo.read_bytes())
        data[200:300] = bytes(100)
        path.write_bytes(data)
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.touch()
    elif kind == "1x1":
        bomb(path, 1)
    elif kind == "bomb":
        bomb(path)
    return path  # "missing" is not made


@pytest.mark.parametrize("kind", ["missing", "truncated", "corrupt", "text", "empty", "1x1", "bomb"])
def test_a_bad_picture_is_named(kind: str, photo: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken_picture(kind, photo)
    before = sorted(photo.parent.iterdir())
    assert str(path) in refused(capsys, "restore", path, "--model", model)
    assert sorted(photo.parent.iterdir()) == before


def test_a_folder_without_pictures(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert "no pictures" in refused(capsys, "restore", tmp_path, "--model", model)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--steps", "0"], "--steps"),
        (["--steps", "1001"], "--steps"),
        (["--steps", "many"], "--steps"),
        (["--guidance-scale", "nan"], "--guidance-scale"),
        (["--body-guidance-scale", "nan"], "--body-guidance-scale"),
        (["--body-guidance-scale", "-1"], "--body-guidance-scale"),
        (["--body-guidance-every", "0"], "--body-guidance-every"),
        (["--strength", "0"], "--strength"),
        (["--strength", "nan"], "--strength"),
        (["--upscale", "nan"], "--upscale"),
        (["--upscale", "17"], "--upscale"),
        (["--tile-size", "8"], "--tile-size"),
        (["--size", "12"], "--size"),
        (["--size", "512x"], "HEIGHTxWIDTH"),
        (["--dtype", "int8"], "'--dtype': 'int8' is not one of"),
        (["--seed", "-1"], "--seed"),
        (["--sampler", "euler"], "'--sampler': 'euler' is not one of 'ddpm', 'ddim', 'dpm++'"),
        (["--colour-fix", "magic"], "'--colour-fix': 'magic' is not one of"),
        (["--device", "tpu"], "'--device': 'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["--engine", "paper"], "'--engine': 'paper' is not one of"),
        (["--body-guidance-engine", "hand"], "'--body-guidance-engine': 'hand' is not one of 'engine', 'torch'"),
        (["--precision", "int4"], "'--precision': 'int4' is not one of"),
        (["--residual", "--no-residual"], "--no-residual"),
        (["--model", "mega"], "mega"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_bad_option_is_named(
    options: list[str], named: str, photo: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused(capsys, "restore", photo, "--model", model, *options)
    assert list(photo.parent.iterdir()) == [photo]


def test_the_residual_can_be_left_out(photo: Path, pixels: np.ndarray) -> None:
    restorer = diffbody.load()
    for flag, use in (("--residual", True), ("--no-residual", False)):
        out = photo.with_name(f"{use}.png")
        with pytest.raises(SystemExit, match="0"):
            cli.main(["restore", str(photo), "-o", str(out), "--steps", "2", flag])
        wanted = restorer.restore(pixels, num_inference_steps=2, use_residual=use).pixels
        np.testing.assert_allclose(read_image(out).pixels, wanted, atol=0.51 / 255)
    assert photo.with_name("True.png").read_bytes() != photo.with_name("False.png").read_bytes()


def test_a_folder_that_is_no_model(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model_index.json" in refused(capsys, "restore", photo, "--model", photo.parent)


def test_an_existing_output_names_overwrite(photo: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = photo.with_name("photo.restored.png")
    target.write_text("precious")
    message = refused(capsys, "restore", photo, "--model", model)
    assert "--overwrite" in message
    assert str(target) in message
    assert target.read_text() == "precious"


def test_an_existing_side_picture_names_overwrite(photo: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    photo.with_name("photo.restored_before_after.png").write_text("precious")
    assert "--overwrite" in refused(capsys, "restore", photo, "--model", model, "--compare")


@pytest.mark.parametrize("place", ["a file.txt/out.png", "a file.txt/folder", "/proc/out.png", "/proc/folder"])
def test_an_unwritable_output(place: str, photo: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here, the folder that root, too, cannot write to")
    photo.with_name("a file.txt").touch()
    out = photo.parent / place  # an absolute place stays as it is
    refused(capsys, "restore", photo, "--model", model, "-o", out)
    assert not out.exists()


def test_an_unusable_output_name(photo: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ".gif" in refused(capsys, "restore", photo, "--model", model, "-o", photo.with_suffix(".gif"))
    jpg = photo.with_suffix(".jpg")
    assert "--format png" in refused(capsys, "restore", photo, "--model", model, "-o", jpg, "--format", "png")
    assert "--quality" in refused(capsys, "restore", photo, "--model", model, "--quality", "80")
    assert "folder" in refused(capsys, "restore", photo.parent, "--model", model, "-o", photo.with_name("all.png"))
    assert "input itself" in refused(capsys, "restore", photo, "--model", model, "-o", photo, "--overwrite")


def test_a_folder_run_of_broken_pictures_names_each_once(
    photo: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("truncated", "text"):
        broken_picture(kind, photo)
    photo.unlink()
    with pytest.raises(SystemExit) as stop:
        cli.main(["restore", str(photo.parent), "--model", model])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert "restored 0, failed 2" in printed.out
    lines = printed.err.splitlines()
    for kind in ("truncated", "text"):
        assert sum(str(photo.with_name(f"{kind}.png")) in line for line in lines) == 1


def test_a_message_is_bounded(photo: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    endless = "x" * 100_000
    for arguments in (["--sampler", endless], ["--steps", endless], ["--format", endless], ["-o", endless]):
        assert len(refused(capsys, "restore", photo, "--model", model, *arguments)) < 1100
    assert len(refused(capsys, "restore", endless)) < 1100
    assert len(refused(capsys, endless)) < 1100


def test_what_does_not_go_with_a_stream_is_refused(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--compare" in refused(capsys, "restore", photo, "-o", "-", "--compare")
    assert "--json" in refused(capsys, "restore", "-", "--json")
    assert "one picture" in refused(capsys, "restore", photo, "-", "-o", "-")
    assert "one picture" in refused(capsys, "restore", photo.parent, "-o", "-")
    assert not Path("-").exists()


def test_streams_carry_pictures_and_nothing_else(photo: Path, pixels: np.ndarray) -> None:
    command = [sys.executable, "-m", "diffbody", "restore", "-", "--steps", "2"]
    finished = subprocess.run(command, input=photo.read_bytes(), capture_output=True, timeout=HANG, check=True)
    wanted = diffbody.restore(pixels, num_inference_steps=2).pixels
    np.testing.assert_allclose(decode_image(finished.stdout).pixels, wanted, atol=0.51 / 255)

    finished = subprocess.run([*command, "-o", "-"], input=b"text", capture_output=True, timeout=HANG, check=False)
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert finished.stderr.startswith(b"diffbody: error: standard input: not a picture")
    assert finished.stderr.count(b"\n") == 1


def test_a_folder_is_restored_interrupted_and_resumed(photo: Path, pixels: np.ndarray) -> None:
    for name in ("b.png", "c.png"):
        photo.with_name(name).write_bytes(photo.read_bytes())
    command = [sys.executable, "-m", "diffbody", "restore", str(photo.parent), "--steps", "3", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    for _ in range(3):
        process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=HANG)
    assert process.returncode == 130
    done = [first, *map(json.loads, told.splitlines())]
    assert {each["status"] for each in done} == {"restored"}
    assert errors == f"diffbody: interrupted: {len(done)} done, {3 - len(done)} left; the same command goes on\n"
    assert first["seconds"] > 0
    finished = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    statuses = [json.loads(line)["status"] for line in finished.stdout.splitlines()]
    assert statuses.count("skipped") == len(done)
    assert statuses.count("restored") == 3 - len(done)


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    from diffbody.cli.recipes import hash_of_model

    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "vae" / "weights.safetensors").write_bytes(b"1")
    first = hash_of_model(folder)
    assert hash_of_model(folder.rename(tmp_path / "moved")) == first
    (tmp_path / "moved" / "vae" / "weights.safetensors").write_bytes(b"2")
    assert hash_of_model(tmp_path / "moved") != first


def test_half_precision_on_a_cpu_is_said_to_be_slow(capsys: pytest.CaptureFixture[str]) -> None:
    for config, lines in (
        (EngineConfig(device="cpu", precision="float16"), 1),
        (EngineConfig(device="cpu", engine="torch", precision="bfloat16"), 1),
        (EngineConfig(device="cpu"), 0),
        (EngineConfig(device="cuda", precision="float16"), 0),
    ):
        tell_of_slow_precision(config)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == lines
        assert (config.precision in printed.err) == bool(lines)


def test_the_shell_completes_commands_options_and_choices() -> None:
    for words, wanted in (
        ("diffbody rest", "restore"),
        ("diffbody restore --samp", "--sampler"),
        ("diffbody restore --sampler dp", "dpm++"),
    ):
        environment = {**os.environ, "_DIFFBODY_COMPLETE": "complete_bash", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(words.count(" "))
        command = [sys.executable, "-m", "diffbody"]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=True)
        assert wanted in finished.stdout.split()


NEEDS = {
    "train": ("torch", ["swinir", "--config", "CONFIG"]),
    "train-all": ("anny", ["--config", "CONFIG"]),
    "import": ("safetensors", ["OUT", "--swinir", "CONFIG"]),
    "release": ("diffusers", ["CONFIG", "OUT"]),
    "synth": ("warp", ["OUT", "--identities", "1"]),
    "evaluate": ("skimage", ["CONFIG", "-o", "OUT"]),
    "export": ("onnxscript", ["-o", "OUT"]),
    "serve": ("pytriton", []),
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_extra_is_told_before_anything_is_made(name: str, tmp_path: Path) -> None:
    package, arguments = NEEDS[name]
    script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from diffbody.cli import main
main({[name, *arguments]!r})
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert finished.returncode == 2
    assert f"needs the package {package!r}; install DiffBody with its extra" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_slow_is_imported_to_help_or_to_refuse(photo: Path, model: str) -> None:
    """In a fresh interpreter, as here other tests have imported everything: that is what start-up time comes from."""
    script = f"""
import sys
from diffbody import cli
def run(*arguments):
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        return stop.code
def loaded(names):
    return [name for name in names if name in sys.modules]
assert run("--help") == 0 and run("restore", "--help") == 0 and run("--version") == 0
assert not loaded({SLOW!r}), loaded({SLOW!r})
assert run("restore", {str(photo)!r}, "--model", {model!r}, "--steps", "0") == 2
assert run("restore", {str(photo.with_name("none.png"))!r}, "--model", {model!r}) == 2
assert run("restore", {str(Path(__file__))!r}, "--model", {model!r}, "-o", {str(photo.with_name("x.png"))!r}) == 2
assert not loaded({SLOW[:5]!r}), loaded({SLOW[:5]!r})
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG)
    assert finished.returncode == 0, finished.stderr


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--version"], "diffbody 0.1.0"),
        (["--help"], "restore"),
        (["restore", "-h"], "--steps"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


COMMANDS: dict[str, Any] = dict(typer.main.get_group(app).commands)
PANELS = {"Input and output", "Quality", "Speed and engine", "Server", "What is said"}


@pytest.mark.parametrize("name", ["", *COMMANDS])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_not_cut(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich ends a cell that does not fit with an ellipsis, and breaks a word that is longer than its column."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit, match="0"):
        cli.main([*([name] if name else []), "--help"])
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    for parameter in COMMANDS[name].params if name else ():
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert option in shown or not option.startswith("-")
        for choice in getattr(parameter.type_descriptor, "choices", None) or ():
            assert re.search(rf"[<|\s]{re.escape(str(choice))}[>|\s,.]", shown), choice


def test_every_option_says_what_it_is() -> None:
    for name, command in COMMANDS.items():
        panels = {parameter.rich_help_panel for parameter in command.params if parameter.param_type_name == "option"}
        assert panels <= PANELS or panels == {None}, name
        for parameter in command.params:
            assert re.fullmatch(r"[A-Z].*[.)]", parameter.help or ""), (name, parameter.name, parameter.help)


def test_defaults_are_those_of_what_the_commands_call() -> None:
    """Where importing a configuration is too slow for the command's start, its defaults are written again there."""
    from diffbody_ref.data.captioning.endpoint import EndpointConfig
    from diffbody_ref.data.captioning.folder import caption_folder
    from diffbody_ref.data.cleaning.phases import CleanConfig
    from diffbody_ref.data.cleaning.protocol import clean
    from diffbody_ref.data.synthetic.dataset import synthesize
    from diffbody_ref.evaluation.run import EvaluateConfig
    from runtime.triton.client import ClientConfig

    for name, called in (
        ("caption", EndpointConfig),
        ("caption", caption_folder),
        ("clean", CleanConfig),
        ("clean", clean),
        ("synth", synthesize),
        ("evaluate", EvaluateConfig),
        ("restore", ClientConfig),
    ):
        parameters = inspect.signature(called).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
        shared = [each for each in COMMANDS[name].params if each.name in defaults and not each.required]
        assert shared, name
        for parameter in shared:
            assert parameter.default == defaults[parameter.name] or not parameter.default, (name, parameter.name)


def test_choices_are_all_that_there_are() -> None:
    from diffbody_ref.data.captioning.endpoint import RESPONSE_FORMATS
    from diffbody_ref.evaluation.run import DEGRADATIONS
    from diffbody_ref.evaluation.suites import SUITES
    from diffbody_ref.ops.formats import OUTPUT_FORMATS
    from diffbody_ref.ops.options import PRESETS
    from diffbody_ref.training.stages import STAGES

    for command, option, known in (
        ("restore", "format", [format.suffixes[0].lstrip(".") for format in OUTPUT_FORMATS]),
        ("caption", "response_format", RESPONSE_FORMATS),
        ("evaluate", "suite", SUITES),
        ("evaluate", "degradation", {*DEGRADATIONS, "model"}),
        ("release", "preset", PRESETS),
    ):
        (parameter,) = (each for each in COMMANDS[command].params if each.name == option)
        assert set(parameter.type_descriptor.choices) == set(known), option
    (stage,) = (each for each in COMMANDS["train"].params if each.name == "stage")
    assert re.findall(r"`(\w+)`", stage.help) == list(STAGES)


def test_the_module_is_a_command(photo: Path) -> None:
    command = [sys.executable, "-m", "diffbody", "restore", str(photo), "--steps", "0"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert finished.returncode == 2
    assert finished.stderr == "diffbody: error: --steps must be in 1..1000, got 0\n"


def test_a_mistake_in_the_program_keeps_its_traceback(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr("diffbody.cli.restore.check_options", broken)
    with pytest.raises(TypeError, match="a mistake"):
        cli.main(["restore", str(photo)])


def test_debugging_shows_every_traceback(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFBODY_DEBUG", "1")
    with pytest.raises(ValueError, match="--steps"):
        cli.main(["restore", str(photo), "--steps", "0"])


def test_train_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.toml"
    assert str(config) in refused(capsys, "train", "swinir", "--config", config)
    config.write_text("stage = 'swinir'\nstepz = 1\n")
    assert "stepz" in refused(capsys, "train", "swinir", "--config", config)
    config.write_text(
        f"stage = 'swinir'\npreset = 'nano'\npipeline = '{tmp_path}'\ndata = ['none']\noutput = '{tmp_path}'\n"
        "steps = 1\nbatch_size = 1\nlearning_rate = 1e-4\n"
    )
    assert "'swinir', not 'vae'" in refused(capsys, "train", "vae", "--config", config)


def test_synth_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "people"
    for option in ("identities", "views", "workers"):
        given = {"identities": "1", option: "0"}
        assert option in refused(capsys, "synth", out, *(f"--{name}={value}" for name, value in given.items()))
    assert not out.exists()


def test_evaluate_refuses(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["-o", str(tmp_path / "out"), "--model", model]
    assert "metadata.jsonl" in refused(capsys, "evaluate", tmp_path, *place)
    assert "--guidance-scale" in refused(capsys, "evaluate", tmp_path, *place, "--guidance-scale", "nan")
    assert not (tmp_path / "out").exists()
