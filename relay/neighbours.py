"""The region's other relays, out of the maps of all networks: who they are, and where those are that we are to call."""

from __future__ import annotations

import errno
import logging
from selectors import EVENT_READ, BaseSelector

from edgeagent.io.pinnedtls import Resolver, literal_family
from edgeagent.proto.keys import has_small_order
from edgeagent.proto.names import split_host_port
from edgeagent.proto.relaymap import RelayInfo
from relay.connection import Call, Place
from relay.core.admission import Neighbour

log = logging.getLogger("edgerelay")

RESOLVE_AGAIN_S = 300.0
RETRY_S = 10.0  # after there was no descriptor or no thread for a look-up


class Neighbourhood:
    """All of them by relay key, and the calls to those whose key is behind ours: of two relays one calls the other."""

    __slots__ = ("calls", "neighbours")

    def __init__(self, neighbours: dict[bytes, Neighbour], calls: list[Call]) -> None:
        self.neighbours = neighbours
        self.calls = calls


class Neighbours:
    """`set` what a network's map says; look at `take` after it and after descriptors of `selector` were ready, and call
    `on_timeout` at `poll_timeout()`. Names are looked up in a thread, one at a time.
    """

    def __init__(self, own_key: bytes, selector: BaseSelector) -> None:
        self._own_key = own_key
        self._selector = selector
        self._of: dict[str, list[RelayInfo]] = {}
        self._addresses: dict[str, str] = {}  # host name → address
        self._wanted: list[str] = []  # host names to be looked up
        self._resolver: tuple[str, Resolver] | None = None
        self._again_at: float | None = None
        self._changed = False

    def set(self, now: float, network: str, others: list[RelayInfo]) -> None:
        self._of[network] = others
        self._changed = True
        self._look_up_all(now)

    def poll_timeout(self) -> float | None:
        return self._again_at

    def on_timeout(self, now: float) -> None:
        if self._again_at is not None and now >= self._again_at:
            self._look_up_all(now)

    def take(self) -> Neighbourhood | None:
        """What is now, when it is other than before."""
        if not self._changed:
            return None
        self._changed = False
        names: dict[bytes, str] = {}
        networks: dict[bytes, set[str]] = {}
        places: dict[bytes, dict[Place, None]] = {}
        for network in sorted(self._of):
            for info in self._of[network]:
                if has_small_order(info.key):
                    continue
                names.setdefault(info.key, info.id)
                networks.setdefault(info.key, set()).add(network)
                address = self._address(info)
                if self._own_key < info.key and address is not None:
                    place = Place(info.id, *address, info.certificate_sha256)
                    places.setdefault(info.key, {})[place] = None
        neighbours = {key: Neighbour(name, frozenset(networks[key])) for key, name in names.items()}
        return Neighbourhood(neighbours, [Call(key, list(of)) for key, of in places.items()])

    def close(self) -> None:
        if self._resolver is not None:
            self._selector.unregister(self._resolver[1].wake)
            self._resolver[1].close()
            self._resolver = None

    def _address(self, info: RelayInfo) -> tuple[str, int] | None:
        """Its first address; one that is written as such goes before those that names lead to."""
        parsed = [split_host_port(host) for host in info.hosts]
        for host, port in parsed:
            if literal_family(host) is not None:
                return host, port
        for host, port in parsed:
            if host in self._addresses:
                return self._addresses[host], port
        return None

    def _look_up_all(self, now: float) -> None:
        names = [
            split_host_port(host)[0]
            for others in self._of.values()
            for info in others
            if self._own_key < info.key
            for host in info.hosts
        ]
        self._wanted = [name for name in dict.fromkeys(names) if literal_family(name) is None]
        self._again_at = now + RESOLVE_AGAIN_S if self._wanted else None
        self._look_up_next(now)

    def _look_up_next(self, now: float) -> None:
        if self._resolver is not None or not self._wanted:
            return
        name = self._wanted[0]
        try:
            resolver = Resolver(name, 0)
            try:
                if not resolver.asked:
                    raise OSError(errno.EAGAIN, resolver.error)
                self._selector.register(resolver.wake, EVENT_READ, self._resolved)
            except OSError:
                resolver.close()
                raise
        except OSError as error:
            log.warning("sibling: %s: %s", name, error.strerror)
            self._again_at = now + RETRY_S
            return
        del self._wanted[0]
        self._resolver = (name, resolver)

    def _resolved(self, now: float, fd: int) -> None:
        assert self._resolver is not None
        name, resolver = self._resolver
        if not resolver.done:
            return
        self.close()
        if resolver.addresses:
            address: str = resolver.addresses[0][1][0]
            if self._addresses.get(name) != address:
                self._addresses[name] = address
                self._changed = True
        else:
            log.warning("sibling: %s", resolver.error)
        self._look_up_next(now)
