"""Every name that the server, its models and its clients share, each spelled once: models, tensors, metrics, parameters
of models, headers, error codes and error phrases.

The model configurations, the checks of a request and the client are all derived from the tables here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from runtime.engines.config import EngineConfig

# ---- Models ----

MODEL = "diffbody"  # one picture a request
STREAM_MODEL = "diffbody_stream"  # the same with a response after each step
CANCEL_MODEL = "cancel"
HEALTH_MODEL = "health"
PIPELINE_MODEL = "pipeline"  # the ensemble behind MODEL and STREAM_MODEL, which nobody else can call
SAMPLER_MODEL = "sampler"


def plan_model(stage: str) -> str:
    """The name of the model that runs a stage's TensorRT plan."""
    return f"{stage}_plan"


# ---- Tensors ----

DTYPES = {int: "INT64", float: "FP64", str: "BYTES", bool: "BOOL"}  # Triton's dtype of an option's Python type
TRITON_TYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32"}  # by numpy's names
NUMPY = {"INT64": np.int64, "UINT64": np.uint64, "FP64": np.float64, "BYTES": np.object_, "BOOL": np.bool_}


@dataclass(frozen=True)
class TritonTensor:
    """An input or output of one of the server's models.

    Attributes:
        name: as the model calls it.
        dtype: Triton's name of it.
        shape: without the batch; -1 is any size.
        optional: a request may leave it out.
        wire: the name of the ensemble's tensor that it is connected to.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = (1,)
    optional: bool = False
    wire: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "wire", self.wire or self.name)

    @property
    def argument(self) -> str:
        """The name of a request's tensor in Python calls: "NUM_INFERENCE_STEPS" is num_inference_steps."""
        return self.name.lower()

    def named(self, name: str) -> TritonTensor:
        """The same tensor of the ensemble, as a model sees it that calls it by another name."""
        return dataclasses.replace(self, name=name)


def _option_tensors() -> tuple[TritonTensor, ...]:
    hints = get_type_hints(RestoreOptions)
    kinds = {name: next(kind for kind in DTYPES if hint in (kind, kind | None)) for name, hint in hints.items()}
    names = [f.name for f in dataclasses.fields(RestoreOptions)]
    return tuple(TritonTensor(name.upper(), DTYPES[kinds[name]], optional=True) for name in names)


# A request. Every tensor but the picture is optional; what is left out is the bundle's or the option's default. The
# picture is either IMAGE, an encoded file, or PIXELS, RGB.
IMAGE = TritonTensor("IMAGE", "BYTES", optional=True)
PIXELS = TritonTensor("PIXELS", "UINT8", (-1, -1, 3), optional=True)
PROMPT = TritonTensor("PROMPT", "BYTES", optional=True)
NEGATIVE_PROMPT = TritonTensor("NEGATIVE_PROMPT", "BYTES", optional=True)
SEED = TritonTensor("SEED", "UINT64", optional=True)
OUTPUT_FORMAT = TritonTensor("OUTPUT_FORMAT", "BYTES", optional=True)
OPTIONS = _option_tensors()
REQUEST = (IMAGE, PIXELS, PROMPT, NEGATIVE_PROMPT, SEED, OUTPUT_FORMAT, *OPTIONS)

# The answer: the encoded restored picture, and a `runtime.triton.messages.RestorationReport` as JSON.
OUTPUT = TritonTensor("OUTPUT", "BYTES")
REPORT = TritonTensor("REPORT", "BYTES")
ANSWER = (OUTPUT, REPORT)

# The stream model also takes the number of steps between previews, and returns after each step how many steps are done
# and how many there are in all; with every preview, the picture so far (JPEG).
PREVIEW_EVERY = TritonTensor("PREVIEW_EVERY", "INT64", optional=True)
STEP = TritonTensor("STEP", "INT64")
STEPS = TritonTensor("STEPS", "INT64")
PREVIEW = TritonTensor("PREVIEW", "BYTES")

# The model that cancels takes the ID of the request to stop, and returns that it left a note of it. The model of health
# takes nothing, and returns OK or an error that says what hangs.
REQUEST_ID = TritonTensor("REQUEST_ID", "BYTES")
OK = TritonTensor("OK", "BOOL")

# The ensemble takes a `runtime.triton.settings.Ticket` as JSON, which only the models in front of it can make.
TICKET = TritonTensor("TICKET", "BYTES")

# Every model of the ensemble takes the request's `runtime.triton.settings.Settings` as JSON, and returns when its work
# began and ended, in seconds of the Unix clock.
SETTINGS = TritonTensor("SETTINGS", "BYTES", wire="settings")
SPAN = TritonTensor("SPAN", "FP64", (2,))
AFTER = TritonTensor("AFTER", "FP64", (2,))  # the span of the model before; see `_one_after_the_other`

# These go from model to model. Notation is that of `diffbody_ref.pipeline`, with P people and K parts.
PICTURE = TritonTensor("picture", "FP32", (3, -1, -1))  # y at its padded working size, in [0, 1]
ALPHA = TritonTensor("alpha", "FP32", (-1, -1))  # the picture's opacity; 0×0 where it has none
SOURCE = TritonTensor("source", "BYTES")  # JSON: the metadata of the picture's file, and notices on reading it
REGRESSION = TritonTensor("regression", "FP32", (3, -1, -1))  # r
BOXES = TritonTensor("boxes", "FP32", (-1, 5))  # of the people: x0, y0, x1, y1 in pixels, score
POSE = TritonTensor("pose", "FP32", (3, -1, -1))
ATTENTION = TritonTensor("attention", "FP32", (-1, -1, -1))  # (K+1, H, W)
EMBEDDINGS = TritonTensor("embeddings", "FP32", (-1, -1, -1))  # φ(r), (P, K, D)
VISIBILITY = TritonTensor("visibility", "FP32", (-1, -1))  # v, (P, K)
WINDOWS = TritonTensor("windows", "FP32", (-1, 4))  # of the people, in pixels
TEXT = TritonTensor("text", "FP32", (-1, -1, -1))  # c, or c and the negative prompt's, (1 or 2, L, D)
Z_R = TritonTensor("z_r", "FP32", (-1, -1, -1))
Z_0 = TritonTensor("z_0", "FP32", (-1, -1, -1))
DECODED = TritonTensor("decoded", "FP32", (3, -1, -1))
LOSS_CURVE = TritonTensor("loss_curve", "BYTES")  # JSON
NOTICES = TritonTensor("notices", "BYTES")  # JSON
STEPS_DONE = TritonTensor("steps", "INT64")

READY = "READY"  # control input of the sampler; 0 marks a place of its batch that holds no request

# Models that run one graph call their tensors as the graph does, so that a TensorRT plan takes them as they are.
LATENTS = Z_R.named("latents")
SAMPLED = Z_0.named("sampled")


# ---- Which model has which tensors ----


@dataclass(frozen=True)
class ModelTensors:
    """The inputs and outputs of one of the server's models.

    Attributes:
        name: of the model.
        inputs: tensors that it takes.
        outputs: tensors that it returns.
        ragged: inputs of different sizes come in one batch.
    """

    name: str
    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    ragged: bool = False


def span_input(model: str) -> TritonTensor:
    """The input of `postprocess` that receives another model's span."""
    return dataclasses.replace(SPAN, name=f"SPAN_{model.upper()}", wire=f"span_{model}")


def _timed(
    name: str, inputs: tuple[TritonTensor, ...], outputs: tuple[TritonTensor, ...], ragged: bool = False
) -> ModelTensors:
    """A model that also returns its span."""
    return ModelTensors(name, inputs, (*outputs, span_input(name).named(SPAN.name)), ragged)


def _one_after_the_other(*models: ModelTensors) -> tuple[ModelTensors, ...]:
    """The models, each of which also waits for the one before it.

    Triton 2.51 never releases a request of an ensemble, with its picture, in which a model fails while another one
    works. And a request that is given up fails wherever it is.
    """
    waiting = []
    for before, model in pairwise(models):
        wait = dataclasses.replace(AFTER, wire=span_input(before.name).wire)
        waiting.append(dataclasses.replace(model, inputs=(*model.inputs, wait)))
    return (models[0], *waiting)


_TARGET = (EMBEDDINGS, VISIBILITY, WINDOWS)  # what body guidance aims at
TIMED_MODELS = _one_after_the_other(
    _timed("preprocess", (TICKET, *REQUEST), (PICTURE, ALPHA, SOURCE, SETTINGS)),
    _timed("restorer", (PICTURE, SETTINGS), (REGRESSION,)),
    _timed("pose", (REGRESSION, SETTINGS), (BOXES, POSE)),
    _timed("parts", (REGRESSION, BOXES, SETTINGS), (ATTENTION, *_TARGET)),
    _timed("text_encoder", (SETTINGS,), (TEXT,)),
    _timed("vae_encoder", (REGRESSION.named(PICTURE.name), SETTINGS), (LATENTS,)),
    _timed(
        SAMPLER_MODEL,
        (LATENTS, POSE, ATTENTION, TEXT, *_TARGET, BOXES, SETTINGS),
        (SAMPLED, LOSS_CURVE, NOTICES, STEPS_DONE),
        ragged=True,
    ),
    _timed("vae_decoder", (Z_0.named(LATENTS.name), Z_R, REGRESSION, SETTINGS), (DECODED.named(PICTURE.name),)),
)
"""The models of the ensemble whose spans the last one, `postprocess`, reports."""

_SPANS = tuple(span_input(model.name) for model in TIMED_MODELS)
_POSTPROCESS = ModelTensors(
    "postprocess",
    (DECODED, REGRESSION, ALPHA, SOURCE, BOXES, LOSS_CURVE, NOTICES, STEPS_DONE, SETTINGS, *_SPANS),
    ANSWER,
)

ENSEMBLE = (*TIMED_MODELS, _POSTPROCESS)
"""The models of the ensemble in the method's order: each needs tensors of earlier ones only. An input is connected to
the earlier output of the same `wire`."""

MODELS = {
    model.name: model
    for model in (
        *ENSEMBLE,
        ModelTensors(PIPELINE_MODEL, (TICKET, *REQUEST), ANSWER),
        ModelTensors(MODEL, REQUEST, ANSWER),
        ModelTensors(STREAM_MODEL, (*REQUEST, PREVIEW_EVERY), (STEP, STEPS, PREVIEW, *ANSWER)),
        ModelTensors(CANCEL_MODEL, (REQUEST_ID,), (OK,)),
        ModelTensors(HEALTH_MODEL, (), (OK,)),
    )
}
"""All models by name, except those of TensorRT plans."""


# ---- Parameters of models ----


@dataclass(frozen=True)
class ModelParameters:
    """What a model's process reads from its configuration. The attributes' names are the parameters' keys.

    Attributes:
        bundle: folder of the bundle.
        bundle_sha256: of its manifest, which answers for all its files; clients ask what the server restores with.
        engine: engine kind that runs the stages.
        guidance: "engine" or "torch", what runs the gradient of eq. 6.
        device: "cpu" or "cuda".
        plans: stages that are models of their own (see `runtime.triton.plans`).
        threads: CPU threads per operator; 0 is all cores.
        precision: of the bundle's graphs.
        max_in_flight: number of requests that are worked on at a time.
        max_queue: number of requests that wait for that.
        join_at_steps: whether newcomers join the running batch at its next step.
        max_pixels: largest picture at the working size.
        max_seconds: seconds after which a request is given up.
        stall_seconds: seconds after which a model that works on one batch hangs.
    """

    bundle: Path
    bundle_sha256: str
    engine: str
    guidance: str
    device: str
    plans: tuple[str, ...]
    threads: int
    precision: str
    max_in_flight: int
    max_queue: int
    join_at_steps: bool
    max_pixels: int
    max_seconds: float
    stall_seconds: float

    def to_strings(self) -> dict[str, str]:
        """The parameters as a configuration holds them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: " ".join(value) if isinstance(value, tuple) else str(value) for name, value in values.items()}

    @property
    def engine_config(self) -> EngineConfig:
        """How the model's process runs its stages."""
        return EngineConfig(
            engine=self.engine,
            guidance=self.guidance,
            device=self.device,
            threads=self.threads or None,
            precision=self.precision,
        )

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> Self:
        """The parameters that `to_strings` wrote, among others, which Triton itself reads."""
        read: dict[Any, Any] = {bool: lambda text: text == "True", tuple[str, ...]: lambda text: tuple(text.split())}
        return cls(**{name: read.get(kind, kind)(strings[name]) for name, kind in get_type_hints(cls).items()})


# ---- Metrics: of the sampler, and of the models in front of the pipeline ----

IN_FLIGHT_METRIC = "diffbody_in_flight"
STEPS_METRIC = "diffbody_steps_total"
AT_WORK_METRIC = "diffbody_at_work"
WAITING_METRIC = "diffbody_waiting"
ANSWERS_METRIC = "diffbody_answers_total"
RESTORED = "restored"  # outcome of an answer; every other one is a name of `ErrorCode`

# ---- Access ----

API_KEY_HEADER = "x-api-key"
GRPC_HEADER_PREFIX = "triton-grpc-protocol-"  # Triton hands gRPC metadata on as headers only with this prefix

# ---- Errors ----


class ErrorCode(StrEnum):
    """The codes of the models' errors: names of Triton's own, which are attributes of `pb_utils.TritonError`."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


GRPC_STATUS = {
    ErrorCode.INVALID_ARG: "StatusCode.INVALID_ARGUMENT",
    ErrorCode.UNAVAILABLE: "StatusCode.UNAVAILABLE",
    ErrorCode.CANCELLED: "StatusCode.CANCELLED",
    ErrorCode.INTERNAL: "StatusCode.INTERNAL",
}
"""gRPC's status of each code, which Triton sends; in a stream it sends none, see `runtime.triton.errors`."""

# Phrases by which an error is recognised where Triton drops its code on the way.
TIME_IS_OVER = "the request's time is over"
WAS_CANCELLED = "the request was cancelled"
TOO_MANY_IN_FLIGHT = "requests are in flight, which is the most; retry later"
TOO_MANY_WAITING = "requests are waiting, which is the most; retry later"
QUEUE_IS_FULL = "maximum queue size"  # Triton's own words, as the next ones
QUEUED_TOO_LONG = "Request timeout expired"
PROCESS_FAILED = "Stub process"  # of Triton's, where a model's process has ended, or does not answer
MODEL_STOPPED = "a part of the server has stopped working, and is started again; retry later"
