"""Step 6, colours and size; the picture encoded, and the report."""

from __future__ import annotations

import base64
import json

import numpy as np

from diffbody_ref.ops.images import encode_image, lost_in_encoding
from diffbody_ref.ops.processing import postprocess, resize_alpha
from runtime.triton.contract import (
    ALPHA,
    BOXES,
    DECODED,
    LOSS_CURVE,
    NOTICES,
    OUTPUT,
    REGRESSION,
    REPORT,
    SOURCE,
    STEPS_DONE,
    TIMED_MODELS,
    span_input,
)
from runtime.triton.messages import RestorationReport, read_source, since_first
from runtime.triton.models import Model
from runtime.triton.settings import Settings


class TritonPythonModel(Model):
    """D(z_0), r and what every model tells about its work → the answer."""

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        decoded, regression = tensors[DECODED.name], tensors[REGRESSION.name]
        pixels = postprocess(decoded, regression, settings.sizes, settings.options)
        alpha = tensors[ALPHA.name][0]
        opacity = resize_alpha(alpha, *pixels.shape[:2]) if alpha.size else None
        metadata, notices = read_source(tensors[SOURCE.name].reshape(-1)[0])
        encoded = encode_image(pixels, opacity, settings.output_format, metadata=metadata)
        notices += json.loads(tensors[NOTICES.name].reshape(-1)[0])
        notices += lost_in_encoding(settings.output_format, opacity, metadata)
        report = RestorationReport(
            spans=since_first({model.name: tensors[span_input(model.name).name][0] for model in TIMED_MODELS}),
            steps=int(tensors[STEPS_DONE.name].reshape(-1)[0]),
            people=tensors[BOXES.name].shape[1],
            loss_curve=json.loads(tensors[LOSS_CURVE.name].reshape(-1)[0]),
            notices=notices,
        )
        encoded = base64.b64encode(encoded) if settings.as_text else encoded
        answer = {OUTPUT.name: encoded, REPORT.name: report.to_json().encode()}
        return {name: np.array([[value]], np.object_) for name, value in answer.items()}
