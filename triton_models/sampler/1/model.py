"""Algorithm 1, in flight: each call advances every request in its batch by one step, whatever step each is at.

Triton's iterative sequences call again with what was rescheduled, and with what came meanwhile. The inputs
of a rescheduled request may be gone, so all that is needed is kept under its correlation ID until it leaves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from runtime.denoising import Sampling, Target, advance
from runtime.sampling import Step

from runtime.restore import Parts, notices
from runtime.triton.blackboard import Blackboard, Progress
from runtime.triton.contract import BUSY, CANCELLED
from runtime.triton.models import SETTINGS, BusyError, Model, Settings, failure, read_tensors, respond


@dataclass
class Flight:
    """A request between its first and its last step."""

    request_id: str
    begin: float
    settings: Settings
    sampling: Sampling
    notices: list[str]


class TritonPythonModel(Model):
    """z_r, pose, parts, text → z_0 of every request, and its loss curve."""

    stages = ("denoiser", "guidance")

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        self.join_at_steps = self.parameters["join_at_steps"] == "True"
        self.limit = int(self.parameters["max_in_flight"])
        self.flights: dict[Any, Flight] = {}
        self.board = Blackboard.of_this_server()
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        self.families = (  # a metric ends with its family
            pb_utils.MetricFamily(name="diffbody_in_flight", description="Requests being sampled", kind=gauge),
            pb_utils.MetricFamily(name="diffbody_steps_total", description="Steps done, of all requests", kind=counter),
        )
        self.in_flight, self.steps = (family.Metric(labels={"model": self.name}) for family in self.families)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses: dict[int, Any] = {}
        joined: list[tuple[int, Flight]] = []
        for place, request in enumerate(requests):
            try:
                joined.append((place, self._join(request)))
            except Exception as error:
                responses[place] = self._leave(request, failure(error))
        cancelled, watched = self.board.noted(flight.request_id for _, flight in joined)
        going = []
        for place, flight in joined:
            try:
                if requests[place].is_cancelled() or flight.request_id in cancelled:
                    raise TimeoutError(CANCELLED)
                flight.settings.check_deadline()
                going.append((place, flight))
            except TimeoutError as error:
                responses[place] = self._leave(requests[place], failure(error))
        advanced = self._advance(going)
        while not self.join_at_steps and (rest := _unfinished(advanced)):
            places = {place for place, _ in rest}
            advanced = [each for each in advanced if each[0] not in places] + self._advance(rest)
        for place, flight, step in advanced:
            request = requests[place]
            if isinstance(step, Exception):
                responses[place] = self._leave(request, failure(step))
                continue
            if flight.request_id in watched:
                self.board.report(flight.request_id, Progress(step.step + 1, step.num_steps, step.z0))
            if flight.sampling.trajectory.done:
                responses[place] = self._leave(request, _answer(flight))
            else:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                responses[place] = None
        self.in_flight.set(len(self.flights))
        return [responses[place] for place in range(len(requests))]

    def finalize(self) -> None:
        """Called by the server when it stops."""
        self.board.remove()

    def _join(self, request: Any) -> Flight:
        """The request's flight, which begins where it is not known yet."""
        key = request.correlation_id()
        if key not in self.flights:
            if len(self.flights) >= self.limit:
                raise BusyError(f"{self.limit} {BUSY}")
            begin = time.time()
            tensors = read_tensors(request)
            settings = Settings.from_tensor(tensors[SETTINGS])
            target = Target(*(np.array(tensors[name][0]) for name in ("embeddings", "visibility", "windows")))
            sampling = self.restorer.begin(
                np.array(tensors["latents"]),
                np.array(tensors["pose"]),
                Parts(np.array(tensors["attention"]), target),
                np.array(tensors["text"][0]),
                settings.options,
                settings.seed,
            )
            said = notices(tensors["boxes"][0], sampling.views, settings.options)
            self.flights[key] = Flight(request.request_id(), begin, settings, sampling, said)
        return self.flights[key]

    def _leave(self, request: Any, response: Any) -> Any:
        flight = self.flights.pop(request.correlation_id(), None)
        if flight is not None and flight.request_id:
            self.board.forget(flight.request_id)
        return response

    def _advance(self, going: Sequence[tuple[int, Flight]]) -> list[tuple[int, Flight, Step | Exception]]:
        """One step of all; should they fail together, of each alone, so that one does not take others with it."""
        self.steps.increment(len(going))
        try:
            steps = advance([flight.sampling for _, flight in going], self.restorer.infer, self.restorer.manifest)
            return [(*each, step) for each, step in zip(going, steps, strict=True)]
        except Exception as error:
            if len(going) == 1:
                return [(*going[0], error)]
            return [result for each in going for result in self._advance([each])]


def _unfinished(advanced: Sequence[tuple[int, Flight, Step | Exception]]) -> list[tuple[int, Flight]]:
    going = [(place, flight) for place, flight, step in advanced if not isinstance(step, Exception)]
    return [(place, flight) for place, flight in going if not flight.sampling.trajectory.done]


def _answer(flight: Flight) -> Any:
    trajectory = flight.sampling.trajectory
    curve = json.dumps(flight.sampling.loss_curve).encode()
    outputs = {
        "sampled": trajectory.latents,
        "loss_curve": np.array([[curve]], np.object_),
        "notices": np.array([[json.dumps(flight.notices).encode()]], np.object_),
        "steps": np.array([[trajectory.step]], np.int64),
    }
    return respond(outputs, flight.begin)
