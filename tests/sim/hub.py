"""The hub as a process: the production coordinator on a store in memory, with an outbox that survives its death."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from edgeagent.proto import topics
from edgeagent.proto.keys import Entropy, generate_private_key
from edgeagent.proto.names import network_id
from edgeagent.proto.token import Token as JoinToken
from hub.core import actions, chores
from hub.core.coordinator import Coordinator
from hub.core.memory import MemoryStore
from hub.core.model import Device as DeviceRow
from hub.core.model import Network, Op, Outgoing
from hub.core.scribe import Scribe
from tests.sim.broker import HUB_USER, Broker, Connection, Login
from tests.sim.broker import Role as AccountRole
from tests.sim.flash import Fuse, PowerCut
from tests.sim.net import Host
from tests.sim.tunnel import CRYPTO
from tests.sim.world import Action, Ticket, World

Backup = dict[str, dict[Any, Any]]

COMMIT_AFTER_S = 0.005  # messages that come together share a transaction
RECONNECT_S = 2.0
IN_FLIGHT_MAX = 256
KEEPALIVE_S = 30.0
CA_DER = b"the network's CA certificate, which nobody checks here"


class SimHub:
    """`kill` is kill -9, at any step of what it is doing; what was committed stays. `start` brings it back."""

    def __init__(self, world: World, host: Host, broker_address: str) -> None:
        self.world = world
        self.host = host
        self.fuse = Fuse()
        self._entropy = world.stream("hub/entropy").randbytes
        self.network = make_network(self._entropy, broker_address)
        self.store = MemoryStore(self.network)
        self.broker: Broker | None = None
        self.is_up = False
        self.chores_every_s = 60.0
        self.drops: dict[str, int] = {}
        self.coordinator = Coordinator(CRYPTO, self._entropy, self.network)
        self._connection: Connection | None = None
        self._inbox: list[tuple[str, bytes, int | None]] = []
        self._in_flight: dict[int, int] = {}  # message id: outbox row
        self._sent: dict[int, None] = {}  # rows on their way
        self._tickets: list[Ticket] = []
        self._commit_ticket: Ticket | None = None

    @property
    def scribe(self) -> Scribe:
        return self.coordinator.scribe

    @property
    def wall_s(self) -> int:
        return int(self.world.wall_s)

    # The process

    def start(self, broker: Broker) -> None:
        if self.is_up:
            return
        self.broker = broker
        broker.admit(HUB_USER, "the hub's password", AccountRole.HUB)
        self.is_up = True
        self.coordinator = Coordinator(CRYPTO, self._entropy, self.network)
        self.world.note("hub: started")
        self._connect()
        self._look_at_dates()

    def kill(self) -> None:
        """kill -9: the kernel closes its connection."""
        if not self.is_up:
            return
        self.is_up = False
        self.world.note("hub: killed")
        for reason, count in self.coordinator.drops.items():
            self.drops[reason.value] = self.drops.get(reason.value, 0) + count
        if self._connection is not None:
            self._connection.close(politely=False)
        self._forget_connection()
        for ticket in self._tickets:
            ticket.cancel()
        self._tickets.clear()
        self._inbox.clear()

    def restart(self, *, down_s: float) -> None:
        assert self.broker is not None
        broker = self.broker
        self.kill()
        self.world.after(down_s, lambda: self.start(broker))

    # An operator's actions, which work while the process is down: the store is there

    def create_token(self, *, uses: int = 1, not_after: int = 0, needs_approval: bool = False) -> JoinToken:
        with self.store.write() as tx:
            token = actions.create_token(
                self.scribe, tx, self.wall_s, uses=uses, not_after=not_after, needs_approval=needs_approval
            )
        self._guarded(self._work)
        return token

    def remove(self, device_id: str) -> None:
        with self.store.write() as tx:
            row = tx.device(device_id)
            assert row is not None
            actions.remove_device(self.scribe, tx, row, self.wall_s)
        self.world.note(f"hub: removed {device_id}")
        self._guarded(self._work)

    def approve(self, device_id: str) -> None:
        with self.store.write() as tx:
            row = tx.device(device_id)
            assert row is not None
            actions.approve_device(self.scribe, tx, row, self.wall_s)
        self._guarded(self._work)

    def go_on(self) -> None:
        """Somebody has written to the store: see to what that left to do."""
        self._guarded(self._work)

    def device(self, device_id: str) -> DeviceRow | None:
        with self.store.read() as tx:
            return tx.device(device_id)

    def all_drops(self) -> dict[str, int]:
        """Over all lives, by reason."""
        total = dict(self.drops)
        for reason, count in self.coordinator.drops.items():
            total[reason.value] = total.get(reason.value, 0) + count
        return total

    # The safety net

    def backup(self) -> Backup:
        """Everything in the store, as `edgehub backup` copies it."""
        return copy.deepcopy(self.store._tables)

    def restore(self, backup: Backup) -> None:
        """`edgehub restore` into a hub that is down: an older store, under a higher epoch."""
        assert not self.is_up
        self.network = replace(self.network, epoch=max(self.network.epoch + 1, self.wall_s))
        self.store = MemoryStore(self.network)
        self.store._tables.update(copy.deepcopy(backup))
        with self.store.write() as tx:
            tx.drop_outgoing([row.id for row in tx.outgoing(limit=1_000_000) if row.op is Op.PUBLISH])
            actions.start_again(tx, self.wall_s)
        self.world.note(f"hub: restored, epoch {self.network.epoch}")

    # The connection

    def _connect(self) -> None:
        if not self.is_up or self.broker is None or self._connection is not None:
            return
        with self.store.write() as tx:
            up, down = self.scribe.hub_states(tx, self.wall_s)
        topic = topics.hub_state(self.network.id)
        login = Login(
            HUB_USER, HUB_USER, "the hub's password", clean=False, keepalive_s=KEEPALIVE_S, will=(topic, down)
        )
        self._connection = Connection(
            self.broker,
            self.host,
            login,
            on_connected=lambda _present: self._guarded(lambda: self._connected(topic, up)),
            on_closed=lambda _refused: self._closed(),
            on_message=self._message,
            on_acked=lambda mid: self._guarded(lambda: self._acked(mid)),
            acks_late=True,
        )

    def _connected(self, topic: str, up: bytes) -> None:
        connection = self._connection
        assert connection is not None
        connection.subscribe(topics.hub_filter(self.network.id))
        connection.publish(topic, up, qos=1, retain=True)
        self._pump()

    def _closed(self) -> None:
        self._forget_connection()
        self._tickets.append(self.world.after(RECONNECT_S, self._connect))
        self._tickets = [ticket for ticket in self._tickets if ticket.action is not None]

    def _forget_connection(self) -> None:
        self._connection = None
        self._in_flight.clear()
        self._sent.clear()
        self._inbox.clear()  # not acknowledged: they come again
        if self._commit_ticket is not None:
            self._commit_ticket.cancel()
            self._commit_ticket = None

    # Messages in: one transaction, then the acknowledgements

    def _message(self, topic: str, payload: bytes, mid: int | None) -> None:
        self._inbox.append((topic, payload, mid))
        if self._commit_ticket is None:
            self._commit_ticket = self.world.after(COMMIT_AFTER_S, lambda: self._guarded(self._commit))

    def _commit(self) -> None:
        self._commit_ticket = None
        inbox, self._inbox = self._inbox, []
        with self.store.write() as tx:
            for topic, payload, _ in inbox:
                self.coordinator.handle_message(self.world.now, self.wall_s, tx, topic, payload)
                self.fuse.step()
        self.fuse.step()
        for _, _, mid in inbox:
            if mid is not None and self._connection is not None:
                self._connection.ack(mid)
                self.fuse.step()
        self._work()

    def _work(self) -> None:
        """Small jobs become rows, each batch in a transaction, but no more than can be sent soon."""
        while self.is_up:
            with self.store.write() as tx:
                if tx.outgoing_depth() >= IN_FLIGHT_MAX or not chores.work(self.scribe, tx, self.wall_s):
                    break
            self.fuse.step()
        self._pump()

    def _look_at_dates(self) -> None:
        if not self.is_up:
            return
        with self.store.write() as tx:
            chores.look_at_dates(self.scribe, tx, self.wall_s)
        self._guarded(self._work)
        self._tickets = [ticket for ticket in self._tickets if ticket.action is not None]
        self._tickets.append(self.world.after(self.chores_every_s, self._look_at_dates))

    # Messages out: a row stays until the broker has confirmed it

    def _pump(self) -> None:
        connection = self._connection
        if not self.is_up or connection is None or not connection.is_up:
            return
        with self.store.read() as tx:
            rows = tx.outgoing(limit=IN_FLIGHT_MAX)
        for row in rows:
            if row.id in self._sent:
                continue
            if len(self._sent) >= IN_FLIGHT_MAX:
                return
            self._sent[row.id] = None
            if row.op is Op.PUBLISH:
                mid = connection.publish(row.target, row.payload, qos=1, retain=row.retain)
                self._in_flight[mid] = row.id
            else:
                self._change_account(connection, row)
            self.fuse.step()

    def _change_account(self, connection: Connection, row: Outgoing) -> None:
        """As a message to the broker's own topic, which answers."""
        broker = connection.broker

        def arrived() -> None:
            if row.op is Op.REVOKE:
                broker.revoke(row.target)
            elif row.op is Op.REPASS:
                broker.change_password(row.target, row.payload.decode())
            else:
                broker.admit(row.target, row.payload.decode(), AccountRole(row.role.value))
            connection.call_client(lambda: self._guarded(lambda: self._done([row.id])))

        connection.call_broker(arrived)

    def _acked(self, mid: int) -> None:
        row = self._in_flight.pop(mid, None)
        if row is not None:
            self._done([row])

    def _done(self, rows: list[int]) -> None:
        self.fuse.step()
        with self.store.write() as tx:
            tx.drop_outgoing(rows)
        for row in rows:
            self._sent.pop(row, None)
        self._work()

    def _guarded(self, action: Action) -> None:
        """A blown fuse is a kill -9 at that step."""
        if not self.is_up:
            return
        try:
            action()
        except PowerCut:
            self.restart(down_s=5.0)


def make_network(entropy: Entropy, broker_address: str) -> Network:
    seed, box_private = entropy(32), generate_private_key(entropy)
    key = CRYPTO.ed25519_public(seed)
    return Network(
        id=network_id(CRYPTO, key),
        domain="mesh.test",
        seed=seed,
        key=key,
        box_private=box_private,
        box_key=CRYPTO.x25519_base(box_private),
        epoch=1,
        ca_der=CA_DER,
        hosts=(f"{broker_address}:8883",),
    )
