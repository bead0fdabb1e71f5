"""Runs over picture files through any way to restore: what is done already, what failed, and what ends a run."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from diffbody.files.plan import Job, Plan, StorageError, check_writable
from diffbody.files.record import Recipe
from diffbody.files.task import FAILED, Output, Result, Settings, Task, failure
from diffbody.lines import one_line
from diffbody_ref.ops.images import Picture, read_image

T = TypeVar("T")

# What can be wrong with one picture while the others go on: its file, its size (memory, also a GPU's, which comes as a
# RuntimeError), a value. Anything else is a mistake in the program and ends the run.
PICTURE_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)

LOOK_SECONDS = 0.5  # how often the main thread looks for Ctrl-C on Windows, where waiting cannot be interrupted
WRITE_SECONDS = 10.0  # how long an interrupted run waits for a file that is being written


RestoreFile = Callable[[Picture, Job], Output]


@dataclass
class Summary:
    """What became of a run.

    Attributes:
        results: of the pictures, in the order of the inputs.
        left: number of pictures that the run did not come to, as it ended early.
        interrupted: whether Ctrl-C ended it.
        error: what else ended it, in one line.
    """

    results: list[Result]
    left: int = 0
    interrupted: bool = False
    error: str | None = None

    def of(self, status: str) -> list[Result]:
        """The results of a status."""
        return [result for result in self.results if result.status == status]


def run(
    plan: Plan,
    load: Callable[[], RestoreFile],
    recipe: Callable[[], Recipe],
    settings: Settings | None = None,
    *,
    on_start: Callable[[Job], None] | None = None,
    on_result: Callable[[Result], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> Summary:
    """Restore pictures one after the other, or some at a time. One that fails does not stop the others.

    A picture is skipped if its output is there and was made from the same bytes by the same recipe. It is restored
    again if one of these changed, or if a side picture is missing that is asked for. An output that is not known to be
    ours is not replaced, unless that is asked for.

    Args:
        plan: the pictures and their outputs.
        load: gives the function that restores; called once, when the first picture is decoded. So nothing slow is
            loaded where every picture is done already or broken. Its own errors end the run.
        recipe: gives what results depend on beside their sources; called once, when it is needed.
        on_start: called before each picture, in the thread that restores it.
        on_result: called with what became of each picture, as it comes, in the thread of the caller.
        on_interrupt: called at Ctrl-C, before anything else.

    Returns:
        What became of the pictures. Files are written whole or not at all, an output after its side pictures. Ctrl-C
        and a full disk end the run early; then threads may still be at work, but write nothing any more.
    """
    at_work = _Run(plan, load, recipe, settings or Settings(), on_start)
    failures = [Result(each.source, FAILED, reason=one_line(each.reason)) for each in plan.failures]
    results: dict[int, Result] = {}
    summary = Summary(failures)
    if on_result is not None:
        for each in failures:
            on_result(each)
    try:
        at_work.start()
        while len(results) < len(plan.jobs):
            index, result = at_work.next()
            results[index] = result
            if on_result is not None:
                on_result(result)
    except KeyboardInterrupt:
        at_work.begin_nothing()
        if on_interrupt is not None:
            on_interrupt()
        summary.interrupted = True
    except StorageError as error:
        summary.error = str(error)
    finally:
        at_work.stop()
    results |= at_work.finished()
    summary.results += [results[index] for index in sorted(results)]
    summary.left = len(plan.jobs) - len(results)
    return summary


class _Run:
    """The threads of a run.

    The main thread only waits: Python runs the handler of Ctrl-C there, which would otherwise wait until the networks,
    which are no Python, return.
    """

    def __init__(
        self,
        plan: Plan,
        load: Callable[[], RestoreFile],
        recipe: Callable[[], Recipe],
        settings: Settings,
        on_start: Callable[[Job], None] | None,
    ) -> None:
        self.plan, self.settings, self.on_start = plan, settings, on_start
        self.restore_file, self.recipe = _once(load), _once(recipe)
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Result | BaseException]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._writing = threading.Lock()

    def start(self) -> None:
        """Begin with the first pictures."""
        for index in range(len(self.plan.jobs)):
            self._waiting.put(index)
        for _ in range(min(self.settings.workers, len(self.plan.jobs))):
            threading.Thread(target=self._work, daemon=True).start()

    def next(self) -> tuple[int, Result]:
        """The number of a job and what became of it, when there is one.

        Raises:
            BaseException: what ends the run.
        """
        while True:
            try:
                index, result = self._done.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(result, BaseException):
                raise result
            return index, result

    def begin_nothing(self) -> None:
        """Begin no picture any more; what fails from now on does not count, as its failure is the end of the run."""
        self._stopped.set()

    def stop(self) -> None:
        """Begin and write nothing any more; a file that is being written is written to its end."""
        self.begin_nothing()
        self._writing.acquire(timeout=WRITE_SECONDS)  # for good

    def finished(self) -> dict[int, Result]:
        """What became of jobs and was not asked for by `next`."""
        found = {}
        while not self._done.empty():
            index, result = self._done.get()
            if isinstance(result, Result):
                found[index] = result
        return found

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                index = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                result = self._do(self.plan.jobs[index])
                if result.status != FAILED or not self._stopped.is_set():
                    self._done.put((index, result))
            except BaseException as error:
                self._done.put((index, error))
                return

    def _do(self, job: Job) -> Result:
        """Restore one picture, if it is not done.

        Raises:
            StorageError: nothing can be written any more.
            Exception: of loading, or a mistake in the program.
        """
        start = time.monotonic()
        if self.on_start is not None:
            self.on_start(job)
        record = self.plan.records[job.target.parent]
        # A record is begun by runs over several pictures; one picture alone leaves no file but its own.
        recipe = self.recipe() if record.path.exists() or not self.plan.single else None
        try:
            task = Task(job, record, recipe, self.settings, self._writing)
            result = task.done()
            picture = read_image(job.source) if result is None else None
            if picture is not None:
                check_writable(job.target.parent)
        except PICTURE_ERRORS as error:
            return failure(job, error)
        if picture is not None:
            restore = self.restore_file()
            try:
                result = task.write(picture, restore(picture, job))
            except PICTURE_ERRORS as error:
                return failure(job, error)
        assert result is not None
        return replace(result, seconds=time.monotonic() - start)


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """A function that makes something when it is first called, by whichever thread, and then always gives that."""
    lock = threading.Lock()
    made: list[T] = []

    def get() -> T:
        with lock:
            if not made:
                made.append(make())
            return made[0]

    return get
