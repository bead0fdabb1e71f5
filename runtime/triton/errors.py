"""The errors of the server's models: which code each has, and how one is recognised where its code is lost.

Triton drops the code of an error where one model calls another, and in a gRPC stream; the message arrives.
"""

from __future__ import annotations

import re

from runtime.triton.contract import (
    QUEUE_IS_FULL,
    TIME_IS_OVER,
    TOO_MANY_IN_FLIGHT,
    WAS_CANCELLED,
    ErrorCode,
)


class BusyError(RuntimeError):
    """The server has as much to do as it takes; the same request may succeed later."""


CODES: dict[type[Exception], ErrorCode] = {
    ValueError: ErrorCode.INVALID_ARG,  # the client can put it right
    BusyError: ErrorCode.UNAVAILABLE,
    MemoryError: ErrorCode.UNAVAILABLE,
    TimeoutError: ErrorCode.CANCELLED,
}
"""The code of each kind of error that a request may meet; every other kind is a fault of the server."""

KINDS: dict[str, type[Exception]] = {
    TIME_IS_OVER: TimeoutError,
    WAS_CANCELLED: TimeoutError,
    TOO_MANY_IN_FLIGHT: BusyError,
    QUEUE_IS_FULL: BusyError,
}
"""The kind of error that a phrase in a message tells."""


def code_and_message(error: Exception) -> tuple[ErrorCode, str]:
    """An error's code, and its message in one line, which says so where the fault is the server's."""
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), ErrorCode.INTERNAL)
    message = " ".join(str(error).split()) or type(error).__name__
    return code, f"internal error: {message}" if code is ErrorCode.INTERNAL else message


def error_from_message(message: str) -> Exception:
    """The error of another model, by the phrase in its message; a RuntimeError where there is none of `KINDS`."""
    return next((kind for phrase, kind in KINDS.items() if phrase in message), RuntimeError)(message)


def add_code(code: ErrorCode, message: str) -> str:
    """The message of an error in a stream, which begins with the code."""
    return f"{code}: {message}"


def split_code(message: str) -> tuple[ErrorCode | None, str]:
    """The code and the message that `add_code` joined; None and the whole message where it begins with no code."""
    found = re.match(rf"({'|'.join(ErrorCode)}): ", message)
    return (ErrorCode(found[1]), message[found.end() :]) if found else (None, message)
