"""Step 6, colours and size; the picture encoded, and the report."""

from __future__ import annotations

import json

import numpy as np

from diffbody_ref.ops.images import encode_image, resize
from runtime.triton.contract import Report
from runtime.triton.models import Model, Settings

SPANS = "SPAN_"


class TritonPythonModel(Model):
    """D(z_0), r and what every model says of its work → the answer."""

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        pixels = self.restorer.finish(tensors["decoded"], tensors["regression"], settings.sizes, settings.options)
        alpha = tensors["alpha"][0]
        opacity = np.clip(resize(alpha, *pixels.shape[:2]), 0.0, 1.0) if alpha.size else None
        encoded = encode_image(pixels, opacity, settings.output_format)
        curve = json.loads(tensors["loss_curve"].reshape(-1)[0])
        spans = {name.removeprefix(SPANS).lower(): tensors[name][0] for name in tensors if name.startswith(SPANS)}
        first = min(start for start, _ in spans.values())
        report = Report(
            spans={name: (round(start - first, 4), round(end - first, 4)) for name, (start, end) in spans.items()},
            steps=int(tensors["steps"].reshape(-1)[0]),
            people=tensors["boxes"].shape[1],
            loss_curve=curve,
            notices=json.loads(tensors["notices"].reshape(-1)[0]),
        )
        answer = {"OUTPUT": encoded, "REPORT": report.to_json().encode()}
        return {name: np.array([[value]], np.object_) for name, value in answer.items()}
