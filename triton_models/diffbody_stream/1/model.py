"""The model `diffbody` with its progress: a decoupled model, which responds to a request after every step."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import triton_python_backend_utils as pb_utils

from diffbody_ref.ops.images import crop, encode_image
from runtime.triton.contract import PREVIEW, STEP, STEPS
from runtime.triton.fronts import Front, Visit
from runtime.triton.models import open_restorer
from runtime.triton.request_notes import StepNote


class TritonPythonModel(Front):
    """A request → STEP and STEPS after each step, with a PREVIEW at every PREVIEW_EVERY-th; at last the answer."""

    in_stream = True
    poll_seconds = 0.03  # steps between two looks are not told one by one

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        self.restorer = open_restorer(self.parameters)

    def begin(self, visit: Visit) -> None:
        self.notes.watch(visit.ticket.key)

    async def report(self, visit: Visit) -> None:
        note = self.notes.read_step(visit.ticket.key)
        if note is None or note.step <= visit.step:
            return
        visit.step = note.step
        counts = {STEP.name: note.step, STEPS.name: note.steps}
        tensors = [pb_utils.Tensor(name, np.array([count], np.int64)) for name, count in counts.items()]
        if visit.preview_every > 0 and note.step % visit.preview_every == 0:
            preview = await asyncio.to_thread(self._preview, note)
            tensors.append(pb_utils.Tensor(PREVIEW.name, np.array([preview], np.object_)))
        visit.sender.send(pb_utils.InferenceResponse(tensors))

    def _preview(self, note: StepNote) -> bytes:
        """D(z̃_0) as JPEG, at the working size."""
        picture = self.restorer.decode(note.z0, self.restorer.settings.options())
        return encode_image(crop(picture[0].transpose(1, 2, 0), note.height, note.width), format="jpg")
