"""Telling NATS nodes who is cut off: one message in NATS' own protocol (docs.nats.io, "Client Protocol"), in a thread.

One node is enough: it tells all that it reaches, and nodes that are down ask the others when they are back.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from dataclasses import dataclass

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.token import base64url
from hub.core.nats import ACCOUNT_BYTES_MAX, INBOX, UPDATE_SUBJECT

TIMEOUT_S = 4.0  # for each step with one node
MORE_S = 0.3  # for other nodes' answers after the first
_LINE_BYTES_MAX = 65_536

log = logging.getLogger("edgehub.broker")


class NatsError(Exception):
    """A node did not do what it was asked; the text says what it said."""


@dataclass(slots=True, frozen=True)
class Manager:
    """Who may change accounts, at which nodes ("host", port), and by which CA's certificates they are known."""

    nodes: tuple[tuple[str, int], ...]
    ca_pem: str
    claims: str
    seed: bytes


class Telling:
    """`begin` one message, then look at `is_over` from time to time; `error` is "" when a node took it."""

    def __init__(self, crypto: Crypto, manager: Manager, account: str) -> None:
        self._crypto = crypto  # of this thread alone
        self._manager = manager
        self._message = account.encode()
        self.error = ""
        self.told = 0
        self._thread = threading.Thread(target=self._run, name="nats-claims", daemon=True)
        self._thread.start()

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        said = []
        for host, port in self._manager.nodes:
            try:
                self.told = tell(self._crypto, self._manager, host, port, self._message)
            except (OSError, NatsError, ValueError) as error:
                said.append(f"{host}:{port}: {error}")
            else:
                return
        self.error = "; ".join(said) or "no node is known"


def tell(crypto: Crypto, manager: Manager, host: str, port: int, message: bytes) -> int:
    """How many nodes have taken the account. Raises OSError, NatsError."""
    if len(message) > ACCOUNT_BYTES_MAX:
        raise NatsError(f"an account of {len(message)} bytes; nodes take {ACCOUNT_BYTES_MAX}")
    with socket.create_connection((host, port), TIMEOUT_S) as raw:
        info = json.loads(_line(raw, b"INFO "))
        if not info.get("tls_required"):
            raise NatsError("it asks for no TLS; its configuration needs a `tls` block")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=manager.ca_pem)
        with context.wrap_socket(raw, server_hostname=host) as tls:
            signature = base64url(crypto.ed25519_sign(manager.seed, str(info.get("nonce", "")).encode()))
            hello = {"jwt": manager.claims, "sig": signature, "verbose": False, "protocol": 0, "tls_required": True}
            inbox = f"{INBOX}.told"
            said = f"CONNECT {json.dumps(hello)}\r\nSUB {inbox} 1\r\nPUB {UPDATE_SUBJECT} {inbox} {len(message)}\r\n"
            tls.sendall(said.encode() + message + b"\r\n")
            return _count(tls)


def _count(tls: ssl.SSLSocket) -> int:
    told = 0
    while True:
        try:
            line = _line(tls)
        except TimeoutError:
            if told:
                return told
            raise
        if line.startswith(b"-ERR"):
            raise NatsError(f"it says {line[4:].decode('utf-8', 'replace').strip()}")
        if line == b"PING":
            tls.sendall(b"PONG\r\n")
        if not line.startswith(b"MSG "):
            continue
        answer = json.loads(_exactly(tls, int(line.rsplit(b" ", 1)[1]) + 2))
        if "error" in answer:
            raise NatsError(f"it says {answer['error'].get('description', answer['error'])}")
        told += 1
        tls.settimeout(MORE_S)


def _line(sock: socket.socket, prefix: bytes = b"") -> bytes:
    """One line, a byte at a time: nothing of what follows may be read before TLS begins."""
    line = bytearray()
    while not line.endswith(b"\r\n"):
        line += _exactly(sock, 1)
        if len(line) > _LINE_BYTES_MAX:
            raise NatsError("it does not speak NATS")
    if not line.startswith(prefix):
        raise NatsError("it does not speak NATS")
    return bytes(line[len(prefix) : -2])


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        got = sock.recv(size - len(data))
        if not got:
            raise NatsError("it ended the connection")
        data += got
    return bytes(data)
