"""A request's tensors as a checked `Request`, and what the answer says of the work, `RestorationReport`.

A request is one picture. Every tensor but the picture's is optional; what is left out is the bundle's or the option's
default.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffbody_ref.ops.formats import OUTPUT_SUFFIXES
from diffbody_ref.ops.images import MAX_PIXELS, MIN_SIDE, Picture, decode_image
from diffbody_ref.ops.metadata import Metadata
from diffbody_ref.ops.noise import check_seed
from runtime.triton.contract import (
    IMAGE,
    NEGATIVE_PROMPT,
    OPTIONS,
    OUTPUT_FORMAT,
    PIXELS,
    PROMPT,
    REQUEST,
    SEED,
    TritonTensor,
)

MAX_PROMPT = 10_000  # characters; a notice tells what of them the text encoder did not read
MAX_TEXT = 100  # characters of any other text, such as the name of a sampler
MAX_FILE = 64 << 20  # bytes of an encoded picture
FORMATS = tuple(suffix.lstrip(".") for suffix in OUTPUT_SUFFIXES)


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        picture: the decoded picture.
        options: those of `diffbody_ref.ops.options.RestoreOptions` that the request gives, by name.
        prompt: what the picture shows.
        negative_prompt: what it should not show.
        seed: of the noise.
        output_format: of the answer's picture, one of `FORMATS`.
        as_text: the picture came as base64, and the answer's goes so: JSON holds no bytes.
    """

    picture: Picture
    options: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    output_format: str = "png"
    as_text: bool = False


@dataclass(frozen=True)
class RestorationReport:
    """What the server tells about a restoration.

    Attributes:
        spans: when each model began and ended its work on the request, in seconds since the first began.
        steps: number of sampling steps.
        people: number of people found in the picture.
        loss_curve: (timestep, loss of eq. 6) of the guided steps.
        notices: sentences for whoever sent the request.
    """

    spans: dict[str, tuple[float, float]]
    steps: int
    people: int
    loss_curve: list[tuple[int, float]]
    notices: list[str]

    def to_json(self) -> str:
        """The report as JSON in one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> RestorationReport:
        """The report that `to_json` wrote."""
        values = json.loads(text)
        spans = {name: (start, end) for name, (start, end) in values["spans"].items()}
        return cls(**{**values, "spans": spans, "loss_curve": [(t, loss) for t, loss in values["loss_curve"]]})


def write_source(picture: Picture, notices: Sequence[str] = ()) -> str:
    """What the answer takes over from a request's picture, its metadata and notices, as JSON in one line.

    Args:
        picture: of the request.
        notices: on the rest of the request.
    """
    return json.dumps({"metadata": picture.metadata.to_json(), "notices": [*picture.notices, *notices]})


def read_source(text: str | bytes) -> tuple[Metadata, list[str]]:
    """The metadata and notices that `write_source` wrote."""
    values = json.loads(text)
    return Metadata.from_json(values["metadata"]), values["notices"]


def since_first(spans: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """The models' spans, each (start, end) of the Unix clock, in seconds since the first start, to 0.1 ms."""
    first = min(start for start, _ in spans.values())
    return {name: (round(start - first, 4), round(end - first, 4)) for name, (start, end) in spans.items()}


def read_request(tensors: Mapping[str, np.ndarray], max_pixels: int = MAX_PIXELS) -> Request:
    """Check a request's tensors. The options' ranges are checked where a model's defaults are known.

    Args:
        tensors: by name.
        max_pixels: of the picture as it is sent.

    Raises:
        ValueError: what is wrong, in one line that names the tensor.
    """
    values = read_values(tensors)
    options = {tensor.argument: values.pop(tensor.argument) for tensor in OPTIONS if tensor.argument in values}
    if IMAGE.name in tensors:
        picture, as_text = _decode_file(tensors[IMAGE.name], max_pixels)
    else:
        picture, as_text = _picture_of_pixels(tensors[PIXELS.name], max_pixels), False
    return Request(picture, options, **values, as_text=as_text)


def read_values(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Check all of a request's tensors but the picture, which is not looked into.

    Returns:
        The arguments that the request gives, by name.

    Raises:
        ValueError: what is wrong, in one line that names the tensor.
    """
    known = {tensor.name: tensor for tensor in REQUEST}
    if unknown := tensors.keys() - known.keys():
        raise ValueError(f"unknown input {min(unknown)}; known are {', '.join(known)}")
    if (IMAGE.name in tensors) == (PIXELS.name in tensors):
        raise ValueError(
            f"give the picture as {IMAGE.name}, an encoded file, or as {PIXELS.name}, UINT8 (H, W, 3): one of them"
        )
    scalars = [tensor for tensor in REQUEST if tensor.name in tensors and tensor not in (IMAGE, PIXELS)]
    values = {tensor.argument: _scalar(tensor, tensors[tensor.name]) for tensor in scalars}
    if (output_format := values.get(OUTPUT_FORMAT.argument, FORMATS[0])) not in FORMATS:
        raise ValueError(f"unknown {OUTPUT_FORMAT.name} {output_format!r}, choose one of {', '.join(FORMATS)}")
    check_seed(values.get(SEED.argument, 0), SEED.name)
    return values


def _scalar(tensor: TritonTensor, array: np.ndarray) -> Any:
    if array.size != 1:
        raise ValueError(f"{tensor.name} must be one value, got shape {array.shape}")
    value = array.reshape(-1)[0]
    if tensor.dtype == "BYTES":
        return _text(tensor, value)
    value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{tensor.name} must be a finite number, got {value}")
    return value


def _text(tensor: TritonTensor, value: bytes | str) -> str:
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise ValueError(f"{tensor.name} is not UTF-8 text") from None
    most = MAX_PROMPT if tensor in (PROMPT, NEGATIVE_PROMPT) else MAX_TEXT
    if len(text) > most:
        raise ValueError(f"{tensor.name} has {len(text):,} characters; at most {most:,}")
    return text


def _decode_file(array: np.ndarray, max_pixels: int) -> tuple[Picture, bool]:
    """The picture, and whether it came as base64. No picture file is of base64's characters only."""
    if array.size != 1:
        raise ValueError(f"{IMAGE.name} must be one encoded picture, got shape {array.shape}")
    data = array.reshape(-1)[0]
    data = data.encode() if isinstance(data, str) else bytes(data)
    if len(data) > MAX_FILE:
        raise ValueError(f"{IMAGE.name} has {len(data):,} bytes; at most {MAX_FILE:,}")
    try:
        binary = base64.b64decode(data.strip(), validate=True)
    except ValueError:
        return decode_image(data, IMAGE.name, max_pixels), False
    return decode_image(binary, IMAGE.name, max_pixels), True


def _picture_of_pixels(array: np.ndarray, max_pixels: int) -> Picture:
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"{PIXELS.name} must be UINT8 (H, W, 3), got {array.dtype} {array.shape}")
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE or height * width > max_pixels:
        raise ValueError(
            f"{PIXELS.name} is {width}x{height}; from {MIN_SIDE}x{MIN_SIDE} to {max_pixels:,} pixels are taken"
        )
    return Picture(array.astype(np.float32) / np.float32(255))
