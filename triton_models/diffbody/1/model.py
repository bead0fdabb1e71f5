"""One picture a request: degraded in, restored out."""

from __future__ import annotations

from runtime.triton.fronts import Front


class TritonPythonModel(Front):
    """A request → the answer."""
