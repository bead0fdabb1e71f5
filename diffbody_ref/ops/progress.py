"""How long work tells its caller how far it has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being worked on); the last is "" where there is nothing to name."""
