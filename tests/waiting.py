"""Waiting for what another thread or process does: for a state, not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG = 1200.0
"""Seconds after which something hangs. A busy machine only makes what is waited for later, and no test reaches this."""


def wait_until(condition: Callable[[], object], while_true: Callable[[], object] = lambda: True) -> None:
    """Return when the condition holds.

    Args:
        while_true: what must hold meanwhile, such as that the process that is waited for runs.
    """
    limit = time.monotonic() + HANG
    while not condition():
        assert while_true(), "it will not happen any more"
        assert time.monotonic() < limit, "it hangs"
        time.sleep(0.01)
