"""Who may be worked on: so many requests at a time, so many waiting in the order in which they came, no others."""

from __future__ import annotations

import asyncio
from types import TracebackType

from runtime.triton.contract import TOO_MANY_WAITING
from runtime.triton.errors import BusyError


class Admission:
    """An asynchronous context manager around the work on a request. A task that is cancelled while it waits leaves.

    Attributes:
        at_work: number of requests that are worked on.
        waiting: number of requests that wait.

    Args:
        at_work: number of requests that are worked on at a time.
        waiting: number of requests that wait.

    Raises:
        BusyError: on entry: as many wait as may.
    """

    def __init__(self, at_work: int, waiting: int) -> None:
        self._places, self._most = asyncio.Semaphore(at_work), waiting
        self.at_work = self.waiting = 0

    async def __aenter__(self) -> None:
        if self._places.locked():
            await self._wait()
        else:
            await self._places.acquire()
        self.at_work += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.at_work -= 1
        self._places.release()

    async def _wait(self) -> None:
        if self.waiting >= self._most:
            raise BusyError(f"{self.waiting} {TOO_MANY_WAITING}")
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
