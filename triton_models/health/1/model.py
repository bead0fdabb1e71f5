"""Whether the server works: a request to this model takes the way of any other, and no model may hang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from runtime.triton.contract import OK
from runtime.triton.errors import BusyError
from runtime.triton.heartbeats import Heartbeats
from runtime.triton.models import read_parameters, respond_error
from runtime.triton.request_notes import RequestNotes


class TritonPythonModel:
    """Nothing → OK, or an error that says what hangs."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by the server."""
        self.stall_seconds = read_parameters(args).stall_seconds
        self.heartbeats = Heartbeats(RequestNotes.of_this_server().folder)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by the server."""
        return [self._respond() for _ in requests]

    def _respond(self) -> Any:
        hang = self.heartbeats.find_hang(self.stall_seconds)
        if hang is not None:
            return respond_error(BusyError(hang))
        return pb_utils.InferenceResponse([pb_utils.Tensor(OK.name, np.array([True]))])
