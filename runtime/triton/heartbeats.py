"""Signs of life of a server's models, by which a hang is told from hard work: files in the folder of its notes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORKING, IN_FLIGHT = "working-", "in-flight"
IDLE_SECONDS = 30.0  # requests are handed to the sampler again at once: if not for so long, the scheduler stands still


class Heartbeats:
    """Signs of life.

    Args:
        folder: shared by the models of one server.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def working(self, model: str) -> Iterator[None]:
        """While a model works on a batch."""
        path = self.folder / f"{WORKING}{model}"
        path.touch()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def report_in_flight(self, count: int) -> None:
        """The sampler has just made a step, and so many requests have further ones before them."""
        (self.folder / IN_FLIGHT).write_text(str(count))

    def find_hang(self, stall_seconds: float) -> str | None:
        """What hangs, in one line, or None.

        Args:
            stall_seconds: for which a model may work on one batch.
        """
        now = time.time()
        working = {path.name.removeprefix(WORKING): _changed(path) for path in self.folder.glob(f"{WORKING}*")}
        for model, since in working.items():
            if since is not None and now - since > stall_seconds:
                return f"the model {model} has worked on one batch for {now - since:.0f} s"
        flights = self.folder / IN_FLIGHT
        since = _changed(flights)
        if since is None or now - since <= IDLE_SECONDS or any(working.values()):
            return None
        count = flights.read_text()
        return f"{count} requests in flight, and no step for {now - since:.0f} s" if count not in ("", "0") else None


def _changed(path: Path) -> float | None:
    """When a file was written to, in seconds of the Unix clock; None if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
