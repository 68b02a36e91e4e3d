"""Three hubs on one PostgreSQL server and three NATS servers in a cluster: any of them is killed under load."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from edgeagent.proto import topics
from edgeagent.proto.devicemap import DeviceMap
from hub.core.events import Webhook
from hub.core.model import Op, Outgoing
from hub.store import hooks
from hub.store.schema import delivery
from tests.hub.kit import Dev
from tests.hub.natsnodes import NatsTogether, needs_nats
from tests.hub.postgres import PostgresServer
from tests.hub.rig import Client
from tests.hub.test_together import wait_until

ASKERS, ASKS, AT_ONCE = 6, 30, 4


class Asker:
    """A device with a persistent session, which goes on to the next node when its own is gone, and repeats what no node
    has confirmed. What it asks is there: `n0`, `n1`, …"""

    def __init__(self, together: NatsTogether, device: Dev, first: int) -> None:
        self.together, self.device, self.at = together, device, first
        self.friends = [name for name in (f"n{seed}" for seed in range(ASKERS - 1)) if name != device.name]
        self.client: Client | None = None
        self.asked: dict[int, tuple[str, bytes]] = {}
        self.unconfirmed: dict[int, int] = {}  # ask: message id
        self.answers: dict[int, set[bytes]] = {}
        self.moves = 0

    @property
    def port(self) -> int:
        return self.together.nodes[self.at].mqtt

    def connect(self) -> None:
        assert self.device.map is not None
        session, password = self.device.identity.broker_login(self.device.net, DeviceMap(self.device.map))
        rig = self.together.nats
        for _ in range(200):
            rig.port = self.port
            try:
                client = Client(rig, self.device.id, password, session, clean=False)
            except OSError:
                self._next()
                continue
            if client.code == 0:
                break
            client.close()
            self._next()
        assert client.code == 0
        self.client = client
        if not client.session_present:
            assert client.subscribe(f"em1/{self.device.net}/{self.device.id}/d/#")
        for ask in self.unconfirmed:
            self.unconfirmed[ask] = client.send(*self.asked[ask])

    def _next(self) -> None:
        self.at = (self.at + 1) % len(self.together.nodes)
        self.moves += 1
        time.sleep(0.1)

    def ask(self) -> None:
        assert self.client is not None
        number = self.device.seq + 1
        self.asked[number] = self.device.ask(h=self.friends[number % len(self.friends)])
        self.unconfirmed[number] = self.client.send(*self.asked[number])

    def turn(self) -> None:
        if self.client is None or self.client.ended:
            self._next()
            self.connect()
        assert self.client is not None
        self.client.turn(0.005)
        self.unconfirmed = {ask: mid for ask, mid in self.unconfirmed.items() if not self.client.is_confirmed(mid)}
        for topic, payload, _ in self.client.take():
            for kind, body in self.device.read([Outgoing(Op.PUBLISH, topic, payload)]):
                if kind == "rec" and "id" in body:
                    assert "no" not in body
                    self.answers.setdefault(body["id"], set()).add(payload)

    @property
    def open(self) -> int:
        return len(self.asked) - len(self.answers)


@pytest.fixture
def together(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[NatsTogether]:
    with contextlib.ExitStack() as stack:
        made = NatsTogether(tmp_path, postgres_server.url(postgres_server.database()))
        stack.callback(made.end)
        made.wait_ready()
        yield made


def join(together: NatsTogether) -> list[Dev]:
    """Each through another node."""
    rig = together.nats
    with together.store.write() as tx:
        hooks.add(tx.connection, Webhook("h", "http://127.0.0.1:9/", "secret", ("device.joined",), 1))
    token = rig.token("--uses", str(ASKERS))
    devices = [Dev(rig, seed, token, f"n{seed}") for seed in range(ASKERS)]
    for number, device in enumerate(devices):
        topic = topics.admit(rig.network.id, token.claim, device.id)
        node = together.nodes[number % len(together.nodes)]
        client = rig.at(node, token.claim, token.password(rig.crypto), device.identity.session_id(rig.network.box_key))
        assert client.code == 0 and client.subscribe(topic)
        client.publish(*device.join())
        device.read([Outgoing(Op.PUBLISH, topic, client.expect(topic))])
        client.close()
        assert device.answers[0].get("ok")
    return devices


def under_load(together: NatsTogether, askers: list[Asker], kill: Callable[[], None]) -> float:
    """Every asker asks so often, and `kill` comes in the middle. The longest time without an answer to anybody, s."""
    wanted = {asker: len(asker.asked) + ASKS for asker in askers}
    half = sum(wanted.values()) - ASKS * len(askers) // 2
    killed, gap_s, last, seen = False, 0.0, time.monotonic(), -1

    def turn() -> None:
        nonlocal killed, gap_s, last, seen
        for asker in askers:
            asker.turn()
            if len(asker.asked) < wanted[asker] and asker.open < AT_ONCE:
                asker.ask()
        answered = sum(len(asker.answers) for asker in askers)
        now = time.monotonic()
        if answered != seen:
            gap_s, last, seen = max(gap_s, now - last), now, answered
        if not killed and sum(len(asker.asked) for asker in askers) >= half:
            killed = True
            kill()

    wait_until(lambda: all(len(a.asked) == wanted[a] and not a.open for a in askers), "all answers", turn)
    assert killed
    for asker in askers:
        assert sorted(asker.answers) == sorted(asker.asked), "each was answered"
        assert all(len(payloads) == 1 for payloads in asker.answers.values()), "and once"
    return gap_s


@needs_nats
@pytest.mark.slow  # three hubs and three nodes start, and five of them again
def test_nothing_is_lost_whatever_is_killed(
    together: NatsTogether, record_property: Callable[[str, object], None]
) -> None:
    rig, store = together.nats, together.store
    devices = join(together)
    askers = [Asker(together, device, number % 3) for number, device in enumerate(devices)]
    for asker in askers:
        asker.connect()
    with store.read() as tx:
        assert len(set(tx.connection.execute(select(delivery.c.body)).scalars())) == ASKERS, (
            "each join is an event once"
        )

    def kill_an_askers_node() -> None:
        leaders = together.leaders_node()
        together.kill_node(next(node for node in (together.nodes[asker.at] for asker in askers) if node is not leaders))

    def kill_both() -> None:
        together.kill_node(together.leaders_node())
        together.kill(together.leading())

    gaps = {}
    gaps["nothing"] = under_load(together, askers, lambda: None)
    gaps["the hub that leads"] = under_load(together, askers, lambda: together.kill(together.leading()))
    together.wait_ready()
    gaps["a hub that waits"] = under_load(together, askers, lambda: together.kill(together.waiting()))
    together.wait_ready()
    gaps["the leader's node"] = under_load(together, askers, lambda: together.kill_node(together.leaders_node()))
    # While a node is away: who is removed then is refused there when it is back, and who joins then is let in.
    leaver = devices.pop()
    askers.pop()
    rig.run("devices", "remove", "n5")
    rig.wait_settled()
    gone = together.down[0]
    together.bring_back()
    assert leaver.map is not None
    session, password = leaver.identity.broker_login(leaver.net, DeviceMap(leaver.map))

    def refused() -> bool:
        with contextlib.suppress(OSError), contextlib.closing(rig.at(gone, leaver.id, password, session)) as client:
            return client.code != 0
        return False

    wait_until(refused, "a node that was away to know who was removed", lambda: time.sleep(0.5))
    gaps["a device's node"] = under_load(together, askers, kill_an_askers_node)
    together.bring_back()
    gaps["both"] = under_load(together, askers, kill_both)
    together.bring_back()
    together.wait_ready()
    for what, gap_s in gaps.items():
        record_property(f"longest time without an answer, killed: {what}", f"{gap_s:.1f} s")
        print(f"killed {what}: longest time without an answer {gap_s:.2f} s")
