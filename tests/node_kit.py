"""A small world for nodes: a hub that signs, a broker that retains, wires that lose. Cranked by hand, no sockets."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from edgeagent.proto import topics
from edgeagent.proto.envelope import read_up, write_down, write_hub_state
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.limits import Limits
from edgeagent.proto.node import Node
from edgeagent.proto.node_events import NodeEvent
from edgeagent.proto.paths import to_endpoint
from edgeagent.proto.publishing import Publish
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.seal import seal_box
from edgeagent.proto.signed import Signed, sign_object
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.proto.walltime import WallFloor
from tests.control_kit import (
    CRYPTO,
    HUB_BOX_KEY,
    HUB_BOX_PRIVATE,
    NETWORK,
    NETWORK_KEY,
    NETWORK_SEED,
    V4,
    V6,
    WALL_S,
    entropy_of,
)

LIFE_S = 30 * 86_400


class Board:
    """One device of the world: what the hub knows of it, its node, and where it is on the wire."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.identity = Identity.create(CRYPTO, entropy_of(1000 + number))
        self.id = self.identity.device_id
        self.v4 = bytes((100, 64, 0, number))
        self.v6 = V6[0][:15] + bytes((number,))
        self.node_keys: list[list[Any]] = [[self.identity.node_key, 0]]
        self.feed_key = bytes([number]) * 32
        self.feed_generation = 1
        self.routes: list[list[Any]] = []
        self.settings: dict[str, int] = {}
        self.tags: list[str] = []
        self.user = ""
        self.groups: list[str] = []
        self.policy: dict[str, Any] | None = None  # its slice
        self.endpoints: list[UdpAddress] = [(bytes((192, 0, 2, number)), 51820)]
        self.listens: list[UdpAddress] = self.endpoints
        self.node: Node = None  # type: ignore[assignment]  # set by World.start
        self.saved: bytes | None = None
        self.online = False
        self.session: dict[str, None] | None = None  # subscriptions that the broker keeps
        self.received: list[bytes] = []
        self.events: list[NodeEvent] = []
        self.publishes: list[Publish] = []
        self.asks: list[dict[str, Any]] = []
        self.births: list[Signed] = []


class World:
    """`run(seconds)` moves time from one deadline to the next; what a node puts out arrives at once, unless lost."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.boards: dict[str, Board] = {}
        self.hub_answers = True
        self.hub_seq = 0
        self.record_seq = 0
        self.known: set[str] = set()  # device ids that the hub will tell of
        self.retained: dict[str, bytes] = {}
        self.lose: Callable[[Board, bytes, UdpAddress], bool] = lambda sender, datagram, to: False
        self.wire: list[bytes] = []
        self.random = random.Random(7)

    # Boards

    def add(self, number: int, name: str, *, limits: Limits | None = None, online: bool = True) -> Board:
        board = Board(number, name)
        self.boards[board.id] = board
        self.known.add(board.id)
        self.start(board, limits=limits)
        if online:
            self.connect(board)
        return board

    def start(self, board: Board, *, limits: Limits | None = None) -> None:
        admission = Admission(
            CRYPTO,
            network_key=NETWORK_KEY,
            ca_der=b"ca",
            map_object=self.map_object(board),
            hosts=["hub.example:8883"],
        )
        floor_s = WALL_S - 1e6
        board.node = Node(
            self.now,
            crypto=CRYPTO,
            entropy=entropy_of(board.number),
            jitter=random.Random(board.number).random,
            tai64n=Tai64nClock(self.now, WALL_S + self.now),
            limits=limits or Limits(),
            identity=board.identity,
            admission=admission,
            wall=WallFloor(self.now, floor_s),
            boot=bytes([board.number]) * 15 + bytes([self.random.randrange(256)]),
            version="test",
            facts={"os": "test"},
            saved=board.saved,
            mtu=1280,
        )
        board.node.handle_addresses(self.now, board.endpoints)
        self.crank()

    def connect(self, board: Board) -> None:
        board.node.begin_session(self.now)
        will = board.node.last_will(self.now)
        assert will.retain
        present = board.session is not None
        if board.session is None:
            board.session = {}
        board.online = True
        board.node.handle_connected(self.now, present)
        self.crank()

    def disconnect(self, board: Board) -> None:
        board.online = False
        board.node.handle_disconnected(self.now)
        self.crank()

    # Time

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(100_000):
            self.crank()
            times = [board.node.poll_timeout() for board in self.boards.values()]
            due = min((at for at in times if at is not None), default=None)
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            for board in self.boards.values():
                at = board.node.poll_timeout()
                if at is not None and at <= self.now:
                    board.node.handle_timeout(self.now)
        else:
            raise AssertionError("a timer that never ends")
        self.now = end
        self.crank()

    def crank(self) -> None:
        """Carry everything until nothing moves."""
        for _ in range(1000):
            moved = [self.crank_one(board) for board in self.boards.values()]
            if not any(moved):
                return
        raise AssertionError("messages without end")

    def crank_one(self, board: Board) -> bool:
        node = board.node
        board.events += (events := node.drain_events())
        board.received += (packets := node.drain_packets())
        moved = bool(events or packets)
        for transmit in node.drain_transmits():
            to = (transmit.endpoint.ip_bytes(), transmit.endpoint.addr[1])
            for datagram in transmit.datagrams:
                moved = True
                self.wire.append(datagram)
                if not self.lose(board, datagram, to):
                    self.deliver(board, datagram, to)
        for topic, subscribe in node.drain_subscriptions():
            moved = True
            assert board.online and board.session is not None
            if subscribe:
                board.session[topic] = None
                for retained, payload in list(self.retained.items()):
                    if matches(topic, retained):
                        node.handle_message(self.now, retained, payload)
            else:
                board.session.pop(topic, None)
        for publish in node.drain_publishes():
            moved = True
            assert board.online
            board.publishes.append(publish)
            self.publish(board, publish)
        return moved

    def deliver(self, sender: Board, datagram: bytes, to: UdpAddress) -> None:
        for board in self.boards.values():
            if to in board.listens and sender.listens:
                board.node.handle_datagrams(self.now, [(datagram, to_endpoint(sender.listens[0]), 0)])

    def publish(self, sender: Board, publish: Publish) -> None:
        if publish.retain:
            self.retained[publish.topic] = publish.payload
        self.fan(publish.topic, publish.payload)
        parts = topics.parse(publish.topic)
        assert parts is not None and (parts.owner == sender.id or parts.way == "s")
        if parts.way == "u":
            self.hub_reads(sender, parts.leaf, publish)

    def fan(self, topic: str, payload: bytes) -> None:
        for board in self.boards.values():
            if board.online and board.session and any(matches(pattern, topic) for pattern in board.session):
                board.node.handle_message(self.now, topic, payload)

    # The hub

    def stamp(self) -> dict[str, int]:
        self.hub_seq += 1
        return {"epoch": 1, "seq": self.hub_seq, "wall_s": int(WALL_S + self.now)}

    def map_object(self, board: Board, **changes: Any) -> bytes:
        body = {
            "id": board.id,
            "name": board.name,
            "addrs": [board.v4, board.v6],
            "tags": board.tags,
            "domain": "fleet.example",
            "v4": V4,
            "v6": V6,
            "fk": board.feed_key,
            "fg": board.feed_generation,
            "bx": HUB_BOX_KEY,
            "h": ["hub.example:8883"],
            "nk": board.node_keys,
            "na": 0,
            "set": board.settings,
            **({} if board.policy is None else {"po": board.policy}),
            **({"ra": board.routes} if board.routes else {}),
            **changes,
        }
        return sign_object(
            CRYPTO, NETWORK_SEED, kind="map", network=NETWORK, subject=board.id, body=body, **self.stamp()
        )

    def record(self, board: Board, **changes: Any) -> bytes:
        body = {
            "name": board.name,
            "addrs": [board.v4, board.v6],
            "dk": board.identity.device_key,
            "nk": board.node_keys,
            "tags": board.tags,
            "user": board.user,
            "routes": board.routes,
            **({"gr": board.groups} if board.groups else {}),
        }
        self.record_seq += 1
        arguments: dict[str, Any] = {
            "kind": "record",
            "network": NETWORK,
            "subject": board.id,
            "epoch": 1,
            "seq": self.record_seq,
            "wall_s": int(WALL_S + self.now),
            "body": {**body, **changes.pop("body", {})},
            "not_before": int(WALL_S + self.now) - 5,
            "not_after": int(WALL_S + self.now) + LIFE_S,
        }
        return sign_object(CRYPTO, NETWORK_SEED, **{**arguments, **changes})

    def gone(self, board: Board) -> bytes:
        self.record_seq += 1
        return sign_object(
            CRYPTO,
            NETWORK_SEED,
            kind="gone",
            network=NETWORK,
            subject=board.id,
            epoch=1,
            seq=self.record_seq,
            wall_s=int(WALL_S + self.now),
            body={},
        )

    def down(self, board: Board, kind: str, body: dict[str, Any], **changes: Any) -> bytes:
        arguments = {"kind": kind, "network": NETWORK, "device": board.id, "body": body, **self.stamp(), **changes}
        topic = topics.down(NETWORK, board.id, kind)
        return write_down(CRYPTO, entropy_of(self.hub_seq), NETWORK_SEED, board.identity.box_key, topic, **arguments)

    def say(self, board: Board, kind: str, body: dict[str, Any], **changes: Any) -> None:
        """The hub to one device."""
        self.fan(topics.down(NETWORK, board.id, kind), self.down(board, kind, body, **changes))
        self.crank()

    def say_map(self, board: Board, **changes: Any) -> None:
        topic = topics.down(NETWORK, board.id, "map")
        payload = seal_box(
            CRYPTO, entropy_of(self.hub_seq), board.identity.box_key, topic, self.map_object(board, **changes)
        )
        self.retained[topic] = payload
        self.fan(topic, payload)
        self.crank()

    def say_rec(self, reader: Board, about: Board, number: int | None = None) -> None:
        body = {"rec": self.record(about), "fk": about.feed_key, "fg": about.feed_generation}
        if number is not None:
            body["id"] = number
        self.fan(topics.down(NETWORK, reader.id, "rec"), self.down(reader, "rec", body))

    def say_hub_state(self, up: bool) -> None:
        stamp = self.stamp()
        payload = write_hub_state(CRYPTO, NETWORK_SEED, network=NETWORK, up=up, hub_box_key=HUB_BOX_KEY, **stamp)
        self.retained[topics.hub_state(NETWORK)] = payload
        self.fan(topics.hub_state(NETWORK), payload)
        self.crank()

    def hub_reads(self, sender: Board, verb: str, publish: Publish) -> None:
        message = read_up(
            CRYPTO,
            HUB_BOX_PRIVATE,
            sender.identity.device_key,
            publish.topic,
            publish.payload,
            kind=verb,
            network=NETWORK,
            device=sender.id,
        )
        if verb == "birth":
            sender.births.append(message)
        if verb == "ask":
            sender.asks.append(message.body)
        if not self.hub_answers:
            return
        if verb == "birth":
            self.fan(topics.down(NETWORK, sender.id, "time"), self.down(sender, "time", {}))
        elif verb == "ask" and "have" not in message.body:
            self.hub_answers_ask(sender, message.body)
        elif verb == "report":
            self.hub_takes_key(sender, message.body["nk"])

    def hub_answers_ask(self, sender: Board, ask: dict[str, Any]) -> None:
        for board in self.boards.values():
            wanted = (
                ask.get("a") in (board.v4, board.v6)
                or ask.get("h") == board.name
                or any(ask.get("k") == key for key, _ in board.node_keys)
                or any(ask.get("a", b"mesh")[:1] == prefix[:1] != board.v4[:1] for prefix, _ in board.routes)
            )
            if wanted and board.id in self.known and board is not sender:
                self.say_rec(sender, board, ask["id"])
                self.say_rec(board, sender)
                return
        body = {"id": ask["id"], "no": "unknown", "ttl": 30}
        self.fan(topics.down(NETWORK, sender.id, "rec"), self.down(sender, "rec", body))

    def hub_takes_key(self, sender: Board, key: bytes) -> None:
        if all(key != known for known, _ in sender.node_keys):
            sender.node_keys.append([key, int(WALL_S + self.now) + LIFE_S])
        self.say_map(sender)
        for board in self.boards.values():
            if board is not sender:
                self.say_rec(board, sender)


def matches(pattern: str, topic: str) -> bool:
    return topic.startswith(pattern[:-1]) if pattern.endswith("#") else pattern == topic


def ipv4(source: bytes, destination: bytes, payload: bytes = b"ping") -> bytes:
    size = 20 + len(payload)
    head = bytes((0x45, 0)) + size.to_bytes(2, "big") + bytes((0, 0, 0, 0, 64, 17, 0, 0))
    return head + source + destination + payload


def ipv6(source: bytes, destination: bytes, payload: bytes = b"ping") -> bytes:
    return bytes((0x60, 0, 0, 0)) + len(payload).to_bytes(2, "big") + bytes((17, 64)) + source + destination + payload


def send(world: World, sender: Board, to: Board | bytes, payload: bytes = b"ping") -> bytes:
    """A packet from one board's TUN; returns it."""
    packet = ipv4(sender.v4, to if isinstance(to, bytes) else to.v4, payload)
    sender.node.handle_packets(world.now, [packet])
    world.crank()
    return packet


def icmp_errors(board: Board) -> list[bytes]:
    return [packet for packet in board.received if packet[0] >> 4 == 4 and packet[9] == 1]


def opened(board: Board, verb: str, payload: bytes) -> Signed:
    topic = topics.up(NETWORK, board.id, verb)
    return read_up(
        CRYPTO, HUB_BOX_PRIVATE, board.identity.device_key, topic, payload, kind=verb, network=NETWORK, device=board.id
    )
