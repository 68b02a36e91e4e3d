"""The `kernel` engine: the kernel's WireGuard makes sessions and carries packets; Python looks after the peers.

```
to a peer that the kernel has     host's route ──▶ wg interface ──▶ its UDP port
to anybody else                   mesh's route ──▶ TUN ──▶ Python ──▶ peer made ──▶ packet again, by the wg interface
disco, STUN, relays by UDP        raw socket beside the kernel's port ◀──▶ Python
peers behind a relay              the kernel's port ◀──▶ a socket on loopback ◀──▶ Python ◀──▶ relay
```

What the kernel has done, its counters tell: they are read each POLL_S while there is traffic.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from enum import Enum
from selectors import EVENT_READ
from typing import TYPE_CHECKING

from edgeagent.engine.kernel.guard import Guard
from edgeagent.engine.kernel.proxies import LOOPBACK, Proxies
from edgeagent.engine.kernel.told import Told
from edgeagent.engine.kernel.troubles import OUR_KEY, READING, Troubles
from edgeagent.engine.pure import PureEngine
from edgeagent.proto.causes import Direction
from edgeagent.proto.constants import INITIATION_REPEATED_S
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.outsourced import OutsourcedPeer

if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger
    from selectors import BaseSelector

    from edgeagent.engine.kernel.ports import KernelPort, Prefix, SocketAddress
    from edgeagent.engine.machine import FastMachine
    from edgeagent.engine.pure import EngineDrop, Meter, TunPort, UdpPort

POLL_S, POLL_IDLE_S = 1.0, 5.0
POLL_WAITING_S, WAITING_S = 0.05, 10.0  # while keys are awaited, and how long that is worth it
BUSY_S = 30.0  # so long after the last sign of anything POLL_S holds
RETRY_S = 5.0  # after the kernel would not take our own key, or did not answer
DATAGRAM_MORE_BYTES = 32  # of transport data than of the packet in it
_LOOPBACK = socket.inet_aton(LOOPBACK)


class KernelDrop(Enum):
    """Why the engine `kernel` dropped something; the value is its name in `status`."""

    INJECT = "kernel-inject"  # the first packets to a peer, which the kernel would not take
    PROXY = "kernel-proxy"  # what came by a relay, and for which the kernel had no room
    REFUSED = "kernel-refused"  # a peer, a key or a filter that the kernel did not take; it is tried again
    CUT = "kernel-cut"  # a peer taken out of the kernel, for nft would not take from it what it may not any more


class KernelEngine:
    """Drives a machine as PureEngine does, with the same methods; `port` is the kernel's WireGuard, `tun` gets what is
    for peers that it does not have, `udp` is beside its port. `machine` must have no peers yet.

    Nothing is let in before a filter is in place: what is not for this device's own addresses, or not allowed by its
    policy, never is. Raises FilterError where there can be none.
    """

    def __init__(
        self,
        machine: FastMachine,
        tun: TunPort,
        udp: UdpPort,
        selector: BaseSelector,
        port: KernelPort,
        log: Logger,
        *,
        interface: str,
        peers_max: int,
    ) -> None:
        self._machine = machine
        self._device = machine.device
        self._out = self._device.outsource()
        self._port = port
        self._selector = selector
        self._log = log
        self._interface = interface
        self._peers_max = peers_max
        self._pure = PureEngine(machine, tun, udp, selector)
        self._proxies: Proxies | None = None  # while there is a port
        self._told: dict[bytes, Told] = {}
        self._meter: Meter | None = None
        self._key: bytes | None = None
        self._own: object = None
        self._asked: dict[OutsourcedPeer, bool] = {}  # whose keys are to be asked for, once the kernel has them
        self._poll_at: float | None = None
        self._busy_at = float("-inf")
        self._held_until = float("-inf")
        self._not_injected = self._cut = 0
        self._asked_at = float("-inf")  # when keys were last wanted
        self._troubles = Troubles(log)
        self._guard = Guard(interface, port, log)
        self._guard.begin(self._device)
        selector.register(port.filter_fd, EVENT_READ, self.readable)

    # As PureEngine

    @property
    def is_router(self) -> bool:
        return self._pure.is_router

    @is_router.setter
    def is_router(self, router: bool) -> None:
        self._pure.is_router = router

    @property
    def drops(self) -> dict[EngineDrop | KernelDrop, int]:
        drops: dict[EngineDrop | KernelDrop, int] = {reason: count for reason, count in self._pure.drops.items()}  # noqa: C416
        drops[KernelDrop.INJECT] = self._not_injected
        drops[KernelDrop.PROXY] = self._out.lost + (0 if self._proxies is None else self._proxies.lost)
        drops[KernelDrop.REFUSED] = self._troubles.count + self._guard.refused
        drops[KernelDrop.CUT] = self._cut
        return drops

    def count_with(self, meter: Meter) -> None:
        self._meter = meter
        self._pure.count_with(meter)

    def tables(self) -> dict[str, dict[str, int | str]]:
        used, ceiling = (0, 0) if self._proxies is None else (len(self._proxies), self._proxies.ceiling)
        return {
            "kernel_peers": {"used": len(self._told), "ceiling": self._peers_max},
            "kernel_proxies": {"used": used, "ceiling": ceiling},
        }

    def bind(self, port: int) -> int:
        """(Re)open the UDP port, 0 for any, and return it. Raises OSError, and then the port is closed."""
        self.unbind()
        bound = self._port.bind(port)
        try:
            self._pure.bind(bound)
        except OSError:
            self._port.unbind()
            raise
        self._proxies = Proxies(self._selector, self.readable, bound, self._peers_max)
        for told in self._told.values():
            told.endpoint = None  # relays' members have other addresses now
        self._poll_at = 0.0
        return bound

    def unbind(self) -> None:
        self._pure.unbind()
        self._port.unbind()
        self._poll_at = None  # of a shut port nothing is to be read
        if self._proxies is not None:
            self._out.lost += self._proxies.lost
            self._proxies.close()
            self._proxies = None

    def set_uplinks(self, uplinks: list[tuple[str, int]]) -> list[str]:
        """The kernel has one socket, and its routes decide by which uplink that sends."""
        return []

    def close(self) -> None:
        self.unbind()
        self._pure.close()
        self._selector.unregister(self._port.filter_fd)
        self._port.close()

    def poll_timeout(self) -> float | None:
        times = [at for at in (self._pure.poll_timeout(), self._poll_at, self._guard.poll_timeout()) if at is not None]
        return min(times, default=None)

    def readable(self, now: float, fd: int) -> None:
        if self._proxies is not None and fd in self._proxies:
            for transmit in self._proxies.read(fd):
                self._machine.carry_sealed(now, transmit)
            self._busy_at = now
        elif fd == self._port.filter_fd:
            if not self._port.filter_stands():
                self._log.warning("somebody removed the filter of %s: it is put back", self._interface)
                self._guard.broke()
        else:
            self._pure.readable(now, fd)

    def flush(self, now: float) -> None:
        """Tell the kernel what the machine has decided, and hand on what it has for the TUN and for the UDP port."""
        if self._poll_at is not None and (now >= self._poll_at or any(self._out.asked.values())):
            self.sync(now)  # before anything is begun anew, which may have come about by now
        self._tell(now)
        packets = self._out.drain_packets()
        for packet in packets:
            if not self._port.inject(packet):
                self._not_injected += 1
        to_open = self._out.drain_to_open()
        if to_open and self._proxies is not None:
            for datagram, endpoint in to_open:
                self._proxies.deliver(datagram, endpoint, self._needed)
        elif to_open:
            self._out.lost += len(to_open)
        if packets or to_open:
            self._busy_at = now
        if self._poll_at is not None:
            pace_s = POLL_WAITING_S if self._out.stirred else self._pace_s(now)
            self._poll_at = min(self._poll_at, now + pace_s)
            self._out.stirred = False
        self._pure.flush(now)

    def sync(self, now: float) -> None:
        """Let the machine know of all traffic up to this moment."""
        if self._poll_at is None or self._proxies is None or not self._troubles.may_try(now, READING):
            return
        self._poll_at = now + self._pace_s(now)
        try:
            figures = self._port.read()
        except OSError as error:
            self._troubles.failed(now, READING, error.strerror or str(error), soon=True)
            return
        self._troubles.over(READING)
        reports = []
        for peer in [peer for peer in self._asked if peer.waits and not peer.installed]:
            peer.tell(now, 0.0, 0, 0, None)  # they, too, give up in the end
        for public, told in list(self._told.items()):
            found = figures.get(public)
            if found is None:
                continue
            endpoint = None if found.endpoint is None else self._endpoint_of(told.peer, found.endpoint)
            report = told.peer.tell(now, found.handshake_s, found.rx_bytes, found.tx_bytes, endpoint)
            if found.endpoint is not None and found.endpoint != told.address:
                # It goes where it heard its peer; whether it is to stay there the machine decides
                told.address, told.endpoint = found.endpoint, None
            if report is not None:
                reports.append(report)
                if endpoint is not None and not endpoint.is_relay:
                    self._book(now, endpoint, report.rx_bytes, report.tx_bytes)
        if reports:
            self._busy_at = now
        self._machine.handle_traffic(now, reports)

    def _book(self, now: float, endpoint: Endpoint, received: int, sent: int) -> None:
        """How many datagrams they were, the kernel does not tell: as few as they can have been."""
        for direction, size in ((Direction.RECEIVED, received), (Direction.SENT, sent)):
            if size and self._meter is not None:
                count = -(-size // (self._device.mtu + DATAGRAM_MORE_BYTES))
                self._meter.carried(now, direction, endpoint, size, count, 0, relayed=False)

    def _pace_s(self, now: float) -> float:
        if now - self._asked_at < WAITING_S and any(told.peer.waits for told in self._told.values()):
            return POLL_WAITING_S
        return POLL_S if now - self._busy_at < BUSY_S else POLL_IDLE_S

    # To the kernel

    def _tell(self, now: float) -> None:
        """A peer that the kernel refuses holds up no other one."""
        device = self._device
        wanted = {
            key: peer
            for key, peer in device.peers.items()
            if peer.endpoint is not None and isinstance(peer, OutsourcedPeer)
        }
        self._troubles.keep(wanted.keys() | self._told.keys())
        for public in [public for public, told in self._told.items() if wanted.get(public) is not told.peer]:
            self._remove(now, public)
        barred = self._guard.look(now, device)
        for public in [public for public in self._told if barred is None or public in barred]:
            self._cut += self._remove(now, public)
        if now < self._held_until or not self._take_key(now):
            return
        if device.own != self._own:
            self._own = device.own
            for told in self._told.values():
                told.routed = False  # routes leave from our address, and went with it
        at = (len(device.allowed_ips), device.allowed_ips.moves)
        for public, peer in wanted.items():
            known = self._told.get(public)
            if known is not None and known.is_up_to_date(at):
                continue
            if self._troubles.may_try(now, public) and (known is not None or not self._guard.waits(public)):
                self._try(now, public, self._tell_peer, peer, at)
        for peer, anew in self._out.drain_asked().items():
            self._asked[peer] = self._asked.get(peer, False) or anew
        for peer, anew in list(self._asked.items()):
            public = peer.public_key
            known = self._told.get(public)
            is_theirs = known is not None and known.peer is peer and self._troubles.may_try(now, public)
            if wanted.get(public) is not peer or (is_theirs and self._try(now, public, self._begin, known, anew)):
                del self._asked[peer]

    def _try(self, now: float, public: bytes, what: Callable[..., None], *arguments: object) -> bool:
        if now < self._held_until:
            return False
        try:
            what(now, public, *arguments)
        except TimeoutError:
            self._held_until = now + RETRY_S  # the next one would wait as long
            self._troubles.failed(now, public, "no answer")
        except OSError as error:
            self._troubles.failed(now, public, error.strerror or str(error))
        else:
            return True
        return False

    def _take_key(self, now: float) -> bool:
        key = self._device.private_key
        if key is None or key == self._key:
            return True
        try:
            self._port.set_private_key(key)
        except OSError as error:
            self._held_until = now + RETRY_S
            self._troubles.failed(now, OUR_KEY, error.strerror or str(error))
            return False
        self._troubles.over(OUR_KEY)
        self._key = key
        return True

    def _remove(self, now: float, public: bytes) -> bool:
        """False where the kernel still has it; that is tried again."""
        if not self._troubles.may_try(now, public):
            return False
        try:
            self._port.remove_peer(public)
        except OSError as error:
            self._troubles.failed(now, public, error.strerror or str(error) or "no answer", soon=True)
            return False
        self._told.pop(public).peer.forgotten()
        return True

    def _begin(self, now: float, public: bytes, told: Told, anew: bool) -> None:
        peer = told.peer
        begun = told.begun_at is not None and now - told.begun_at < INITIATION_REPEATED_S
        if anew and peer.waits and not (begun and told.begun_to == told.address):
            # Only a peer that is new has no session, and is asked at once
            self._port.remove_peer(public)
            self._told.pop(public).peer.forgotten()
            told = self._install(peer, told.address, told.prefixes, told.at)
        told.begun_to, told.begun_at = told.address, now
        self._port.begin(public)
        self._busy_at = self._asked_at = now

    def _tell_peer(self, now: float, public: bytes, peer: OutsourcedPeer, at: tuple[int, int]) -> None:
        told = self._told.get(public)
        address = self._address_of(peer)
        if address is None:
            return
        prefixes = told.prefixes if told is not None and told.at == at else list(self._device.allowed_ips.of_peer(peer))
        if told is None:
            self._install(peer, address, prefixes, at)
            self._busy_at = now
            self._troubles.over(public)
            return
        if told.prefixes != prefixes:
            try:
                self._port.set_peer(public, None, prefixes)
            except OSError:
                self._remove(now, public)  # it is not to go on with what it had
                raise
            told.prefixes, told.routed = prefixes, False
        told.at = at
        if told.address != address:
            self._port.set_peer(public, address, None)
            told.address = address
            self._busy_at = now
        told.endpoint = peer.endpoint
        self._troubles.over(public)
        if peer.is_up and not told.routed:
            self._port.set_routes(public, prefixes)
            told.routed = True

    def _install(
        self, peer: OutsourcedPeer, address: SocketAddress, prefixes: list[Prefix], at: tuple[int, int]
    ) -> Told:
        """In the kernel whole or not at all."""
        try:
            self._port.set_peer(peer.public_key, address, prefixes)
        except OSError:
            with suppress(OSError):
                self._port.remove_peer(peer.public_key)
            raise
        told = self._told[peer.public_key] = Told(peer, address, prefixes, at)
        peer.installed = True
        return told

    def _needed(self) -> set[Endpoint]:
        return {told.peer.endpoint for told in self._told.values() if told.peer.endpoint is not None}

    def _address_of(self, peer: OutsourcedPeer) -> SocketAddress | None:
        endpoint = peer.endpoint
        if endpoint is None or self._proxies is None:
            return None
        if endpoint.is_relay:
            port = self._proxies.address(endpoint, self._needed)
            return None if port is None else (_LOOPBACK, port, 0)
        scope = endpoint.addr[3] if len(endpoint.addr) == 4 else 0
        return endpoint.ip_bytes(), endpoint.addr[1], scope

    # From the kernel

    def _endpoint_of(self, peer: OutsourcedPeer, address: SocketAddress) -> Endpoint | None:
        """The peer's own endpoint where that is what the kernel has."""
        raw, port, scope = address
        if raw == _LOOPBACK and self._proxies is not None and (relayed := self._proxies.endpoint(port)) is not None:
            return relayed
        known = peer.endpoint
        if known is not None and not known.is_relay and (known.ip_bytes(), known.addr[1]) == (raw, port):
            return known
        if raw == _LOOPBACK:
            return None  # of a proxy that is gone: nobody else is to be taken for the peer there
        if len(raw) == 4:
            return Endpoint((socket.inet_ntop(socket.AF_INET, raw), port))
        return Endpoint((socket.inet_ntop(socket.AF_INET6, raw), port, 0, scope))
