"""Notes by which the models of one server tell each other what Triton does not: files in a shared folder.

Triton hands a request of an ensemble from model to model. It tells them neither that the client gave up, nor how far
the sampling is. Whoever cancels or watches a request therefore leaves a note, and every model looks for it before it
works, the sampler at every step. Clients name a request by the ID that they gave it; within the server it has a random
key (`runtime.triton.settings.Ticket`), so that nobody reads, or stops, what belongs to someone else.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffbody_ref.ops.files import whole_file
from runtime.triton.contract import WAS_CANCELLED

FOLDER_VARIABLE = "DIFFBODY_NOTES"  # by which a launcher tells the models where the notes are
KEEP_SECONDS = 3600.0  # how long a note of a request that never came is kept

BY_CLIENT, CANCEL, WATCH, STEP = "client", "cancel", "watch", "step"
KINDS = (CANCEL, WATCH, STEP)
SECRET = "secret"


@dataclass(frozen=True)
class StepNote:
    """How far the sampling of a request is.

    Attributes:
        step: number of steps done.
        steps: number of steps in all.
        height: of the picture at work, without its padding.
        width: see `height`.
        z0: z̃_0 of the last step, (1, C, h, w).
    """

    step: int
    steps: int
    height: int
    width: int
    z0: np.ndarray


class RequestNotes:
    """Notes on requests.

    Args:
        folder: shared by the models of one server, and by nobody else. It is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.secret = self._find_secret()

    @classmethod
    def of_this_server(cls) -> RequestNotes:
        """The notes of the server that has started this process, for a model of its Python backend."""
        told = os.environ.get(FOLDER_VARIABLE)
        return cls(Path(told) if told else folder_of_server(os.getppid()))

    def ask_to_cancel(self, request_id: str) -> None:
        """A client asks to stop working on the requests that it has sent with this ID."""
        self._path(BY_CLIENT, request_id).touch()

    def was_asked_to_cancel(self, request_id: str, arrived: float) -> bool:
        """Whether a client has asked so since the request arrived, in seconds of the Unix clock."""
        if not request_id:
            return False
        try:
            # What the file system notes may be older than the clock by one tick of the kernel, 10 ms at most.
            return self._path(BY_CLIENT, request_id).stat().st_mtime >= arrived - 0.01
        except FileNotFoundError:
            return False

    def cancel(self, key: int) -> None:
        """Have all models stop working on the request."""
        self._path(CANCEL, str(key)).touch()

    def watch(self, key: int) -> None:
        """Ask the sampler to write a `StepNote` after each step of the request."""
        self._path(WATCH, str(key)).touch()

    def check(self, key: int) -> None:
        """
        Raises:
            TimeoutError: the request is cancelled.
        """
        if self._path(CANCEL, str(key)).exists():
            raise TimeoutError(WAS_CANCELLED)

    def cancelled_and_watched(self, keys: Iterable[int]) -> tuple[set[int], set[int]]:
        """The keys among these of the requests that are cancelled, and of those that are watched."""
        names = {entry.name for entry in os.scandir(self.folder)}
        listed = list(keys)
        cancelled, watched = ({key for key in listed if _name(kind, str(key)) in names} for kind in (CANCEL, WATCH))
        return cancelled, watched

    def write_step(self, key: int, note: StepNote) -> None:
        """Replace the last `StepNote` of the request."""
        counts = np.array([note.step, note.steps, note.height, note.width])
        with whole_file(self._path(STEP, str(key))) as path, path.open("wb") as file:
            np.savez(file, counts=counts, z0=note.z0)

    def read_step(self, key: int) -> StepNote | None:
        """The last `StepNote` of the request, or None before its first step."""
        try:
            with np.load(self._path(STEP, str(key)), allow_pickle=False) as values:
                step, steps, height, width = values["counts"].tolist()
                return StepNote(step, steps, height, width, values["z0"])
        except FileNotFoundError:
            return None

    def forget(self, key: int) -> None:
        """Remove all notes on the request."""
        for kind in KINDS:
            self._path(kind, str(key)).unlink(missing_ok=True)

    def remove_old(self) -> None:
        """Remove notes on requests that never came."""
        now = time.time()
        for entry in os.scandir(self.folder):
            try:
                if entry.name.startswith(f"{BY_CLIENT}-") and now - entry.stat().st_mtime > KEEP_SECONDS:
                    Path(entry.path).unlink(missing_ok=True)
            except FileNotFoundError:
                continue

    def remove(self) -> None:
        """Remove the folder with all notes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find_secret(self) -> str:
        """The server's secret, made by whichever model comes first."""
        path = self.folder / SECRET
        own = self.folder / f".{secrets.token_hex(8)}"
        own.touch(mode=0o600)
        own.write_text(secrets.token_hex(16))
        try:
            path.hardlink_to(own)
        except FileExistsError:
            pass
        finally:
            own.unlink()
        return path.read_text()

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / _name(kind, name)


def folder_of_server(pid: int) -> Path:
    """The folder of the notes of the server with this process ID: in memory where the system allows it."""
    return memory_folder() / f"diffbody-{os.getuid()}-{pid}"


def memory_folder() -> Path:
    """A folder of this machine that is kept in memory, where there is one."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def _name(kind: str, name: str) -> str:
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
