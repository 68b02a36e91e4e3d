"""The broker connection through an HTTP proxy: tinyproxy, and others that do not do what they should."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent.io.mqtt import Closed, Connected, MqttLink
from edgeagent.io.proxy import Proxy
from tests import tinyproxy
from tests.agent.broker import MOSQUITTO, Authority, Broker, free_port
from tests.agent.test_mqtt import Links, login, pinned

pytestmark = pytest.mark.skipif(
    MOSQUITTO is None or tinyproxy.PROGRAM is None, reason="mosquitto or tinyproxy is not installed"
)
LOGIN = ("device", "s3cret")
READY_S = 10.0


class Way:
    """A broker, and a tinyproxy that lets through to it alone."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.valid_now()
        self.broker = Broker(folder, self.authority, {"dev": "right"})
        self.broker.start()
        self.port = free_port()
        settings = tinyproxy.write_settings(folder, self.port, [self.broker.port], LOGIN)
        assert tinyproxy.PROGRAM is not None
        self.process = subprocess.Popen(
            [tinyproxy.PROGRAM, "-d", "-c", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + READY_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < deadline, "tinyproxy does not listen"
            time.sleep(0.01)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.broker.stop()


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    made = Way(tmp_path_factory.mktemp("proxy"))
    yield made
    made.close()


@pytest.fixture
def links() -> Iterator[Links]:
    links = Links()
    yield links
    for link in links.all:
        link.close()
    assert not links.selector.get_map()
    links.selector.close()


def link_by(links: Links, port: int, user: str = "", password: str = "") -> MqttLink:
    links.all.append(MqttLink(links.selector, Proxy("127.0.0.1", port, user, password)))
    return links.all[-1]


def test_the_ca_is_found_and_the_broker_answers(links: Links, way: Way) -> None:
    link = link_by(links, way.port, *LOGIN)
    assert isinstance(links.connect(link, [way.broker.host], pinned(way.authority)), Connected)
    assert link.publish("em1/x", bytes(30_000), qos=1, retain=False)
    links.drive(lambda: link.unacknowledged == 0)


def test_a_name_is_for_the_proxy_to_look_up(links: Links, way: Way) -> None:
    link = link_by(links, way.port, *LOGIN)
    host = f"localhost:{way.broker.port}"
    assert isinstance(links.connect(link, [host], pinned(way.authority, way.authority.der)), Connected)
    asked = link_by(links, way.port, *LOGIN)
    closed = links.connect(asked, ["no-such-host.invalid:443"], pinned(way.authority))
    assert isinstance(closed, Closed) and "the proxy answers" in closed.reason


@pytest.mark.parametrize("credentials", [(), ("device", "guess")])
def test_it_wants_to_know_who_we_are(links: Links, way: Way, credentials: tuple[str, ...]) -> None:
    closed = links.connect(link_by(links, way.port, *credentials), [way.broker.host], pinned(way.authority))
    assert isinstance(closed, Closed) and not closed.refused
    assert "the proxy answers 40" in closed.reason and "guess" not in closed.reason


def test_it_does_not_let_us_there(links: Links, way: Way) -> None:
    link = link_by(links, way.port, *LOGIN)
    closed = links.connect(link, [f"127.0.0.1:{free_port()}"], pinned(way.authority))
    assert isinstance(closed, Closed) and "the proxy answers 403" in closed.reason


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nand something that TLS never said",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"x" * 9_000,
        b"HTTP/1.1 200 OK\r\n\r\n",  # and then it closes
    ],
)
def test_it_is_no_proxy(links: Links, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4_096)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        link = link_by(links, listener.getsockname()[1])
        closed = links.connect(link, ["192.0.2.1:8883"], pinned(Authority.valid_now()))
        assert isinstance(closed, Closed) and closed.reason.startswith("192.0.2.1:8883: ")
        thread.join()


def test_it_never_answers(links: Links) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = link_by(links, listener.getsockname()[1])
        link.open(time.monotonic(), ["192.0.2.1:8883"], login(), pinned(Authority.valid_now()))
        links.drive(lambda: link.stage == "waiting for the proxy")
        deadline = link.poll_timeout()
        assert deadline is not None
        link.on_timeout(deadline)
        (closed,) = link.events
        assert isinstance(closed, Closed) and "waiting for the proxy" in closed.reason
