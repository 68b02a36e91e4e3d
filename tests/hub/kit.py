"""A hub in a box: a network, and devices that write what a real one writes and read what it reads."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from random import Random
from typing import Any, Protocol
from zlib import crc32

from edgeagent import crypto as providers
from edgeagent.proto import topics
from edgeagent.proto.codec import decode
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.envelope import read_down, write_up
from edgeagent.proto.identity import Identity
from edgeagent.proto.keys import Entropy
from edgeagent.proto.names import network_id
from edgeagent.proto.signed import Signed, open_signed
from edgeagent.proto.token import Token as JoinToken
from hub.core import actions, chores
from hub.core.coordinator import Coordinator
from hub.core.memory import MemoryStore
from hub.core.model import Network, Op, Outgoing
from hub.core.store import Store, Tx
from hub.store import migrate
from hub.store.meta import save_network
from hub.store.postgres import PostgresStore
from hub.store.sqlite import SqliteStore

WALL_S = 1_800_000_000
DAY_S = 86_400


def seeded(seed: int) -> Entropy:
    return Random(seed).randbytes


def make_network(crypto: Crypto, entropy: Entropy, **changes: Any) -> Network:
    seed, box = entropy(32), entropy(32)
    key = crypto.ed25519_public(seed)
    fields: dict[str, Any] = {
        "id": network_id(crypto, key),
        "domain": "mesh.internal",
        "seed": seed,
        "key": key,
        "box_private": box,
        "box_key": crypto.x25519_base(box),
        "epoch": 7,
        "ca_der": b"not looked at here",
        "hosts": ("hub.example:8883",),
    }
    return Network(**{**fields, **changes})


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "empty.db")
        migrate.create_file(path)
        return path.read_bytes()


def copy_empty(path: Path) -> None:
    """`migrate.create_file`, whose migrations ran once: they take longer than most tests."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "wb") as file:
        file.write(_empty_database())


def make_sqlite(path: Path, network: Network) -> SqliteStore:
    copy_empty(path)
    store = SqliteStore(path)
    with store.write() as tx:
        save_network(tx.connection, network)
    return store


def make_postgres(url: str, network: Network) -> PostgresStore:
    """On a database that has the tables."""
    store = PostgresStore(url)
    with store.write() as tx:
        save_network(tx.connection, network)
    return store


def open_store(where: Path | str) -> SqliteStore | PostgresStore:
    """A file, or a server's URL."""
    return SqliteStore(where) if isinstance(where, Path) else PostgresStore(where)


class Hub:
    """The coordinator on a store, with a clock that the test turns."""

    def __init__(self, store: Store, crypto: Crypto, network: Network, seed: int = 1) -> None:
        self.store = store
        self.crypto = crypto
        self.network = network
        self.entropy = seeded(seed)
        self.coordinator = Coordinator(crypto, self.entropy, network)
        self.scribe = self.coordinator.scribe
        self.now = 0.0
        self.wall_s = WALL_S

    def token(self, **options: Any) -> JoinToken:
        with self.store.write() as tx:
            return actions.create_token(self.scribe, tx, self.wall_s, **options)

    def hear(self, *messages: tuple[str, bytes]) -> None:
        with self.store.write() as tx:
            for topic, payload in messages:
                self.coordinator.handle_message(self.now, self.wall_s, tx, topic, payload)

    def work(self) -> None:
        """All the jobs."""
        while True:
            with self.store.write() as tx:
                if not chores.work(self.scribe, tx, self.wall_s, limit=3):
                    return

    def sent(self) -> list[Outgoing]:
        """Everything that waits for the broker, taken out."""
        self.work()
        with self.store.write() as tx:
            rows = tx.outgoing(limit=100_000)
            tx.drop_outgoing([row.id for row in rows])
        return rows

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.wall_s += int(seconds)


class Home(Protocol):
    """Where a device is at home."""

    crypto: Crypto
    network: Network


class Dev:
    """One device's side of the conversation: no machine, only its keys and counters."""

    def __init__(self, hub: Home, seed: int, token: JoinToken | None = None, name: str = "box") -> None:
        self.hub = hub
        self.crypto = hub.crypto
        self.entropy = seeded(10_000 + seed)
        self.identity = Identity.create(hub.crypto, self.entropy)
        self.token = token
        self.name = name
        self.epoch = 1
        self.seq = 0
        self.boot = self.entropy(16)
        self.facts = {"board": "test"}
        self.map: Signed | None = None
        self.recs: dict[str, dict[str, Any]] = {}
        self.gone: list[str] = []
        self.answers: list[dict[str, Any]] = []

    @property
    def id(self) -> str:
        return self.identity.device_id

    @property
    def net(self) -> str:
        return self.hub.network.id

    def write(
        self, kind: str, body: dict[str, Any], *, topic: str = "", stamp: tuple[int, int] | None = None
    ) -> tuple[str, bytes]:
        self.seq += 1
        epoch, seq = stamp or (self.epoch, self.seq)
        topic = topic or topics.up(self.net, self.id, kind)
        return topic, write_up(
            self.crypto,
            self.entropy,
            self.identity.device_seed,
            self.hub.network.box_key,
            topic,
            kind=kind,
            network=self.net,
            device=self.id,
            epoch=epoch,
            seq=seq,
            wall_s=WALL_S,
            body=body,
        )

    def join(self, token: JoinToken | None = None, **changes: Any) -> tuple[str, bytes]:
        token = token or self.token
        assert token is not None
        body = {
            "claim": token.claim,
            "secret": token.secret,
            "dk": self.identity.device_key,
            "nk": self.identity.node_key,
            "bk": self.identity.box_key,
            "pw": self.identity.password,
            "host": self.name,
            "boot": self.boot,
            "facts": self.facts,
        }
        stamp = changes.pop("stamp", None)
        return self.write("join", {**body, **changes}, topic=topics.join(self.net, token.claim), stamp=stamp)

    def birth(self, **changes: Any) -> tuple[str, bytes]:
        stamp = changes.pop("stamp", None)
        body = {
            "boot": self.boot,
            "ver": "0.1",
            "map": list(self.map.stamp) if self.map else [0, 0],
            "nk": self.identity.node_key,
            "facts": self.facts,
        }
        return self.write("birth", {**body, **changes}, stamp=stamp)

    def ask(self, **question: Any) -> tuple[str, bytes]:
        return self.write("ask", {"id": self.seq + 1, **question})

    def read(self, rows: list[Outgoing]) -> list[tuple[str, dict[str, Any]]]:
        """What of `rows` is for this device, opened, in order: (kind, body)."""
        found = []
        for row in rows:
            topic = topics.parse(row.target) if row.op is Op.PUBLISH else None
            if topic is None or topic.way != "d" or self.id not in (topic.owner, topic.leaf) or not row.payload:
                continue
            kind = "admit" if topic.leaf == self.id else topic.leaf
            signed = read_down(
                self.crypto,
                self.identity.box_private,
                self.hub.network.key,
                row.target,
                row.payload,
                kind=kind,
                network=self.net,
                device=self.id,
            )
            found.append((kind, signed.body))
            self._take(kind, signed)
        return found

    def _take(self, kind: str, signed: Signed) -> None:
        body = signed.body
        if kind == "admit":
            self.answers.append(body)
            if "map" in body:
                self.map = self._open("map", self.id, body["map"])
        elif kind == "map":
            if self.map is None or signed.stamp > self.map.stamp:
                self.map = signed
        elif "rec" in body:
            record = self._open("record", decode(decode(body["rec"])[0])["s"], body["rec"])
            self.recs[record.subject] = {**body, "record": record}
        elif "gone" in body:
            subject = decode(decode(body["gone"])[0])["s"]
            self._open("gone", subject, body["gone"])
            self.gone.append(subject)
            self.recs.pop(subject, None)

    def _open(self, kind: str, subject: str, data: bytes) -> Signed:
        return open_signed(self.crypto, self.hub.network.key, data, kind=kind, network=self.net, subject=subject)


class RelayDev(Dev):
    """A relay's side of it: `fields` is what it says of itself."""

    def __init__(self, hub: Home, seed: int, token: JoinToken, name: str, region: str) -> None:
        super().__init__(hub, 50_000 + seed, token, name)
        self.facts = {"relay": "0.1"}
        self.fields: dict[str, Any] = {
            "rg": region,
            "k": hub.crypto.x25519_base(self.entropy(32)),
            "h": [f"{name}.example:443"],
            "u": 3478,
            "s": 3479,
            "pin": self.entropy(32),
        }

    def say(self, members: int = 0, **changes: Any) -> tuple[str, bytes]:
        self.fields.update(changes)
        return self.write("relay", {**self.fields, "m": members})


def relays_of(hub: Hub, *names: str, region: str = "fra") -> list[RelayDev]:
    """Relays that have joined and are online, and have not yet said what they are."""
    relays = []
    for name in names:
        with hub.store.write() as tx:
            token = actions.invite_relay(hub.scribe, tx, hub.wall_s, region=region)
        relay = RelayDev(hub, crc32(name.encode()), token, name, region)
        hub.hear(relay.join())
        relay.read(hub.sent())
        hub.hear(relay.birth())
        relay.read(hub.sent())
        relays.append(relay)
    return relays


def admitted(hub: Hub, count: int, **options: Any) -> list[Dev]:
    """Devices that have joined, their answers read."""
    token = hub.token(uses=0, **options)
    devices = [Dev(hub, seed, token, name=f"n{seed}") for seed in range(count)]
    hub.hear(*(device.join() for device in devices))
    rows = hub.sent()
    for device in devices:
        device.read(rows)
    return devices


def load_crypto() -> Crypto:
    return providers.load("pynacl")


def row(tx: Tx, device: Dev) -> Any:
    found = tx.device(device.id)
    assert found is not None
    return found


def in_memory(crypto: Crypto, network: Network) -> MemoryStore:
    return MemoryStore(network)
