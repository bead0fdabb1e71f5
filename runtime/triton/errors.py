"""The errors of the server's models: which code each has, and how one is recognised where its code is lost.

Triton drops the code of an error where one model calls another, and in a gRPC stream; the message arrives. There the
message begins with the code.
"""

from __future__ import annotations

import re

from runtime.triton.contract import (
    MODEL_STOPPED,
    PIPELINE_MODEL,
    PROCESS_FAILED,
    QUEUE_IS_FULL,
    QUEUED_TOO_LONG,
    TIME_IS_OVER,
    TOO_MANY_IN_FLIGHT,
    TOO_MANY_WAITING,
    WAS_CANCELLED,
    ErrorCode,
)

MAX_MESSAGE = 500  # characters: what a message quotes may be as long as a client likes
INTERNAL_ERROR = "internal error: "


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
    TOO_MANY_WAITING: BusyError,
    QUEUE_IS_FULL: BusyError,
    QUEUED_TOO_LONG: TimeoutError,
    PROCESS_FAILED: BusyError,
}
"""The kind of error that a phrase in a message tells."""


def code_and_message(error: Exception) -> tuple[ErrorCode, str]:
    """An error's code, and its message in one line of bounded length, which says so where the fault is the server's."""
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), ErrorCode.INTERNAL)
    message = " ".join(str(error)[: 2 * MAX_MESSAGE].split()) or type(error).__name__
    message = f"{INTERNAL_ERROR}{message}" if code is ErrorCode.INTERNAL else message
    return code, message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"


def error_from_message(message: str) -> Exception:
    """The error of another model, by the code that its message begins with, or by the phrase in it.

    A RuntimeError where there is neither.
    """
    text = re.sub(rf"in ensemble '{PIPELINE_MODEL}', |\[request id: [^\]]*\] ", "", message)
    code, text = split_code(text)
    if code is not None:
        kind = next((kind for kind, its in CODES.items() if its is code), RuntimeError)
        return kind(text.removeprefix(INTERNAL_ERROR))
    phrase = next((phrase for phrase in KINDS if phrase in text), "")
    own_words = {QUEUED_TOO_LONG: TIME_IS_OVER, PROCESS_FAILED: MODEL_STOPPED}
    return KINDS.get(phrase, RuntimeError)(own_words.get(phrase, text))


def add_code(code: ErrorCode, message: str) -> str:
    """The message of an error where Triton drops the code."""
    return f"{code}: {message}"


def split_code(message: str) -> tuple[ErrorCode | None, str]:
    """The code and the message that `add_code` joined; None and the whole message where it begins with no code."""
    found = re.match(rf"({'|'.join(ErrorCode)}): ", message)
    return (ErrorCode(found[1]), message[found.end() :]) if found else (None, message)
