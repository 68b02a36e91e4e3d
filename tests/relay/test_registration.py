"""A relay's machine against the hub's: what it says of itself, how often, and what it hears."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import topics
from edgeagent.proto.control import MAP_BYTES_MAX
from edgeagent.proto.envelope import write_down
from edgeagent.proto.epochs import RESERVE, Epochs
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.outbox import Outbox
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.walltime import WallFloor
from hub.core import actions
from hub.core.memory import MemoryStore
from relay.core.registration import (
    WORD_SPACING_S,
    EpochsReserved,
    Gone,
    MapChanged,
    ReconnectWanted,
    Registration,
    Removed,
)
from tests.hub.kit import WALL_S, Hub, RelayDev, admitted, load_crypto, make_network, row, seeded

FIELDS = {"rg": "fra", "k": bytes(31) + b"\x09", "h": ["198.51.100.7:443"], "u": 3478, "s": 3479, "pin": bytes(32)}


class Pair:
    """A hub, one relay that has joined, and nothing between them but what the test carries."""

    def __init__(self, seed: int = 1) -> None:
        crypto = load_crypto()
        network = make_network(crypto, seeded(seed))
        self.hub = Hub(MemoryStore(network), crypto, network, seed)
        with self.hub.store.write() as tx:
            token = actions.invite_relay(self.hub.scribe, tx, WALL_S, region="fra")
        self.keys = RelayDev(self.hub, 1, token, "fra-1", "fra")
        self.hub.hear(self.keys.join())
        self.keys.read(self.hub.sent())
        assert self.keys.map is not None
        self.admission = Admission(
            crypto,
            network_key=network.key,
            ca_der=b"ca",
            map_object=self.keys.map.raw,
            hosts=["hub.example:8883"],
        )
        self.now = 100.0
        self.topics: list[str] = []  # what the relay published
        self.relay = self.make(Epochs(0))

    def make(self, epochs: Epochs) -> Registration:
        crypto, identity = self.hub.crypto, self.identity
        wall = WallFloor(self.now, float(WALL_S))
        outbox = Outbox(
            crypto=crypto,
            entropy=seeded(77),
            identity=identity,
            network=self.hub.network.id,
            wall=wall,
            epochs=epochs,
        )
        return Registration(
            self.now,
            crypto=crypto,
            jitter=random.Random(5).random,
            identity=identity,
            admission=self.admission,
            outbox=outbox,
            wall=wall,
            boot=bytes(16),
            version="0.1",
            facts={"relay": "0.1"},
        )

    @property
    def identity(self) -> Identity:
        return self.keys.identity

    def connect(self) -> list[object]:
        self.relay.begin_session()
        events: list[object] = [*self.relay.drain_events()]
        self.relay.handle_connected(self.now)
        return events + self.carry()

    def carry(self) -> list[object]:
        """Everything to and fro; the relay's events."""
        events: list[object] = []
        for _ in range(5):
            for publish in self.relay.drain_publishes():
                self.topics.append(publish.topic.rpartition("/")[2])
                self.hub.hear((publish.topic, publish.payload))
            for sent in self.hub.sent():
                if topics.down(self.hub.network.id, self.identity.device_id, "") in sent.target:
                    self.relay.handle_message(self.now, sent.target, sent.payload)
            events += self.relay.drain_events()
        return events

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.hub.later(seconds)
        due = self.relay.poll_timeout()
        if due is not None and due <= self.now:
            self.relay.handle_timeout(self.now)

    def said(self) -> list[str]:
        said, self.topics = self.topics, []
        return said

    def drops(self) -> dict[ControlDrop, int]:
        return self.relay.drops


def test_a_connection_says_who_and_what_this_is() -> None:
    pair = Pair()
    pair.relay.tell(pair.now, FIELDS, 3)
    assert pair.relay.poll_timeout() is None and pair.relay.drain_publishes() == []
    events = pair.connect()
    assert isinstance(events[0], EpochsReserved) and events[0].reserved == 1 + RESERVE
    assert pair.said() == ["birth", "state", "relay"]
    assert pair.relay.drain_subscriptions() == [
        topics.down_filter(pair.hub.network.id, pair.identity.device_id),
        topics.hub_state(pair.hub.network.id),
    ]
    [changed] = [event for event in events if isinstance(event, MapChanged)]
    assert [relay.encode() for relay in changed.map.relays] == [{"id": "fra-1", **FIELDS}]
    assert pair.admission.map_object == changed.map.raw and len(changed.map.raw) < MAP_BYTES_MAX
    with pair.hub.store.read() as tx:
        found = row(tx, pair.keys)
        assert found.online and found.members == 3 and found.version == "0.1"
    assert pair.drops() == {} and dict(pair.hub.coordinator.drops) == {}


def test_its_word_is_said_again_when_it_is_news_and_once_a_minute() -> None:
    pair = Pair()
    pair.relay.tell(pair.now, FIELDS, 100)
    pair.connect()
    pair.said()
    for members in (100, 105, 110, 91):  # a tenth is no news, and less even less
        pair.relay.tell(pair.now, FIELDS, members)
        assert pair.relay.poll_timeout() is None
    pair.relay.tell(pair.now, FIELDS, 111)
    assert pair.relay.poll_timeout() == pair.now + WORD_SPACING_S
    pair.later(WORD_SPACING_S - 1)
    pair.carry()
    assert pair.said() == []
    pair.relay.tell(pair.now, {**FIELDS, "h": ["other.example:443"]}, 130)
    pair.later(1)
    pair.carry()
    assert pair.said() == ["relay"] and pair.relay.poll_timeout() is None
    assert pair.relay.map.relays[0].hosts == ["other.example:443"]
    pair.later(WORD_SPACING_S)
    pair.relay.tell(pair.now, FIELDS, 0)  # long enough after the last: at once
    pair.carry()
    assert pair.said() == ["relay"]
    pair.relay.handle_disconnected(pair.now)
    pair.relay.tell(pair.now, FIELDS, 50)
    assert pair.relay.poll_timeout() is None and pair.relay.drain_publishes() == []
    pair.connect()
    assert pair.said() == ["birth", "state", "relay"]


def test_a_good_bye_and_a_last_will_mark_it_offline() -> None:
    pair = Pair()
    for end in ("farewell", "will"):
        pair.connect()
        with pair.hub.store.read() as tx:
            assert row(tx, pair.keys).online
        if end == "farewell":
            pair.relay.farewell(pair.now)
            pair.carry()
        else:
            will = pair.relay.last_will(pair.now)
            pair.hub.hear((will.topic, will.payload))
        with pair.hub.store.read() as tx:
            assert not row(tx, pair.keys).online
        pair.relay.handle_disconnected(pair.now)
        assert pair.relay.next_connect_at is not None and pair.relay.next_connect_at > pair.now
        pair.relay.farewell(pair.now)
        assert pair.relay.drain_publishes() == []


def test_removals_of_devices_and_its_own() -> None:
    pair = Pair()
    pair.connect()
    [device] = admitted(pair.hub, 1)
    with pair.hub.store.write() as tx:
        actions.remove_device(pair.hub.scribe, tx, row(tx, device), pair.hub.wall_s)
    [event] = pair.carry()
    assert isinstance(event, Gone)
    with pair.hub.store.write() as tx:
        actions.remove_device(pair.hub.scribe, tx, row(tx, pair.keys), pair.hub.wall_s)
    assert [type(event) for event in pair.carry()] == [Removed]
    pair.relay.handle_disconnected(pair.now)
    assert pair.relay.removed and pair.relay.next_connect_at is None


def test_an_epoch_that_was_lost_is_found_again() -> None:
    pair = Pair()
    pair.connect()
    pair.relay = pair.make(Epochs(300))
    pair.connect()
    pair.relay = pair.make(Epochs(0))
    assert [type(event) for event in pair.connect()] == [EpochsReserved, ReconnectWanted]
    pair.relay.handle_disconnected(pair.now)
    events = pair.connect()
    assert [type(event) for event in events] == [EpochsReserved]
    with pair.hub.store.read() as tx:
        assert tx.highest_epoch(pair.identity.device_id) == 302


def test_presence_of_the_hub() -> None:
    pair = Pair()
    pair.connect()
    topic = topics.hub_state(pair.hub.network.id)
    with pair.hub.store.write() as tx:
        up, down = pair.hub.scribe.hub_states(tx, WALL_S)
    assert pair.relay.hub_up is None
    for data, is_up in ((up, True), (up, True), (down, False)):
        pair.relay.handle_message(pair.now, topic, data)
        assert pair.relay.hub_up is is_up
    pair.relay.handle_message(pair.now, topic, up)
    assert pair.drops() == {ControlDrop.REPLAYED: 1}
    pair.relay.handle_message(pair.now, topic, b"")
    assert pair.drops() == {ControlDrop.REPLAYED: 1}


def test_an_older_map_does_not_come_back() -> None:
    pair = Pair()
    pair.relay.tell(pair.now, FIELDS, 0)
    first = down(pair, "map")
    pair.connect()
    newest = pair.relay.map.stamp
    pair.relay.handle_message(pair.now, *first)
    assert pair.relay.map.stamp == newest and pair.drops() == {ControlDrop.REPLAYED: 1}
    again = down(pair, "map")
    pair.relay.handle_message(pair.now, *again)
    assert [type(event) for event in pair.relay.drain_events()] == [MapChanged]
    pair.relay.handle_message(pair.now, *again)  # each subscription brings it again
    assert pair.relay.drain_events() == [] and pair.drops() == {ControlDrop.REPLAYED: 1}


def down(pair: Pair, kind: str) -> tuple[str, bytes]:
    """A message of the hub's to the relay, taken off its outbox."""
    with pair.hub.store.write() as tx:
        found = row(tx, pair.keys)
        if kind == "map":
            pair.hub.scribe.map(tx, found, pair.hub.wall_s)
        else:
            pair.hub.scribe.time(tx, found, pair.hub.wall_s)
    [sent] = [sent for sent in pair.hub.sent() if sent.target.endswith(kind)]
    return sent.target, sent.payload


def test_what_a_relay_does_not_read() -> None:
    pair = Pair()
    pair.connect()
    net, own = pair.hub.network.id, pair.identity.device_id
    other = 24 * "a"
    for topic in ("x", f"em1/{net}/{other}/d/map", f"em1/{net}/{own}/d/cmd", f"em1/{net}/{other}/p"):
        pair.relay.handle_message(pair.now, topic, b"x")
    pair.relay.handle_message(pair.now, f"em1/{16 * 'a'}/{own}/d/map", b"x")
    assert pair.drops() == {ControlDrop.UNKNOWN_TOPIC: 5}
    topic = topics.down(net, own, "rec")
    network = pair.hub.network
    data = write_down(
        pair.hub.crypto,
        seeded(4),
        network.seed,
        pair.identity.box_key,
        topic,
        kind="rec",
        network=net,
        device=own,
        epoch=network.epoch,
        seq=10_000,
        wall_s=WALL_S,
        body={"id": 1, "no": "unknown", "ttl": 60},
    )
    pair.relay.handle_message(pair.now, topic, data)
    assert pair.drops() == {ControlDrop.UNKNOWN_TOPIC: 5, ControlDrop.WRONG_KIND: 1}
    assert pair.relay.drain_events() == []


_FUZZ = Pair(seed=9)
_FUZZ.connect()
_MAKERS: list[Callable[[], tuple[str, bytes]]] = [lambda: down(_FUZZ, "map"), lambda: down(_FUZZ, "time")]


@given(st.integers(0, 1), st.integers(0, 5_000), st.integers(1, 255), st.booleans())
def test_a_flipped_or_missing_byte_changes_nothing_and_is_counted(kind: int, at: int, flip: int, cut: bool) -> None:
    topic, payload = _MAKERS[kind]()
    at %= len(payload)
    broken = payload[:at] if cut else payload[:at] + bytes((payload[at] ^ flip,)) + payload[at + 1 :]
    before, counted = _FUZZ.relay.map.stamp, sum(_FUZZ.drops().values())
    _FUZZ.relay.handle_message(_FUZZ.now, topic, broken)
    assert _FUZZ.relay.map.stamp == before and _FUZZ.relay.drain_events() == []
    assert sum(_FUZZ.drops().values()) == counted + (broken != b"")


@pytest.mark.parametrize("lasted_s", [1.0, 100.0])
def test_pauses_grow_until_a_connection_lasted(lasted_s: float) -> None:
    pair = Pair()
    waits = []
    for _ in range(12):
        pair.relay.handle_disconnected(pair.now)
        assert pair.relay.next_connect_at is not None
        waits.append(pair.relay.next_connect_at - pair.now)
    assert waits[0] < 3.1 and 50 < max(waits) <= 300
    pair.connect()
    pair.later(lasted_s)
    pair.relay.handle_disconnected(pair.now)
    assert pair.relay.next_connect_at is not None
    assert (pair.relay.next_connect_at - pair.now < 3.1) == (lasted_s > 60)
