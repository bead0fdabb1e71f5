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
            low, sizes = self.restorer.prepare(asked.picture, options)
            if low.size > 3 * int(self.parameters["max_pixels"]):
                most = int(self.parameters["max_pixels"])
                raise ValueError(f"the picture is {low.shape[3]}x{low.shape[2]} at work; at most {most:,} pixels")
            wait = min(request.timeout() / 1e6 or float("inf"), float(self.parameters["max_seconds"]))
            settings = Settings(
                options, sizes, asked.prompt, asked.negative_prompt, asked.seed, asked.output_format, begin + wait
            )
            alpha = asked.picture.alpha
            alpha = np.zeros((0, 0), np.float32) if alpha is None else alpha
            return respond({"picture": low, "alpha": alpha[None], SETTINGS: settings.to_tensor()}, begin)
        except Exception as error:
            return failure(error)
