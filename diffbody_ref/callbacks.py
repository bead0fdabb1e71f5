"""diffusers' callbacks: what they are told after a step, and what of it they may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffbody_ref.conditioning import Text
from diffbody_ref.ops.samplers import StepInfo

StepEnd = Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None]
"""(pipeline, step, timestep, tensors by name) → those that take the place of others, or None."""

CALLBACK_TENSORS = ("latents", "z0", "prompt_embeds", "negative_prompt_embeds")
"""What a callback may ask for. It may return all but z0, the prediction z̃_0 of the step."""


class InterruptedSamplingError(Exception):
    """A callback ended the sampling.

    Args:
        z0: what there is of z_0, (B, C, h, w).
        steps: how many were done.
    """

    def __init__(self, z0: Tensor, steps: int) -> None:
        super().__init__()
        self.z0, self.steps = z0, steps


@dataclass(frozen=True)
class StepCallback:
    """A call's callback; checked when made.

    Attributes:
        function: None is no callback.
        names: of the tensors that it gets.

    Raises:
        ValueError: a name that is not in `CALLBACK_TENSORS`.
    """

    function: StepEnd | None
    names: Sequence[str] = ("latents", "z0")

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in CALLBACK_TENSORS:
                known = ", ".join(CALLBACK_TENSORS)
                raise ValueError(f"unknown callback_on_step_end_tensor_inputs {name!r}, choose of {known}")

    def __call__(self, pipeline: Any, info: StepInfo, text: Text) -> Tensor | None:
        """Tell of a step, and take what is changed into `text`; returns the latents if they are changed.

        Raises:
            ValueError: it returns what it cannot change, or a tensor of another shape.
        """
        if self.function is None:
            return None
        tensors = {"latents": info.latents, "z0": info.z0, **vars(text)}
        changed = self.function(pipeline, info.step, info.timestep, {name: tensors[name] for name in self.names})
        if changed is None:
            return None
        if not isinstance(changed, dict):
            raise ValueError(f"callback_on_step_end must return a dictionary or None, got {type(changed).__name__}")
        changed = {name: value for name, value in changed.items() if value is not tensors.get(name, changed)}
        for name, value in changed.items():
            if name not in tensors or name == "z0":
                raise ValueError(f"callback_on_step_end cannot change {name!r}; it may return latents and embeddings")
            if getattr(value, "shape", None) != getattr(tensors[name], "shape", None):
                raise ValueError(f"callback_on_step_end returned {name} of another shape than it got")
        text.prompt_embeds = changed.get("prompt_embeds", text.prompt_embeds)
        text.negative_prompt_embeds = changed.get("negative_prompt_embeds", text.negative_prompt_embeds)
        return changed.get("latents")
