"""Addresses of servers: of this machine or not, with or without TLS, of IPv4 or IPv6."""

from __future__ import annotations

import ipaddress
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

PROTOCOLS = {"grpc": ("grpc", False), "grpcs": ("grpc", True), "http": ("http", False), "https": ("http", True)}
TLS_PORT = 443
NO_PROXY_FOR_GRPC = [("grpc.enable_http_proxy", 0)]  # arguments of a channel

# The environment may name a proxy for the outside world, which does not know what "127.0.0.1" is here.
_without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Address:
    """A server's address.

    Attributes:
        url: as it was given.
        protocol: "grpc" or "http".
        tls: whether the connection is encrypted.
        host: name or number, IPv6 without brackets.
        port: number.
    """

    url: str
    protocol: str
    tls: bool
    host: str
    port: int

    @property
    def host_and_port(self) -> str:
        """ "host:port", IPv6 in brackets."""
        return join(self.host, self.port)

    @property
    def is_of_this_machine(self) -> bool:
        """Whether it is a loopback address."""
        return is_loopback(self.host)


def parse(url: str) -> Address:
    """The address that a URL names.

    Args:
        url: "host:port" and "grpc://host:port" are gRPC, "http://host:port" is HTTP; "grpcs" and "https" are the same
            with TLS, whose port may be left out.

    Raises:
        ValueError: the URL names no server.
    """
    scheme, separator, rest = url.rpartition("://")
    example = "give one such as localhost:8001, http://localhost:8000, https://HOST or grpcs://HOST:443"
    try:
        protocol, tls = PROTOCOLS[scheme if separator else "grpc"]
        parts = urlsplit(f"//{rest}")
        port = parts.port or (TLS_PORT if tls else 0)
        plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
        colons = rest.partition("[")[1] or rest.count(":") <= 1
        if parts.hostname and port and plain and colons:
            return Address(url, protocol, tls, parts.hostname, port)
    except (KeyError, ValueError):
        pass
    raise ValueError(f"{url!r} is no URL of a server; {example}")


def join(host: str, port: int) -> str:
    """ "host:port"; a number of IPv6 comes in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host, or a number that servers listen on, can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    return number.is_loopback or number.is_unspecified


def reachable(host: str) -> str:
    """The address by which this machine reaches a server that listens on `host`, which may be "all addresses"."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def fetch_here(url: str, timeout: float) -> bytes:
    """The body of a page that this machine serves.

    Raises:
        OSError: there is none, or it does not come in time.
    """
    with _without_proxy.open(url, timeout=timeout) as answer:
        body: bytes = answer.read()
        return body
