"""What commands show: progress bars, one-line errors, and the summary of a run over files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from diffbody.files import Summary

BAD_INPUT = 2  # exit code
EXTRAS = {  # other packages: train
    **dict.fromkeys(("onnxruntime", "tokenizers"), "onnx"),
    **dict.fromkeys(("torch", "diffusers", "transformers", "accelerate", "safetensors"), "reference"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    **dict.fromkeys(("tritonclient", "pytriton"), "serve"),
    **dict.fromkeys(("httpx2", "pyarrow"), "data"),
    **dict.fromkeys(("polygraphy", "tensorrt", "tensorrt_rtx"), "rtx"),
}
OWN_PACKAGES = ("diffbody", "diffbody_ref", "runtime", "export", "triton_models")


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
        _fail(error, f"this command needs the package {package!r}; install DiffBody with its extra {extra!r}")
    except OSError as error:
        known = error.filename is not None and error.strerror
        _fail(error, f"{error.filename}: {error.strerror}" if known else str(error))
    except (ValueError, MemoryError) as error:
        _fail(error, str(error) or "out of memory")


def _fail(error: BaseException, message: str) -> NoReturn:
    if os.environ.get("DIFFBODY_DEBUG"):
        raise error
    _complain(message)
    sys.exit(BAD_INPUT)


def _complain(message: str, kind: str = "error") -> None:
    print(f"diffbody: {kind}:", " ".join(message.split()), file=sys.stderr)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[..., None]]:
    """One bar; yields the function to call with (done, in all), and with the name of what is at work if it has one."""
    with progress_bars() as bars:
        task = bars.add_task(what, total=None)

        def show(done: int, total: int, name: str = what) -> None:
            bars.update(task, completed=done, total=total, description=name)

        yield show


def progress_bars() -> Progress:
    """Bars on stderr that vanish at the end; none where stderr is not a terminal."""
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
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def report(summary: Summary, side_pictures: Sequence[str] = (), single: bool = False) -> None:
    """Print what was written to stdout, and notices and failures to stderr.

    Args:
        side_pictures: names of side pictures that may have been written.
        single: the run was asked for one picture: no counts, and a failure is one line instead of a table.

    Raises:
        typer.Exit: with code 2, something failed.
    """
    for job in summary.written:
        for path in (job.target, *(job.side_picture(name) for name in side_pictures)):
            if path.exists():
                print(path)
    for source, notices in summary.notices.items():
        for notice in notices:
            _complain(f"{source}: {notice}", "notice")
    if not single:
        skipped = f", skipped {len(summary.skipped)} (done before; --overwrite repeats them)" if summary.skipped else ""
        print(f"restored {len(summary.written)}{skipped}, failed {len(summary.failed)}")
    if single:
        for failure in summary.failed:
            _complain(failure.reason)
    elif summary.failed:
        _print_failures(summary)
    if summary.failed:
        raise typer.Exit(BAD_INPUT)


def _print_failures(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("picture", "why it failed")
    for failure in summary.failed:
        reason = failure.reason.removeprefix(f"{failure.source}: ")
        table.add_row(Text(str(failure.source), overflow="fold"), Text(reason, overflow="fold"))
    # Outside of a terminal nothing is wrapped, so that the lines can be searched.
    Console(stderr=True, width=None if sys.stderr.isatty() else 10_000).print(table)
