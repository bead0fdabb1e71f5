"""Who may be worked on: so many requests at a time, so many waiting in the order in which they came, no others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from runtime.triton.contract import TOO_MANY_WAITING
from runtime.triton.errors import BusyError


class Admission:
    """An asynchronous context manager around the work on a request. A task that is cancelled while it waits leaves.

    Args:
        at_work: number of requests that are worked on at a time.
        waiting: number of requests that wait.
        on_change: called with the number of requests that are worked on, and of those that wait, at each change.

    Raises:
        BusyError: on entry: as many wait as may.
    """

    def __init__(self, at_work: int, waiting: int, on_change: Callable[[int, int], None] = lambda *_: None) -> None:
        self._places, self._most, self._on_change = asyncio.Semaphore(at_work), waiting, on_change
        self._at_work = self._waiting = 0

    async def __aenter__(self) -> None:
        if self._places.locked():
            await self._wait()
        else:
            await self._places.acquire()
        self._count(at_work=1)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.release()
        self._count(at_work=-1)

    async def _wait(self) -> None:
        if self._waiting >= self._most:
            raise BusyError(f"{self._waiting} {TOO_MANY_WAITING}")
        self._count(waiting=1)
        try:
            await self._places.acquire()
        finally:
            self._count(waiting=-1)

    def _count(self, at_work: int = 0, waiting: int = 0) -> None:
        self._at_work += at_work
        self._waiting += waiting
        self._on_change(self._at_work, self._waiting)
