"""Algorithm 1, in flight: requests become flights of `runtime.triton.in_flight`, and their results become responses.

Triton's iterative sequences call again with what was rescheduled, and with what came meanwhile. The inputs of a
rescheduled request may be gone, so all that is needed is kept under its correlation ID until it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from diffbody_ref.ops.samplers import StepInfo
from runtime.steps import Sampling, advance
from runtime.triton.contract import IN_FLIGHT_METRIC, READY, STEPS_METRIC
from runtime.triton.flights import flight_of, outputs_of
from runtime.triton.in_flight import Failed, Finished, Going, InFlight, Result, Waiting
from runtime.triton.models import Metric, Model, read_tensors, respond, respond_error
from runtime.triton.request_notes import RequestNotes, StepNote


def is_ready(request: Any) -> bool:
    """False for the placeholders without a request by which Triton keeps every sequence at its place in the batch."""
    return bool(pb_utils.get_input_tensor_by_name(request, READY).as_numpy().all())


class TritonPythonModel(Model):
    """z_r, pose, parts, text → z_0 of every request, and its loss curve."""

    stages = ("denoiser", "guidance")

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        self.in_flight = InFlight(self._advance, self.parameters.max_in_flight)
        self.notes = RequestNotes.of_this_server()
        self.gauge = Metric(self.name, IN_FLIGHT_METRIC, "Requests being sampled", pb_utils.MetricFamily.GAUGE)
        self.steps = Metric(self.name, STEPS_METRIC, "Steps done, of all requests", pb_utils.MetricFamily.COUNTER)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses: dict[int, Any] = {}
        places: dict[Any, int] = {}  # of the flights that are present
        for place, request in enumerate(requests):
            key = request.correlation_id()
            try:
                if not is_ready(request):
                    raise ValueError("a placeholder, whose response nobody reads")
                if key not in self.in_flight:
                    self.in_flight.check_capacity()
                    self.in_flight.join(key, flight_of(self.restorer, read_tensors(request), request.request_id()))
                places[key] = place
            except Exception as error:
                responses[place] = respond_error(error)
        present = {key: requests[place] for key, place in places.items()}
        cancelled, watched = self.notes.cancelled_and_watched(request.request_id() for request in present.values())
        stopped = {key for key, each in present.items() if each.is_cancelled() or each.request_id() in cancelled}
        step = self.in_flight.step if self.parameters.join_at_steps else self.in_flight.run_to_end
        for key, result in step(present, stopped).items():
            responses[places[key]] = self._respond_to(present[key], result, watched)
        self.gauge.set(len(self.in_flight))
        return [responses[place] for place in range(len(requests))]

    def finalize(self) -> None:
        """Called by the server when it stops."""
        self.notes.remove()

    def _advance(self, batch: Sequence[Sampling]) -> list[StepInfo]:
        steps = advance(batch, self.restorer.infer, self.restorer.manifest)
        self.steps.increment(len(steps))
        return steps

    def _respond_to(self, request: Any, result: Result, watched: set[str]) -> Any:
        """The response to a request that has left, or None for one that the server is to hand over again."""
        request_id = result.flight.request_id
        if isinstance(result, Going | Finished) and request_id in watched:
            step = result.step
            self.notes.write_step(request_id, StepNote(step.step + 1, step.num_steps, step.z0))
        if isinstance(result, Going | Waiting):
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        if request_id:
            self.notes.forget(request_id)
        if isinstance(result, Failed):
            return respond_error(result.error)
        return respond(outputs_of(result.flight), result.flight.began)
