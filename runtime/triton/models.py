"""What the models of the repository have in common. They run in Triton's Python backend, which brings the module
`triton_python_backend_utils`; nothing else can import this one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from diffbody_ref.ops.options import RestoreOptions
from runtime.bundle import Bundle
from runtime.restore import Restorer, Sizes, load_tokenizer
from runtime.triton.contract import BUSY, CANCELLED, QUEUE_FULL, TIME_OVER
from runtime.triton.plans import plan_model

SETTINGS = "SETTINGS"
SPAN = "SPAN"


class BusyError(RuntimeError):
    """The server has as much to do as it takes; the same request may succeed later."""


# On Triton's scale: what the client can put right, what may work later, what is over, what should not happen.
# By name: the server completes `pb_utils` only after the models are imported.
CODES = {
    ValueError: "INVALID_ARG",
    BusyError: "UNAVAILABLE",
    MemoryError: "UNAVAILABLE",
    TimeoutError: "CANCELLED",
}


@dataclass(frozen=True)
class Settings:
    """What goes with a request from model to model, beside its tensors.

    Attributes:
        options: with the bundle's defaults.
        deadline: of the Unix clock; 0 is none.
    """

    options: RestoreOptions
    sizes: Sizes
    prompt: str
    negative_prompt: str
    seed: int
    output_format: str
    deadline: float

    def to_tensor(self) -> np.ndarray:
        """As JSON, (1, 1)."""
        return np.array([[json.dumps(dataclasses.asdict(self)).encode()]], np.object_)

    @classmethod
    def from_tensor(cls, tensor: np.ndarray) -> Settings:
        """What `to_tensor` made."""
        values = json.loads(tensor.reshape(-1)[0])
        options, sizes = RestoreOptions(**values.pop("options")), Sizes(**values.pop("sizes"))
        return cls(options=options, sizes=sizes, **values)

    def check_deadline(self) -> None:
        """
        Raises:
            TimeoutError: nobody waits for the request any more.
        """
        if self.deadline and time.time() > self.deadline:
            raise TimeoutError(TIME_OVER)


class Model:
    """A model that answers each request at once: a subclass says what `run` makes of its tensors.

    Attributes:
        stages: that it runs; they are loaded before the server says that it is ready.
    """

    stages: tuple[str, ...] = ()

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by the server, with the model's configuration."""
        self.name = args["model_name"]
        self.parameters = parameters_of(args)
        self.restorer = open_restorer(self.parameters, self.stages)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by the server, with requests whose tensors have the same shapes."""
        return [self._respond(request) for request in requests]

    def run(self, tensors: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
        """The outputs by name, but the span; tensors have a batch of 1."""
        raise NotImplementedError

    def _respond(self, request: Any) -> Any:
        begin = time.time()
        try:
            tensors = read_tensors(request)
            settings = Settings.from_tensor(tensors.pop(SETTINGS))
            settings.check_deadline()
            return respond(self.run(tensors, settings), begin)
        except Exception as error:
            return failure(error)


class PictureModel(Model):
    """A model that makes one picture, or its latents, of others: those that come together go through together.

    Attributes:
        sources: its inputs; of the first, the stage's plan makes the result, see `plan_does_all`.
    """

    sources: tuple[str, ...]
    result: str

    def transform(self, *batches: np.ndarray, options: RestoreOptions) -> np.ndarray:
        """(B, C, H, W) of each source to the same of other sizes."""
        raise NotImplementedError

    def plan_does_all(self, options: RestoreOptions) -> bool:
        """Whether the stage's plan alone makes the result."""
        return True

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by the server, with requests whose tensors have the same shapes."""
        begin = time.time()
        responses: dict[int, Any] = {}
        together: dict[tuple[Any, ...], list[tuple[int, list[np.ndarray], Settings]]] = {}
        for place, request in enumerate(requests):
            try:
                handles = {tensor.name(): tensor for tensor in request.inputs()}
                settings = Settings.from_tensor(handles[SETTINGS].as_numpy())
                settings.check_deadline()
                by_plan = self.stages[0] in plans_of(self.parameters) and self.plan_does_all(settings.options)
                if by_plan and self._fits(handles[self.sources[0]], settings):
                    responses[place] = self._pass_on(handles[self.sources[0]], begin)
                    continue
                arrays = [to_numpy(handles[source]) for source in self.sources]
                alike = settings.options.tile_size, settings.options.use_residual
                together.setdefault(alike, []).append((place, arrays, settings))
            except Exception as error:
                responses[place] = failure(error)
        for group in together.values():
            try:
                batches = [np.concatenate(rows) for rows in zip(*(arrays for _, arrays, _ in group), strict=True)]
                made = self.transform(*batches, options=group[0][2].options)
                for row, (place, _, _) in enumerate(group):
                    responses[place] = respond({self.result: made[row : row + 1]}, begin)
            except Exception as error:
                responses.update({place: failure(error) for place, _, _ in group})
        return [responses[place] for place in range(len(requests))]

    def _fits(self, picture: Any, settings: Settings) -> bool:
        """Whether the picture is a tile at most, so that the plan takes it as it is."""
        assert settings.options.tile_size is not None  # the bundle's, see Restorer.options()
        cell = 1 if self.sources[0] == "picture" else self.restorer.geometry.factor
        return max(picture.shape()[2:]) * cell <= settings.options.tile_size

    def _pass_on(self, picture: Any, begin: float) -> Any:
        """The plan's answer; the picture goes from model to model where it is, on the device."""
        on_gpu = self.parameters["device"] == "cuda"
        memory = pb_utils.TRITONSERVER_MEMORY_GPU if on_gpu else pb_utils.TRITONSERVER_MEMORY_CPU
        (made,) = call_plan(self.stages[0], [picture], [self.result], memory)
        span = pb_utils.Tensor(SPAN, np.array([[begin, time.time()]], np.float64))
        return pb_utils.InferenceResponse([made, span])


def plans_of(parameters: Mapping[str, str]) -> list[str]:
    """The stages that are models of their own (see `runtime.triton.plans`)."""
    return parameters["plans"].split()


def call_plan(stage: str, inputs: list[Any], outputs: list[str], memory: Any) -> list[Any]:
    """A stage's plan, as Triton runs it: its outputs, in the memory that is preferred."""
    request = pb_utils.InferenceRequest(
        model_name=plan_model(stage),
        inputs=inputs,
        requested_output_names=outputs,
        preferred_memory=pb_utils.PreferredMemory(memory),
    )
    result = request.exec()
    if result.has_error():
        raise of_other_model(result.error().message())
    return [pb_utils.get_output_tensor_by_name(result, name) for name in outputs]


def parameters_of(args: Mapping[str, str]) -> dict[str, str]:
    """The parameters in a model's configuration."""
    config = json.loads(args["model_config"])
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def open_restorer(parameters: Mapping[str, str], stages: Sequence[str] = ()) -> Restorer:
    """The bundle's restorer, as a model's parameters say, with these stages loaded.

    The server's launcher has verified the bundle's files.
    """
    bundle = Bundle.open(parameters["bundle"], verify=False)
    engines = bundle.engines(
        engine=parameters["engine"],
        guidance=parameters["guidance"],
        device=parameters["device"],
        threads=int(parameters["threads"]) or None,
        precision=parameters["precision"],
    )
    plans = plans_of(parameters)
    engines.load(stage for stage in stages if stage not in plans)

    def infer(stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if stage not in plans:
            return engines.infer(stage, feed)
        inputs = [pb_utils.Tensor(name, array) for name, array in feed.items()]
        names = [spec.name for spec in bundle.manifest.stages[stage].outputs]
        found = call_plan(stage, inputs, names, pb_utils.TRITONSERVER_MEMORY_CPU)
        return dict(zip(names, map(to_numpy, found), strict=True))

    return Restorer(bundle.manifest, infer, load_tokenizer(bundle))


def read_tensors(request: Any) -> dict[str, np.ndarray]:
    """A request's inputs by name, on the CPU."""
    return {tensor.name(): to_numpy(tensor) for tensor in request.inputs()}


def to_numpy(tensor: Any) -> np.ndarray:
    """Triton's tensor on the CPU, copied from the device if it is there."""
    if tensor.is_cpu():
        return tensor.as_numpy()
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(tensor.to_dlpack()).cpu().numpy()


def respond(outputs: Mapping[str, np.ndarray], begin: float) -> Any:
    """The response with its outputs, and the span from `begin` to now."""
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
    span = pb_utils.Tensor(SPAN, np.array([[begin, time.time()]], np.float64))
    return pb_utils.InferenceResponse([*tensors, span])


def of_other_model(message: str) -> Exception:
    """The error of a model that was called, as ours: its code is lost on the way, and only the message is left."""
    kinds = {TIME_OVER: TimeoutError, CANCELLED: TimeoutError, BUSY: BusyError, QUEUE_FULL: BusyError}
    return next((kind for words, kind in kinds.items() if words in message), RuntimeError)(message)


def failure(error: Exception, in_stream: bool = False) -> Any:
    """An error as a response of one line; of one that should not happen, the traceback goes to the log.

    Args:
        in_stream: the code comes before the message, as gRPC streams do not carry it.
    """
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), None)
    if code is None or os.environ.get("DIFFBODY_DEBUG"):
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    message = " ".join(str(error).split()) or type(error).__name__
    if code is None:
        code, message = "INTERNAL", f"internal error: {message}"
    message = f"{code}: {message}" if in_stream else message
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
