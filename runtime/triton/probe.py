"""Whether a server works: python -m runtime.triton.probe [HOST:PORT of gRPC]

Triton reports that it is ready as long as its HTTP service lives. This asks the model of health, by the way that any
request takes, and so finds a dead gRPC service, a scheduler that stands still and a model that hangs. The launcher does
so every few seconds. The exit code is 0, or 1 with a line on stderr; the API key comes by DIFFBODY_API_KEY.
"""

from __future__ import annotations

import os
import sys

from runtime.triton import addresses
from runtime.triton.contract import API_KEY_HEADER, GRPC_HEADER_PREFIX, HEALTH_MODEL

TIMEOUT = 10.0  # seconds


class NotWellError(RuntimeError):
    """The server does not work as it should; the message is one line."""


def probe(address: str, api_key: str | None = None, timeout: float = TIMEOUT) -> None:
    """Ask a server whether it works.

    Args:
        address: "host:port" of gRPC.
        api_key: that the server asks for.
        timeout: seconds to wait for its answer.

    Raises:
        NotWellError: it does not answer, or says what hangs.
    """
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    metadata = [(GRPC_HEADER_PREFIX + API_KEY_HEADER, api_key)] if api_key else []
    options = addresses.NO_PROXY_FOR_GRPC if addresses.parse(address).is_of_this_machine else []
    with grpc.insecure_channel(address, options=options) as channel:
        service = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            request = service_pb2.ModelInferRequest(model_name=HEALTH_MODEL)
            service.ModelInfer(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise NotWellError(" ".join(str(error.details()).split()) or str(error.code())) from None


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    try:
        probe(arguments[0] if arguments else "127.0.0.1:8001", os.environ.get("DIFFBODY_API_KEY"))
    except (NotWellError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
