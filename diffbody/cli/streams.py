"""`-` in the place of a file: standard input and standard output, by way of a temporary folder."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STREAM = Path("-")
NAME = "standard input"


@dataclass(frozen=True)
class Streams:
    """Inputs and output, all of them files.

    Attributes:
        inputs: the picture files and folders.
        out: as `diffbody.files.plan` takes it.
        to_stdout: whether the output goes to standard output in the end.
        hidden: part of these paths that nobody asked for.
    """

    inputs: Sequence[Path]
    out: Path | None
    to_stdout: bool = False
    hidden: str = ""

    def finish(self) -> None:
        """Send the output to where it was asked to go."""
        if self.to_stdout and self.out is not None:
            sys.stdout.buffer.write(self.out.read_bytes())
            sys.stdout.buffer.flush()


@contextmanager
def standard_streams(
    inputs: Sequence[Path], out: Path | None, format: str | None, side_pictures: Sequence[str], as_json: bool
) -> Iterator[Streams]:
    """Take a picture from standard input, and give one to standard output, where `-` stands for them.

    Args:
        format: of the picture that goes to standard output.
        side_pictures: that were asked for; standard output has no place for them.
        as_json: standard output is for JSON.

    Raises:
        ValueError: `-` together with what does not go with it.
    """
    from_stdin, to_stdout = STREAM in inputs, out == STREAM or (STREAM in inputs and out is None)
    if not from_stdin and not to_stdout:
        yield Streams(inputs, out)
        return
    if len(inputs) != 1 or inputs[0].is_dir():
        raise ValueError("-: standard input and output are for one picture; name folders and files for several")
    if to_stdout and (as_json or side_pictures):
        option = "--json" if as_json else "--compare and --intermediates"
        raise ValueError(f"{option}: standard output is for the picture; name a file with -o")
    if to_stdout and sys.stdout.isatty():
        raise ValueError(
            "-o -: standard output is a terminal; redirect it to a file or a program, or name a file with -o"
        )
    with tempfile.TemporaryDirectory(prefix="diffbody-") as name:
        folder, source = Path(name), inputs[0]
        if from_stdin:
            source = folder / NAME
            source.write_bytes(sys.stdin.buffer.read())
        yield Streams([source], folder / f"restored.{format or 'png'}" if to_stdout else out, to_stdout, name + os.sep)
