"""A request's picture and settings, checked and brought to the working size."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from runtime.triton.contract import read_request
from runtime.triton.models import SETTINGS, Model, Settings, failure, read_tensors, respond


class TritonPythonModel(Model):
    """IMAGE or PIXELS and what else `contract.REQUEST` lists → the padded picture, its alpha, the settings."""

    def _respond(self, request: Any) -> Any:
        begin = time.time()
        try:
            asked = read_request(read_tensors(request), int(self.parameters["max_pixels"]))
            options = self.restorer.options(**asked.options)
            sizes, most = self.restorer.sizes(asked.picture, options), int(self.parameters["max_pixels"])
            if sizes.padded_height * sizes.padded_width > most:
                size = f"{sizes.padded_width}x{sizes.padded_height}"
                raise ValueError(f"the picture is {size} at work, by its upscaling or padding; at most {most:,} pixels")
            low = self.restorer.prepare(asked.picture, sizes)
            wait = min(request.timeout() / 1e6 or float("inf"), float(self.parameters["max_seconds"]))
            settings = Settings(
                options, sizes, asked.prompt, asked.negative_prompt, asked.seed, asked.output_format, begin + wait
            )
            alpha = asked.picture.alpha
            alpha = np.zeros((0, 0), np.float32) if alpha is None else alpha
            return respond({"picture": low, "alpha": alpha[None], SETTINGS: settings.to_tensor()}, begin)
        except Exception as error:
            return failure(error)
