"""The ensemble `diffbody`, with its progress: a decoupled model, which answers a request after every step."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from diffbody_ref.ops.images import crop, encode_image
from runtime.restore import Sizes
from runtime.triton.blackboard import Blackboard, Progress
from runtime.triton.contract import ANSWER, MODEL, read_request
from runtime.triton.models import failure, of_other_model, open_restorer, parameters_of

POLL = 0.02  # seconds between looks at the progress


class TritonPythonModel:
    """As `diffbody`; STEP and STEPS after each step, a PREVIEW (JPEG) at every PREVIEW_EVERY-th, at last the answer."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by the server."""
        parameters = parameters_of(args)
        self.restorer, self.max_pixels = open_restorer(parameters), int(parameters["max_pixels"])
        self.board = Blackboard.of_this_server()

    async def execute(self, requests: Sequence[Any]) -> None:
        """Called by the server; several calls may be under way."""
        await asyncio.gather(*(self._serve(request) for request in requests))

    async def _serve(self, request: Any) -> None:
        sender = request.get_response_sender()
        request_id = request.request_id() or uuid.uuid4().hex
        self.board.watch(request_id)
        try:
            tensors = {tensor.name(): tensor for tensor in request.inputs()}
            every = int(asked.as_numpy().reshape(-1)[0]) if (asked := tensors.pop("PREVIEW_EVERY", None)) else 0
            # An error from another model loses its code on the way; what a client can put right is said here.
            asked_for = read_request({name: tensor.as_numpy() for name, tensor in tensors.items()}, self.max_pixels)
            sizes = self.restorer.sizes(asked_for.picture, self.restorer.options(**asked_for.options))
            call = pb_utils.InferenceRequest(
                model_name=MODEL,
                request_id=request_id,
                inputs=list(tensors.values()),
                requested_output_names=[field.name for field in ANSWER],
                timeout=request.timeout(),
            )
            task = asyncio.ensure_future(call.async_exec())
            await self._report_until(task, sender, request_id, every, sizes)
            result = task.result()
            if result.has_error():
                raise of_other_model(result.error().message())
            sender.send(pb_utils.InferenceResponse(result.output_tensors()))
        except Exception as error:
            sender.send(failure(error, in_stream=True))
        finally:
            self.board.forget(request_id)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _report_until(
        self, task: asyncio.Future[Any], sender: Any, request_id: str, every: int, sizes: Sizes
    ) -> None:
        """Send what the sampler reports until the restoration is done; stop it when nobody listens any more."""
        told = 0
        while not (await asyncio.wait([task], timeout=POLL))[0]:
            if sender.is_cancelled():
                self.board.cancel(request_id)
            progress = self.board.progress(request_id)
            if progress is not None and progress.step > told:
                told = progress.step
                outputs = {"STEP": progress.step, "STEPS": progress.steps}
                tensors = [pb_utils.Tensor(name, np.array([value], np.int64)) for name, value in outputs.items()]
                if every > 0 and told % every == 0:
                    preview = await asyncio.to_thread(self._preview, progress, sizes)
                    tensors.append(pb_utils.Tensor("PREVIEW", np.array([preview], np.object_)))
                sender.send(pb_utils.InferenceResponse(tensors))

    def _preview(self, progress: Progress, sizes: Sizes) -> bytes:
        """D(z̃_0) as JPEG, of the working size."""
        picture = self.restorer.decode(progress.z0, self.restorer.options())
        return encode_image(crop(picture[0].transpose(1, 2, 0), sizes.height, sizes.width), format="jpg")
