"""A member's connections to relays, and the look-up of relays' names: carried between the node and the system."""

from __future__ import annotations

import logging
from collections import deque
from selectors import EVENT_READ
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

from edgeagent.io.pinnedtls import Resolver
from edgeagent.io.proxy import parse_proxy
from edgeagent.io.relaystream import Closed, Data, Flow, Opened, RelayStreams

if TYPE_CHECKING:
    from socket import socket

    from edgeagent.context import Context
    from edgeagent.proto.causes import Carried
    from edgeagent.proto.node import Node

log = logging.getLogger("edgeagent")
LOOK_UP_AGAIN_S = 30.0  # after a look-up that failed, doubled each time
LOOK_UP_ANEW_S = 6 * 3600.0  # after one that did not, and at the most: relays move rarely
LOOK_UPS_MAX = 64  # that wait; one is under way at a time


class RelayLinks:
    """Drive it: `look_up` when names or the network changed, `on_timeout` at `poll_timeout()`, `settle` after any input
    to the node.

    Names that were not found are asked for again, ever more rarely; where it costs, only when a connection is wanted.
    """

    def __init__(self, context: Context, node: Node) -> None:
        self._node = node
        self._selector = context.selector
        proxy = parse_proxy(context.settings.proxy)
        # A relay inside the mesh would be a tunnel in itself
        self.streams = RelayStreams(context.selector, proxy, avoid=lambda address: node.map.holds(address))
        self._said = ""  # the last reason why a connection ended
        self._waiting: deque[tuple[str, str, int]] = deque(maxlen=LOOK_UPS_MAX)  # relay, name, port
        self._found: dict[str, list[tuple[bytes, int]]] = {}  # by relay, of this round over all names
        self._resolver: Resolver | None = None
        self._asked: tuple[str, str, int] = ("", "", 0)
        self._anew_at: float | None = None  # all of them
        self._again_at: float | None = None  # those that were not found
        self._failing: dict[str, None] = {}  # their names
        self._failures = 0  # how often in a row some were not
        self._ended_at = 0.0  # when the last one was asked for that was not found

    def look_up(self, now: float) -> None:
        """Begin a round over all names."""
        self._failures = 0
        self._look_up_all(now)

    def carried_of(self, sock: socket) -> Carried | None:
        """What a connection carried for members; None once its session has ended."""
        number = self.streams.number_of(sock)
        return None if number is None else self._node.relays.sessions.carried(number)

    def poll_timeout(self) -> float | None:
        if self.streams.events:  # what came of `settle`
            return 0.0
        times = (self.streams.poll_timeout(), self._anew_at, self._again_at)
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        due = self.streams.poll_timeout()
        if due is not None and due <= now:
            self.streams.on_timeout(now)
        if self._anew_at is not None and self._anew_at <= now:
            self._look_up_all(now)
        elif self._again_at is not None and self._again_at <= now:
            self._again_at = None
            if not self._node.relays.on_demand:
                self._look_up_failing(now)
        events = self.streams.events
        while events:
            event = events.popleft()
            if isinstance(event, Data):
                self._node.handle_stream(now, event.number, event.data)
            elif isinstance(event, Flow):
                self._node.stream_blocked(event.number, blocked=event.blocked)
            elif isinstance(event, Opened):
                self._node.stream_opened(now, event.number)
            elif isinstance(event, Closed):
                level = logging.INFO if event.reason != self._said else logging.DEBUG
                self._said = event.reason
                log.log(level, "connection to a relay: %s", event.reason)
                self._node.stream_closed(now, event.number)

    def settle(self, now: float) -> None:
        """Hand on what the node wants of its relays."""
        for wish in self._node.drain_stream_wishes():
            if wish.open:
                if wish.relay.id in self._relays_not_found() and now >= self._ended_at + LOOK_UP_AGAIN_S:
                    self._look_up_failing(now)
                self.streams.open(now, wish.number, wish.relay.hosts)
            else:
                self.streams.close(wish.number)
        for number, data in self._node.drain_stream_writes():
            self.streams.write(now, number, data)

    def close(self) -> None:
        self.streams.close_all()
        if self._resolver is not None:
            self._selector.unregister(self._resolver.wake)
            self._resolver.close()
            self._resolver = None

    def _look_up_all(self, now: float) -> None:
        self._waiting.clear()
        self._waiting.extend(self._node.relays.names_to_resolve())
        self._found = {}
        self._failing = {name: None for _, name, _ in self._waiting if name in self._failing}
        self._anew_at = now + LOOK_UP_ANEW_S if self._waiting else None
        self._again_at = None
        self._next(now)

    def _look_up_failing(self, now: float) -> None:
        if not self._waiting and self._resolver is None:
            self._waiting.extend(each for each in self._node.relays.names_to_resolve() if each[1] in self._failing)
            self._failing = {name: None for _, name, _ in self._waiting}
            self._again_at = None
            self._next(now)

    def _relays_not_found(self) -> list[str]:
        if not self._failing:
            return []
        return [relay for relay, name, _ in self._node.relays.names_to_resolve() if name in self._failing]

    def _next(self, now: float) -> None:
        while self._resolver is None and self._waiting:
            self._asked = self._waiting.popleft()
            relay, name, port = self._asked
            try:
                self._resolver = Resolver(name, port)
            except OSError as error:  # no descriptor is left
                self._not_found(now, relay, name, str(error.strerror))
            else:
                self._selector.register(self._resolver.wake, EVENT_READ, self._resolved)
        if self._resolver is None and self._failing and self._again_at is None:
            self._again_at = now + min(LOOK_UP_AGAIN_S * (1 << min(self._failures, 10)), LOOK_UP_ANEW_S)
            self._failures += 1
        elif not self._failing:
            self._failures = 0

    def _resolved(self, now: float, _fd: int) -> None:
        resolver = self._resolver
        if resolver is None or not resolver.done:
            return
        self._selector.unregister(resolver.wake)
        self._resolver = None
        resolver.close()
        if self._asked in self._node.relays.names_to_resolve():  # the map may be another by now
            self._take(now, resolver)
        self._next(now)

    def _take(self, now: float, resolver: Resolver) -> None:
        relay, name, port = self._asked
        if resolver.error:
            self._not_found(now, relay, name, resolver.error)
        else:
            self._failing.pop(name, None)
        found = self._found.setdefault(relay, [])
        for family, address in resolver.addresses:
            if family in (AF_INET, AF_INET6):
                found.append((inet_pton(family, address[0].partition("%")[0]), port))
        if found:
            self._node.handle_relay_addresses(now, relay, list(dict.fromkeys(found)))

    def _not_found(self, now: float, relay: str, name: str, why: str) -> None:
        log.log(logging.DEBUG if name in self._failing else logging.WARNING, "relay %s: %s", relay, why)
        self._failing[name] = None
        self._ended_at = now
