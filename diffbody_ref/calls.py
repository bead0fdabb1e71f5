"""The arguments of a pipeline's call, checked: one entry for each picture that comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffbody_ref.ops.images import Picture, as_picture
from diffbody_ref.ops.noise import check_seed
from diffbody_ref.ops.prompts import check_text
from diffbody_ref.ops.samplers import NoiseSource
from diffbody_ref.output import OUTPUT_TYPES
from diffbody_ref.sampling import generator_noise, noise_source


@dataclass(frozen=True)
class Call:
    """What is asked for: R results, those of one picture next to one another.

    Attributes:
        pictures: the pictures that came in.
        sources: R places in `pictures`.
        prompts: R captions; empty where embeddings are given.
        negative_prompts: R of them.
        seeds: R of them.
        generators: R of them, in place of the seeds; or None.
        prompt_embeds: (R, L, D) in place of the prompts; or None.
        negative_prompt_embeds: (R, L, D) in place of the negative prompts; or None.
        output_type: one of `OUTPUT_TYPES`.
    """

    pictures: list[Picture]
    sources: list[int]
    prompts: list[str]
    negative_prompts: list[str]
    seeds: list[int]
    generators: list[torch.Generator] | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    output_type: str

    @classmethod
    def read(
        cls,
        image: Any,
        prompt: Any,
        negative_prompt: Any,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        num_images_per_prompt: int,
        seed: Any,
        generator: Any,
        output_type: str,
        width: int,
    ) -> Call:
        """Check a call's arguments; see `DiffBodyPipeline.__call__`.

        Args:
            width: D of the text embeddings that the denoiser reads.

        Raises:
            ValueError: what is wrong, by its name.
        """
        pictures = [as_picture(each) for each in _each_picture(image)]
        copies, count = num_images_per_prompt, len(pictures)
        if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
            raise ValueError(f"num_images_per_prompt must be a whole number of at least 1, got {copies!r}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output_type {output_type!r}, choose one of {', '.join(OUTPUT_TYPES)}")
        for name, text, embeds in (
            ("prompt", prompt, prompt_embeds),
            ("negative_prompt", negative_prompt, negative_prompt_embeds),
        ):
            if text is not None and embeds is not None:
                raise ValueError(f"{name} and {name}_embeds: give one of them")
        embeds = _embeds("prompt_embeds", prompt_embeds, count, copies, width)
        negative_embeds = _embeds("negative_prompt_embeds", negative_prompt_embeds, count, copies, width)
        if embeds is not None and negative_embeds is not None and embeds.shape != negative_embeds.shape:
            found = tuple(embeds.shape), tuple(negative_embeds.shape)
            raise ValueError(
                f"prompt_embeds and negative_prompt_embeds must be of one shape, got {found[0]}, {found[1]}"
            )
        return cls(
            pictures=pictures,
            sources=[place for place in range(count) for _ in range(copies)],
            prompts=_texts("prompt", prompt, count, copies),
            negative_prompts=_texts("negative_prompt", negative_prompt, count, copies),
            seeds=_seeds(seed, count, copies),
            generators=None if generator is None else _one_each("generator", generator, count, copies),
            prompt_embeds=embeds,
            negative_prompt_embeds=negative_embeds,
            output_type=output_type,
        )

    def noise(self, group: Sequence[int], shape: Sequence[int], device: torch.device) -> NoiseSource:
        """The noise of results that are sampled in one batch, float32.

        Args:
            group: their places.
            shape: of one's latents, (C, h, w).
            device: of the latents.
        """
        if self.generators is not None:
            return generator_noise([self.generators[place] for place in group], shape, device)
        return noise_source([self.seeds[place] for place in group], shape, device)


def _each_picture(image: Any) -> list[Any]:
    """What `as_picture` takes, of one picture, a list or a batch of them."""
    if isinstance(image, list | tuple):
        if not image:
            raise ValueError("image: an empty list; give one picture at least")
        return [picture for each in image for picture in _each_picture(each)]
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
            raise ValueError(
                f"a tensor must be float (3, H, W) or (B, 3, H, W) in [0, 1], got {image.dtype} {tuple(image.shape)}"
            )
        image = image.detach().float().cpu().movedim(-3, -1).numpy()
    if isinstance(image, np.ndarray) and image.ndim == 4:
        return list(image)
    return [image]


def _one_each(name: str, value: Any, count: int, copies: int) -> list[Any]:
    """One value a result, from one for all, or a list with one a picture or one a result."""
    if not isinstance(value, list | tuple):
        return [value] * (count * copies)
    if len(value) == count:
        return [each for each in value for _ in range(copies)]
    if len(value) != count * copies:
        raise ValueError(f"{name}: {len(value)} given for {count} pictures")
    return list(value)


def _texts(name: str, value: Any, count: int, copies: int) -> list[str]:
    texts = _one_each(name, "" if value is None else value, count, copies)
    return [check_text("" if text is None else text, name) for text in texts]


def _seeds(seed: Any, count: int, copies: int) -> list[int]:
    """One a result; results of one picture and seed count on from it, or they would be the same picture."""
    seeds = [check_seed(each) for each in _one_each("seed", seed, count, copies)]
    if isinstance(seed, list | tuple) and len(seed) == count * copies:
        return seeds
    return [check_seed(each + place % copies) for place, each in enumerate(seeds)]


def _embeds(name: str, value: Any, count: int, copies: int, width: int) -> Tensor | None:
    """(R, L, D), from one row for all, one a picture or one a result."""
    if value is None:
        return None
    rows = (1, count, count * copies)
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[2] != width or value.shape[0] not in rows:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a tensor ({' or '.join(map(str, sorted({*rows})))}, L, {width}), got {got}")
    if len(value) == count * copies:
        return value
    return value.repeat_interleave(count * copies // len(value), dim=0)
