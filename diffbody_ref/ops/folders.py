"""Folders that are there whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path


def replace_folder(fresh: Path, out: Path) -> None:
    """Rename `fresh`, which is complete, to `out`; what was there is removed once the new one is in its place."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
