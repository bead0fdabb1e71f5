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
            raise TimeoutError("the request's time is over")


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
        """Called by the server."""
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
    engines.load(stages)
    return Restorer(bundle.manifest, engines.infer, load_tokenizer(bundle))


def read_tensors(request: Any) -> dict[str, np.ndarray]:
    """A request's inputs by name, on the CPU."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def respond(outputs: Mapping[str, np.ndarray], begin: float) -> Any:
    """The response with its outputs, and the span from `begin` to now."""
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
    span = pb_utils.Tensor(SPAN, np.array([[begin, time.time()]], np.float64))
    return pb_utils.InferenceResponse([*tensors, span])


def failure(error: Exception) -> Any:
    """An error as a response of one line; of one that should not happen, the traceback goes to the log."""
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), None)
    if code is None or os.environ.get("DIFFBODY_DEBUG"):
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    message = " ".join(str(error).split()) or type(error).__name__
    if code is None:
        code, message = "INTERNAL", f"internal error: {message}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
