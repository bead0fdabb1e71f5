"""What commands show: progress, one-line errors, and what a missing extra or Ctrl-C is told."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer

from diffbody.lines import one_line

if TYPE_CHECKING:
    from rich.progress import Progress

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
LINE_SECONDS = 10.0  # the least time between two lines of progress where there is no terminal
EXTRAS = {  # other packages: train
    **dict.fromkeys(("torch", "diffusers", "transformers", "accelerate", "safetensors"), "reference"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    **dict.fromkeys(("tritonclient", "pytriton"), "serve"),
    **dict.fromkeys(("httpx2", "pyarrow"), "data"),
    **dict.fromkeys(("polygraphy", "tensorrt", "tensorrt_rtx"), "rtx"),
}
PLAIN = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "tokenizers": ("tokenizers",)}  # come with DiffBody itself
OWN_PACKAGES = ("diffbody", "diffbody_ref", "runtime", "export", "triton_models")


def require(*packages: str) -> None:
    """Make sure that packages are there, before a command makes anything.

    Raises:
        ModuleNotFoundError: one is not; its `name` is the package.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


@contextmanager
def user_errors() -> Iterator[None]:
    """What a person can put right becomes one line on stderr and exit code 2; other errors keep their traceback.

    The environment variable DIFFBODY_DEBUG=1 shows the traceback of every error.
    """
    try:
        yield
    except typer.TyperException as error:
        if not error.format_message():  # no arguments at all: the help has been printed
            sys.exit(0)
        _fail(error, error.format_message().replace(": Value error, ", ": "))  # pydantic's word, in typer's sentence
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OWN_PACKAGES:
            raise
        extra = EXTRAS.get(package, "train")
        how = " or ".join(PLAIN[package]) if package in PLAIN else f"DiffBody with its extra {extra!r}"
        _fail(error, f"this command needs the package {package!r}; install {how}")
    except OSError as error:
        known = error.filename is not None and error.strerror
        _fail(error, f"{error.filename}: {error.strerror}" if known else str(error))
    except (ValueError, MemoryError) as error:
        _fail(error, str(error) or "out of memory")


def _fail(error: BaseException, message: str) -> NoReturn:
    if os.environ.get("DIFFBODY_DEBUG"):
        raise error
    complain(message)
    sys.exit(BAD_INPUT)


def complain(message: str, kind: str = "error") -> None:
    """Print one line to stderr, of bounded length."""
    print(f"diffbody: {kind}:", one_line(message), file=sys.stderr, flush=True)


@contextmanager
def one_interrupt() -> Iterator[None]:
    """The first Ctrl-C raises KeyboardInterrupt; the next ones are ignored, so that what it begins comes to its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(done: int, left: int) -> NoReturn:
    """Say how far interrupted work came, and end the program at once with exit code 130.

    Threads that compute are not waited for: a network may take minutes to return. So whatever must be cleaned up has to
    be before this is called.

    Args:
        done: number of pictures that were restored, skipped or failed.
        left: number of pictures that were not.
    """
    with suppress(OSError):
        complain(f"{done} done, {left} left; the same command goes on", "interrupted")
        sys.stdout.flush()
    os._exit(INTERRUPTED)


def plain_output() -> None:
    """Let file names of any encoding be printed: bytes that are no UTF-8 come out as they were."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 and stream is sys.stdout else "backslashreplace")


@contextmanager
def progress_bar(what: str, seconds: float = LINE_SECONDS) -> Iterator[Callable[..., None]]:
    """One bar, or lines where stderr is not a terminal.

    Yields the function to call with (done, in all), and with the name of what is at work if it has one.

    Args:
        what: is done.
        seconds: see `ProgressLines`.
    """
    with progress_bars() as bars:
        task = bars.add_task(what, total=None)
        lines = ProgressLines(what, seconds)

        def show(done: int, total: int, name: str = what) -> None:
            bars.update(task, completed=done, total=total, description=name)
            if bars.disable:
                lines.show(done, total, name)

        yield show


class ProgressLines:
    """Progress where there is no terminal: a line on stderr, but no more than one in so many seconds.

    Args:
        what: is done, such as "pictures".
        seconds: that are between two lines at least, and before the first one.
    """

    def __init__(self, what: str, seconds: float = LINE_SECONDS) -> None:
        self.what, self.seconds, self._last, self._said = what, seconds, time.monotonic(), ""

    def show(self, done: int, total: int, name: str = "") -> None:
        """Say how much is done, if it is other than what was said and time for it."""
        self.say(f"{self.what}: {done} of {total}{f', {name}' if name not in ('', self.what) else ''}")

    def say(self, line: str) -> None:
        """Say a line, if it is other than what was said and time for it."""
        if line == self._said or time.monotonic() - self._last < self.seconds:
            return
        self._last, self._said = time.monotonic(), line
        complain(line, "progress")


def progress_bars(wanted: bool = True) -> Progress:
    """Bars on stderr that vanish at the end; none where stderr is not a terminal, or they are not wanted."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)  # file names may hold brackets
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    disable = not (wanted and console.is_terminal)
    # Lines on the same terminal go above the bars; stdout in a file must stay there.
    return Progress(*columns, console=console, transient=True, disable=disable, redirect_stdout=sys.stdout.isatty())
