"""Names of outputs: `NAME.restored.png` for `NAME.jpg`, such that every file system can hold them.

The names are the same on every system for the same source: what Linux writes can be copied to a Windows disk, where
some characters and some names are not allowed.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

from diffbody.side_pictures import SIDE_PICTURES

MARK = ".restored"
HASH_DIGITS = 8

# What Windows does not allow in a name (Microsoft, "Naming Files, Paths, and Namespaces"): characters, and devices'
# names before the first dot. Bytes that are no UTF-8, which Python reads as surrogates, are allowed on Linux only.
_RESERVED = re.compile('[\x00-\x1f\x7f<>:"/\\\\|?*\ud800-\udfff]')
_DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³]) *(\.|$)", re.IGNORECASE)
LONGEST_NAME = (
    255  # bytes on most file systems; on Windows UTF-16 units, of which there are no more than bytes of UTF-8
)
_LONGEST_ENDING = max(len(f"{MARK}_{name}.png") for name in SIDE_PICTURES)


def is_output(name: str) -> bool:
    """Whether a file's name is one that this package gives to an output or a side picture."""
    return Path(name).stem.endswith((MARK, *(f"{MARK}_{side}" for side in SIDE_PICTURES)))


def output_name(origin: str, level: int, suffix: str, longest: int = LONGEST_NAME) -> str:
    """The name of a source's output.

    Args:
        origin: path of the source, seen from the folder of the output.
        level: how distinct the name is to be. 0 is `photo.restored.png`; 1 keeps the suffix, `photo.jpg.restored.png`;
            2 adds a hash of the origin, `photo.jpg-1a2b3c4d.restored.png`.
        suffix: of the output, such as ".png".
        longest: number of bytes that a name may have; a longer one is cut and gets a hash.
    """
    name = Path(origin).stem if level == 0 else Path(origin).name
    portable = _portable(name)
    room = longest - _LONGEST_ENDING
    hashed = _hash(origin) if level == 2 else _hash(name)
    if level == 2 or portable != name or len(portable.encode()) > room:
        portable = f"{_cut(portable, room - HASH_DIGITS - 1)}-{hashed}"
    return f"{portable}{MARK}{suffix}"


def folder_name(name: str) -> str:
    """A sub-folder's name as the outputs' folder has it."""
    portable = _portable(name)
    return name if portable == name else f"{_cut(portable, LONGEST_NAME - HASH_DIGITS - 1)}-{_hash(name)}"


def key(name: str) -> str:
    """What two names share that are one file on some system: case and the form of accents do not count there."""
    return unicodedata.normalize("NFC", name).casefold()


def absolute(path: Path) -> str:
    """The absolute path, without "..", where links stay links."""
    return os.path.abspath(path)  # noqa: PTH100, which would follow links


def longest_name(folder: Path) -> int:
    """Number of bytes that a file's name may have in a folder; encrypted file systems allow fewer than 255."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        return min(LONGEST_NAME, max(os.pathconf(existing, "PC_NAME_MAX"), 100))
    except (AttributeError, OSError, ValueError):  # Windows has no such call, some file systems no answer
        return LONGEST_NAME


def _portable(name: str) -> str:
    replaced = _RESERVED.sub("_", name)
    return f"_{replaced}" if _DEVICES.match(replaced) else replaced


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:HASH_DIGITS]


def _cut(text: str, size: int) -> str:
    """The beginning of a text, of at most so many bytes in UTF-8."""
    return text.encode()[:size].decode(errors="ignore")
