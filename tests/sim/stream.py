"""A TCP connection as the control plane sees it: in order, whole, late, stalled while nothing passes, and then dead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from tests.sim.net import Host, Net, Way
from tests.sim.world import Action, Ticket

RTO_FIRST_S, RTO_MAX_S = 0.5, 16.0
SILENCE_PER_KEEPALIVE = 1.5  # MQTT 3.1.1, section 3.1.2.10
IN_FLIGHT_MAX = 20_000  # messages in one direction; a machine that writes without end is a failure


class Side(Enum):
    CLIENT = "client"
    SERVER = "server"


class _Way:
    """One direction: what is to happen at the other side, and when at the earliest."""

    __slots__ = ("last_at", "queue", "rto_s", "ticket")

    def __init__(self) -> None:
        self.queue: deque[tuple[float, Action]] = deque()
        self.last_at = 0.0
        self.rto_s = RTO_FIRST_S
        self.ticket: Ticket | None = None


class Stream:
    """From `client` to the host that has `address`. `send` calls an action when the bytes would have come through.

    `lost(side)` is called once for each side that learns that the connection is over without having closed it.
    `keepalive_s` is MQTT's: after one and a half of it without a way through, both sides give up.
    """

    def __init__(self, net: Net, client: Host, address: str, keepalive_s: float, lost: Callable[[Side], None]) -> None:
        self._net = net
        self._world = net.world
        self._client = client
        self._address = address
        route = client.route(address)
        self.source = None if route is None else route[0].address
        self._lost = lost
        self._keepalive_s = keepalive_s
        self._ways = {Side.CLIENT: _Way(), Side.SERVER: _Way()}
        self._chance = net.world.stream(f"stream/{client.name}/{net.world.steps}")
        self._silent_since: float | None = None
        self._gone: set[Side] = set()
        net.streams[self] = None

    def is_open(self, side: Side) -> bool:
        """Whether `side` believes in the connection."""
        return side not in self._gone

    def way(self) -> Way | None:
        """None while nothing passes."""
        if self.source is None or self.source not in self._client.addresses() or not self._client.up:
            return None
        way = self._net.way(self._client, self._address)
        return way if way is not None and isinstance(way.end, Host) and way.end.up else None

    def send(self, sender: Side, action: Action) -> None:
        """Call `action` when what `sender` writes now has reached the other side, if it ever does."""
        if sender in self._gone:
            return
        way = self._ways[sender]
        if len(way.queue) >= IN_FLIGHT_MAX:
            self._world.fail(f"{self._client.name}: {IN_FLIGHT_MAX} MQTT packets under way from the {sender.value}")
        at = max(self._world.now + self._transmission_s(), way.last_at)
        way.last_at = at
        way.queue.append((at, action))
        if way.ticket is None:
            way.ticket = self._world.at(at, lambda: self._pump(sender))

    def close(self, by: Side) -> None:
        """`by` ends it in good order: the other side hears of it after everything sent before."""
        if by in self._gone:
            return
        other = Side.SERVER if by is Side.CLIENT else Side.CLIENT
        self.send(by, lambda: self._end(other))
        self._gone.add(by)
        self.look()

    def die(self, side: Side) -> None:
        """`side` loses power: it says nothing more, and the other finds out by itself."""
        self._gone.add(side)
        self._ways[side].queue.clear()
        self.look()

    def _transmission_s(self) -> float:
        """How long one segment takes that is sent now, with those of its copies that are lost."""
        way = self.way()
        if way is None:
            return 0.0
        took_s, rto_s = way.delay_s, RTO_FIRST_S
        while way.loss and rto_s < RTO_MAX_S and self._chance.random() < way.loss:
            took_s += rto_s
            rto_s *= 2
        return took_s

    def _pump(self, sender: Side) -> None:
        way = self._ways[sender]
        way.ticket = None
        other = Side.SERVER if sender is Side.CLIENT else Side.CLIENT
        if other in self._gone:
            way.queue.clear()
            return
        if not way.queue:
            return
        if self.way() is None:
            way.ticket = self._world.after(way.rto_s, lambda: self._pump(sender))
            way.rto_s = min(RTO_MAX_S, 2 * way.rto_s)
            return
        way.rto_s = RTO_FIRST_S
        _, action = way.queue.popleft()
        action()
        if way.queue and way.ticket is None:
            way.ticket = self._world.at(way.queue[0][0], lambda: self._pump(sender))

    def look(self) -> None:
        """The network, or one of the sides, has changed."""
        if len(self._gone) == 2:
            self._net.streams.pop(self, None)
        elif self._is_silent() and self._silent_since is None:
            self._silent_since = self._world.now
            self._world.after(self._keepalive_s * SILENCE_PER_KEEPALIVE, self._keepalive)

    def _is_silent(self) -> bool:
        return bool(self._gone) or self.way() is None

    def _keepalive(self) -> None:
        """Both sides have heard nothing for so long, unless something passed in between."""
        if not self._is_silent():
            self._silent_since = None
        elif len(self._gone) < 2:
            self._end(Side.CLIENT)
            self._end(Side.SERVER)
        self.look()

    def _end(self, side: Side) -> None:
        if side in self._gone:
            return
        self._gone.add(side)
        self._ways[side].queue.clear()
        self.look()
        self._lost(side)
