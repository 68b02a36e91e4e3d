"""The broker connection against a real mosquitto, and against brokers that lie."""

from __future__ import annotations

import hashlib
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from paho.mqtt.client import Client

from edgeagent.io import mqtt
from edgeagent.io.mqtt import CaSeen, Closed, Connected, MqttLink, Received
from edgeagent.io.pahoclient import Login
from edgeagent.io.pinnedtls import Trust
from tests.agent.broker import MOSQUITTO, Authority, Broker, drive, free_port, take

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.valid_now()


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    started: list[Broker] = []

    def make(authority: Authority, **more: bool) -> Broker:
        directory = tmp_path / f"broker-{len(started)}"
        directory.mkdir()
        broker = Broker(directory, authority, {"dev": "right", "other": "right"}, **more)
        started.append(broker)
        broker.start()
        return broker

    yield make
    for broker in started:
        broker.stop()


class Links:
    """MqttLinks on one selector."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.all: list[MqttLink] = []

    def make(self) -> MqttLink:
        self.all.append(MqttLink(self.selector))
        return self.all[-1]

    def drive(self, until: Callable[[], bool]) -> float:
        return drive(self.selector, self.all, until)

    def connect(self, link: MqttLink, hosts: list[str], trust: Trust, who: Login | None = None) -> Connected | Closed:
        link.open(time.monotonic(), hosts, who or login(), trust)
        self.drive(lambda: any(isinstance(event, Connected | Closed) for event in link.events))
        event = next(event for event in link.events if isinstance(event, Connected | Closed))
        link.events.remove(event)
        return event


@pytest.fixture
def links() -> Iterator[Links]:
    links = Links()
    yield links
    for link in links.all:
        link.close()
    assert not links.selector.get_map()
    links.selector.close()


@pytest.fixture
def link(links: Links) -> MqttLink:
    return links.make()


def login(name: str = "dev", password: str = "right", **more: object) -> Login:
    return Login(name, name, password, **({"clean": True} | more))  # type: ignore[arg-type]


def pinned(authority: Authority, ca: bytes | None = None, check_time: bool = True) -> Trust:
    return Trust(hashlib.sha256(authority.der).digest(), ca, check_time)


def test_first_contact_finds_the_pinned_ca_and_then_trusts_only_it(
    links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = make_broker(authority)
    assert isinstance(links.connect(link, [broker.host], pinned(authority)), Connected)
    (seen,) = take(link, CaSeen)
    assert isinstance(seen, CaSeen) and seen.ca == authority.der
    assert isinstance(links.connect(link, [broker.host], pinned(authority, seen.ca)), Connected)
    assert not take(link, CaSeen)


def test_a_message_goes_round(
    links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = make_broker(authority)
    assert isinstance(links.connect(link, [broker.host], pinned(authority, authority.der)), Connected)
    assert link.subscribe(["em1/x/#"])
    for number in range(10):
        assert link.publish(f"em1/x/{number}", bytes([number]) * 8000, qos=number % 2, retain=False)
    links.drive(lambda: len(link.events) >= 10 and link.unacknowledged == 0)
    received = take(link, Received)
    assert [(event.topic, event.payload) for event in received if isinstance(event, Received)] == [
        (f"em1/x/{number}", bytes([number]) * 8000) for number in range(10)
    ]
    assert link.counters["rx_bytes"] > 80_000 and link.counters["tx_bytes"] > 80_000


def test_a_foreign_ca_is_refused(
    links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = make_broker(Authority.valid_now())
    event = links.connect(link, [broker.host], pinned(authority))
    assert isinstance(event, Closed) and not event.refused and "do not come from this network's CA" in event.reason
    event = links.connect(link, [broker.host], pinned(authority, authority.der))
    assert isinstance(event, Closed) and "certificate refused" in event.reason


def test_the_pinned_certificate_beside_a_foreign_one_proves_nothing(
    links: Links, link: MqttLink, tmp_path: Path, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    """The CA certificate is public: a hostile broker can present it. It cannot present what the CA signed."""
    broker = make_broker(Authority.valid_now(), chain=False)
    broker.stop()
    pem = tmp_path / "broker-0" / "server.pem"
    pem.write_bytes(pem.read_bytes() + authority.pem)
    broker.start()
    event = links.connect(link, [broker.host], pinned(authority))
    assert isinstance(event, Closed) and "certificate refused" in event.reason
    log = (tmp_path / "broker-0" / "log").read_bytes()
    assert b" as dev " not in log and b"u'dev'" not in log


def test_dates_count_once_the_time_is_known(links: Links, link: MqttLink, make_broker: Callable[..., Broker]) -> None:
    old = Authority.expired()
    broker = make_broker(old)
    assert isinstance(links.connect(link, [broker.host], pinned(old, check_time=False)), Connected)
    event = links.connect(link, [broker.host], pinned(old, old.der, check_time=True))
    assert isinstance(event, Closed) and "expired" in event.reason


def test_a_stored_ca_that_is_not_the_pinned_one_is_not_used(authority: Authority) -> None:
    assert pinned(authority, Authority.valid_now().der).ca is None
    assert pinned(authority, authority.der).ca == authority.der


def test_wrong_password(links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority) -> None:
    broker = make_broker(authority)
    event = links.connect(link, [broker.host], pinned(authority), login(password="wrong"))
    assert isinstance(event, Closed) and event.refused
    assert "wrong" not in event.reason


def test_brokers_are_tried_in_turn(
    links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = make_broker(authority)
    hosts = [f"127.0.0.1:{free_port()}", "no-such-host.invalid:1", f"[::1]:{free_port()}", broker.host]
    assert isinstance(links.connect(link, hosts, pinned(authority)), Connected)
    assert link.broker == broker.host
    # The one that worked comes first the next time.
    broker.stop()
    link.close()
    event = links.connect(link, hosts, pinned(authority))
    assert isinstance(event, Closed) and not event.refused


def test_no_broker(links: Links, link: MqttLink, authority: Authority) -> None:
    event = links.connect(link, [], pinned(authority))
    assert isinstance(event, Closed) and "no broker" in event.reason


def test_last_will_and_retained_state(links: Links, make_broker: Callable[..., Broker], authority: Authority) -> None:
    broker = make_broker(authority)
    first, second = links.make(), links.make()
    trust = pinned(authority, authority.der)
    will = login("dev", will=("em1/state", b"down"))
    assert isinstance(links.connect(first, [broker.host], trust, will), Connected)
    assert isinstance(links.connect(second, [broker.host], trust, login("other")), Connected)
    second.subscribe(["em1/state"])
    first.publish("em1/state", b"up", qos=1, retain=True)
    links.drive(lambda: bool(take(second, Received)))
    # DISCONNECT: no will.
    first.close()
    assert isinstance(links.connect(first, [broker.host], trust, will), Connected)
    links.drive(lambda: first.is_up)
    assert not take(second, Received)
    # A connection that breaks: the will.
    sock = first._sock
    assert sock is not None
    socket.socket(fileno=sock.detach()).close()
    first.events.clear()
    links.drive(lambda: bool(second.events))
    (event,) = take(second, Received)
    assert isinstance(event, Received) and event.payload == b"down"
    # One that we drop without a word: the same.
    assert isinstance(links.connect(first, [broker.host], trust, will), Connected)
    first.drop()
    links.drive(lambda: bool(second.events))
    (event,) = take(second, Received)
    assert isinstance(event, Received) and event.payload == b"down"
    second.close()


def test_broker_death_is_an_event(
    links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = make_broker(authority)
    assert isinstance(links.connect(link, [broker.host], pinned(authority)), Connected)
    broker.stop()
    links.drive(lambda: bool(take(link, Closed)))
    assert not link.is_up and not links.selector.get_map() and link.poll_timeout() is None
    assert not link.publish("em1/x", b"", qos=1, retain=False)
    assert not link.subscribe(["em1/x"])


def test_persistent_session_keeps_what_came_meanwhile(
    links: Links, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = make_broker(authority)
    sleeper, other = links.make(), links.make()
    trust = pinned(authority, authority.der)
    first = links.connect(sleeper, [broker.host], trust, login("dev", clean=False))
    assert isinstance(first, Connected) and not first.session_present
    sleeper.subscribe(["em1/x"])
    sleeper.publish("em1/y", b"", qos=1, retain=False)
    links.drive(lambda: sleeper.unacknowledged == 0)
    sleeper.close()
    assert isinstance(links.connect(other, [broker.host], trust, login("other")), Connected)
    other.publish("em1/x", b"while you slept", qos=1, retain=False)
    links.drive(lambda: other.unacknowledged == 0)
    sleeper.events.clear()
    again = links.connect(sleeper, [broker.host], trust, login("dev", clean=False))
    assert isinstance(again, Connected) and again.session_present
    links.drive(lambda: bool(sleeper.events))
    (event,) = take(sleeper, Received)
    assert isinstance(event, Received) and event.payload == b"while you slept"
    sleeper.close()
    other.close()


def test_a_name_is_looked_up_without_waiting_for_it(
    links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = make_broker(authority)
    link.open(time.monotonic(), [f"localhost:{broker.port}"], login(), pinned(authority))
    links.drive(lambda: link.is_up)
    assert link.broker == f"localhost:{broker.port}"


@pytest.mark.parametrize("known", [False, True])
def test_a_broker_that_says_nothing_holds_no_call_and_is_given_up(
    links: Links, link: MqttLink, authority: Authority, known: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        link.open(time.monotonic(), [host], login(), pinned(authority, authority.der if known else None))
        longest = links.drive(lambda: link.stage == ("TLS handshake" if known else "looking for the pinned CA"))
        assert longest < 5.0  # a blocking handshake would take its whole timeout
        due = link.poll_timeout()
        assert due is not None and due <= time.monotonic() + mqtt.HANDSHAKE_TIMEOUT_S
        link.on_timeout(due)
        (event,) = take(link, Closed)
        assert isinstance(event, Closed) and "no answer from" in event.reason and not event.refused


class LyingBroker:
    """Speaks TLS and MQTT just well enough to be logged in to, then sends `rest`."""

    def __init__(self, tmp_path: Path, authority: Authority, rest: bytes) -> None:
        certificate, key = authority.server()
        (tmp_path / "c.pem").write_bytes(certificate)
        (tmp_path / "k.pem").write_bytes(key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._rest = rest
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        with sock:
            try:
                with self._context.wrap_socket(sock, server_side=True) as tls:
                    tls.settimeout(10)
                    tls.recv(4096)
                    tls.sendall(b"\x20\x02\x00\x00" + self._rest)
                    while tls.recv(4096):
                        pass
            except OSError:
                pass

    def close(self) -> None:
        self._listener.close()
        self._thread.join()


@pytest.mark.parametrize(
    ("rest", "ends"),
    [
        (b"\x32\xff\xff\xff\x7f", True),  # a publish of 256 MiB
        (b"\x34\x07\x00\x01a\x00\x01xy", True),  # QoS 2
        (b"\x30\xff\xff\xff\xff\xff", True),  # a length that does not end
        (b"\x30\x00", True),  # a publish without a topic
        (b"\xf0\x00", True),  # no packet of 3.1.1
        (b"\x00\x00", None),
        (b"\x30\x04\x00\x02\xff\xfe", False),  # a topic that is no UTF-8
    ],
)
def test_hostile_packets(
    links: Links, link: MqttLink, tmp_path: Path, authority: Authority, rest: bytes, ends: bool | None
) -> None:
    broker = LyingBroker(tmp_path, authority, rest + b"\x30\x05\x00\x01aok")
    try:
        link.open(time.monotonic(), [broker.host], login(), pinned(authority, authority.der))
        links.drive(lambda: any(isinstance(event, Closed | Received) for event in link.events))
        (last,) = [event for event in link.events if isinstance(event, Closed | Received)]
        if ends is not None:
            assert isinstance(last, Closed) is ends
        link.close()
    finally:
        broker.close()


def test_a_flood_is_taken_in_portions(links: Links, link: MqttLink, tmp_path: Path, authority: Authority) -> None:
    """Nobody drains the events: reading stops, and what the link holds stays bounded."""
    broker = LyingBroker(tmp_path, authority, (b"\x30\x83\x08\x00\x01a" + bytes(1024)) * 2000)
    try:
        link.open(time.monotonic(), [broker.host], login(), pinned(authority, authority.der))
        links.drive(lambda: len(link.events) >= 10)
        for _ in range(100):
            link.ready(time.monotonic(), -1)
        assert len(link.events) <= mqtt.EVENTS_PER_TURN_MAX + 1
        take(link, Connected)
        taken = len(take(link, Received))
        while taken < 2000:
            links.drive(lambda: bool(link.events))
            taken += len(take(link, Received))
            assert len(link.events) <= mqtt.EVENTS_PER_TURN_MAX + 1
    finally:
        link.close()
        broker.close()


def test_it_wakes_up_for_pings_and_for_nothing_else(
    links: Links,
    link: MqttLink,
    make_broker: Callable[..., Broker],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead = 0.0

    def clock() -> float:
        return time.monotonic() + ahead

    for target in ("paho.mqtt.client.time_func", "edgeagent.io.pahoclient.monotonic"):
        monkeypatch.setattr(target, clock)
    who = login(keepalive_s=600)
    assert isinstance(
        links.connect(link, [make_broker(authority).host], pinned(authority, authority.der), who), Connected
    )
    link.publish("em1/a/dev/u/state", b"x", qos=1, retain=False)
    links.drive(lambda: link.unacknowledged == 0)
    for _ in range(3):
        before = link.counters
        due = link.poll_timeout()
        assert due is not None and 590 < due - clock() <= 601
        ahead += due - clock()
        link.on_timeout(clock())
        assert link.counters["tx_bytes"] == before["tx_bytes"] + 2  # PINGREQ
        again = link.poll_timeout()
        assert again is not None and 140 < again - clock() <= 150  # is there an answer?
        links.drive(lambda: link.counters["rx_bytes"] == before["rx_bytes"] + 2)  # noqa: B023  # PINGRESP
    ahead += 400
    link.publish("em1/a/dev/u/state", b"x", qos=0, retain=False)
    ahead += 201
    before = link.counters
    link.on_timeout(clock())
    assert (
        link.counters["tx_bytes"] == before["tx_bytes"] + 2
    )  # nothing was heard for so long, though something was said
    link.close()


def test_the_end_of_each_connection_is_told_once_while_it_can_be_counted(
    links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    told: list[int] = []
    link.on_closing = lambda sock: told.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)[0])
    assert link.sockets() == []
    broker = make_broker(authority)
    trust = pinned(authority)
    links.connect(link, [broker.host], trust)
    assert len(told) == 1 and len(link.sockets()) == 1  # the one that was looked at for the CA
    link.close()
    assert len(told) == 2 and link.sockets() == []
    links.connect(link, [broker.host], trust)
    assert len(told) == 2
    broker.stop()
    links.drive(lambda: any(isinstance(event, Closed) for event in link.events))
    assert len(told) == 3
    take(link, Closed)
    links.connect(link, [f"127.0.0.1:{free_port()}"], trust)
    assert len(told) == 4


def test_paho_is_the_one_that_was_read() -> None:
    """`PahoClient` overrides three private methods of paho and reads one field: a new minor version is looked at."""
    assert version("paho-mqtt").split(".")[:2] in (["2", "1"], ["2", "2"])
    for name in ("_create_socket", "_sock_recv", "_sock_send"):
        assert callable(getattr(Client, name))


def test_urllib_request_stays_out() -> None:
    code = (
        "import sys, edgeagent.io.mqtt\n"
        "assert not sys.modules.keys() & {'urllib.request', 'http.client', 'email'}\n"
        "import urllib.request; urllib.request.Request('http://localhost/')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_broker_may_not_have_had_is_known_when_the_connection_has_ended(
    links: Links, link: MqttLink, make_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = make_broker(authority)
    for acknowledged in (True, False):
        assert isinstance(links.connect(link, [broker.host], pinned(authority, authority.der)), Connected)
        link.publish("em1/a/dev/u/state", b"x", qos=1, retain=False)
        if acknowledged:
            links.drive(lambda: link.unacknowledged == 0)
        link.close()
        assert (link.unheard, link.unacknowledged) == (0 if acknowledged else 1, 0)
    link.close()
    assert link.unheard == 1
