"""What a running server has on this machine, in one folder that is locked while its launcher lives.

A launcher that is killed cannot tidy up. The next one does: a folder whose lock can be had belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from runtime.triton.request_notes import memory_folder

LOCK = "lock"
# Triton refuses to share regions of this prefix with clients (from release 25.07 on), so that ours begins with it.
TRITONS_PREFIX = "triton_python_backend_shm_region_"


class RunFolder:
    """The folder of one server, and the shared memory of its models, which bears the folder's name.

    Args:
        base: where to make it; None is a folder in memory.
    """

    def __init__(self, base: Path | None = None) -> None:
        self._base = base or memory_folder()
        self.path = self._base / f"{_beginning()}{secrets.token_hex(8)}"
        self.path.mkdir(mode=0o700)
        self._lock = _try_to_lock(self.path)

    @property
    def shared_memory_prefix(self) -> str:
        """Of the names of the models' regions of shared memory."""
        return _prefix(self.path.name)

    def folder(self, name: str) -> Path:
        """A folder in it, made if it is missing."""
        made = self.path / name
        made.mkdir(exist_ok=True, mode=0o700)
        return made

    def keep_shared_memory_private(self) -> None:
        """Close the models' regions to other users: whoever makes them sets their mode in spite of any umask."""
        for region in _regions(self.path.name):
            with contextlib.suppress(FileNotFoundError):
                region.chmod(0o600)

    def remove_shared_memory(self) -> None:
        """Remove regions that processes which were killed have left."""
        _remove_regions(self.path.name)

    def remove(self) -> None:
        """Remove the folder, and what is left in shared memory."""
        _remove(self.path)
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def sweep(base: Path | None = None) -> list[Path]:
    """Remove the folders, and the shared memory, of this user's launchers that were killed.

    Args:
        base: where to look; None is where folders are made by default.

    Returns:
        The folders.
    """
    removed = []
    for path in (base or memory_folder()).glob(f"{_beginning()}*"):
        lock = _try_to_lock(path)
        if lock is not None:
            _remove(path)
            lock.close()
            removed.append(path)
    return removed


def _beginning() -> str:
    return f"diffbody-serve-{os.getuid()}-"


def _try_to_lock(folder: Path) -> IO[bytes] | None:
    """The open lock of a folder; None if somebody else has it, or the folder is gone."""
    try:
        file = (folder / LOCK).open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _prefix(name: str) -> str:
    return f"{TRITONS_PREFIX}{name}_"


def _remove(folder: Path) -> None:
    _remove_regions(folder.name)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_regions(name: str) -> None:
    for region in _regions(name):
        region.unlink(missing_ok=True)


def _regions(name: str) -> Iterator[Path]:
    return Path("/dev/shm").glob(f"{_prefix(name)}*")
