"""Files and folders that are there whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".diffbody-"  # beginning of the names of temporary files


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix, to write to; rename it to `path` at the end.

    If the block raises, the temporary file is removed and `path` stays as it was.

    Args:
        overwrite: False keeps a file that exists at the end, also one that appeared meanwhile.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
        OSError: its folder is missing, not writable or full; its filename is `path`.
    """
    # A name of its own, and not one made from the file's: that may be as long as names can be.
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            _move_without_replacing(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes, *, overwrite: bool = True) -> None:
    """Write a file by `whole_file`; text is encoded as UTF-8. A file that already holds the data is left alone.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
    """
    data = data.encode() if isinstance(data, str) else data
    if overwrite and path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted. Links to files and to folders are followed.

    Raises:
        ValueError: a link that leads nowhere, or back to a folder around it.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = Path(parent)
        around = {here.resolve(), *here.resolve().parents}
        for name in (*folders, *files):
            path = here / name
            if not path.exists():
                raise ValueError(f"{path}: a link that leads nowhere; remove it, or put back what it leads to")
            if path.is_symlink() and path.resolve() in around:
                raise ValueError(f"{path}: a link that leads back to a folder around it; remove it")
        found += [here / name for name in files if (here / name).is_file()]
    return sorted(found)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder. No other process may be writing there."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def replace_folder(fresh: Path, out: Path) -> None:
    """Rename the complete folder `fresh` to `out`; a folder that was there is removed once the new one is in place."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _move_without_replacing(source: Path, path: Path) -> None:
    """Rename, unless the name is taken: a hard link fails then, also for a file that appeared a moment ago."""
    try:
        path.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: check, then rename
        if path.exists():
            raise FileExistsError(path) from None
        source.replace(path)
