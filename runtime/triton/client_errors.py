"""What can go wrong for a client, and how the protocols' libraries say so."""

from __future__ import annotations

import re

from runtime.triton.contract import (
    GRPC_STATUS,
    MODEL,
    MODEL_STOPPED,
    PROCESS_FAILED,
    TIME_IS_OVER,
    WAS_CANCELLED,
)
from runtime.triton.errors import split_code

# gRPC's words for a connection that failed or broke; the server's own "unavailable" tells what it is busy with.
BROKEN = ("connect", "socket closed", "connection reset", "recvmsg", "goaway", "end of tcp", "stream removed")
RESTRICTED = "restricted"  # Triton's word for a service that asks for a key


class ClientError(RuntimeError):
    """A restoration failed; the message is one line that names the server."""


class InvalidRequestError(ClientError, ValueError):
    """The server refuses the request as it is: its picture, or an option."""


class UnavailableError(ClientError, ConnectionError):
    """No server answered, or all were busy, at every try."""


class DeadlineError(ClientError, TimeoutError):
    """The answer did not come in time."""


class AccessError(ClientError, PermissionError):
    """The server asks for an API key, or for another one."""


class UnreachableError(UnavailableError):
    """The server did not answer at all."""


def as_client_error(url: str, error: Exception) -> ClientError:
    """An error of the protocols' libraries as one of ours."""
    # gRPC's own errors have a code and details, tritonclient's a status and a message.
    status, message = (
        str(next((getattr(error, name)() for name in names if hasattr(error, name)), otherwise))
        for names, otherwise in ((("code", "status"), ""), (("details", "message"), error))
    )
    text = re.sub(rf"in ensemble '{MODEL}', |\[request id: \w+\] ", "", " ".join(message.split()))
    text = text or type(error).__name__
    code, text = split_code(text)
    if code is not None:  # of an error in a stream
        status = GRPC_STATUS[code]
    line = f"{url}: {text}"
    if TIME_IS_OVER in text or WAS_CANCELLED in text:  # over HTTP with the status 400
        return DeadlineError(line)
    if PROCESS_FAILED in text:  # of the model itself that was called
        return UnavailableError(f"{url}: {MODEL_STOPPED}")
    if status in ("400", "StatusCode.INVALID_ARGUMENT", "StatusCode.OUT_OF_RANGE", "413"):
        return InvalidRequestError(line)
    if status in ("401", "403", "StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED") or RESTRICTED in text:
        return AccessError(f"{url}: the server asks for another API key")
    if status in ("499", "504", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED"):
        return DeadlineError(line)
    unreachable = isinstance(error, OSError) or (not status and type(error).__module__.startswith("aiohttp"))
    if unreachable or (status == "StatusCode.UNAVAILABLE" and any(word in text.lower() for word in BROKEN)):
        return UnreachableError(f"{url}: cannot be reached, or went away ({text}); is `diffbody serve` running?")
    if status in ("503", "429", "StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED"):
        return UnavailableError(line)
    return ClientError(line)
