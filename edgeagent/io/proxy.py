"""The way through an HTTP proxy, by CONNECT (RFC 9110, section 9.3.6), on sockets that do not wait."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from edgeagent.proto.names import split_host_port
from edgeagent.proto.relay_http import ResponseReader, connect_request

if TYPE_CHECKING:
    import socket

_READ_BYTES = 16_384


class Proxy:
    """Once TCP to `host` and `port` is there: `ask`, then `is_through` whenever there is something to read."""

    __slots__ = ("host", "password", "port", "user")

    def __init__(self, host: str, port: int, user: str = "", password: str = "") -> None:
        self.host = host
        self.port = port
        self.user = user
        self.password = password

    def ask(self, sock: socket.socket, host: str, port: int) -> ResponseReader:
        """To be connected with `host`. Raises OSError."""
        request = connect_request(host, port, self.user, self.password)
        if sock.send(request) < len(request):  # a few hundred bytes into an empty buffer
            raise OSError(errno.ENOBUFS, "no room for a request to the proxy")
        return ResponseReader()


def is_through(sock: socket.socket, reader: ResponseReader) -> bool:
    """Whether what is sent from now on reaches the other side. Raises OSError, HttpError where it never will."""
    data = sock.recv(_READ_BYTES)
    if not data:
        raise OSError(errno.ECONNRESET, "the proxy closed the connection")
    response = reader.feed(data)
    if response is None:
        return False
    # TLS begins with us: behind the answer nobody has said anything yet
    if response.status // 100 != 2 or response.rest:
        why = " (user and password)" if response.status == 407 else ""
        raise OSError(errno.ECONNREFUSED, f"the proxy answers {response.status}{why}")
    return True


def parse_proxy(text: str) -> Proxy | None:
    """[USER:PASSWORD@]HOST:PORT as the setting has it; None for none."""
    login, _, address = text.rpartition("@")
    user, _, password = login.partition(":")
    return Proxy(*split_host_port(address, "proxy"), user, password) if text else None
