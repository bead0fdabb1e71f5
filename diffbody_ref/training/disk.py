"""Errors of writing files, whatever library writes: one line that names the file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

SYSTEM_ERROR = re.compile(r"os error (\d+)")  # how Rust's libraries, such as safetensors, name an error's number


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside the block, errors of writing become an `OSError` that names `path`.

    Raises:
        OSError: the block could not write, for example because the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:
        number = int(found[1]) if (found := SYSTEM_ERROR.search(str(error))) else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


class Recorded:
    """An open file that remembers the first error of writing: PyTorch raises one of its own, without the reason.

    Attributes:
        error: the error, or None.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes; see `IO.write`."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()
