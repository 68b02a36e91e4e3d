"""Telling NATS nodes who is cut off: one message in NATS' own protocol (docs.nats.io, "Client Protocol"), in a thread.

One node is enough to tell all that it reaches; nodes that are down are told when they are back. Then MQTT
sessions of those that were removed are ended (MQTT 3.1.1, section 3.1.2.4): NATS 2.9 would keep them, and what comes
for them, for ever.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.token import base64url
from hub.core.nats import ACCOUNT_BYTES_MAX, INBOX, UPDATE_SUBJECT

TIMEOUT_S = 4.0  # for each step with one node
MORE_S = 0.3  # for other nodes' answers after the first
_LINE_BYTES_MAX = 65_536


class NatsError(Exception):
    """A node did not do what it was asked; the text says what it said."""


@dataclass(slots=True, frozen=True)
class Manager:
    """Who may change accounts, at which nodes (host, port), by which CA's certificates they are known; and the hub's
    user and password at their ports for MQTT."""

    nodes: tuple[tuple[str, int], ...]
    ca_pem: str
    claims: str
    seed: bytes
    brokers: tuple[tuple[str, int], ...] = ()
    user: str = ""
    password: str = ""


class Telling:
    """One message, and `sessions` (client ids) that are to be ended; it begins at once. Look at `is_over` from time to
    time; `error` is "" when all of it was done, and `told` how many nodes know."""

    def __init__(self, crypto: Crypto, manager: Manager, account: str, sessions: frozenset[str]) -> None:
        self._crypto = crypto  # of this thread alone
        self._manager = manager
        self._message = account.encode()
        self._sessions = sessions
        self.error = "it came to no end"
        self.told = 0
        self._thread = threading.Thread(target=self._run, name="nats-claims", daemon=True)
        self._thread.start()

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._anywhere(self._manager.nodes, self._tell)
            for session in sorted(self._sessions):
                self._anywhere(self._manager.brokers, partial(end_session, self._manager, session))
        except NatsError as error:
            self.error = str(error)
        else:
            self.error = ""

    def _tell(self, host: str, port: int) -> None:
        self.told = tell(self._crypto, self._manager, host, port, self._message)

    @staticmethod
    def _anywhere(places: tuple[tuple[str, int], ...], do: Callable[[str, int], None]) -> None:
        """At the first place where it can be done."""
        said = []
        for host, port in places:
            try:
                return do(host, port)
            except (OSError, NatsError, ValueError) as error:
                said.append(f"{host}:{port}: {error}")
        raise NatsError("; ".join(said) or "no node is known")


def end_session(manager: Manager, session: str, host: str, port: int) -> None:
    """Connect under its client id with a clean session, and leave. Raises OSError, NatsError."""
    fields = b"".join(
        len(text).to_bytes(2, "big") + text.encode() for text in (session, manager.user, manager.password)
    )
    body = b"\x00\x04MQTT\x04\xc2\x00\x1e" + fields  # level 4; user, password, clean session; keepalive 30 s
    connect = bytearray(b"\x10")
    size = len(body)
    while True:
        size, low = size >> 7, size & 127
        connect.append(low | (128 if size else 0))
        if not size:
            break
    with (
        socket.create_connection((host, port), TIMEOUT_S) as raw,
        _context(manager).wrap_socket(raw, server_hostname=host) as tls,
    ):
        tls.sendall(bytes(connect) + body)
        answer = _exactly(tls, 4)
        if answer[:2] != b"\x20\x02" or answer[3]:
            raise NatsError(f"it refused to end a session (CONNACK {answer.hex()})")
        tls.sendall(b"\xe0\x00")


def tell(crypto: Crypto, manager: Manager, host: str, port: int, message: bytes) -> int:
    """How many nodes have taken the account. Raises OSError, NatsError."""
    if len(message) > ACCOUNT_BYTES_MAX:
        raise NatsError(f"an account of {len(message)} bytes; nodes take {ACCOUNT_BYTES_MAX}")
    with socket.create_connection((host, port), TIMEOUT_S) as raw:
        info = json.loads(_line(raw, b"INFO "))
        if not info.get("tls_required"):
            raise NatsError("it asks for no TLS; its configuration needs a `tls` block")
        with _context(manager).wrap_socket(raw, server_hostname=host) as tls:
            signature = base64url(crypto.ed25519_sign(manager.seed, str(info.get("nonce", "")).encode()))
            hello = {"jwt": manager.claims, "sig": signature, "verbose": False, "protocol": 0, "tls_required": True}
            inbox = f"{INBOX}.told"
            said = f"CONNECT {json.dumps(hello)}\r\nSUB {inbox} 1\r\nPUB {UPDATE_SUBJECT} {inbox} {len(message)}\r\n"
            tls.sendall(said.encode() + message + b"\r\n")
            return _count(tls)


def _context(manager: Manager) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=manager.ca_pem)
    return context


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
