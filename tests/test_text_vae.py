"""Text encoder, tokenizer and autoencoder: sizes, CLIP's real vocabulary, scaling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from diffbody_ref.components import build_component
from diffbody_ref.models.text import PAD_TOKENS, build_text_encoder, build_tokenizer, encode_prompt, save_tokenizer
from diffbody_ref.models.vae import build_vae, decode, encode_mode


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # Published ids of CLIP's tokenizer.
        ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("A Photo OF a Cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("", [49406, 49407]),
        # By open_clip's SimpleTokenizer.
        (
            "a 30-year-old woman, long brown hair; striped t-shirt",
            [49406, 320, 274, 271, 268, 935, 268, 896, 2308, 267, 1538, 2866, 2225, 282, 22192, 339, 268, 2523, 49407],
        ),
        ("they're at the café", [49406, 889, 982, 536, 518, 15304, 49407]),
    ],
)
def test_tokenizer_is_clips(text: str, ids: list[int]) -> None:
    assert build_tokenizer()(text).input_ids == ids


@pytest.mark.parametrize(("preset", "pad"), [("sd21", 0), ("nano", 49407)])
def test_padding_is_the_text_encoders(tmp_path: Path, preset: str, pad: int) -> None:
    """Every position's embedding conditions the U-Net, so the id after the end matters: OpenCLIP's is 0."""
    token = PAD_TOKENS[preset]
    build_tokenizer(token).save_pretrained(tmp_path / "theirs")
    save_tokenizer(build_tokenizer(token), tmp_path / "ours")
    saved = (CLIPTokenizer.from_pretrained(tmp_path / name) for name in ("theirs", "ours"))
    for tokenizer in (build_component("tokenizer", preset), *saved):
        ids = tokenizer("a cat", padding="max_length").input_ids
        assert ids == [49406, 320, 2368, 49407] + [pad] * 73


def test_prompts_are_padded_to_the_longest() -> None:
    torch.manual_seed(0)
    tokenizer, encoder = build_tokenizer(), build_text_encoder("nano").eval()
    embedded = encode_prompt(tokenizer, encoder, ["a woman in a red coat", "word " * 200, ""])
    assert embedded.shape == (3, 3 * 77, 64)  # 200 tokens are 75 + 75 + 50
    assert torch.isfinite(embedded).all()
    assert not torch.equal(embedded[0], embedded[2])
    # After its own chunk come chunks of the empty prompt; sums of another batch run in another order.
    short = encode_prompt(tokenizer, encoder, ["a woman in a red coat", ""])
    torch.testing.assert_close(embedded[0, :77], short[0])
    torch.testing.assert_close(embedded[0, 77:], short[1].repeat(2, 1))


def test_sd21_sizes() -> None:
    with torch.device("meta"):
        encoder, vae = build_text_encoder("sd21"), build_vae("sd21")
    assert sum(p.numel() for p in encoder.parameters()) == 340_387_840  # SD 2.1's text encoder
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863  # SD's autoencoder
    assert vae.config.scaling_factor == 0.18215


def test_latents_are_scaled_and_back() -> None:
    torch.manual_seed(0)
    vae = build_vae("nano").eval()
    vae.register_to_config(scaling_factor=0.5)
    pictures = torch.rand(2, 3, 32, 16) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
        z = encode_mode(vae, pictures)
        assert z.shape == (2, 8, 8, 4)
        assert torch.equal(z, posterior.mean * 0.5)
        assert torch.equal(decode(vae, z), vae.decode(posterior.mean).sample)  # × 0.5 / 0.5 is exact
