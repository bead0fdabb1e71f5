"""The models that clients call: they let requests into the pipeline, and answer for it.

The ensemble of the method's models would do for clients that are well-behaved. Clients are not: they hang up, cancel,
choose sequence IDs that collide, send IDs that are no text, and call the method's models one by one. So a model of this
module stands before the ensemble. It checks what can be checked without looking at the picture, holds the queue, gives
each request a key of its own, and answers at once when the client has left or the time is over; the pipeline's models
learn of that by notes, and drop the request before they work on it again.

Triton brings the module `triton_python_backend_utils`, so that only its processes can import this one.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import triton_python_backend_utils as pb_utils

from runtime.bundle import Bundle
from runtime.triton.admission import Admission
from runtime.triton.contract import (
    ANSWER,
    ANSWERS_METRIC,
    AT_WORK_METRIC,
    OPTIONS,
    PIPELINE_MODEL,
    PREVIEW_EVERY,
    RESTORED,
    TICKET,
    TIME_IS_OVER,
    WAITING_METRIC,
    WAS_CANCELLED,
    ErrorCode,
)
from runtime.triton.errors import code_and_message, error_from_message
from runtime.triton.messages import read_values
from runtime.triton.models import Metric, read_parameters, respond_error, to_numpy
from runtime.triton.request_notes import RequestNotes
from runtime.triton.settings import Ticket

MARGIN_SECONDS = 0.25  # by which an answer comes before the client's own clock ends, so that it arrives
MAX_ID = 200  # characters


@dataclass
class Visit:
    """A request on its way through the pipeline.

    Attributes:
        sender: of its responses.
        request_id: the client's name for it; may be empty.
        arrived: seconds of the Unix clock.
        ticket: by which the pipeline lets it in.
        tensors: its inputs, Triton's tensors by name.
        preview_every: number of steps between previews; 0 is none.
        at_work: whether it has left the queue.
        step: number of the last step that its client was told of.
    """

    sender: Any
    request_id: str
    arrived: float
    ticket: Ticket
    tensors: dict[str, Any]
    preview_every: int = 0
    at_work: bool = False
    step: int = 0


class Front:
    """A model in front of the pipeline, which answers once; a subclass may also tell how far the work is."""

    in_stream = False
    poll_seconds = 0.1  # between looks whether the client still waits

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by the server, with the model's configuration."""
        self.parameters = read_parameters(args)
        self.settings = Bundle.open(self.parameters.bundle, verify=False).manifest.settings
        self.notes = RequestNotes.of_this_server()
        self.admission = Admission(self.parameters.max_in_flight, self.parameters.max_queue, self._count)
        name, family = args["model_name"], pb_utils.MetricFamily
        self._at_work = Metric(name, AT_WORK_METRIC, "Requests that are worked on", family.GAUGE)
        self._waiting = Metric(name, WAITING_METRIC, "Requests that wait", family.GAUGE)
        self._answers = {
            outcome: Metric(name, ANSWERS_METRIC, "Requests that were answered", family.COUNTER, outcome=outcome)
            for outcome in (RESTORED, *ErrorCode)
        }
        self._threads = ThreadPoolExecutor(self.parameters.max_in_flight)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Called by the server. Answers are sent later: the next requests are taken meanwhile."""
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._serve(request, request.get_response_sender()), self._loop)

    def finalize(self) -> None:
        """Called by the server when it stops."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        # Before the interpreter ends: what is left of metrics then crashes the process.
        del self._at_work, self._waiting, self._answers

    def begin(self, visit: Visit) -> None:
        """Called before the request waits for its turn."""

    async def report(self, visit: Visit) -> None:
        """Called now and then while the pipeline works on the request."""

    async def _serve(self, request: Any, sender: Any) -> None:
        try:
            visit = self._receive(request, sender)
            self.begin(visit)
            response, outcome = pb_utils.InferenceResponse(await self._ask_pipeline(visit)), RESTORED
        except Exception as error:
            response, outcome = respond_error(error, with_code=self.in_stream), code_and_message(error)[0]
        self._answers[outcome].increment(1)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _receive(self, request: Any, sender: Any) -> Visit:
        """Check the request as far as can be done without looking at its picture.

        Raises:
            ValueError: what is wrong with it.
        """
        arrived = time.time()
        try:
            request_id = request.request_id()
        except UnicodeDecodeError:
            raise ValueError("the request's ID is not UTF-8 text") from None
        if len(request_id) > MAX_ID:
            raise ValueError(f"the request's ID has {len(request_id):,} characters; at most {MAX_ID}")
        if request.correlation_id():
            raise ValueError("a picture is no sequence: leave out sequence_id, sequence_start and sequence_end")
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        asked = tensors.pop(PREVIEW_EVERY.name, None)
        preview_every = 0 if asked is None else int(asked.as_numpy().reshape(-1)[0])
        self._check({name: to_numpy(tensor) for name, tensor in tensors.items()})
        most = self.parameters.max_seconds
        seconds = min(request.timeout() / 1e6 or most, most)
        deadline = arrived + seconds - min(MARGIN_SECONDS, seconds / 10)
        ticket = Ticket(self.notes.secret, secrets.randbits(63) or 1, deadline)
        return Visit(sender, request_id, arrived, ticket, tensors, preview_every)

    def _check(self, arrays: Mapping[str, Any]) -> None:
        """
        Args:
            arrays: the request's inputs by name.

        Raises:
            ValueError: an unknown input, or a value that is of another kind or out of its range.
        """
        values = read_values(arrays)
        self.settings.options(**{each.argument: values[each.argument] for each in OPTIONS if each.argument in values})

    async def _ask_pipeline(self, visit: Visit) -> list[Any]:
        """The pipeline's outputs.

        Raises:
            TimeoutError: the client has left, or the time is over; the pipeline may still be at work for a moment.
        """
        work = asyncio.ensure_future(self._work(visit))
        work.add_done_callback(_take_error)
        while not (await asyncio.wait([work], timeout=self.poll_seconds))[0]:
            if (reason := self._reason_to_stop(visit)) is None:
                await self.report(visit)
                continue
            self.notes.cancel(visit.ticket.key)
            if not visit.at_work:
                work.cancel()
                self.notes.forget(visit.ticket.key)
            # Else its place is free when the pipeline has dropped it.
            raise TimeoutError(reason)
        return work.result()

    def _reason_to_stop(self, visit: Visit) -> str | None:
        if time.time() > visit.ticket.deadline:
            return TIME_IS_OVER
        asked = self.notes.was_asked_to_cancel(visit.request_id, visit.arrived)
        return WAS_CANCELLED if asked or visit.sender.is_cancelled() else None

    def _count(self, at_work: int, waiting: int) -> None:
        self._at_work.set(at_work)
        self._waiting.set(waiting)

    async def _work(self, visit: Visit) -> list[Any]:
        async with self.admission:
            visit.at_work = True
            try:
                return await self._loop.run_in_executor(self._threads, self._call_pipeline, visit)
            finally:
                self.notes.forget(visit.ticket.key)

    def _call_pipeline(self, visit: Visit) -> list[Any]:
        ticket = pb_utils.Tensor(TICKET.name, visit.ticket.to_tensor())
        request = pb_utils.InferenceRequest(
            model_name=PIPELINE_MODEL,
            # The sampler's place in its batch is bound to the sequence's ID, so that it has to be as secret as the key.
            correlation_id=visit.ticket.key,
            flags=pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
            inputs=[ticket, *visit.tensors.values()],
            requested_output_names=[tensor.name for tensor in ANSWER],
            # No timeout: Triton answers a request that waits too long in a model's queue when the next one comes.
        )
        result = request.exec()
        if result.has_error():
            raise error_from_message(result.error().message())
        return list(result.output_tensors())


def _take_error(work: asyncio.Future[Any]) -> None:
    """Take the error of work that nobody may wait for any more, lest asyncio complains."""
    if not work.cancelled():
        work.exception()
