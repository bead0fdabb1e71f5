"""Manifests from anybody: whatever is in one, it is read or refused in one line that names the field; and links."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.pipeline import DiffBodyPipeline
from runtime.bundle import MANIFEST, MAX_LINE, Bundle, BundleError, read_manifest
from runtime.engines import EngineConfig
from runtime.restore import Restorer, load_tokenizer

TEXT = (NANO_FOLDER / MANIFEST).read_text(encoding="utf-8")
ROUNDS = 2  # replacements of each field
MOST = MAX_LINE + 250  # characters of an error: what is wrong, the file's name and what to do
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    10**5000,
    1e308,
    0.5,
    "x",
    "x" * 100_000,
    "a\nb\x00",
    "../../etc/passwd",
    [],
    {},
    ["x"],
    [[[1]]],
    {"x": 1},
]
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "[" * 100_000, '{"a":' * 100_000, '"\ud800"', "1" * 10_000]
"""What no JSON value gives: it stands in the text in a field's place."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Only a manifest and a tokenizer of few words: nothing else is read where files are not verified."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text('{"a</w>": 0, "<|startoftext|>": 49406, "<|endoftext|>": 49407}')
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return tmp_path


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a manifest; of lists the first two, of stages and files some."""
    if at:
        yield at
    if isinstance(value, dict):
        names = list(value)
        if at == ("files",):
            names = ["pose.float32.onnx", "tokenizer/vocab.json"]
        if at == ("stages",):
            names = ["pose", "denoiser", "guidance"]
        for name in names:
            yield from paths(value[name], (*at, name))
    elif isinstance(value, list):
        for place in range(min(len(value), 2)):
            yield from paths(value[place], (*at, place))


def may_lack(at: tuple[Any, ...]) -> bool:
    """Whether a manifest is one without this field: the first ones lack some, a stage may have any graphs."""
    free = at[0] in ("tokenizer", "provenance", "files", "prediction_type") or at == ("settings", "sampler")
    return free or at == ("stages", "pose") or (at[0] == "stages" and at[2:3] == ("graphs",) and len(at) == 4)


def check(folder: Path, text: str, at: Any) -> str:
    """What is said of a manifest; empty where it is accepted, and then its tokenizer is one, or is refused, too."""
    (folder / MANIFEST).write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        bundle = Bundle.open(folder, verify=False)
        if at[:1] == ("tokenizer",):
            load_tokenizer(bundle)("a a")
    except BundleError as error:
        message = str(error)
        assert "\n" not in message, at
        assert len(message) - len(str(folder)) < MOST, at
        return message
    return ""


def test_whatever_a_field_is_it_is_read_or_refused_in_one_line(folder: Path) -> None:
    values, rng = json.loads(TEXT), random.Random(0)
    accepted, fields = [], list(paths(values))
    assert len(fields) > 200
    for at in fields:
        holder = values
        for name in at[:-1]:
            holder = holder[name]
        original = holder[at[-1]]
        for value in rng.sample(VALUES, ROUNDS):
            holder[at[-1]] = value
            if not check(folder, dumps(values), at) and value != original:
                accepted.append(at)
        holder[at[-1]] = "HERE"
        check(folder, dumps(values).replace('"HERE"', rng.choice(RAW), 1), at)
        del holder[at[-1]]
        message = check(folder, dumps(values), at)
        if isinstance(holder, dict) and not may_lack(at):
            assert message, at
        if isinstance(holder, dict):
            holder[at[-1]] = original
            values = json.loads(TEXT)
        else:
            holder.insert(at[-1], original)
    free = {"name", "provenance", "tokenizer", "files", "settings", "geometry", "stages", "alphas_cumprod"}
    assert {at[0] for at in accepted} <= free, "schema and plans have one right type only"


def dumps(values: Any) -> str:
    """JSON with whole numbers of any length."""
    import sys

    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(values)
    finally:
        sys.set_int_max_str_digits(before)


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    values = json.loads(TEXT)
    change(values)
    return dumps(values)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (edited(lambda v: v["settings"].pop("tile_size")), "field settings.tile_size is missing"),
        (edited(lambda v: v["settings"].update(tile_size="512")), "settings.tile_size"),
        (edited(lambda v: v["settings"].update(tile_size=10**6 * 2)), "settings.tile_size must be in"),
        (edited(lambda v: v["settings"].update(tile_size=10**5000)), "Integer value out of range"),
        (edited(lambda v: v["settings"].update(strength=7)), "settings: strength must be"),
        (edited(lambda v: v["settings"].update(sampler="euler")), "settings: unknown sampler 'euler'"),
        (edited(lambda v: v["settings"].update(tile_sise=3)), "unknown field settings.tile_sise"),
        (TEXT.replace('"strength": 0.25', '"strength": NaN'), "broken manifest"),
        (edited(lambda v: v["geometry"].update(factor=0)), "geometry.factor must be in"),
        (edited(lambda v: v["geometry"].update(multiple=6)), "geometry.multiple must be a multiple"),
        (edited(lambda v: v["alphas_cumprod"].pop()), "alphas_cumprod must be"),
        (edited(lambda v: v["alphas_cumprod"].reverse()), "alphas_cumprod must be"),
        (edited(lambda v: v.update(prediction_type="flow")), "unknown prediction_type 'flow'"),
        (edited(lambda v: v["alphas_cumprod"].__setitem__(999, 0.0)), "does not go with a zero terminal SNR"),
        (edited(lambda v: v["stages"].pop("vae_encoder")), "stages.vae_encoder is missing"),
        (edited(lambda v: v["stages"].pop("parts")), "part_names must name parts where there is the stage parts"),
        (edited(lambda v: v["stages"].pop("guidance")), "stages.guidance is missing"),
        (edited(lambda v: v["geometry"].update(pose_height=0)), "geometry.pose_height must be in 1"),
        (edited(lambda v: v["stages"].update(pose=3)), "stages.pose"),
        (edited(lambda v: v["stages"]["denoiser"]["sizes"].pop("batch")), "stages.denoiser"),
        (edited(lambda v: v["stages"]["pose"]["inputs"][0].update(shape=["people", -3])), "has the side -3"),
        (edited(lambda v: v["stages"]["pose"]["inputs"][0].update(shape=["a*b*c"])), "has the side 'a[*]b[*]c'"),
        (edited(lambda v: v["stages"]["pose"]["inputs"][0].update(shape=["2*x"])), "has the side '2[*]x'"),
        (edited(lambda v: v["stages"]["pose"]["inputs"][0].update(dtype="object")), "has the dtype 'object'"),
        (edited(lambda v: v["stages"]["pose"]["sizes"]["people"].update(least=9)), "stages.pose.sizes.people"),
        (edited(lambda v: v["files"]["pose.float32.onnx"].update(size="big")), "files.pose.float32.onnx.size"),
        (edited(lambda v: v["files"].pop("tokenizer/vocab.json")), "'tokenizer/vocab.json' is not among"),
        (edited(lambda v: v["files"].update({"/etc/passwd": {"size": 1, "sha256": ""}})), "outside of the bundle"),
        (edited(lambda v: v["files"].update({"a/../../x": {"size": 1, "sha256": ""}})), "outside of the bundle"),
        (edited(lambda v: v["plans"].append({"flavour": "x"})), r"plans\[0\]"),
        (edited(lambda v: v.update(schema=True)), "schema is True"),
        (edited(lambda v: v.update(schema="x" * 100_000)), "schema is 'xxx"),
        (edited(lambda v: v.update(more=1)), "unknown field more"),
        ('{"schema": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ("[]", "schema is None"),
        ("", "broken manifest"),
        ("\x00", "broken manifest"),
    ],
    ids=lambda text: text[:30] if len(text) < 100 else "",
)
def test_what_is_wrong_is_named(folder: Path, text: str, named: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=named) as caught:
        Bundle.open(folder, verify=False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) - len(str(folder)) < MOST


def test_a_manifest_is_what_was_written(folder: Path) -> None:
    shutil.copy2(NANO_FOLDER / MANIFEST, folder / MANIFEST)
    manifest = read_manifest(folder, verify=False)
    assert manifest.to_json() == TEXT
    first = edited(lambda v: (v["settings"].pop("sampler"), v.pop("prediction_type")))  # those of the first version
    (folder / MANIFEST).write_text(first)
    assert read_manifest(folder, verify=False) == manifest


# ---- Links


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """nano as Hugging Face's cache keeps it: every file is a relative link to what its content is called."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    for path in NANO_FOLDER.rglob("*"):
        if path.is_file():
            blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copyfile(path, blob)
            link = snapshot / path.relative_to(NANO_FOLDER)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (snapshot / ".gitattributes").symlink_to(os.path.relpath(blobs / "x", snapshot))
    return snapshot


def test_a_bundle_in_hugging_faces_cache_restores(cached: Path) -> None:
    picture, call = np.full((48, 32, 3), 0.5, np.float32), {"num_inference_steps": 1, "use_structure": False}
    wanted = Restorer.open(NANO_FOLDER).restore(picture, **call).pixels  # type: ignore[arg-type]
    found = Restorer.open(cached).restore(picture, **call).pixels  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, wanted)
    by_torch = Restorer.open(cached, EngineConfig(engine="torch")).restore(picture, **call)  # type: ignore[arg-type]
    np.testing.assert_allclose(by_torch.pixels, wanted, atol=1e-3)
    assert DiffBodyPipeline.from_pretrained(cached).settings == read_manifest(cached).settings


def test_a_link_to_other_content_is_refused(cached: Path) -> None:
    secret = cached.parent / "secret"
    secret.write_text("{}")
    link = cached / "vae" / "config.json"
    link.unlink()
    link.symlink_to(secret)
    with pytest.raises(BundleError, match=r"config\.json: differs from the manifest"):
        Bundle.open(cached)
    link.unlink()
    link.symlink_to(cached / "nowhere")
    with pytest.raises(BundleError, match=r"config\.json: missing"):
        Bundle.open(cached)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(BundleError, match=r"config\.json"):
        Bundle.open(cached)


@pytest.mark.parametrize("name", ["vae/model.safetensors", "extra.json", "parts/more"])
def test_a_link_out_of_the_bundle_that_no_hash_answers_for_is_refused(cached: Path, tmp_path: Path, name: str) -> None:
    """PyTorch's engine reads what a network's folder holds; it is not to be a file of this machine."""
    (tmp_path / "other").mkdir()
    (cached / name).symlink_to(tmp_path / "other")
    with pytest.raises(BundleError, match="a link out of the bundle to what the manifest does not list") as caught:
        Bundle.open(cached)
    assert name in str(caught.value)


def test_a_folder_that_is_a_link_brings_in_what_the_manifest_knows_only(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(NANO_FOLDER, folder)
    shutil.move(folder / "vae", tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "vae")
    with pytest.raises(BundleError, match="vae: a link out of the bundle"):
        Bundle.open(folder)
    # Inside of the bundle, links are as good as files.
    (folder / "vae").unlink()
    shutil.move(tmp_path / "vae", folder / "kept")
    (folder / "vae").symlink_to("kept")
    assert Bundle.open(folder).manifest.name == "nano"
