"""What a request to the server holds, and what its answer: one list, of which model configurations, the server's checks
and the client derive.

A request is one picture. Every field but the picture is optional; what is left out is the bundle's or the option's
default.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import numpy as np

from diffbody_ref.ops.images import MAX_PIXELS, MIN_SIDE, Picture, decode_image
from diffbody_ref.ops.noise import check_seed
from diffbody_ref.ops.options import RestoreOptions

MODEL = "diffbody"
STREAM_MODEL = "diffbody_stream"
CANCEL_MODEL = "cancel"

MAX_PROMPT = 10_000  # characters; the text encoder reads the first 75 tokens
MAX_FILE = 64 << 20  # bytes of an encoded picture
FORMATS = ("png", "jpg", "webp")

# Of errors, where Triton drops their codes on the way to the client.
TIME_OVER = "the request's time is over"
CANCELLED = "the request was cancelled"
BUSY = "requests are in flight, which is the most; retry later"
QUEUE_FULL = "maximum queue size"  # Triton's own words

DTYPES = {int: "INT64", float: "FP64", str: "BYTES", bool: "BOOL"}
TRITON_TYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32"}  # by numpy's names
NUMPY = {"INT64": np.int64, "UINT64": np.uint64, "FP64": np.float64, "BYTES": np.object_, "BOOL": np.bool_}


@dataclass(frozen=True)
class Field:
    """A tensor of a request: its name and Triton's name of its dtype; -1 in the shape is any size."""

    name: str
    dtype: str
    shape: tuple[int, ...] = (1,)

    @property
    def key(self) -> str:
        """How Python calls it: "NUM_INFERENCE_STEPS" is num_inference_steps."""
        return self.name.lower()


def _option_fields() -> tuple[Field, ...]:
    hints = get_type_hints(RestoreOptions)
    kinds = {name: next(kind for kind in DTYPES if hint in (kind, kind | None)) for name, hint in hints.items()}
    return tuple(Field(f.name.upper(), DTYPES[kinds[f.name]]) for f in dataclasses.fields(RestoreOptions))


OPTIONS = _option_fields()
REQUEST = (
    Field("IMAGE", "BYTES"),
    Field("PIXELS", "UINT8", (-1, -1, 3)),
    Field("PROMPT", "BYTES"),
    Field("NEGATIVE_PROMPT", "BYTES"),
    Field("SEED", "UINT64"),
    Field("OUTPUT_FORMAT", "BYTES"),
    *OPTIONS,
)
"""Either IMAGE, an encoded picture, or PIXELS, RGB."""

ANSWER = (Field("OUTPUT", "BYTES"), Field("REPORT", "BYTES"))
"""The encoded restored picture, and a `Report` as JSON."""


@dataclass(frozen=True)
class Request:
    """A checked request."""

    picture: Picture
    options: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    output_format: str = "png"


@dataclass(frozen=True)
class Report:
    """What the server says of a restoration.

    Attributes:
        spans: of each model, when it began and ended its work on the request, in seconds since the first began.
        steps: sampling steps. people: found in the picture. loss_curve: (timestep, loss of eq. 6) of guided steps.
        notices: lines for whoever asked.
    """

    spans: dict[str, tuple[float, float]]
    steps: int
    people: int
    loss_curve: list[tuple[int, float]]
    notices: list[str]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """What `to_json` wrote."""
        values = json.loads(text)
        spans = {name: (start, end) for name, (start, end) in values["spans"].items()}
        return cls(**{**values, "spans": spans, "loss_curve": [(t, loss) for t, loss in values["loss_curve"]]})


def read_request(tensors: Mapping[str, np.ndarray], max_pixels: int = MAX_PIXELS) -> Request:
    """A request's tensors by name, checked; the options' ranges are checked where a model's defaults are known.

    Raises:
        ValueError: what is wrong, in one line that names the tensor.
    """
    fields = {f.name: f for f in REQUEST}
    if unknown := tensors.keys() - fields.keys():
        raise ValueError(f"unknown input {min(unknown)}; known are {', '.join(fields)}")
    if ("IMAGE" in tensors) == ("PIXELS" in tensors):
        raise ValueError("give the picture as IMAGE, an encoded file, or as PIXELS, UINT8 (H, W, 3): one of them")
    values = {
        f.key: _scalar(f, tensors[f.name]) for f in REQUEST if f.name in tensors and f.name not in ("IMAGE", "PIXELS")
    }
    for name in ("prompt", "negative_prompt"):
        if len(values.get(name, "")) > MAX_PROMPT:
            raise ValueError(f"{name.upper()} has {len(values[name]):,} characters; at most {MAX_PROMPT:,}")
    if values.get("output_format", "png") not in FORMATS:
        raise ValueError(f"unknown OUTPUT_FORMAT {values['output_format']!r}, choose one of {', '.join(FORMATS)}")
    check_seed(values.get("seed", 0), "SEED")
    options = {f.key: values.pop(f.key) for f in OPTIONS if f.key in values}
    picture = _encoded(tensors["IMAGE"], max_pixels) if "IMAGE" in tensors else _raw(tensors["PIXELS"], max_pixels)
    return Request(picture, options, **values)


def _scalar(f: Field, array: np.ndarray) -> Any:
    if array.size != 1:
        raise ValueError(f"{f.name} must be one value, got shape {array.shape}")
    value = array.reshape(-1)[0]
    if f.dtype == "BYTES":
        try:
            return value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise ValueError(f"{f.name} is not UTF-8 text") from None
    value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{f.name} must be a finite number, got {value}")
    return value


def _encoded(array: np.ndarray, max_pixels: int) -> Picture:
    if array.size != 1:
        raise ValueError(f"IMAGE must be one encoded picture, got shape {array.shape}")
    data = array.reshape(-1)[0]
    data = data.encode() if isinstance(data, str) else bytes(data)
    if len(data) > MAX_FILE:
        raise ValueError(f"IMAGE has {len(data):,} bytes; at most {MAX_FILE:,}")
    return decode_image(data, "IMAGE", max_pixels)


def _raw(array: np.ndarray, max_pixels: int) -> Picture:
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"PIXELS must be UINT8 (H, W, 3), got {array.dtype} {array.shape}")
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE or height * width > max_pixels:
        raise ValueError(f"PIXELS is {width}x{height}; from {MIN_SIDE}x{MIN_SIDE} to {max_pixels:,} pixels are taken")
    return Picture(array.astype(np.float32) / np.float32(255))
