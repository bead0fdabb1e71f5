"""What goes with a request from model to model, beside its tensors."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.processing import Sizes
from runtime.triton.contract import TIME_IS_OVER


@dataclass(frozen=True)
class Settings:
    """The settings of one request.

    Attributes:
        options: checked, and complete with the bundle's defaults.
        sizes: of the picture, at work and of the output.
        prompt: what the picture shows.
        negative_prompt: what it should not show.
        seed: of the noise.
        output_format: "png", "jpg" or "webp".
        deadline: seconds of the Unix clock; 0 is none.
    """

    options: RestoreOptions
    sizes: Sizes
    prompt: str
    negative_prompt: str
    seed: int
    output_format: str
    deadline: float

    def to_tensor(self) -> np.ndarray:
        """The settings as JSON, object array (1, 1)."""
        return np.array([[json.dumps(dataclasses.asdict(self)).encode()]], np.object_)

    @classmethod
    def from_tensor(cls, tensor: np.ndarray) -> Settings:
        """The settings that `to_tensor` wrote."""
        values = json.loads(tensor.reshape(-1)[0])
        options, sizes = RestoreOptions(**values.pop("options")), Sizes(**values.pop("sizes"))
        return cls(options=options, sizes=sizes, **values)

    def check_deadline(self) -> None:
        """
        Raises:
            TimeoutError: nobody waits for the request any more.
        """
        if self.deadline and time.time() > self.deadline:
            raise TimeoutError(TIME_IS_OVER)
