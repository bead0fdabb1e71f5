"""What the models of one server tell one another beside their tensors: files in a folder that is the server's.

Triton hands a request of an ensemble from model to model, but not that its client gave up, nor how far its sampling is.
So whoever cancels a request, or watches it, leaves a note with its ID, and the sampler looks for notes at every step.
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

FORGET = 3600.0  # seconds after which a note of a request that never came is removed


@dataclass(frozen=True)
class Progress:
    """How far a request is: steps done and in all, and the z̃_0 of the last one, (1, C, h, w)."""

    step: int
    steps: int
    z0: np.ndarray


class Blackboard:
    """Notes on requests by their IDs, which may be any text.

    Args:
        folder: one that the models of a server share, and no others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @classmethod
    def of_this_server(cls) -> Blackboard:
        """For a model of the Python backend, whose process the server has started."""
        return cls(folder_of_server(os.getppid()))

    def cancel(self, request_id: str) -> None:
        """Whoever works on the request should stop."""
        self._path("cancel", request_id).touch()

    def watch(self, request_id: str) -> None:
        """Progress of the request is wanted."""
        self._path("watch", request_id).touch()

    def noted(self, request_ids: Iterable[str]) -> tuple[set[str], set[str]]:
        """Of these requests, which are cancelled, and which are watched."""
        there = {entry.name for entry in os.scandir(self.folder)}
        if not there:
            return set(), set()
        ids = [each for each in request_ids if each]
        cancelled, watched = ({each for each in ids if _name(kind, each) in there} for kind in ("cancel", "watch"))
        return cancelled, watched

    def report(self, request_id: str, progress: Progress) -> None:
        """Replace the last report on the request."""
        path = self._path("progress", request_id)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            np.savez(file, counts=np.array([progress.step, progress.steps]), z0=progress.z0)
        Path(file.name).replace(path)

    def progress(self, request_id: str) -> Progress | None:
        """The last report on the request."""
        try:
            with np.load(self._path("progress", request_id), allow_pickle=False) as values:
                step, steps = values["counts"].tolist()
                return Progress(step, steps, values["z0"])
        except FileNotFoundError:
            return None

    def forget(self, request_id: str) -> None:
        """Remove the notes on a request that is done."""
        for kind in ("cancel", "watch", "progress"):
            self._path(kind, request_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove notes on requests that never came."""
        now = time.time()
        for entry in os.scandir(self.folder):
            try:
                if now - entry.stat().st_mtime > FORGET:
                    Path(entry.path).unlink(missing_ok=True)
            except FileNotFoundError:
                continue

    def remove(self) -> None:
        """The folder with all notes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, kind: str, request_id: str) -> Path:
        return self.folder / _name(kind, request_id)


def folder_of_server(pid: int) -> Path:
    """Where the models of the server with this process ID leave notes."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"diffbody-{os.getuid()}-{pid}"


def _name(kind: str, request_id: str) -> str:
    return f"{kind}-{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"
