"""What a client sends and gets: a call as tensors, and a server's answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffbody_ref.ops.images import Picture, decode_image
from runtime.triton.client_errors import InvalidRequestError
from runtime.triton.contract import IMAGE, NUMPY, PIXELS, REQUEST, TritonTensor
from runtime.triton.messages import RestorationReport

Image = bytes | Path | np.ndarray
"""An encoded picture, the path of a picture file, or RGB as uint8 (H, W, 3)."""


@dataclass(frozen=True)
class SamplingProgress:
    """How far a restoration is.

    Attributes:
        step: number of steps done.
        steps: number of steps in all.
        preview: the picture so far (JPEG), where one was asked for.
    """

    step: int
    steps: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """A server's answer.

    Attributes:
        image: the restored picture as the server encoded it.
        report: what the server tells about its work.
    """

    image: bytes
    report: RestorationReport

    @property
    def picture(self) -> Picture:
        """The restored picture, decoded."""
        return decode_image(self.image, "the server's answer")


def request_tensors(image: Image, asked: dict[str, Any]) -> dict[str, np.ndarray]:
    """A call as the tensors of `contract.REQUEST`, by name.

    Args:
        image: the degraded picture.
        asked: the other arguments of `AsyncClient.restore`.

    Raises:
        InvalidRequestError: an unknown name, or a value that its tensor cannot hold.
    """
    known = {tensor.argument: tensor for tensor in REQUEST if tensor not in (IMAGE, PIXELS)}
    if unknown := asked.keys() - known.keys():
        raise InvalidRequestError(f"unknown option {min(unknown)!r}; known are {', '.join(known)}")
    tensors: dict[str, np.ndarray] = {}
    if isinstance(image, np.ndarray):
        tensors[PIXELS.name] = np.ascontiguousarray(image)
    else:
        data = image.read_bytes() if isinstance(image, Path) else image
        tensors[IMAGE.name] = np.array([data], np.object_)
    for name, value in asked.items():
        if value is not None:
            tensors[known[name].name] = _array(known[name], value)
    return tensors


def _array(tensor: TritonTensor, value: Any) -> np.ndarray:
    """The value as an array of the tensor's dtype, (1,).

    Raises:
        InvalidRequestError: the tensor cannot hold the value exactly.
    """
    try:
        array = np.array([value.encode() if isinstance(value, str) else value], NUMPY[tensor.dtype])
        if isinstance(value, str) or array[0] == value or np.isnan(value):
            return array
    except (OverflowError, TypeError, ValueError):
        pass
    raise InvalidRequestError(f"{tensor.argument} cannot be {value!r}; its type is {tensor.dtype}")


def read_answer(image: np.ndarray, report: np.ndarray) -> Answer:
    """The answer that the tensors OUTPUT and REPORT hold."""
    return Answer(bytes(image.reshape(-1)[0]), RestorationReport.from_json(report.reshape(-1)[0]))
