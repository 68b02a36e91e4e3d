"""A turn of the hub's loop: many messages in one transaction, each for itself, and what follows the commit."""

from __future__ import annotations

import logging
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, OperationalError

from hub.core.model import HubDrop, Op, Outgoing
from hub.core.policing import set_policy
from hub.database import open_database
from hub.intake import WORK_S, hear, work
from hub.io.mqtt import IN_FLIGHT_MAX, Confirmed, Received
from hub.serve import Server
from hub.setup import initialise
from hub.state import State
from hub.store.sql import SqlTx
from tests.hub.kit import Dev, Hub, admitted, load_crypto, make_network, open_store, row, seeded

SECRET = "what the message held"
ALL = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}'


@pytest.fixture
def hub(place: Path | str) -> Iterator[Hub]:
    """On each store that has savepoints."""
    crypto = load_crypto()
    with closing(open_store(place)) as store:
        yield Hub(store, crypto, make_network(crypto, seeded(0)))


def turn(hub: Hub, *messages: tuple[str, bytes]) -> None:
    with hub.store.write() as tx:
        assert isinstance(tx, SqlTx)
        hear(hub.coordinator, tx, hub.now, hub.wall_s, [Received(*message, 1, 1) for message in messages])


def stumbles(hub: Hub, monkeypatch: pytest.MonkeyPatch, over: Dev, error: Exception) -> None:
    """From now on `over` cannot be told of anybody, and it shows when all else is written."""
    rec = hub.scribe.rec

    def fails(tx: Any, reader: Any, *rest: Any, **more: Any) -> None:
        rec(tx, reader, *rest, **more)
        if reader.id == over.id:
            raise error

    monkeypatch.setattr(hub.scribe, "rec", fails)


# messages


@pytest.mark.parametrize(
    "error",
    [ValueError(SECRET), MemoryError(), IntegrityError(SECRET, None, Exception(SECRET))],
    ids=lambda error: type(error).__name__,
)
def test_a_message_that_the_hub_stumbles_over_takes_no_other_down(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    first, bad, last, subject = admitted(hub, 4)
    asked = bad.ask(h="n3")
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        stumbles(hub, patch, bad, error)
        turn(hub, first.ask(h="n3"), asked, last.ask(h="n3"))
    rows = hub.sent()
    for device in (first, last):
        assert [body["id"] for _, body in device.read(rows)] == [device.seq]
    assert not bad.read(rows)
    assert len(subject.read(rows)) == 2  # of the two that were answered
    assert hub.coordinator.drops == {HubDrop.STUMBLED: 1}
    assert type(error).__name__ in caplog.text
    assert SECRET not in caplog.text
    with hub.store.read() as tx:
        assert tx.acquaintances(bad.id) == []
        assert tx.stamp(bad.id, "ask") == (-1, 0)
    turn(hub, asked)  # nothing of it was kept, so it is no replay
    assert [body["id"] for _, body in bad.read(hub.sent())] == [bad.seq]


def test_what_the_database_suffers_from_is_no_fault_of_a_message(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first, bad, _ = admitted(hub, 3)
    stumbles(hub, monkeypatch, bad, OperationalError("INSERT", None, Exception("disk full")))
    with pytest.raises(OperationalError):
        turn(hub, first.ask(h="n2"), bad.ask(h="n2"))
    assert hub.sent() == []
    assert not hub.coordinator.drops


def test_an_error_of_the_driver_is_what_sqlalchemy_makes_of_it(hub: Hub) -> None:
    (device,) = admitted(hub, 1)
    with hub.store.write() as tx:
        assert isinstance(tx, SqlTx)
        found = row(tx, device)
        with pytest.raises(IntegrityError), tx.savepoint():
            tx.add_device(found)
        assert found.online is False  # no 0, whatever the engine keeps
        assert row(tx, device) == found


# work


def test_what_a_job_leaves_is_done_at_once(hub: Hub) -> None:
    """Of a policy that changes nothing no message goes out, whose confirmation would wake the hub again."""
    admitted(hub, 70)  # three steps of a round
    for _ in range(2):
        with hub.store.write() as tx:
            set_policy(tx, hub.wall_s, ALL, "a test")
        while True:
            with hub.store.write() as tx:
                assert isinstance(tx, SqlTx)
                more = work(hub.scribe, tx, hub.wall_s, lambda: 0.0)
                sent = tx.outgoing(limit=IN_FLIGHT_MAX)
                tx.drop_outgoing([item.id for item in sent])
            if not more:
                break
        with hub.store.read() as tx:
            assert tx.job_count() == 0


def test_work_stops_where_messages_would_wait(hub: Hub) -> None:
    admitted(hub, 12)
    with hub.store.write() as tx:
        assert isinstance(tx, SqlTx)
        set_policy(tx, hub.wall_s, ALL, "a test")
        clock = iter(range(1_000))
        assert work(hub.scribe, tx, hub.wall_s, lambda: next(clock) * WORK_S)
        assert tx.job_count() > 0
        for number in range(IN_FLIGHT_MAX):
            tx.put_out(Outgoing(Op.PUBLISH, f"a/{number}"))
        left = tx.job_count()
        assert not work(hub.scribe, tx, hub.wall_s, lambda: 0.0)  # the broker first
        assert tx.job_count() == left


# a server without a broker


class Link:
    """What the server sees of a connection; looks into the database as another process would."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self.events: list[Any] = []
        self.published: list[bytes] = []
        self.uncommitted = 0
        self.acknowledged: list[Received] = []

    def drain_events(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        with closing(sqlite3.connect(self._database)) as other:
            found = other.execute("SELECT count(*) FROM outgoing WHERE payload = ?", [payload]).fetchone()[0]
        self.uncommitted += found == 0
        self.published.append(payload)
        return len(self.published)

    def acknowledge(self, message: Received) -> None:
        self.acknowledged.append(message)


class Served:
    def __init__(self, directory: Path) -> None:
        self.state = State(directory)
        self.network = initialise(self.state, domain="mesh.test", listen="127.0.0.1:1", addresses=["127.0.0.1"])
        self.crypto = load_crypto()
        self.store = open_database(self.state)
        self.signals = socket.socketpair()
        self.server = Server(self.state, self.store, self.signals[0])
        self.hub = Hub(self.store, self.crypto, self.network)
        self.devices = admitted(self.hub, 3)
        self.link = Link(self.state.database)
        session = self.server._session
        session._link, session.connected = self.link, True  # type: ignore[assignment]

    def receive(self, now: float, *messages: tuple[str, bytes]) -> None:
        self.link.events += [Received(*message, number, 1) for number, message in enumerate(messages, 1)]
        self.server._receive(now)

    def rows(self) -> int:
        with self.store.read() as tx:
            return len(tx.outgoing())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    for each in (made.server._poke, *made.signals):
        each.close()
    made.store.close()


def test_nothing_is_published_or_acknowledged_before_the_commit(served: Served) -> None:
    first, second, _ = served.devices
    served.receive(1.0, first.ask(h="n2"), second.ask(h="n2"))
    assert len(served.link.published) == 4
    assert served.link.uncommitted == 0
    assert [message.mid for message in served.link.acknowledged] == [1, 2]


def test_a_commit_that_fails_publishes_and_acknowledges_nothing(served: Served) -> None:
    def fails(_: Any) -> None:
        raise OperationalError("COMMIT", None, Exception("disk full"))

    engine = served.store._engine
    event.listen(engine, "commit", fails)
    with pytest.raises(OperationalError):
        served.receive(1.0, served.devices[0].ask(h="n2"))
    assert not served.link.published
    assert not served.link.acknowledged
    with closing(sqlite3.connect(served.state.database)) as other:
        assert other.execute("SELECT count(*) FROM outgoing").fetchone()[0] == 0


def test_confirmed_rows_go_with_the_next_commit_or_a_moment_later(served: Served) -> None:
    first, second, _ = served.devices
    served.receive(1.0, first.ask(h="n2"))
    served.link.events += [Confirmed(1), Confirmed(2)]
    served.server._receive(1.0)
    assert served.rows() == 2  # nothing else is to be written yet
    served.receive(1.01, second.ask(h="n2"))
    assert served.rows() == 2  # the new ones
    served.link.events += [Confirmed(3), Confirmed(4)]
    served.server._receive(1.02)
    assert served.rows() == 2
    due = served.server._session.done_at()
    assert due is not None
    assert 1.02 < due < 2.0
    served.server._receive(due)
    assert served.rows() == 0
    assert len(served.link.published) == 4  # none of them twice
