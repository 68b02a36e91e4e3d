"""Names of relays looked up for a real node, and what its connections are told."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent.io import pinnedtls
from edgeagent.io.relaystream import Flow
from edgeagent.proto.relay_pass import write_pass
from edgeagent.proto.relay_sessions import StreamWish
from edgeagent.relaylinks import LOOK_UP_AGAIN_S, LOOK_UP_ANEW_S, RelayLinks
from tests.agent.broker import free_port
from tests.agent.servers import Server, Tls
from tests.control_kit import CRYPTO, NETWORK, NETWORK_SEED, WALL_S
from tests.node_kit import Board, World
from tests.test_node_relays import relay

TURNS_S = 20.0


class Names:
    """Name servers: what they know, what they were asked, and whether they answer at present."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.answer = threading.Event()
        self.answer.set()
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: bytes, port: int, **more: Any) -> list[Any]:
        name = host.decode()
        self.asked.append(name)
        self.answer.wait(TURNS_S)
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = [(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in self.known[name]]
        return [(family, socket.SOCK_STREAM, 6, "", (each, port)) for family, each in families]


class Site:
    """A node, its RelayLinks, and the loop around them, on a clock that the test moves."""

    def __init__(self, names: Names) -> None:
        self.world = World()
        self.board: Board = self.world.add(1, "a")
        self.names = names
        self.selector = selectors.DefaultSelector()
        context: Any = SimpleNamespace(selector=self.selector, settings=SimpleNamespace(proxy=""))
        self.links = RelayLinks(context, self.board.node)

    @property
    def now(self) -> float:
        return self.world.now

    def use(self, *relays: dict[str, Any]) -> None:
        node_key = self.board.identity.node_key
        admits = write_pass(
            CRYPTO, NETWORK_SEED, network=NETWORK, device=self.board.id, epoch=1, seq=1, wall_s=int(WALL_S),
            not_before=int(WALL_S) - 100, not_after=int(WALL_S) + 86_400, node_key=node_key, relays=[],
            regions=["here"], rate_class=0,
        )  # fmt: skip
        self.world.say_map(self.board, rl=list(relays), ps=[admits])

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TURNS_S
        while not done():
            assert time.monotonic() < deadline
            for key, _ in self.selector.select(0.05):
                key.data(self.now, key.fd)

    def look_up(self) -> None:
        self.links.look_up(self.now)
        self.until_resolved()

    def until_resolved(self) -> None:
        self.until(lambda: self.links._resolver is None)

    def wait(self) -> None:
        """Until something is due, and what comes of it."""
        due = self.links.poll_timeout()
        assert due is not None and due > self.now
        self.world.now = due
        self.links.on_timeout(due)
        self.until_resolved()

    def servers(self) -> dict[str, list[str]]:
        self.board.node.relays.set_families([4, 16])
        return {name: [str(each) for each in found] for name, found, _ in self.board.node.relays.udp_servers()}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
def site(names: Names) -> Iterator[Site]:
    site = Site(names)
    yield site
    site.links.close()
    assert not site.selector.get_map()
    site.selector.close()
    names.answer.set()
    for thread in pinnedtls.Resolver._threads:
        thread.join(TURNS_S)


def test_all_names_of_all_relays_are_looked_up_one_at_a_time(site: Site, names: Names) -> None:
    names.known = {"one.example": ["198.51.100.1", "2001:db8::1"], "two.example": ["198.51.100.2"]}
    site.use(relay("r1", "one.example:443", "two.example:443"), relay("r2", "198.51.100.9:443"))
    names.answer.clear()
    site.links.look_up(site.now)
    site.until(lambda: names.asked == ["one.example"])
    names.answer.set()
    site.until_resolved()
    assert names.asked == ["one.example", "two.example"]
    assert site.servers() == {
        "r1": ["198.51.100.1:3478", "[2001:db8::1]:3478", "198.51.100.2:3478"],
        "r2": ["198.51.100.9:3478"],
    }
    assert site.links.poll_timeout() == site.now + LOOK_UP_ANEW_S


def test_without_names_nothing_is_asked(site: Site, names: Names) -> None:
    site.use(relay("r1", "198.51.100.9:443"))
    site.look_up()
    assert names.asked == [] and site.links.poll_timeout() is None


def test_a_name_that_is_not_found_is_asked_for_again_and_takes_nothing_away(
    site: Site, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    names.known = {"one.example": ["198.51.100.1"]}
    site.use(relay("r1", "one.example:443"), relay("r2", "gone.example:443"))
    with caplog.at_level("INFO", "edgeagent"):
        site.look_up()
        assert site.links.poll_timeout() == site.now + LOOK_UP_AGAIN_S
        assert [record.message for record in caplog.records] == ["relay r2: gone.example: Name or service not known"]
        began, names.known = site.now, {}
        for _ in range(5):
            site.wait()
        assert len(caplog.records) == 1, "said once"
    assert site.now - began == 31 * LOOK_UP_AGAIN_S, "ever more rarely"
    assert names.asked == ["one.example"] + 6 * ["gone.example"], "and only for those that are missing"
    assert site.servers() == {"r1": ["198.51.100.1:3478"]}
    names.known = {"one.example": ["198.51.100.1"], "gone.example": ["198.51.100.2"]}
    site.wait()
    assert site.servers() == {"r1": ["198.51.100.1:3478"], "r2": ["198.51.100.2:3478"]}
    assert site.links.poll_timeout() == began + LOOK_UP_ANEW_S


def test_a_name_that_is_gone_for_good_costs_four_questions_a_day(site: Site, names: Names) -> None:
    site.use(relay("r1", "gone.example:443"))
    site.look_up()
    began = site.now
    while site.now < began + 7 * 86_400.0:
        site.wait()
    assert len(names.asked) < 7 * 4 + 15
    site.look_up()  # we are on another network
    assert site.links.poll_timeout() == site.now + LOOK_UP_AGAIN_S


def test_of_two_names_of_one_relay_the_one_that_was_missing_adds_to_the_other(site: Site, names: Names) -> None:
    names.known = {"one.example": ["198.51.100.1"]}
    site.use(relay("r1", "one.example:443", "gone.example:443"))
    site.look_up()
    names.known = {"gone.example": ["198.51.100.2"]}
    site.wait()
    assert site.servers() == {"r1": ["198.51.100.1:3478", "198.51.100.2:3478"]}


def test_where_it_costs_a_name_is_asked_for_when_a_connection_is_wanted(site: Site, names: Names) -> None:
    site.use(relay("r1", "gone.example:443"))
    site.board.node.relays.set_on_demand(site.now, True)
    site.look_up()
    asked = len(names.asked)
    site.wait()
    assert len(names.asked) == asked and site.links.poll_timeout() == site.now - LOOK_UP_AGAIN_S + LOOK_UP_ANEW_S
    names.known = {"gone.example": ["198.51.100.1"]}
    site.links.streams.open = lambda *args: None  # type: ignore[method-assign]
    wish = StreamWish(1, site.board.node.relays._relays["r1"], open=True)
    site.board.node.drain_stream_wishes = lambda: [wish]  # type: ignore[method-assign]
    site.links.settle(site.now)
    site.until_resolved()
    assert site.servers() == {"r1": ["198.51.100.1:3478"]}


def test_without_descriptors_a_look_up_fails_and_is_had_later(
    site: Site, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*args: Any) -> Any:
        raise OSError(24, "Too many open files")

    names.known = {"one.example": ["198.51.100.1"]}
    site.use(relay("r1", "one.example:443"))
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", none_left)
        site.look_up()
    site.wait()
    assert site.servers() == {"r1": ["198.51.100.1:3478"]}


def test_an_answer_that_comes_after_the_map_has_changed_is_for_nobody(site: Site, names: Names) -> None:
    names.known = {"one.example": ["198.51.100.1"], "two.example": ["198.51.100.2"]}
    site.use(relay("r1", "one.example:443"))
    names.answer.clear()
    site.links.look_up(site.now)
    site.until(lambda: names.asked == ["one.example"])
    site.use(relay("r1", "two.example:443"))
    site.links.look_up(site.now)
    names.answer.set()
    site.until_resolved()
    assert site.servers() == {"r1": ["198.51.100.2:3478"]}


def test_closing_during_a_look_up(site: Site, names: Names) -> None:
    site.use(relay("r1", "one.example:443"))
    names.answer.clear()
    site.links.look_up(site.now)
    site.until(lambda: names.asked == ["one.example"])
    site.links.close()
    assert not site.selector.get_map()


def test_what_comes_of_settling_is_told_in_the_next_turn(site: Site) -> None:
    """Nothing else may happen for seconds."""
    site.use(relay("r1", "[::1]:1"))
    site.board.node.handle_timeout(site.now + 0.5)
    site.links.settle(site.now + 0.5)
    while site.links.poll_timeout() != 0.0:
        for key, _ in site.selector.select(TURNS_S):
            key.data(site.now + 0.5, key.fd)
    site.links.on_timeout(site.now + 0.5)
    assert not site.links.streams.events and site.links.streams.poll_timeout() is None
    (session,) = site.board.node.relays.sessions.all
    assert session.stream is None, "and the client knows that this try is over"


def test_a_full_connection_is_told_before_more_is_written(site: Site, tmp_path: Any) -> None:
    done = threading.Event()

    def relay_that_does_not_read(sock: socket.socket) -> None:
        sock.sendall(b"\x01\x00\x18" + bytes(24))  # a challenge
        done.wait(TURNS_S)

    server = Server(Tls(tmp_path).relay(relay_that_does_not_read))
    try:
        site.use(relay("r1", server.host))
        node = site.board.node
        node.handle_timeout(site.now + 0.5)
        site.links.settle(site.now + 0.5)
        site.until(lambda: bool(site.links.streams.events))
        site.links.on_timeout(site.now + 0.5)
        (session,) = node.relays.sessions.all
        assert session.stream is not None
        while not any(isinstance(event, Flow) for event in site.links.streams.events):
            site.links.streams.write(site.now, session.stream, bytes(65_536))
        assert site.links.poll_timeout() == 0.0
        site.links.on_timeout(site.now + 0.5)
        assert session.client._stream._queue.blocked
    finally:
        done.set()
        server.close()


def test_the_agent_is_told_when_nobody_listens(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "edgeagent"):
        site.use(relay("r1", f"127.0.0.1:{free_port()}"))
        for turn in range(4):
            now = site.now + 0.5 + 16.0 * turn
            site.board.node.handle_timeout(now)
            site.links.settle(now)
            for _ in range(5):
                for key, _ in site.selector.select(0.02):
                    key.data(now, key.fd)
                site.links.on_timeout(now)
    said = [record.message for record in caplog.records if "connection to a relay" in record.message]
    assert said == ["connection to a relay: 127.0.0.1: Connection refused"]
