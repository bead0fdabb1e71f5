"""A client's connection to one server, by tritonclient."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import Any

from runtime.triton.addresses import NO_PROXY_FOR_GRPC, Address
from runtime.triton.contract import MODEL

WAYS = ("send", "receive")


@dataclass(frozen=True)
class ServedBundle:
    """What a server restores with.

    Attributes:
        sha256: of the bundle's manifest.
        precision: of its graphs.
    """

    sha256: str
    precision: str


@dataclass
class Connection:
    """A server, and how it is reached.

    Attributes:
        address: where it is.
        client: tritonclient's, once it is needed.
        dead_until: on the monotonic clock; until then it is left out.
    """

    address: Address
    client: Any = None
    dead_until: float = 0.0

    @property
    def url(self) -> str:
        """As it was given."""
        return self.address.url

    @property
    def protocol(self) -> str:
        """ "grpc" or "http"."""
        return self.address.protocol

    def open(self, timeout: float) -> Any:
        """tritonclient's client for asyncio; it connects when it is used.

        Args:
            timeout: seconds of the longest call.
        """
        if self.client is None:
            if self.protocol == "grpc":
                from tritonclient.grpc.aio import InferenceServerClient
            else:
                from tritonclient.http.aio import InferenceServerClient
            self.client = InferenceServerClient(self.address.host_and_port, **_arguments(self.address, timeout))
        return self.client

    async def bundle(self, headers: dict[str, str], timeout: float) -> ServedBundle:
        """What the server restores with.

        Args:
            headers: of the request.
            timeout: see `open`.
        """
        client = self.open(timeout)
        if self.protocol == "grpc":
            answer = await client.get_model_config(MODEL, headers=headers, as_json=True)
            parameters = answer["config"]["parameters"]
        else:
            parameters = (await client.get_model_config(MODEL, headers=headers))["parameters"]
        return ServedBundle(*(parameters[name]["string_value"] for name in ("bundle_sha256", "precision")))

    async def close(self) -> None:
        """Leave the server."""
        if self.client is not None:
            await self.client.close()
            self.client = None


def _arguments(address: Address, timeout: float) -> dict[str, Any]:
    """Arguments of tritonclient's clients, besides "host:port".

    Args:
        timeout: seconds of the longest call.
    """
    authorities = os.environ.get("SSL_CERT_FILE")  # as curl and Python's own clients read it
    if address.protocol == "http":
        tls = {"ssl": True, "ssl_context": ssl.create_default_context(cafile=authorities)} if address.tls else {}
        return {"conn_timeout": timeout, **tls}  # by itself, this client looks for no proxy
    found: dict[str, Any] = {"ssl": True, "root_certificates": authorities} if address.tls else {}
    if address.is_of_this_machine:
        # These replace tritonclient's own, which open the size of messages.
        found["channel_args"] = [*NO_PROXY_FOR_GRPC, *((f"grpc.max_{way}_message_length", -1) for way in WAYS)]
    return found
