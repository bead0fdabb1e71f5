"""Takes back a request: Triton does not tell the models of an ensemble that its client gave up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from runtime.triton.blackboard import Blackboard
from runtime.triton.models import failure, read_tensors


class TritonPythonModel:
    """The ID of a request → OK; the sampler drops it at its next step."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by the server."""
        self.board = Blackboard.of_this_server()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by the server."""
        self.board.sweep()
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            request_id = read_tensors(request)["REQUEST_ID"].reshape(-1)[0].decode()
            if not request_id:
                raise ValueError("REQUEST_ID is empty; give the ID of the request to cancel")
            self.board.cancel(request_id)
            return pb_utils.InferenceResponse([pb_utils.Tensor("OK", np.array([True]))])
        except Exception as error:
            return failure(error)
