"""The picture files that inputs name, and what is left out of folders, by kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffbody.files.names import absolute, is_output
from diffbody.files.record import RECORD
from diffbody_ref.ops.files import TEMPORARY
from diffbody_ref.ops.formats import INPUT_SUFFIXES, ImageError
from diffbody_ref.ops.opening import open_image

LEFT_OUT = {
    "sub-folder": ("sub-folder", "sub-folders", "--recursive takes them in"),
    "link": ("link to a folder", "links to folders", "a folder that is named is taken"),
    "suffix": ("picture of an unknown suffix", "pictures of an unknown suffix", "a file that is named is taken"),
    "dead": ("dead link", "dead links", ""),
    "hidden": ("hidden file or folder", "hidden files or folders", ""),
    "output": ("output of an earlier run", "outputs of earlier runs", ""),
    "other": ("file that is no picture", "files that are no pictures", ""),
}
"""What is left out of folders: kind → what one and what several are called, and what to do."""


@dataclass(frozen=True)
class Source:
    """A picture file to restore.

    Attributes:
        path: of the file.
        folder: of the file, seen from the input that it was found in; empty for an input that is a file.
    """

    path: Path
    folder: Path = Path()


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that was left out, and the kind in `LEFT_OUT`."""

    path: Path
    kind: str


@dataclass(frozen=True)
class Failure:
    """A picture, or an input, that could not be restored, and why, in one line that names it."""

    source: Path
    reason: str


@dataclass
class Found:
    """What the inputs hold, in their order and by name, without repetition.

    Attributes:
        sources: the picture files.
        left_out: what of folders is left out.
        failures: inputs and sub-folders that cannot be read or hold nothing.
    """

    sources: list[Source] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def collect(inputs: Sequence[Path], recursive: bool = False) -> Found:
    """The picture files that the inputs name.

    A file is taken as it is, whatever its suffix; of a folder, the pictures in it, without hidden files and our own
    outputs. One input of several that is missing or empty does not stop the others.

    Args:
        recursive: take sub-folders too; links to folders are not followed.

    Raises:
        ImageError: not one picture was found; the message says why of the first input.
    """
    found = Found()
    for path in inputs:
        if path.is_dir():
            before = len(found.sources)
            _search(path, recursive, found)
            if len(found.sources) == before and not (found.failures and found.failures[-1].source == path):
                also = "".join(f"; left out: {line}" for line in left_out_lines(found.left_out, path))
                found.failures.append(Failure(path, f"{path}: no pictures in this folder{also}"))
        elif not os.path.lexists(path):
            found.failures.append(Failure(path, f"{path}: no such file or folder"))
        elif not path.exists():
            found.failures.append(Failure(path, f"{path}: is a dead link"))
        else:
            found.sources.append(Source(path))
    # The same file may be named twice, alone and by its folder.
    unique: dict[str, Source] = {}
    for source in found.sources:
        unique.setdefault(absolute(source.path), source)
    found.sources = list(unique.values())
    if not found.sources:
        raise ImageError(found.failures[0].reason)
    return found


def _search(top: Path, recursive: bool, found: Found) -> None:
    """Add what a folder holds."""
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            found.failures.append(Failure(folder, f"{folder}: cannot be read: {error.strerror or error}"))
            continue
        inside = []
        for entry in entries:
            path, kind = folder / entry.name, _kind(entry)
            if kind is None:
                found.sources.append(Source(path, folder.relative_to(top)))
            elif kind == "sub-folder" and recursive:
                inside.append(path)
            elif entry.name != RECORD and not entry.name.startswith(TEMPORARY):
                found.left_out.append(LeftOut(path, kind))
        folders += reversed(inside)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """As what an entry of a folder is left out; None for a picture."""
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # such as a circle of links
        return "dead"
    if entry.name.startswith("."):
        return "hidden"
    if is_folder:
        return "link" if entry.is_symlink() else "sub-folder"
    if not is_file:
        return "dead" if entry.is_symlink() and not Path(entry.path).exists() else "other"
    known = Path(entry.name).suffix.lower() in INPUT_SUFFIXES
    if is_output(entry.name) and known:
        return "output"
    if known:
        return None
    return "suffix" if _is_picture(entry.path) else "other"


def _is_picture(path: str) -> bool:
    """Whether a file is one that is read where its suffix is known or it is named, judged by its beginning."""
    try:
        with Path(path).open("rb") as file, open_image(file, path):
            return True
    except (ImageError, OSError):
        return False


def left_out_lines(left_out: Sequence[LeftOut], folder: Path | None = None) -> list[str]:
    """What was left out, a line a kind: "2 sub-folders (--recursive takes them in)".

    Args:
        folder: count only what is in there.
    """
    lines = []
    for kind, (one, several, hint) in LEFT_OUT.items():
        paths = [
            each.path for each in left_out if each.kind == kind and (folder is None or folder in each.path.parents)
        ]
        if not paths:
            continue
        if kind in ("suffix", "other"):
            suffixes = sorted({path.suffix or "no suffix" for path in paths})
            several, one = (
                f"{name}: {', '.join(suffixes[:5])}{', …' * (len(suffixes) > 5)}" for name in (several, one)
            )
        lines.append(f"{len(paths)} {one if len(paths) == 1 else several}{f' ({hint})' if hint else ''}")
    return lines
