"""Runs over files that end early: killed, interrupted, on a full disk; and two at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from diffbody.files import (
    FAILED,
    RESTORED,
    SKIPPED,
    RestoreFile,
)
from diffbody_ref.ops.images import ImageError, write_image
from tests.runs import invert, never, restore_all
from tests.waiting import HANG


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=HANG)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("only root can mount a small file system, and this test is not root's")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=HANG)


SCRIPT = """
import sys, time
from pathlib import Path
from tests.runs import RECIPE, invert
from diffbody.files import plan, run

def slow(picture, job):
    time.sleep(float(sys.argv[3]))
    return invert(picture, job)

def tell(result):
    print(result.status, flush=True)

from diffbody.cli.console import interrupted, one_interrupt
with one_interrupt():
    summary = run(plan([Path(sys.argv[1])], Path(sys.argv[2])), lambda: slow, lambda: RECIPE, on_result=tell)
if summary.interrupted:
    interrupted(len(summary.results), summary.left)
"""


def begin(folder: Path, out: Path, seconds: float = 0.02) -> subprocess.Popen[str]:
    """A run over a folder in a process of its own, which takes at least so long a picture."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(out), str(seconds)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def many(tmp_path: Path, pixels: np.ndarray) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(24):
        write_image(folder / f"{number:02d}.png", pixels * np.float32(number / 24))
    return folder


def test_a_killed_run_goes_on_where_it_was(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for count in (1, 3, 6):
        process = begin(many, out)
        assert process.stdout is not None
        for _ in range(count):
            process.stdout.readline()
        process.kill()
        process.communicate(timeout=HANG)
    done = len(list(out.glob("*.restored.png")))
    assert done >= 6
    summary = restore_all([many], out)
    assert len(summary.of(FAILED)) == 0
    assert len(summary.of(SKIPPED)) == done
    assert len(summary.of(RESTORED)) == 24 - done
    assert len(restore_all([many], out, load=never).of(SKIPPED)) == 24


def test_two_runs_at_once_share_a_folder(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for process in [begin(many, out), begin(many, out)]:
        told, errors = process.communicate(timeout=HANG)
        assert process.returncode == 0, errors
        assert sorted(set(told.split())) in (["restored"], ["restored", "skipped"])
        assert told.count("\n") == 24
    assert len(restore_all([many], out, load=never).of(SKIPPED)) == 24


@pytest.mark.parametrize("signals", [1, 3])
def test_ctrl_c_ends_a_run_at_once_and_says_how_far_it_came(signals: int, many: Path, tmp_path: Path) -> None:
    """Also while a picture is computed by what does not return for long."""
    process = begin(many, tmp_path / "out", seconds=1.0)
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=HANG)
    assert process.returncode == 130
    done = 1 + told.count("restored")
    assert errors == f"diffbody: interrupted: {done} done, {24 - done} left; the same command goes on\n"
    assert len(list((tmp_path / "out").glob("*.png"))) == done
    assert not list((tmp_path / "out").glob(".diffbody-*"))


def test_a_full_disk_ends_the_run(many: Path, small_disk: Path) -> None:
    restored = []

    def load() -> RestoreFile:
        return lambda picture, job: (restored.append(job), invert(picture, job))[1]  # type: ignore[func-returns-value]

    summary = restore_all([many], small_disk, load=load)
    written = len(summary.of(RESTORED))
    assert "No space left on device" in (summary.error or "")
    assert "\n" not in (summary.error or "")
    assert 0 < written < 24
    assert len(restored) <= written + 1  # nothing is restored that cannot be written
    assert summary.left == 24 - written
    assert not list(small_disk.glob(".diffbody-*"))

    with suppress(OSError):
        (small_disk / "fill").write_bytes(bytes(1 << 17))
    with pytest.raises(ImageError, match="No space left on device"):
        restore_all([many], small_disk, load=never)
    (small_disk / "fill").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True, timeout=HANG)
    summary = restore_all([many], small_disk)
    assert (len(summary.of(SKIPPED)), len(summary.of(FAILED))) == (written, 0)


def test_a_read_only_disk_is_told_before_anything_is_loaded(many: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=HANG)
    with pytest.raises(ImageError, match="Read-only file system"):
        restore_all([many], small_disk, load=never)
