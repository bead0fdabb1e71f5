"""What `diffbody serve` does: runs a server until it is told to stop, and starts it again when it crashes or hangs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from runtime.triton.config import ServerConfig
from runtime.triton.probe import NotWellError
from runtime.triton.run_folder import RunFolder
from runtime.triton.server import Server
from runtime.triton.tritonserver import ServerError

DRAIN_SECONDS = 60.0  # in which requests under way may finish
PROBE_SECONDS = 5.0  # between requests that show whether the server works
PROBES = 3  # so many in a row without an answer are a server that hangs; one may be lost on a busy machine
WINDOW_SECONDS = 900.0  # in which restarts are counted
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a restart; each pause is twice the last

ShowLog = Callable[[str, str], None]


class GivenUpError(ServerError):
    """The server has crashed or hung too often."""


class StopRequest(BaseException):
    """A signal asks to stop, before there is anything that could be finished first.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stopping:
    """The signals that ask to stop: Ctrl-C and SIGTERM.

    Attributes:
        asked: number of such signals so far.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._interrupts = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        if self._interrupts:
            self._interrupts = False  # so that a second signal does not interrupt the tidying up
            raise StopRequest(number)

    @contextmanager
    def noted_only(self) -> Iterator[None]:
        """While signals are counted, and do not interrupt what is done."""
        self._interrupts = False
        try:
            yield
        finally:
            self._interrupts = not self.asked


@contextmanager
def until_stopped() -> Iterator[Stopping]:
    """From here on Ctrl-C and SIGTERM raise `StopRequest`, in this thread, which has to be the main one."""
    stopping = Stopping()
    before = {number: signal.signal(number, stopping) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(config: ServerConfig, run_folder: RunFolder, show_log: ShowLog, stopping: Stopping) -> None:
    """Serve until Ctrl-C or SIGTERM; print the addresses when the server is ready.

    Requests under way are finished first, for `DRAIN_SECONDS` at most; a second signal stops the server at once.

    Args:
        config: how the server listens.
        run_folder: of the server.
        show_log: called for each line of the server's log with its severity and its text.
        stopping: what `until_stopped` yields.

    Raises:
        ServerError: the server cannot start, or has crashed or hung too often.
        StopRequest: a signal asked to stop before the server was ready.
    """
    with Server(config, show_log, run_folder) as server:
        key = " (with the API key)" if config.api_key is not None else ""
        print(f"ready: gRPC {server.grpc_url}, HTTP http://{server.http_url}{key}, metrics {server.metrics_url}")
        print(f"try:   diffbody restore photo.jpg --url {server.grpc_url}", flush=True)
        Watch(server, show_log).run(stopping)
        print("stopping: requests under way are finished first; press Ctrl-C again to stop at once", flush=True)
        with stopping.noted_only():
            deadline = time.monotonic() + DRAIN_SECONDS
            while stopping.asked == 1 and time.monotonic() < deadline and server.requests_under_way():
                time.sleep(0.2)
            if stopping.asked > 1:
                server.kill()


class Watch:
    """Watches a server, and starts it again when it cannot answer any more.

    Args:
        server: which is ready.
        show_log: see `serve`.
    """

    def __init__(self, server: Server, show_log: ShowLog) -> None:
        self._server, self._show_log = server, show_log
        self._restarts: list[float] = []
        self._hang: str | None = None

    def run(self, stopping: Stopping) -> None:
        """Watch until a signal asks to stop.

        Raises:
            ServerError: the server has crashed or hung too often.
        """
        failure: ServerError | None = None
        try:
            while not stopping.asked:
                try:
                    if failure is not None:
                        self._restart(failure)
                    self._watch(stopping)
                except GivenUpError:
                    raise
                except ServerError as error:
                    failure = error
        except StopRequest:
            return

    def _watch(self, stopping: Stopping) -> None:
        """Return at a signal.

        Raises:
            ServerError: the server has crashed, or hangs.
        """
        self._hang = None
        with stopping.noted_only():
            ended = threading.Event()
            threading.Thread(target=self._probe, args=(ended,), daemon=True).start()
            try:
                while not stopping.asked:
                    time.sleep(0.2)
                    self._server.check()
                    if self._hang is not None:
                        raise ServerError(self._hang)
            finally:
                ended.set()

    def _probe(self, ended: threading.Event) -> None:
        """Send requests through the server until it hangs, or is watched no longer."""
        missed = 0
        while not ended.wait(PROBE_SECONDS):
            try:
                self._server.probe()
                missed = 0
            except NotWellError as error:
                missed += 1
                if not ended.is_set() and missed == PROBES:
                    self._hang = f"the server hangs ({error})"
                    return

    def _restart(self, error: ServerError) -> None:
        """Start the server again, after a while if that was needed lately.

        Raises:
            GivenUpError: it was needed too often.
            ServerError: the server does not start.
        """
        now = time.monotonic()
        self._restarts = [then for then in self._restarts if now - then < WINDOW_SECONDS]
        count, most = len(self._restarts), self._server.config.restarts
        if count >= most:
            raise GivenUpError(f"{error}; given up after {count} restarts within {WINDOW_SECONDS / 60:.0f} minutes")
        self._restarts.append(now)
        pause = min(FIRST_PAUSE * 2**count, LONGEST_PAUSE) if count else 0.0
        after = f" in {pause:.0f} s" if pause else ""
        self._show_log("error", f"{error}; it is started again{after} ({count + 1} of {most} restarts)")
        self._server.kill()
        time.sleep(pause)
        self._server.start()
        self._show_log("warning", f"the server is ready again, {time.monotonic() - now:.1f} s after that")
