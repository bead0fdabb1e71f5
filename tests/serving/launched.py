"""`diffbody serve` as a program, as a person starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.serving.common import processes_of
from tests.waiting import HANG, wait_until

COMMAND = [sys.executable, "-m", "diffbody"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@dataclass
class Launched:
    """A launcher and what it says.

    Attributes:
        process: the launcher.
        lines: of its stdout and stderr, so far.
    """

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """The `count`-th line with this pattern, when it comes."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            return len(found) >= count

        wait_until(look, while_true=lambda: self.process.poll() is None or look())
        return found[count - 1]

    @property
    def address(self) -> str:
        """Of gRPC, when it is ready."""
        return self.wait_for(r"ready: gRPC (\S+),")[1]

    @property
    def metrics_url(self) -> str:
        return self.wait_for(r"metrics (http\S+)")[1]

    def triton(self) -> int:
        """The process ID of its Triton."""
        (pid,) = children(self.process.pid)
        return pid


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def launch(*arguments: str) -> Iterator[Launched]:
    """`diffbody serve` on free ports; killed at the end, if it still runs."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [*COMMAND, "serve", *ports, "--threads", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )
    launched = Launched(process)
    reader = threading.Thread(target=launched.read, daemon=True)
    reader.start()
    try:
        yield launched
    finally:
        process.kill()
        process.wait(HANG)
        reader.join(HANG)


def ends(launched: Launched) -> int:
    """The launcher's exit code; its processes are gone, too."""
    code = launched.process.wait(HANG)
    wait_until(lambda: not processes_of(launched.process.pid))
    return code
