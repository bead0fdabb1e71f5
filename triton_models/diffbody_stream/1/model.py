"""The ensemble `diffbody` with its progress: a decoupled model, which responds to a request after every step."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from diffbody_ref.ops.images import crop, encode_image
from diffbody_ref.ops.processing import Sizes
from runtime.triton.contract import ANSWER, MODEL, PREVIEW, PREVIEW_EVERY, STEP, STEPS
from runtime.triton.errors import error_from_message
from runtime.triton.messages import read_request
from runtime.triton.models import open_restorer, read_parameters, respond_error
from runtime.triton.request_notes import RequestNotes, StepNote

POLL_SECONDS = 0.02  # between looks at the notes of the sampler


class TritonPythonModel:
    """A request → STEP and STEPS after each step, with a PREVIEW at every PREVIEW_EVERY-th; at last the answer."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by the server."""
        self.parameters = read_parameters(args)
        self.restorer = open_restorer(self.parameters)
        self.notes = RequestNotes.of_this_server()

    async def execute(self, requests: Sequence[Any]) -> None:
        """Called by the server; several calls may be under way."""
        await asyncio.gather(*(self._serve(request) for request in requests))

    async def _serve(self, request: Any) -> None:
        sender = request.get_response_sender()
        request_id = request.request_id() or uuid.uuid4().hex
        self.notes.watch(request_id)
        try:
            tensors = {tensor.name(): tensor for tensor in request.inputs()}
            asked = tensors.pop(PREVIEW_EVERY.name, None)
            every = 0 if asked is None else int(asked.as_numpy().reshape(-1)[0])
            # Checked here, as an error from another model loses its code on the way.
            arrays = {name: tensor.as_numpy() for name, tensor in tensors.items()}
            checked = read_request(arrays, self.parameters.max_pixels)
            sizes = self.restorer.sizes(checked.picture, self.restorer.settings.options(**checked.options))
            call = pb_utils.InferenceRequest(
                model_name=MODEL,
                request_id=request_id,
                inputs=list(tensors.values()),
                requested_output_names=[tensor.name for tensor in ANSWER],
                timeout=request.timeout(),
            )
            task = asyncio.ensure_future(call.async_exec())
            await self._report_until(task, sender, request_id, every, sizes)
            result = task.result()
            if result.has_error():
                raise error_from_message(result.error().message())
            sender.send(pb_utils.InferenceResponse(result.output_tensors()))
        except Exception as error:
            sender.send(respond_error(error, in_stream=True))
        finally:
            self.notes.forget(request_id)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _report_until(
        self, task: asyncio.Future[Any], sender: Any, request_id: str, every: int, sizes: Sizes
    ) -> None:
        """Send each new note of the sampler until the restoration is done; cancel it when nobody listens any more."""
        sent = 0
        while not (await asyncio.wait([task], timeout=POLL_SECONDS))[0]:
            if sender.is_cancelled():
                self.notes.cancel(request_id)
            note = self.notes.read_step(request_id)
            if note is not None and note.step > sent:
                sent = note.step
                counts = {STEP.name: note.step, STEPS.name: note.steps}
                tensors = [pb_utils.Tensor(name, np.array([count], np.int64)) for name, count in counts.items()]
                if every > 0 and sent % every == 0:
                    preview = await asyncio.to_thread(self._preview, note, sizes)
                    tensors.append(pb_utils.Tensor(PREVIEW.name, np.array([preview], np.object_)))
                sender.send(pb_utils.InferenceResponse(tensors))

    def _preview(self, note: StepNote, sizes: Sizes) -> bytes:
        """D(z̃_0) as JPEG, at the working size."""
        picture = self.restorer.decode(note.z0, self.restorer.settings.options())
        return encode_image(crop(picture[0].transpose(1, 2, 0), sizes.height, sizes.width), format="jpg")
