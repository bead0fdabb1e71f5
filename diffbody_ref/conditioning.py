"""The text that conditions a batch: from a call's prompts, or from the embeddings that it gives in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffbody_ref.calls import Call
from diffbody_ref.models.text import encode_prompt, prompt_tokenizer
from diffbody_ref.ops.prompts import prompt_notices, prompts_read


@dataclass
class Text:
    """c of eq. 4 for a batch; a callback may replace it between steps.

    Attributes:
        prompt_embeds: (B, L, D).
        negative_prompt_embeds: (B, L, D) where classifier-free guidance is on, else None.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None


class Prompting:
    """What a call says in words, for a pipeline's text encoder.

    Args:
        tokenizer: of the pipeline.
        text_encoder: of the pipeline.
        call: its arguments.
        guidance_scale: of the call; at 1, negative prompts do not count.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, call: Call, guidance_scale: float
    ) -> None:
        self.tokenizer, self.text_encoder, self.call, self.guidance_scale = (
            tokenizer,
            text_encoder,
            call,
            guidance_scale,
        )
        self._split = prompt_tokenizer(tokenizer, text_encoder)

    def chunks(self, place: int) -> int:
        """Length of a result's text, in the chunks of `ops.prompts`: what is sampled together is of one length."""
        for given in (self.call.prompt_embeds, self.call.negative_prompt_embeds):
            if given is not None:
                return -(-given.shape[1] // self._split.length)
        read = prompts_read(self.call.prompts[place], self.call.negative_prompts[place], self.guidance_scale)
        return max(len(self._split(text).ids) for text in read)

    def text(self, group: Sequence[int], device: torch.device, dtype: torch.dtype) -> Text:
        """The embeddings of results whose texts have equally many chunks.

        Raises:
            ValueError: embeddings were given whose length prompts do not have.
        """
        chunks = self.chunks(group[0])

        def embed(given: Tensor | None, texts: Sequence[str]) -> Tensor:
            if given is not None:
                return given[list(group)].to(device, dtype)
            texts = [texts[place] for place in group]
            return encode_prompt(self.tokenizer, self.text_encoder, texts, chunks).to(device, dtype)

        text = embed(self.call.prompt_embeds, self.call.prompts)
        if self.guidance_scale == 1.0:
            return Text(text, None)
        negative = embed(self.call.negative_prompt_embeds, self.call.negative_prompts)
        if text.shape != negative.shape:
            raise ValueError(
                f"the prompt's embeddings have length {text.shape[1]}, the negative prompt's {negative.shape[1]}: give "
                "both prompt_embeds and negative_prompt_embeds, of one length"
            )
        return Text(text, negative)

    def notices(self, place: int) -> list[str]:
        """What whoever asked should know of a result's prompts, one line each."""
        prompt, negative = self.call.prompts[place], self.call.negative_prompts[place]
        return prompt_notices(prompt, negative, self.guidance_scale, self._split)
