"""Text that was written elsewhere, such as names of files and errors of libraries, as one line for a terminal."""

from __future__ import annotations

LONGEST_LINE = 1000  # characters


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """The text with single spaces and without control characters, which could do anything to a terminal.

    Args:
        longest: number of characters; of a longer text the beginning and the end are kept.
    """
    line = "".join(char if char.isprintable() else _escaped(char) for char in " ".join(text.split()))
    if len(line) <= longest:
        return line
    end = longest // 4
    return f"{line[: longest - end - 5]} ... {line[-end:]}"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
