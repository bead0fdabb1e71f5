"""Cancels a request of a client that keeps its connection: it is answered at once that it was cancelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from runtime.triton.contract import OK, REQUEST_ID
from runtime.triton.models import read_tensors, respond_error
from runtime.triton.request_notes import RequestNotes


class TritonPythonModel:
    """The ID of a request → OK."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by the server."""
        self.notes = RequestNotes.of_this_server()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by the server."""
        self.notes.remove_old()
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            request_id = read_tensors(request)[REQUEST_ID.name].reshape(-1)[0].decode()
            if not request_id:
                raise ValueError(f"{REQUEST_ID.name} is empty; give the ID of the request to cancel")
            self.notes.ask_to_cancel(request_id)
            return pb_utils.InferenceResponse([pb_utils.Tensor(OK.name, np.array([True]))])
        except Exception as error:
            return respond_error(error)
