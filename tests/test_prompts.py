"""Prompts of any length, in chunks of 75: reference, runtime and bundles read them alike, and say what they cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from diffbody_ref.models.text import OPEN_CLIP_PAD, build_text_encoder, build_tokenizer, prompt_tokenizer
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import Picture, read_image
from diffbody_ref.ops.prompts import MAX_CHUNKS, NEGATIVE_UNUSED, PromptTokenizer, prompt_notices
from diffbody_ref.ops.samplers import StepInfo
from diffbody_ref.ops.tensors import SizeRange
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.stages.base import BATCH
from export.parity import agreement
from runtime.bundle import Bundle
from runtime.engines import EngineConfig
from runtime.restore import Parts, Restorer, load_tokenizer
from runtime.steps import Sampling, advance

PERSON = Path(__file__).parent.parent / "samples" / "degraded" / "synthetic_1.jpg"
BEGIN, END = 49406, 49407
LONG = "a young woman with short brown hair, round glasses, a red coat, blue jeans and white shoes, " * 6


@pytest.fixture(scope="module")
def split() -> PromptTokenizer:
    return prompt_tokenizer(build_tokenizer(OPEN_CLIP_PAD), build_text_encoder("nano"))


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.open(NANO_FOLDER, EngineConfig(threads=1))


@pytest.fixture(scope="module")
def pipe() -> DiffBodyPipeline:
    return DiffBodyPipeline.from_pretrained(NANO_FOLDER)


@pytest.fixture(scope="module")
def person() -> Picture:
    return Picture(read_image(PERSON).pixels[::2, ::2].copy())


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3), (600, 8)])
def test_each_chunk_is_framed_and_padded(split: PromptTokenizer, words: int, chunks: int) -> None:
    """ "word" is one token. Behind the end comes the padding of Stable Diffusion 2, id 0."""
    found = split("word " * words)
    assert found.ids.shape == (chunks, 77)
    assert found.ids.dtype == np.int64
    assert found.cut == ""
    left = words
    for row in found.ids.tolist():
        here = min(left, 75)
        left -= here
        assert row[0] == BEGIN
        assert len(set(row[1 : 1 + here])) <= 1
        assert row[1 + here :] == [END] + [0] * (75 - here)
    assert left == 0


def test_a_prompt_is_followed_by_chunks_of_the_empty_one(split: PromptTokenizer) -> None:
    ids = split("a cat", 3).ids
    assert ids[0].tolist() == split("a cat").ids[0].tolist()
    assert ids[1].tolist() == ids[2].tolist() == split("").ids[0].tolist() == [BEGIN, END] + [0] * 75


def test_what_is_cut_is_named(split: PromptTokenizer) -> None:
    prompt = "word " * 600 + "\nBlue  shoes, Übergröße"
    assert split(prompt).ids.shape == (MAX_CHUNKS, 77)
    assert split(prompt).cut == "Blue  shoes, Übergröße"
    (notice,) = prompt_notices(prompt, "", 1.0, split)
    assert notice == (
        "the prompt is too long for the model: its last 3 words were not read, from 'Blue  shoes, Übergröße' on"
    )
    (of_many,) = prompt_notices("word " * 5000, "", 1.0, split)
    assert "last 4400 words" in of_many
    assert len(of_many) < 160
    assert prompt_notices("", prompt, 2.0, split) == [notice.replace("prompt", "negative prompt")]


def test_a_negative_prompt_that_does_nothing_is_said(split: PromptTokenizer) -> None:
    assert prompt_notices("x", "blurry", 1.0, split) == [NEGATIVE_UNUSED]
    assert prompt_notices("x", "blurry", 2.0, split) == []
    assert prompt_notices("x", "blurry", 0.0, split) == []
    assert prompt_notices("x", " ", 1.0, split) == []
    assert prompt_notices("x", "word " * 700, 1.0, split) == [NEGATIVE_UNUSED]  # unread, whatever its length


@pytest.mark.parametrize(("prompt", "message"), [(3, "must be a text, got int"), ("a \ud800", "character 2 is half")])
def test_what_is_no_text_is_refused(restorer: Restorer, pipe: DiffBodyPipeline, prompt: str, message: str) -> None:
    for call in (
        lambda: restorer.restore(np.zeros((32, 32, 3), np.float32), prompt),
        lambda: restorer.restore(np.zeros((32, 32, 3), np.float32), "", prompt),
        lambda: pipe(np.zeros((32, 32, 3), np.float32), prompt),
        lambda: pipe(np.zeros((32, 32, 3), np.float32), "", prompt),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_chunks_of_a_batch_are_one_batch_of_the_text_encoder() -> None:
    assert BATCH.most >= MAX_CHUNKS


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_long_prompt_is_read_to_its_end_and_by_all_alike(
    pipe: DiffBodyPipeline, restorer: Restorer, person: Picture, guidance_scale: float
) -> None:
    call = {"num_inference_steps": 2, "strength": 1.0, "guidance_scale": guidance_scale, "use_structure": False}
    prompts = (LONG + "a dog", LONG + "the sea")
    by_reference = [pipe(person, prompt, **call, output_type="np").images[0] for prompt in prompts]
    by_runtime = [restorer.restore(person, prompt, **call) for prompt in prompts]  # type: ignore[arg-type]
    assert restorer.tokenize(LONG).ids.shape == (2, 77)
    for ours, theirs in zip(by_runtime, by_reference, strict=True):
        assert agreement(ours.pixels, theirs) > 45  # dB, what the project asks of float32 engines
        assert ours.notices == []
    assert agreement(by_runtime[0].pixels, by_runtime[1].pixels) < 100  # the same up to rounding is over 110


def test_the_notices_are_in_reference_and_runtime(pipe: DiffBodyPipeline, restorer: Restorer, person: Picture) -> None:
    call = {"num_inference_steps": 1, "use_structure": False, "guidance_scale": 1.0}
    said = restorer.restore(person, "word " * 601, "blurry", **call).notices  # type: ignore[arg-type]
    assert said == pipe(person, "word " * 601, "blurry", **call).notices[0]
    assert len(said) == 2
    assert "its last 1 words were not read, from 'word' on" in said[0]
    assert said[1] == NEGATIVE_UNUSED


def test_a_bundle_whose_denoiser_reads_one_chunk_cuts_and_says_so() -> None:
    """Those of the first version: their denoiser's text has 77 rows."""
    bundle = Bundle.open(NANO_FOLDER, verify=False)
    denoiser = bundle.manifest.stages["denoiser"]
    one = dataclasses.replace(denoiser, sizes={k: v for k, v in denoiser.sizes.items() if k != "chunks"})
    older = dataclasses.replace(bundle.manifest, stages={**bundle.manifest.stages, "denoiser": one})
    split = load_tokenizer(Bundle(NANO_FOLDER, older))
    assert split("word " * 80).ids.shape == (1, 77)
    assert split("word " * 80).cut == "word word word word word"
    assert denoiser.sizes["chunks"] == SizeRange(1, 1, MAX_CHUNKS)


def test_a_neighbours_prompt_changes_nothing(restorer: Restorer) -> None:
    """Texts of other lengths are not padded to the longest: each gets, to the bit, what it gets without them."""

    def begin(prompt: str, seed: int) -> Sampling:
        options = restorer.settings.options(num_inference_steps=3, strength=1.0, body_guidance_scale=0.0)
        rng = np.random.default_rng(seed)
        z_r = rng.standard_normal((1, restorer.geometry.latent_channels, 16, 16), np.float32)
        pose = np.zeros((1, 3, 64, 64), np.float32)
        parts: Parts = restorer.find_parts(pose, np.zeros((0, 5), np.float32))
        return restorer.begin(z_r, pose, parts, restorer.encode_text(prompt, "", options), options, seed)

    def run(batch: list[Sampling]) -> list[np.ndarray]:
        infos: list[StepInfo] = []
        while not batch[0].done:
            infos = advance(batch, restorer.infer, restorer.manifest)
        return [info.latents for info in infos]

    (alone,) = run([begin("a man", 1)])
    together = run([begin("a man", 1), begin(LONG, 2), begin(LONG * 2, 3)])
    np.testing.assert_array_equal(together[0], alone)
