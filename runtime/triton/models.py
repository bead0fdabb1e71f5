"""The base classes of the repository's models, and what ties them to Triton's Python backend.

Triton brings the module `triton_python_backend_utils`, so that only its processes can import this one. What needs no
Triton is elsewhere: `contract`, `errors`, `settings`, `messages`, `batching`, `in_flight`, `request_notes`,
`heartbeats`, `admission`.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from diffbody_ref.ops.options import RestoreOptions
from runtime.bundle import Bundle
from runtime.engines.pool import EnginePool
from runtime.restore import Restorer, load_tokenizer
from runtime.triton.batching import run_in_groups
from runtime.triton.contract import AFTER, MODEL, MODELS, SETTINGS, SPAN, ErrorCode, ModelParameters, plan_model
from runtime.triton.errors import add_code, code_and_message, error_from_message
from runtime.triton.heartbeats import Heartbeats
from runtime.triton.request_notes import RequestNotes
from runtime.triton.settings import Settings, Ticket


class Model:
    """A model that answers each request by itself; a subclass defines `run`.

    Attributes:
        stages: the stages that it runs; they are loaded before the server reports that it is ready.
    """

    stages: tuple[str, ...] = ()

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by the server, with the model's configuration."""
        self.name = args["model_name"]
        self.parameters = read_parameters(args)
        self.notes = RequestNotes.of_this_server()
        self.heartbeats = Heartbeats(self.notes.folder)
        self.restorer = open_restorer(self.parameters, self.stages)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by the server, with requests whose tensors have the same shapes."""
        with self.heartbeats.working(self.name):
            return [self._respond(request) for request in requests]

    def check(self, ticket: Ticket) -> None:
        """
        Raises:
            ValueError: the request did not come through the models in front of the pipeline.
            TimeoutError: nobody waits for the request any more.
        """
        if not ticket.is_signed(self.notes.secret):
            raise ValueError(f"the model {self.name} is a part of {MODEL}, and not called by clients; call {MODEL}")
        ticket.check_deadline()
        self.notes.check(ticket.key)

    def answer(self, request: Any) -> dict[str, np.ndarray]:
        """The outputs of a request by name, without the span."""
        tensors = read_tensors(request)
        settings = Settings.from_tensor(tensors.pop(SETTINGS.name))
        self.check(settings.ticket)
        return self.run(tensors, settings)

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        """The outputs by name, without the span. All tensors have a batch of 1."""
        raise NotImplementedError

    def _respond(self, request: Any) -> Any:
        begin = time.time()
        try:
            return respond(self.answer(request), begin)
        except Exception as error:
            return respond_error(error, with_code=True)


@dataclass(frozen=True)
class PictureJob:
    """A request to a `PictureModel`.

    Attributes:
        place: of the request among those of one call.
        arrays: its inputs, each with a batch of 1.
        options: of the request.
    """

    place: int
    arrays: list[np.ndarray]
    options: RestoreOptions


class PictureModel(Model):
    """A model that makes one picture, or its latents, of others; requests of equal `group_key` run together.

    Its inputs, besides the settings, and its one output are those of `contract.MODELS`. Where its stage is a model of
    its own, a TensorRT plan, that model gets the first input of the requests for which it suffices (`plan_suffices`).
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        tensors = MODELS[self.name]
        self.inputs = [tensor.name for tensor in tensors.inputs if tensor.name not in (SETTINGS.name, AFTER.name)]
        (self.output,) = (tensor.name for tensor in tensors.outputs if tensor.name != SPAN.name)

    def transform(self, *batches: np.ndarray, options: RestoreOptions) -> np.ndarray:
        """The output (B, C', H', W') of the inputs, each (B, C, H, W), in the order of the contract."""
        raise NotImplementedError

    def group_key(self, options: RestoreOptions) -> Hashable:
        """The options on which `transform` depends."""
        return options.tile_size

    def cell_size(self) -> int:
        """The side in pixels of what one cell of the first input stands for: 1 where that is a picture."""
        return 1

    def plan_suffices(self, options: RestoreOptions) -> bool:
        """Whether the stage's plan alone makes the output, for a picture of one tile."""
        return True

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        with self.heartbeats.working(self.name):
            return self._respond_to_all(requests)

    def _respond_to_all(self, requests: Sequence[Any]) -> list[Any]:
        begin = time.time()
        responses: dict[int, Any] = {}
        jobs: list[PictureJob] = []
        for place, request in enumerate(requests):
            try:
                tensors = {tensor.name(): tensor for tensor in request.inputs()}
                settings = Settings.from_tensor(tensors[SETTINGS.name].as_numpy())
                self.check(settings.ticket)
                first = tensors[self.inputs[0]]
                if self._plan_takes(first, settings.options):
                    responses[place] = self._run_plan(first, begin)
                else:
                    arrays = [to_numpy(tensors[name]) for name in self.inputs]
                    jobs.append(PictureJob(place, arrays, settings.options))
            except Exception as error:
                responses[place] = respond_error(error, with_code=True)
        results = run_in_groups(jobs, lambda job: self.group_key(job.options), self._transform)
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                responses[job.place] = respond_error(result, with_code=True)
            else:
                responses[job.place] = respond({self.output: result}, begin)
        return [responses[place] for place in range(len(requests))]

    def _transform(self, jobs: Sequence[PictureJob]) -> list[np.ndarray]:
        """The output of each job, (1, C', H', W')."""
        batches = [np.concatenate(arrays) for arrays in zip(*(job.arrays for job in jobs), strict=True)]
        made = self.transform(*batches, options=jobs[0].options)
        return [made[row : row + 1] for row in range(len(jobs))]

    def _plan_takes(self, picture: Any, options: RestoreOptions) -> bool:
        """Whether the stage's plan makes the output of this tensor as it is: one tile, and no more to be done."""
        if self.stages[0] not in self.parameters.plans or not self.plan_suffices(options):
            return False
        return max(picture.shape()[2:]) * self.cell_size() <= options.tile_size

    def _run_plan(self, picture: Any, begin: float) -> Any:
        """The plan's response; on a GPU the tensor goes from model to model without leaving the device."""
        on_gpu = self.parameters.device == "cuda"
        memory = pb_utils.TRITONSERVER_MEMORY_GPU if on_gpu else pb_utils.TRITONSERVER_MEMORY_CPU
        return pb_utils.InferenceResponse(
            [*call_plan(self.stages[0], [picture], [self.output], memory), span_tensor(begin)]
        )


class Metric:
    """One of the server's Prometheus metrics, with the model's name as a label.

    Args:
        model: name of the model.
        name: of the metric.
        description: one line for whoever reads the metrics.
        kind: `pb_utils.MetricFamily.GAUGE` or `COUNTER`.
        labels: further ones.
    """

    def __init__(self, model: str, name: str, description: str, kind: Any, **labels: str) -> None:
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=kind)  # it ends the metric
        self._metric = self._family.Metric(labels={"model": model, **labels})

    def set(self, value: float) -> None:
        """The new value of a gauge."""
        self._metric.set(value)

    def increment(self, value: float) -> None:
        """Add to a counter."""
        self._metric.increment(value)


def read_parameters(args: Mapping[str, str]) -> ModelParameters:
    """The parameters in a model's configuration."""
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return ModelParameters.from_strings({key: value["string_value"] for key, value in parameters.items()})


def open_restorer(parameters: ModelParameters, stages: Sequence[str] = ()) -> Restorer:
    """The bundle's restorer, with these stages loaded; those that are models of their own are called through Triton.

    The bundle's files are not verified again: the server's launcher has done so.
    """
    bundle = Bundle.open(parameters.bundle, verify=False)
    engines = EnginePool(bundle, parameters.engine_config)
    # A stage that the bundle lacks is passed over: `Restorer` does without it.
    engines.load(stage for stage in stages if stage in bundle.manifest.stages and stage not in parameters.plans)

    def infer(stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if stage not in parameters.plans:
            return engines.infer(stage, feed)
        inputs = [pb_utils.Tensor(name, array) for name, array in feed.items()]
        names = [spec.name for spec in bundle.manifest.stages[stage].outputs]
        outputs = call_plan(stage, inputs, names, pb_utils.TRITONSERVER_MEMORY_CPU)
        return dict(zip(names, map(to_numpy, outputs), strict=True))

    return Restorer(bundle.manifest, infer, load_tokenizer(bundle))


def call_plan(stage: str, inputs: list[Any], outputs: list[str], memory: Any) -> list[Any]:
    """Run a stage's plan in its model.

    Args:
        stage: one of those that are models of their own.
        inputs: Triton's tensors.
        outputs: names of the outputs that are wanted.
        memory: where the outputs should be, one of `pb_utils.TRITONSERVER_MEMORY_*`.

    Returns:
        The outputs as Triton's tensors.
    """
    request = pb_utils.InferenceRequest(
        model_name=plan_model(stage),
        inputs=inputs,
        requested_output_names=outputs,
        preferred_memory=pb_utils.PreferredMemory(memory),
    )
    result = request.exec()
    if result.has_error():
        raise error_from_message(result.error().message())
    return [pb_utils.get_output_tensor_by_name(result, name) for name in outputs]


def read_tensors(request: Any) -> dict[str, np.ndarray]:
    """A request's inputs by name, on the CPU."""
    return {tensor.name(): to_numpy(tensor) for tensor in request.inputs()}


def to_numpy(tensor: Any) -> np.ndarray:
    """Triton's tensor on the CPU, copied from the device if it is there."""
    if tensor.is_cpu():
        return tensor.as_numpy()
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(tensor.to_dlpack()).cpu().numpy()


def span_tensor(begin: float) -> Any:
    """The span from `begin` to now, in seconds of the Unix clock."""
    return pb_utils.Tensor(SPAN.name, np.array([[begin, time.time()]], np.float64))


def respond(outputs: Mapping[str, np.ndarray], begin: float) -> Any:
    """A response with these outputs and the span from `begin` to now."""
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
    return pb_utils.InferenceResponse([*tensors, span_tensor(begin)])


def respond_error(error: Exception, with_code: bool = False) -> Any:
    """A response with an error of one line. The traceback of a fault of the server goes to the log.

    Args:
        error: what was raised.
        with_code: the message begins with the code, which Triton drops on the way to other models and in gRPC streams.
    """
    code, message = code_and_message(error)
    if code is ErrorCode.INTERNAL or os.environ.get("DIFFBODY_DEBUG"):
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    message = add_code(code, message) if with_code else message
    # By name: the server completes `pb_utils` only after the models are imported.
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
