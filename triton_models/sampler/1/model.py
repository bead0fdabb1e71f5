"""Algorithm 1, in flight: requests become flights of `runtime.triton.in_flight`, and their results become responses.

Triton's iterative sequences call again with what was rescheduled, and with what came meanwhile. All that is needed of a
request is kept until it leaves, under the key of its ticket, which no client can choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from diffbody_ref.ops.samplers import StepInfo
from runtime.steps import Sampling, advance
from runtime.triton.contract import IN_FLIGHT_METRIC, READY, SETTINGS, STEPS_METRIC
from runtime.triton.flights import flight_of, outputs_of
from runtime.triton.in_flight import Failed, Finished, Going, InFlight, Result, Waiting
from runtime.triton.models import Metric, Model, read_tensors, respond, respond_error
from runtime.triton.request_notes import StepNote
from runtime.triton.settings import Settings


def is_ready(request: Any) -> bool:
    """False for the placeholders without a request by which Triton keeps every sequence at its place in the batch."""
    return bool(pb_utils.get_input_tensor_by_name(request, READY).as_numpy().all())


class TritonPythonModel(Model):
    """z_r, pose, parts, text → z_0 of every request, and its loss curve."""

    stages = ("denoiser", "guidance")

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        self.in_flight = InFlight(self._advance, self.parameters.max_in_flight)
        self.gauge = Metric(self.name, IN_FLIGHT_METRIC, "Requests being sampled", pb_utils.MetricFamily.GAUGE)
        self.steps = Metric(self.name, STEPS_METRIC, "Steps done, of all requests", pb_utils.MetricFamily.COUNTER)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        with self.heartbeats.working(self.name):
            responses = self._respond_to_all(requests)
        self.heartbeats.report_in_flight(len(self.in_flight))
        self.gauge.set(len(self.in_flight))
        return responses

    def _respond_to_all(self, requests: Sequence[Any]) -> list[Any]:
        responses: dict[int, Any] = {}
        places: dict[int, int] = {}  # of the flights that are present, by the keys of their requests
        for place, request in enumerate(requests):
            try:
                key = self._board(request)
                if key in places:
                    raise ValueError("one ticket for two requests")
                places[key] = place
            except Exception as error:
                responses[place] = respond_error(error, with_code=True)
        present = {key: requests[place] for key, place in places.items()}
        stopped, watched = self.notes.cancelled_and_watched(present)
        step = self.in_flight.step if self.parameters.join_at_steps else self.in_flight.run_to_end
        for key, result in step(present, stopped).items():
            responses[places[key]] = self._respond_to(present[key], key, result, key in watched)
        return [responses[place] for place in range(len(requests))]

    def _board(self, request: Any) -> int:
        """The key of the request, which is one of the flights afterwards."""
        if not is_ready(request):
            raise ValueError("a placeholder, whose response nobody reads")
        settings = Settings.from_tensor(pb_utils.get_input_tensor_by_name(request, SETTINGS.name).as_numpy())
        key = settings.ticket.key
        if key not in self.in_flight:
            self.check(settings.ticket)
            self.in_flight.check_capacity()
            self.in_flight.join(key, flight_of(self.restorer, read_tensors(request), settings))
        elif not settings.ticket.is_signed(self.notes.secret):
            raise ValueError("not settings that this server made")
        return key

    def finalize(self) -> None:
        """Called by the server when it stops."""
        self.notes.remove()
        del self.gauge, self.steps  # before the interpreter ends: what is left of metrics then crashes the process

    def _advance(self, batch: Sequence[Sampling]) -> list[StepInfo]:
        steps = advance(batch, self.restorer.infer, self.restorer.manifest)
        self.steps.increment(len(steps))
        return steps

    def _respond_to(self, request: Any, key: int, result: Result, watched: bool) -> Any:
        """The response to a request that has left, or None for one that the server is to hand over again."""
        if isinstance(result, Going | Finished) and watched:
            step = result.step
            self.notes.write_step(key, StepNote(step.step + 1, step.num_steps, *result.flight.size, step.z0))
        if isinstance(result, Going | Waiting):
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        if isinstance(result, Failed):
            return respond_error(result.error, with_code=True)
        return respond(outputs_of(result.flight), result.flight.began)
