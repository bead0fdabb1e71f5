"""The text encoder: transformers' CLIPTextModel and its tokenizer with CLIP's real vocabulary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.prompts import PromptTokenizer

TOKENIZER_FOLDER = NANO_FOLDER / "tokenizer"

CONFIGS: dict[str, dict] = {
    # OpenCLIP ViT-H/14's text tower without its last layer: Stable Diffusion 2 reads the penultimate one.
    "sd21": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 512,
    },
    "nano": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "projection_dim": 64,
    },
}

# OpenCLIP pads with id 0, which is "!" in this vocabulary; CLIP pads with its end token.
OPEN_CLIP_PAD, CLIP_PAD = "!", "<|endoftext|>"
PAD_TOKENS = {"sd21": OPEN_CLIP_PAD, "nano": CLIP_PAD}
VOCABULARY = ("vocab.json", "merges.txt")


def build_text_encoder(preset: str) -> CLIPTextModel:
    """The text encoder at a preset's size, with random weights: token ids (B, 77) → (B, 77, hidden_size)."""
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **CONFIGS[preset]))


def build_tokenizer(pad_token: str = CLIP_PAD) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, from the vocabulary in this package.

    Args:
        pad_token: what fills short prompts up: the text encoder's, see `PAD_TOKENS`.
    """
    return CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER, pad_token=pad_token)


def save_tokenizer(folder: Path, pad_token: str) -> None:
    """Write CLIP's tokenizer to a new folder: the vocabulary's two source files, and what to pad with.

    They are a third of the size of the one file that transformers writes, and a bundle's runtime reads them.
    """
    folder.mkdir(parents=True)
    for name in VOCABULARY:
        shutil.copyfile(TOKENIZER_FOLDER / name, folder / name)
    config = json.loads((TOKENIZER_FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "pad_token": pad_token}, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def prompt_tokenizer(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> PromptTokenizer:
    """What splits prompts into chunks for a text encoder."""
    length = text_encoder.config.max_position_embeddings
    return PromptTokenizer(tokenizer.backend_tokenizer, length, tokenizer.pad_token_id)


@torch.no_grad()
def encode_prompt(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str], chunks: int = 1
) -> Tensor:
    """The text embeddings c of eq. 4, (B, 77·n, D), of n chunks that follow one another; see `ops.prompts`.

    Args:
        tokenizer: of the pipeline.
        text_encoder: of the pipeline.
        prompts: B of them.
        chunks: n is as many as the longest of the prompts needs, but at least this.

    Raises:
        ValueError: a prompt that is no text.
    """
    split = prompt_tokenizer(tokenizer, text_encoder)
    chunks = max([chunks, *(len(split(prompt).ids) for prompt in prompts)])
    ids = np.concatenate([split(prompt, chunks).ids for prompt in prompts])
    text = text_encoder(torch.from_numpy(ids).to(text_encoder.device)).last_hidden_state
    return text.reshape(len(prompts), -1, text.shape[2])
