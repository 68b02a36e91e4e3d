"""Ports that routers open on request: the sockets around PortMapper, and UPnP where a router knows nothing better."""

from __future__ import annotations

import socket
from contextlib import suppress
from selectors import EVENT_READ
from struct import Struct
from typing import TYPE_CHECKING, Any

from edgeagent.proto.natpmp import ANNOUNCE_PORT, SERVER_PORT
from edgeagent.proto.portmap import GATEWAYS_MAX, PortMapper

if TYPE_CHECKING:
    from collections.abc import Callable
    from selectors import BaseSelector

    from edgeagent.io.upnp import UpnpWorker
    from edgeagent.proto.portmap_upnp import UpnpPlan
    from edgeagent.proto.records import UdpAddress

Uplink = tuple[str, bytes, bytes, int]  # interface, gateway, own address on it (4 or 16 B both), port to be opened

READS_PER_TURN_MAX = 16
CLOSE_WAIT_S = 4.0  # for a router to be found again and to take back what UPnP opened
_DATAGRAM_BYTES = 1_101  # one more than PCP allows
_ANCILLARY_BYTES = 128
_ALL_HOSTS = "224.0.0.1"
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_INDEX4 = Struct("=i")  # what struct in_pktinfo begins with
_INDEX6 = Struct("=16xi")  # struct in6_pktinfo
_MEMBERSHIP = Struct("=4s4xi")  # struct ip_mreqn: group, any address, interface
_LINK_LOCAL = b"\xfe\x80"


class PortMapShell:
    """Drive it: `set_uplinks` with all there are, whenever they change; its descriptors are in `selector`, to be called
    as `key.data(now, key.fd)`; `on_timeout` at `poll_timeout()`; `close` at the end. When `changed`, `mappings()` has
    others than before: the owner sets it back.

    UPnP is asked where a router has answered neither PCP nor NAT-PMP, if `miniupnpc` is installed. Raises nothing.
    """

    def __init__(self, selector: BaseSelector, entropy: Callable[[int], bytes], jitter: Callable[[], float]) -> None:
        self.changed = False
        self.failed_sends = 0
        self._selector = selector
        self._jitter = jitter
        self._mapper = PortMapper(entropy, jitter)
        self._uplinks: dict[tuple[str, int], Uplink] = {}  # by interface and length of its address
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        self._listeners: dict[int, socket.socket] = {}  # for announcements, by length of an address
        self._told: list[UdpAddress] = []
        self._upnp: UpnpPlan | None = None  # once a router was found silent
        self._worker: UpnpWorker | None = None

    def set_uplinks(self, now: float, uplinks: list[Uplink]) -> None:
        """The first entry for each interface and address family counts, and GATEWAYS_MAX of those. What is as before
        stays.

        An address that cannot be bound (not there yet, gone already) is tried again with the next call.
        """
        wanted: dict[tuple[str, int], Uplink] = {}
        for uplink in uplinks:
            if len(wanted) < GATEWAYS_MAX:
                wanted.setdefault((uplink[0], len(uplink[2])), uplink)
        for key in [key for key, uplink in self._uplinks.items() if wanted.get(key) != uplink]:
            self._remove(now, key)
        for key, uplink in wanted.items():
            if key not in self._uplinks:
                self._add(now, key, uplink)
        for size in (4, 16):
            self._listen(size, any(key[1] == size for key in self._uplinks))
        self._settle(now)

    def check(self, now: float, name: str) -> None:
        """A mapping of this uplink is in doubt: ask its gateway whether it started anew."""
        self._mapper.check(now, name)
        self._settle(now)

    def poll_timeout(self) -> float | None:
        due = [self._mapper.poll_timeout(), None if self._upnp is None else self._upnp.poll_timeout()]
        return min((at for at in due if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        self._mapper.handle_timeout(now)
        if self._upnp is not None:
            self._upnp.handle_timeout(now)
        self._settle(now)

    def mappings(self) -> list[UdpAddress]:
        """Where datagrams from outside reach the ports asked for."""
        return list(dict.fromkeys(where for _, _, where in self._held()))

    def status(self) -> dict[str, Any]:
        """For `status`: what is open by which protocol, and what was dropped."""
        return {
            "mappings": [
                {"uplink": uplink, "protocol": protocol, "address": _text(where[0]), "port": where[1]}
                for uplink, protocol, where in self._held()
            ],
            "upnp": None if self._upnp is None or self._upnp.failure is None else self._upnp.failure.value,
            "failed_sends": self.failed_sends,
            "drops": {reason.value: count for reason, count in self._mapper.drops.items()},
        }

    def close(self, now: float) -> None:
        """Give all mappings back, and close. Waits a moment for UPnP, if that has opened something."""
        self.set_uplinks(now, [])
        self._end_upnp(now)

    def _held(self) -> list[tuple[str, str, UdpAddress]]:
        held = [(uplink, mapping.protocol, mapping.where) for uplink, mapping in self._mapper.mappings()]
        if self._upnp is not None:
            held += [(uplink, "upnp", where) for uplink, where in self._upnp.mappings()]
        return held

    # Uplinks

    def _add(self, now: float, key: tuple[str, int], uplink: Uplink) -> None:
        name, gateway, own, port = uplink
        opened = socket.socket(_family(own), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            # Two uplinks may have gateways, and even addresses of their own, that are called the same
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
            opened.bind((_text(own), 0))
        except OSError:
            opened.close()
            return
        self._uplinks[key] = uplink
        self._sockets[key] = opened
        self._selector.register(opened, EVENT_READ, lambda now, _fd: self._receive(now, name, opened))
        self._mapper.set_gateway(now, name, gateway, own, port)

    def _remove(self, now: float, key: tuple[str, int]) -> None:
        """What the mapper has to say goes out by the socket that it asked from: a router wants to see that address."""
        name, _, own, _ = self._uplinks[key]
        self._mapper.remove_gateway(now, name, own)
        self._flush()
        del self._uplinks[key]
        opened = self._sockets.pop(key)
        self._selector.unregister(opened)
        opened.close()

    def _listen(self, size: int, wanted: bool) -> None:
        """Where gateways announce that they started anew. Without it a mapping that was lost is found at half of its
        lifetime, or by `check`."""
        listener = self._listeners.get(size)
        if wanted and listener is None:
            with suppress(OSError):
                listener = self._listeners[size] = _listener(size)
                self._selector.register(listener, EVENT_READ, self._announced)
        if not wanted and listener is not None:
            del self._listeners[size]
            self._selector.unregister(listener)
            listener.close()
            return
        if listener is not None and size == 4:
            for name in [name for name, length in self._uplinks if length == size]:
                with suppress(OSError):  # it is a member already
                    where = _MEMBERSHIP.pack(socket.inet_aton(_ALL_HOSTS), socket.if_nametoindex(name))
                    listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, where)

    # Datagrams

    def _flush(self) -> None:
        for ask in self._mapper.drain_asks():
            host = _text(ask.gateway)
            address: tuple[str, int] | tuple[str, int, int, int] = (host, SERVER_PORT)
            try:
                if ask.gateway.startswith(_LINK_LOCAL) and len(ask.gateway) == 16:
                    address = (host, SERVER_PORT, 0, socket.if_nametoindex(ask.uplink))
                self._sockets[ask.uplink, len(ask.gateway)].sendto(ask.datagram, address)
            except OSError:  # the mapper asks again
                self.failed_sends += 1

    def _receive(self, now: float, name: str, opened: socket.socket) -> None:
        for _ in range(READS_PER_TURN_MAX):
            try:
                data, source = opened.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error that some earlier datagram caused
                continue
            self._mapper.handle_datagram(now, name, (_packed(source[0]), source[1]), data)
        self._settle(now)

    def _announced(self, now: float, fd: int) -> None:
        listener = next((each for each in self._listeners.values() if each.fileno() == fd), None)
        if listener is None:
            return
        for _ in range(READS_PER_TURN_MAX):
            try:
                data, ancillary, _, source = listener.recvmsg(_DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except OSError:
                break
            for _, kind, value in ancillary:
                if kind in (_IP_PKTINFO, _IPV6_PKTINFO):
                    index = (_INDEX4 if kind == _IP_PKTINFO else _INDEX6).unpack_from(value)[0]
                    with suppress(OSError):  # the interface went away
                        name = socket.if_indextoname(index)
                        self._mapper.handle_datagram(now, name, (_packed(source[0]), source[1]), data)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """After any input."""
        self._mapper.drain_events()  # `mappings` says the same, and has UPnP's too
        self._flush()
        self._plan_upnp(now)
        held = self.mappings()
        if held != self._told:
            self._told = held
            self.changed = True

    # UPnP

    def _plan_upnp(self, now: float) -> None:
        silent = self._mapper.silent()
        if self._upnp is None:
            if not silent:
                return
            from edgeagent.proto.portmap_upnp import UpnpPlan  # most routers do without

            self._upnp = UpnpPlan(self._jitter)
        self._upnp.want(now, silent)
        self._next_job(now)

    def _next_job(self, now: float) -> None:
        assert self._upnp is not None
        job = self._upnp.next_job(now)
        if job is None:
            return
        if self._worker is None:
            from edgeagent.io.upnp import UpnpWorker

            self._worker = UpnpWorker()
            self._selector.register(self._worker.wake, EVENT_READ, self._job_ended)
        self._worker.start(job)

    def _job_ended(self, now: float, _fd: int) -> None:
        if self._take_outcome(now):
            self._settle(now)

    def _take_outcome(self, now: float) -> bool:
        assert self._worker is not None and self._upnp is not None
        outcome = self._worker.result()
        if outcome is not None:
            self._upnp.finished(now, outcome)
        return outcome is not None

    def _end_upnp(self, now: float) -> None:
        worker = self._worker
        if worker is None or self._upnp is None:
            return
        self._selector.unregister(worker.wake)
        # The job under way, then those that close what was opened: a second or two each where the router answers
        while worker.wait(CLOSE_WAIT_S):
            self._take_outcome(now)
            job = self._upnp.next_job(now)
            if job is None:
                break
            worker.start(job)
        worker.close()
        self._worker = self._upnp = None


def _listener(size: int) -> socket.socket:
    """Raises OSError: another program has the port and does not share it."""
    made = socket.socket(socket.AF_INET if size == 4 else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # others on this host may listen too
        if size == 4:
            made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            made.bind((_ALL_HOSTS, ANNOUNCE_PORT))
        else:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            made.bind(("::", ANNOUNCE_PORT))  # every host is a member of ff02::1
    except OSError:
        made.close()
        raise
    return made


def _family(address: bytes) -> socket.AddressFamily:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _text(address: bytes) -> str:
    return socket.inet_ntop(_family(address), address)


def _packed(host: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
