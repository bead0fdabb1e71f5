"""`diffbody export` that is interrupted says that it can be resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import HANG, wait_until


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_export_says_what_stays(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "diffbody", "export", "-o", str(tmp_path / "nano")]
    export = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    part = tmp_path / ".nano.part"
    wait_until(part.is_dir, while_true=lambda: export.poll() is None)
    export.send_signal(number)
    _, errors = export.communicate(timeout=HANG)
    assert export.returncode == code
    assert errors.splitlines()[-1].startswith("diffbody: interrupted: the stages that are done stay beside the bundle")
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert part.is_dir()
    assert not (tmp_path / "nano").exists()
