"""The hub's connection at a broker that refuses things: its end is told once, and nothing is raised."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.io.mqtt import Connected, Disconnected, Endpoint, Event, MqttLink
from hub.io.pki import der_to_pem, make_ca, make_server
from tests.hub.rig import wait_until


class Broker:
    """Accepts one connection and answers its CONNECT with `connack`, and the SUBSCRIBE after it with a refusal."""

    def __init__(self, directory: Path, connack: bytes) -> None:
        key_pem, ca = make_ca("x", time.time())
        (directory / "key").touch(0o600)
        for name, text in zip(("key", "chain"), make_server(key_pem, ca, ("127.0.0.1",)), strict=True):
            (directory / name).write_text(text)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "chain", directory / "key")
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(10.0)
        self._connack = connack
        self.endpoint = Endpoint("127.0.0.1", self._server.getsockname()[1], der_to_pem(ca), "hub", "x", "hub-x")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        raw, _ = self._server.accept()
        raw.settimeout(10.0)
        with contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as tls:
            tls.recv(4096)
            tls.sendall(self._connack)
            subscribe = tls.recv(4096)
            if subscribe:
                tls.sendall(b"\x90\x03" + subscribe[2:4] + b"\x80")
                tls.recv(4096)

    def end(self) -> None:
        self._server.close()
        self._thread.join(10.0)


def heard(endpoint: Endpoint) -> Iterator[list[Event]]:
    """What has happened so far, until nothing more can."""
    link = MqttLink(endpoint)
    link.open("em1/x/hub/state", b"gone")
    seen: list[Event] = []
    while True:
        link.write()
        link.read()
        link.tick()
        for event in link.drain_events():
            seen.append(event)
            if isinstance(event, Connected):
                link.subscribe("em1/x/+/u/+")
                link.publish("em1/x/hub/state", b"here")
        yield seen


@pytest.mark.parametrize(("code", "why"), [(0, "could not be subscribed"), (5, "refused")])
def test_what_a_broker_refuses_ends_the_connection_once(tmp_path: Path, code: int, why: str) -> None:
    broker = Broker(tmp_path, bytes((0x20, 2, 0, code)))
    turns = heard(broker.endpoint)
    wait_until(lambda: any(isinstance(event, Disconnected) for event in next(turns)), "its end")
    for _ in range(3):
        seen = next(turns)
    ends = [event for event in seen if isinstance(event, Disconnected)]
    assert len(ends) == 1 and why in ends[0].why
    assert (Connected(session_present=False) in seen) is (code == 0)
    broker.end()
