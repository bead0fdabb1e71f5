"""The text encoder: transformers' CLIPTextModel and its tokenizer with CLIP's real vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def build_text_encoder(preset: str) -> CLIPTextModel:
    """The text encoder at a preset's size, with random weights: token ids (B, 77) → (B, 77, hidden_size)."""
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **CONFIGS[preset]))


def build_tokenizer(pad_token: str = CLIP_PAD) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, from the vocabulary in this package.

    Args:
        pad_token: what fills short prompts up: the text encoder's, see `PAD_TOKENS`.
    """
    return CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER, pad_token=pad_token)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer as its vocabulary's two source files: a third of the one file that transformers writes.

    That one is written, too, if there are tokens beyond the vocabulary, which the source files cannot hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if len(tokenizer) > len(_vocabulary(tokenizer)["vocab"]):
        tokenizer.save_pretrained(folder)
    write_vocabulary(tokenizer, folder)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.model_max_length}
    config |= {name: str(getattr(tokenizer, name)) for name in names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, which bundles read; files of the same content stay as they are."""
    model = _vocabulary(tokenizer)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocabulary.is_file() or json.loads(vocabulary.read_text(encoding="utf-8")) != model["vocab"]:
        text = json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":"))
        vocabulary.write_text(text, encoding="utf-8")
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if not merges.is_file() or merges.read_text(encoding="utf-8").split("\n")[1:-1] != lines:
        merges.write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")


def _vocabulary(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The model of the library tokenizers: "vocab", ids by token, and "merges", pairs."""
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


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
