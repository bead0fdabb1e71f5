"""A request's picture and settings, checked and brought to the working size."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffbody_ref.ops.processing import preprocess
from diffbody_ref.ops.results import guidance_notices
from runtime.triton.contract import ALPHA, PICTURE, SETTINGS, SOURCE, TICKET
from runtime.triton.messages import read_request, write_source
from runtime.triton.models import Model, read_tensors
from runtime.triton.settings import Settings, Ticket


class TritonPythonModel(Model):
    """A ticket and the tensors of `contract.REQUEST` → the padded picture, its alpha, the settings."""

    def answer(self, request: Any) -> dict[str, np.ndarray]:
        most, tensors = self.parameters.max_pixels, read_tensors(request)
        ticket = Ticket.from_tensor(tensors.pop(TICKET.name))
        self.check(ticket)
        asked = read_request(tensors, most)
        options = self.restorer.settings.options(**asked.options)
        sizes = self.restorer.sizes(asked.picture, options)
        if sizes.padded_height * sizes.padded_width > most:
            size = f"{sizes.padded_width}x{sizes.padded_height}"
            raise ValueError(f"the picture is {size} at work, by its upscaling or padding; at most {most:,} pixels")
        settings = Settings(
            options,
            sizes,
            asked.prompt,
            asked.negative_prompt,
            asked.seed,
            asked.output_format,
            asked.as_text,
            ticket,
        )
        notices = guidance_notices(asked.options, self.restorer.manifest.lacking)
        alpha = np.zeros((0, 0), np.float32) if asked.picture.alpha is None else asked.picture.alpha
        return {
            PICTURE.name: preprocess(asked.picture, sizes),
            ALPHA.name: alpha[None],
            SOURCE.name: np.array([[write_source(asked.picture, notices).encode()]], np.object_),
            SETTINGS.name: settings.to_tensor(),
        }
