"""Prompts of any length, as token ids: chunks of 75 tokens, each framed and padded as CLIP's text encoder reads them.

The chunks' embeddings follow one another along the sequence that the denoiser's cross-attention sees, as in other
software for Stable Diffusion. A prompt of up to 75 tokens is one chunk: what CLIP makes of it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_CHUNKS = 8
"""Of one prompt: 600 tokens, some 450 words."""

SHOWN = 40  # characters of what was cut that a notice shows


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text encoder reads it.

    Attributes:
        ids: int64 (chunks, length), each chunk framed by the begin and the end token and padded.
        cut: the end of the prompt, for which there is no chunk left; empty where all of it is read.
    """

    ids: np.ndarray
    cut: str = ""


class PromptTokenizer:
    """Splits prompts into chunks of token ids.

    Args:
        tokenizer: CLIP's, of the library `tokenizers`; its own truncation and padding are turned off.
        length: token ids of a chunk, with its frame, such as 77.
        pad_id: follows the end token.
        most: number of chunks that a model reads.
    """

    def __init__(self, tokenizer: Any, length: int, pad_id: int, most: int = MAX_CHUNKS) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.length, self.pad_id, self.most, self._tokenizer = length, pad_id, most, tokenizer
        self._begin, self._end = tokenizer.encode("").ids

    def __call__(self, prompt: str, chunks: int = 1) -> TokenizedPrompt:
        """The prompt in as many chunks as it needs, at least `chunks`: chunks of the empty prompt follow its own.

        Raises:
            ValueError: it is no text.
        """
        check_text(prompt)
        encoded = self._tokenizer.encode(prompt, add_special_tokens=False)
        room = self.length - 2
        count = min(max(-(-len(encoded.ids) // room), chunks, 1), self.most)
        ids = np.full((count, self.length), self.pad_id, np.int64)
        for place, row in enumerate(ids):
            tokens = encoded.ids[place * room : (place + 1) * room]
            row[: len(tokens) + 2] = [self._begin, *tokens, self._end]
        beyond = encoded.offsets[count * room :]
        return TokenizedPrompt(ids, prompt[beyond[0][0] :].strip() if beyond else "")


def check_text(prompt: Any, name: str = "prompt") -> str:
    """The prompt itself.

    Raises:
        ValueError: it is no text, or none that UTF-8 can hold; the message calls it `name`.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"{name} must be a text, got {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is no Unicode text: character {error.start} is half of a surrogate pair") from None
    return prompt


NEGATIVE_UNUSED = (
    "the negative prompt does nothing at guidance scale 1, where classifier-free guidance is off; choose a guidance "
    "scale other than 1"
)


def prompts_read(prompt: str, negative_prompt: str, guidance_scale: float) -> list[str]:
    """The prompts that the denoiser is given: the negative one with classifier-free guidance only."""
    return [prompt] if guidance_scale == 1.0 else [prompt, negative_prompt]


def prompt_notices(
    prompt: str, negative_prompt: str, guidance_scale: float, tokenize: Callable[[str], TokenizedPrompt]
) -> list[str]:
    """What whoever asked should know of their prompts, one line each: what of them was not read."""
    read = prompts_read(prompt, negative_prompt, guidance_scale)
    cuts = zip(("prompt", "negative prompt"), (tokenize(text).cut for text in read), strict=False)
    told = [cut_notice(name, cut) for name, cut in cuts if cut]
    return told + [NEGATIVE_UNUSED] * (len(read) == 1 and bool(negative_prompt.strip()))


def cut_notice(name: str, cut: str) -> str:
    """A line that says what of a prompt was not read.

    Args:
        name: of the prompt, such as "prompt".
        cut: see `TokenizedPrompt`; not empty.
    """
    words = len(cut.split())
    shown = cut if len(cut) <= SHOWN else f"{cut[:SHOWN]}…"
    return f"the {name} is too long for the model: its last {words} words were not read, from {shown!r} on"
