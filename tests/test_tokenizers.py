"""A model's own tokenizer goes where the model goes: into a release, a bundle, and the runtime, padding included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from diffbody_ref.components import build_component, load_component
from diffbody_ref.models.text import OPEN_CLIP_PAD, TOKENIZER_FOLDER, build_tokenizer, save_tokenizer, write_vocabulary
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.training.release import release
from export.bundle import _manifest
from runtime.bundle import Bundle
from runtime.restore import load_tokenizer

CAPTIONS = ("", "a man", "Wow! A woman, 30; red coat!!", "naïve 東京 # ##", "word " * 200)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The tokenizer's folder of Stable Diffusion 2.1, in the files and with the settings that it is published with."""
    folder = tmp_path / "published"
    shutil.copytree(TOKENIZER_FOLDER, folder)
    framed = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        "bos_token": {"content": "<|startoftext|>", **framed},
        "eos_token": {"content": "<|endoftext|>", **framed},
        "pad_token": "!",
        "unk_token": {"content": "<|endoftext|>", **framed},
    }
    config = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **special["bos_token"]},  # type: ignore[dict-item]
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **special["eos_token"]},  # type: ignore[dict-item]
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "stabilityai/stable-diffusion-2",
        "pad_token": "<|endoftext|>",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **special["unk_token"]},  # type: ignore[dict-item]
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "!"}))
    return folder


def padded(tokenizer: CLIPTokenizer, caption: str) -> list[int]:
    """What transformers feeds to the text encoder."""
    return tokenizer(caption, padding="max_length", truncation=True, max_length=77).input_ids


def test_what_is_saved_is_read_as_it_was(published: Path, tmp_path: Path) -> None:
    theirs = CLIPTokenizer.from_pretrained(published)
    save_tokenizer(theirs, tmp_path / "saved")
    ours = CLIPTokenizer.from_pretrained(tmp_path / "saved")
    assert (ours.pad_token, ours.pad_token_id, ours.model_max_length) == ("!", 0, 77)
    for caption in CAPTIONS:
        assert padded(ours, caption) == padded(theirs, caption)
    assert padded(ours, "a man")[4:] == [0] * 73
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "merges.txt",
        "tokenizer_config.json",
        "vocab.json",
    ]


def test_tokens_beyond_the_vocabulary_are_kept(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(OPEN_CLIP_PAD)
    tokenizer.add_tokens(["<my-coat>"])
    save_tokenizer(tokenizer, tmp_path)
    assert CLIPTokenizer.from_pretrained(tmp_path)("a <my-coat>").input_ids == [49406, 320, 49408, 49407]


def test_nanos_tokenizer_is_saved_in_its_own_files(tmp_path: Path) -> None:
    save_tokenizer(build_tokenizer(), tmp_path)
    for path in TOKENIZER_FOLDER.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_preset_pads_as_its_text_encoder_was_trained() -> None:
    assert build_component("tokenizer", "sd21").pad_token == "!"
    assert build_component("tokenizer", "nano").pad_token == "<|endoftext|>"


@pytest.mark.parametrize("one_file", [False, True], ids=["vocabulary files", "transformers' one file"])
def test_a_bundle_reads_prompts_as_transformers_does(published: Path, tmp_path: Path, one_file: bool) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(published)
    folder = tmp_path / "bundle" / "tokenizer"
    if one_file:
        tokenizer.save_pretrained(folder)
    else:
        shutil.copytree(published, folder)
    nano = DiffBodyPipeline.from_pretrained(NANO_FOLDER, tokenizer=CLIPTokenizer.from_pretrained(folder))
    write_vocabulary(nano.tokenizer, folder)
    bundle = Bundle(folder.parent, _manifest(nano, "x", (), folder.parent, {}))
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= bundle.manifest.files.keys()
    read = load_tokenizer(bundle)
    for caption in CAPTIONS[:-1]:
        np.testing.assert_array_equal(read(caption).ids, [padded(tokenizer, caption)])
    # Of a long one the first chunk begins as transformers' cut does.
    assert read(CAPTIONS[-1]).ids[0, :76].tolist() == padded(tokenizer, CAPTIONS[-1])[:76]


def test_another_vocabulary_beside_the_one_file_is_replaced(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(OPEN_CLIP_PAD)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    write_vocabulary(tokenizer, tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == tokenizer.get_vocab()
    assert len((tmp_path / "merges.txt").read_text().splitlines()) > 48_000


def test_a_release_has_the_models_own_tokenizer(published: Path, tmp_path: Path) -> None:
    for name in ("text_encoder", "vae", "unet", "control"):
        build_component(name, "nano").save_pretrained(tmp_path / "components" / name)
    release(tmp_path / "components", tmp_path / "model", "nano")
    assert load_component(tmp_path / "model", "tokenizer").pad_token == "<|endoftext|>"
    shutil.copytree(published, tmp_path / "components" / "tokenizer")
    release(tmp_path / "components", tmp_path / "model", "nano")
    released = load_component(tmp_path / "model", "tokenizer")
    theirs = CLIPTokenizer.from_pretrained(published)
    assert released.pad_token == "!"
    for caption in CAPTIONS:
        assert padded(released, caption) == padded(theirs, caption)
