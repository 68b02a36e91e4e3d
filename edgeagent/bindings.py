"""How rarely a keepalive will do: second sockets at our home relay try out how long the NAT remembers a silent one.

Loaded where it is of use: on a metered uplink nothing is kept alive, and nothing is tried.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgeagent.context import jitter
from edgeagent.io.keystore import StateFile
from edgeagent.io.trials import TrialSockets
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.keepalive import Exchange, Knock
from edgeagent.proto.keepalive_learner import KeepaliveLearner, nat_id
from edgeagent.proto.ledger import Cause
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.relay_trial import RelayTrial, TrialHeard

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Hashable

    from edgeagent.accounts import Accounts
    from edgeagent.context import Context
    from edgeagent.io.trials import Address
    from edgeagent.proto.node import Node

    KnockAt = Callable[[float, str, bytes, tuple[bytes, int]], bool]  # (now, relay, challenge, mapped address)

log = logging.getLogger("edgeagent")
LOOK_S = 30.0  # between two looks at the way to our home, when the device is awake
LOOK_AT_LEAST_S = 6 * 3600.0
SETTLED_S = 120.0  # a way that stayed the same for so long is worth learning about
SAVE_AFTER_S, SAVE_SLACK_S = 900.0, 840.0


class Way:
    """How our home relay's UDP port is reached. What is learnt holds for (`uplink`, `nat`), and is asked of `relay`.

    `device` is the interface to bind a socket to, None where the routes decide; `may_learn` False: use what is known.
    """

    __slots__ = ("device", "may_learn", "nat", "relay", "server", "uplink")

    def __init__(
        self, uplink: str, nat: str, relay: str, server: Address, *, device: str | None = None, may_learn: bool = True
    ) -> None:
        self.uplink = uplink
        self.nat = nat
        self.relay = relay
        self.server = server
        self.device = device
        self.may_learn = may_learn

    def is_as(self, other: Way | None) -> bool:
        """Whether a trial that was begun on the other can go on."""
        if other is None:
            return False
        mine = (self.uplink, self.nat, self.relay, self.server, self.device)
        return mine == (other.uplink, other.nat, other.relay, other.server, other.device)


def way_home(node: Node, accounts: Accounts) -> Way | None:
    """None while no session at our home relay serves, or nobody has said where our UDP port is seen from outside."""
    home, sessions = node.relays.home, node.relays.sessions
    session = None if home is None else sessions.find(home, node.identity.node_key)
    if session is None or session.udp is None or not session.client.alive:
        return None
    address = session.udp.ip_bytes()
    mapped = next((ip for ip, _ in node.outside.mapped_by(sessions.via) if len(ip) == len(address)), None)
    if mapped is None:
        return None
    names = accounts.names
    uplink = names.of_index(sessions.via) if sessions.via else names.of_endpoint(session.udp)
    return Way(
        uplink,
        nat_id(b"" if sessions.via else names.gateway_to(address), mapped),
        session.relay.id,
        session.udp.addr,
        device=uplink if sessions.via else None,
        may_learn=not accounts.policies.budget(uplink).metered,
    )


class Bindings:
    """Drive it: `on_timeout` at `poll_timeout()`; the rest comes by the selector, and by jobs that wait for a wake-up.

    `find_way` is asked now and then, `moves` for how often the relay saw us move: on a way that stayed the same, the
    NAT had forgotten us. `knock` is RelayClient's, `use_interval(now, interval_s, learnt)` hears what to keep to.
    """

    def __init__(
        self,
        now: float,
        context: Context,
        *,
        find_way: Callable[[], Way | None],
        moves: Callable[[], int],
        knock: KnockAt,
        use_interval: Callable[[float, float, bool], None],
    ) -> None:
        self._context = context
        self._find_way = find_way
        self._moves = moves
        self._knock = knock
        self._use_interval = use_interval
        self._sockets = TrialSockets(context.selector, self._heard, self._count)
        self._trials: dict[Hashable, RelayTrial] = {}
        self._way: Way | None = None
        self._way_since = now
        self._moves_seen = 0
        self._will_save = False
        self._told: tuple[float, bool] | None = None  # the interval in use, and whether it was learnt
        self.learner = KeepaliveLearner(jitter)
        self._load()
        self._look(now)

    @property
    def interval_s(self) -> float | None:
        """In use now; None without a way."""
        return None if self._way is None else self.learner.interval_s(self._way.uplink)

    def poll_timeout(self) -> float | None:
        return self.learner.poll_timeout()

    def on_timeout(self, now: float) -> None:
        due = self.learner.poll_timeout()
        if due is not None and due <= now:
            self.learner.handle_timeout(now)
            self._carry(now)

    def close(self) -> None:
        self._sockets.close_all()
        self._trials.clear()
        if self.learner.dirty:
            self._save(0.0)

    def _look(self, now: float) -> None:
        self._context.accounts.defer("bindings", self._look, now + LOOK_AT_LEAST_S, LOOK_AT_LEAST_S - LOOK_S)
        way, before = self._find_way(), self._way
        moves = self._moves()
        moved, self._moves_seen = moves != self._moves_seen, moves
        if way is None or not way.is_as(before):
            self._change_way(now, way)
        if way is not None:
            settled = now - self._way_since >= SETTLED_S
            if moved and settled:
                self.learner.binding_lost(now, way.uplink, self.learner.interval_s(way.uplink))
            self.learner.set_nat(now, way.uplink, way.nat, learn=way.may_learn and settled)
        self._carry(now)

    def _change_way(self, now: float, way: Way | None) -> None:
        if self._way is not None:
            self.learner.remove_uplink(self._way.uplink)
            self._carry(now)
        self._way, self._way_since = way, now
        if way is not None:
            self.learner.set_nat(now, way.uplink, way.nat, learn=False)
            self.learner.drain_events()
            self._tell(now, way)

    def _carry(self, now: float) -> None:
        """Do what the learner wishes, and hand on what it has found."""
        for uplink, wish in self.learner.drain_wishes():
            key = (uplink, wish.trial)
            if isinstance(wish, Exchange):
                self._exchange(now, key)
            elif isinstance(wish, Knock):
                trial = self._trials.get(key)
                if self._way is not None and trial is not None and trial.mapped is not None:
                    self._knock(now, self._way.relay, trial.challenge, trial.mapped)
            else:
                self._sockets.close(key)
                self._trials.pop(key, None)
        for event in self.learner.drain_events():
            log.info("%s: a keepalive is due each %.0f s", event.uplink, event.interval_s)
        if self._way is not None:
            self._tell(now, self._way)
        if self.learner.dirty and not self._will_save:
            self._will_save = True
            self._context.accounts.defer("bindings-save", self._save, now + SAVE_AFTER_S, SAVE_SLACK_S)

    def _tell(self, now: float, way: Way) -> None:
        told = self.learner.interval_s(way.uplink), self.learner.is_learnt(way.uplink)
        if told != self._told:
            self._told = told
            self._use_interval(now, *told)

    def _exchange(self, now: float, key: Hashable) -> None:
        trial = self._trials.get(key)
        if trial is None:
            way = self._way
            if way is None or not self._sockets.open(key, way.server, way.device):
                return
            trial = self._trials[key] = RelayTrial()
        self._sockets.send(now, key, trial.ask(self._context.entropy))

    def _heard(self, now: float, key: Hashable, datagram: bytes) -> None:
        trial = self._trials.get(key)
        if trial is None or not isinstance(key, tuple):
            return
        heard = trial.handle(datagram)
        if heard is TrialHeard.EXCHANGED:
            self.learner.answered(now, *key)
        elif heard is TrialHeard.KNOCKED:
            self.learner.knocked(now, *key)
        self._carry(now)

    def _count(self, now: float, sock: socket.socket, sent: list[bytes], received: list[bytes]) -> None:
        self._context.accounts.meter.aside(now, sock, Cause.KEEPALIVE, sent=sent, received=received)

    def _save(self, _now: float) -> None:
        self._will_save = False
        self._context.save(StateFile.BINDINGS, encode(self.learner.export()))

    def _load(self) -> None:
        data = self._context.load_or_none(StateFile.BINDINGS)
        if data is None:
            return
        try:
            self.learner.load(decode(data, max_bytes=StateFile.BINDINGS.bytes_max))
        except ControlError as error:
            self._context.damaged_files += 1
            log.warning("%s: %s; learning anew", self._context.keystore.path(StateFile.BINDINGS), error)
