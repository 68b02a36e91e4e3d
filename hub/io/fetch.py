"""One HTTP request to somebody else's server: bounded in size and time, to an address that was looked at first.

No redirect is followed: where a request goes is what the settings say, and nobody else. The name is resolved once and
the connection goes to that very address, so that a name that means another a moment later (DNS rebinding) gains
nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

ANSWER_MAX = 256 << 10
ADDRESSES_MAX = 4  # of one name that are tried
TIMEOUT_S = 10.0


class FetchError(Exception):
    """What went wrong, in words that may be shown: no query, no header, no body is in them."""


@dataclass(slots=True, frozen=True)
class Answer:
    status: int
    body: bytes


def fetch(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    private: bool = False,
    answer_max: int = ANSWER_MAX,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """Raises FetchError. `private`: addresses that the Internet does not route are allowed, and plain HTTP."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    if parts.scheme not in ("https", "http") or not host or parts.username is not None:
        raise FetchError("not an address of the Web")
    if not secure and not private:
        raise FetchError(f"{host}: plain HTTP is only for private addresses that are allowed")
    try:
        addresses = _resolve(host, parts.port or (443 if secure else 80), private)
        with _connected(host, addresses, secure, timeout_s) as connection:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(method, target, body, {"User-Agent": "edgehub", **(headers or {})})
            response = connection.getresponse()
            said = response.read(answer_max + 1)
            cut_off = bool(response.length) and len(said) <= answer_max
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{host}: {_why(error)}") from None
    if cut_off:
        raise FetchError(f"{host}: it took too long, or ended in the middle")
    if len(said) > answer_max:
        raise FetchError(f"{host}: more than {answer_max} bytes came")
    return Answer(response.status, said)


def is_public(address: str) -> bool:
    """Whether the Internet routes it. IPv4 inside IPv6 counts as what it is."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is not None:
            parsed = inner
        elif parsed in _NAT64:
            parsed = ipaddress.IPv4Address(parsed.packed[-4:])
    return parsed.is_global and not parsed.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _resolve(host: str, port: int, private: bool) -> list[tuple[str, int]]:
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    # All must be public, not one of them: else whoever answers for the name chooses.
    if not private and not all(is_public(address) for address in found):
        raise FetchError(f"{host}: a private address, and those are not allowed")
    if not found:
        raise FetchError(f"{host}: it has no address")
    return [(address, port) for address in found[:ADDRESSES_MAX]]


@contextlib.contextmanager
def _connected(
    host: str, addresses: list[tuple[str, int]], secure: bool, timeout_s: float
) -> Iterator[http.client.HTTPConnection]:
    plain = _first(addresses, timeout_s)
    # A server that sends a byte now and then keeps within each read's time-out: this one is for all of it.
    timer = threading.Timer(timeout_s, _shut, (plain,))
    timer.daemon = True
    timer.start()
    try:
        connection = http.client.HTTPConnection(host, addresses[0][1], timeout=timeout_s)
        connection.default_port = 443 if secure else 80  # which the Host header leaves out
        connection.sock = _tls().wrap_socket(plain, server_hostname=host) if secure else plain
        try:
            yield connection
        finally:
            connection.close()
    finally:
        timer.cancel()
        plain.close()


def _first(addresses: list[tuple[str, int]], timeout_s: float) -> socket.socket:
    """Connected to the first that can be reached. Raises OSError of the last."""
    for address in addresses[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_connection(address, timeout_s / len(addresses))
    return socket.create_connection(addresses[-1], timeout_s / len(addresses))


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _shut(plain: socket.socket) -> None:
    with contextlib.suppress(OSError):
        plain.shutdown(socket.SHUT_RDWR)


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not good ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return "it took too long"
    return getattr(error, "strerror", None) or type(error).__name__
