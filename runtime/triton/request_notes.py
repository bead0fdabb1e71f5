"""Notes on requests, by which the models of one server tell each other what Triton does not: files in a shared folder.

Triton hands a request of an ensemble from model to model. It tells them neither that the client gave up, nor how far
the sampling is. Whoever cancels or watches a request therefore leaves a note with its ID, and the sampler looks for
notes at every step.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffbody_ref.ops.files import whole_file

KEEP_SECONDS = 3600.0  # how long a note of a request that never came is kept

CANCEL, WATCH, STEP = "cancel", "watch", "step"
KINDS = (CANCEL, WATCH, STEP)


@dataclass(frozen=True)
class StepNote:
    """How far the sampling of a request is.

    Attributes:
        step: number of steps done.
        steps: number of steps in all.
        z0: z̃_0 of the last step, (1, C, h, w).
    """

    step: int
    steps: int
    z0: np.ndarray


class RequestNotes:
    """Notes on requests by their IDs, which may be any text.

    Args:
        folder: shared by the models of one server, and by nobody else. It is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @classmethod
    def of_this_server(cls) -> RequestNotes:
        """The notes of the server that has started this process, for a model of its Python backend."""
        return cls(folder_of_server(os.getppid()))

    def cancel(self, request_id: str) -> None:
        """Ask the sampler to stop working on the request."""
        self._path(CANCEL, request_id).touch()

    def watch(self, request_id: str) -> None:
        """Ask the sampler to write a `StepNote` after each step of the request."""
        self._path(WATCH, request_id).touch()

    def cancelled_and_watched(self, request_ids: Iterable[str]) -> tuple[set[str], set[str]]:
        """The IDs among these of the requests that are cancelled, and of those that are watched."""
        names = {entry.name for entry in os.scandir(self.folder)}
        if not names:
            return set(), set()
        ids = [request_id for request_id in request_ids if request_id]
        cancelled, watched = ({each for each in ids if _name(kind, each) in names} for kind in (CANCEL, WATCH))
        return cancelled, watched

    def write_step(self, request_id: str, note: StepNote) -> None:
        """Replace the last `StepNote` of the request."""
        with whole_file(self._path(STEP, request_id)) as path, path.open("wb") as file:
            np.savez(file, counts=np.array([note.step, note.steps]), z0=note.z0)

    def read_step(self, request_id: str) -> StepNote | None:
        """The last `StepNote` of the request, or None before its first step."""
        try:
            with np.load(self._path(STEP, request_id), allow_pickle=False) as values:
                step, steps = values["counts"].tolist()
                return StepNote(step, steps, values["z0"])
        except FileNotFoundError:
            return None

    def forget(self, request_id: str) -> None:
        """Remove all notes on the request."""
        for kind in KINDS:
            self._path(kind, request_id).unlink(missing_ok=True)

    def remove_old(self) -> None:
        """Remove notes on requests that never came."""
        now = time.time()
        for entry in os.scandir(self.folder):
            try:
                if now - entry.stat().st_mtime > KEEP_SECONDS:
                    Path(entry.path).unlink(missing_ok=True)
            except FileNotFoundError:
                continue

    def remove(self) -> None:
        """Remove the folder with all notes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, kind: str, request_id: str) -> Path:
        return self.folder / _name(kind, request_id)


def folder_of_server(pid: int) -> Path:
    """The folder of the notes of the server with this process ID: in memory where the system allows it."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"diffbody-{os.getuid()}-{pid}"


def _name(kind: str, request_id: str) -> str:
    return f"{kind}-{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"
