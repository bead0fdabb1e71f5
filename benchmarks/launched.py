"""`diffbody serve` as a program, what it says, and what it takes of the machine (Linux)."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

COMMAND = [sys.executable, "-m", "diffbody"]
LONGEST_WAIT = 1200.0  # seconds after which something hangs


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
        """Take lines until there are no more."""
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
        """Of gRPC, when the server is ready."""
        return self.wait_for(r"ready: gRPC (\S+),")[1]

    @property
    def metrics_url(self) -> str:
        """Of the metrics, when the server is ready."""
        return self.wait_for(r"metrics (http\S+)")[1]

    def triton(self) -> int:
        """The process ID of its Triton."""
        (pid,) = tritons(self.process.pid)
        return pid


@contextmanager
def launch(*arguments: str) -> Iterator[Launched]:
    """`diffbody serve` on free ports; killed at the end, if it still runs."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [*COMMAND, "serve", *ports, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    launched = Launched(process)
    reader = threading.Thread(target=launched.read, daemon=True)
    reader.start()
    try:
        yield launched
    finally:
        process.kill()
        process.wait()
        reader.join()


def wait_until(condition: Callable[[], object], while_true: Callable[[], object] = lambda: True) -> None:
    """Return when the condition holds.

    Args:
        while_true: what must hold meanwhile, such as that the process that is waited for runs.

    Raises:
        TimeoutError: it does not hold after `LONGEST_WAIT`, or cannot hold any more.
    """
    limit = time.monotonic() + LONGEST_WAIT
    while not condition():
        if not while_true():
            raise TimeoutError("it will not happen any more")
        if time.monotonic() > limit:
            raise TimeoutError(f"it has not happened for {LONGEST_WAIT:.0f} s")
        time.sleep(0.05)


def tritons(pid: int) -> list[int]:
    """The IDs of the Tritons that a launcher has started and that live; beside them it has a guardian."""
    return [child for child in children_of_all_threads(pid) if name_of(child) == "tritonserver"]


def name_of(pid: int) -> str:
    """A process's name; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@dataclass(frozen=True)
class Resources:
    """What a launcher's Triton and the processes of its models take.

    Attributes:
        megabytes: of memory; what several share is counted once.
        descriptors: open ones.
        threads: number.
        shared_megabytes: of shared memory.
        processes: number.
    """

    megabytes: float
    descriptors: int
    threads: int
    shared_megabytes: float
    processes: int


def resources(launched: Launched) -> Resources:
    """What is taken now."""
    triton = launched.triton()
    pids = [triton, *children_of_all_threads(triton)]
    memory = descriptors = threads = 0
    for pid in pids:
        with suppress(OSError):
            folder = Path(f"/proc/{pid}")
            memory += int(re.findall(r"^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text(), re.MULTILINE)[0])
            descriptors += len(list((folder / "fd").iterdir()))
            threads += len(list((folder / "task").iterdir()))
    shared = sum(path.stat().st_blocks for path in shared_regions(triton)) * 512
    return Resources(memory / 1000, descriptors, threads, shared / 1e6, len(pids))


def children_of_all_threads(pid: int) -> list[int]:
    """The IDs of the processes that any thread of a process has started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def shared_regions(pid: int) -> list[Path]:
    """The files of shared memory that a process has mapped, and that have a name still."""
    with suppress(OSError):
        names = set(re.findall(r"(/dev/shm/\S+)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE))
        return [path for path in map(Path, names) if path.is_file()]
    return []
