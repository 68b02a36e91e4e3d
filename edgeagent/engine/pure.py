"""The `pure` engine: every packet passes through Python. The specification of the faster engines."""

from __future__ import annotations

from enum import Enum
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Protocol

from edgeagent.engine.offload import coalesce, split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from selectors import BaseSelector

    from edgeagent.proto.causes import Direction
    from edgeagent.proto.endpoint import Endpoint, Transmit

TUN_FRAMES_MAX = 4  # read at one wake-up; each may hold 64 KiB
UDP_READS_MAX = 4  # at one wake-up and socket; each may hold 64 datagrams
SHORTER_MAX = 16  # times that one flush sends something shorter instead of what did not leave
LOOK_AGAIN_S = 0.1  # with several uplinks: so long one that is full holds back what may by now go by another


class Machine(Protocol):
    """What the engine drives: a Device, or the mesh node around one."""

    def handle_datagrams(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None: ...

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        """IP packets from the TUN; what has nowhere to go is the machine's own business."""

    def transmit_failed(self, now: float, endpoint: Endpoint) -> None: ...

    def transmit_too_long(self, now: float, endpoint: Endpoint, datagram_bytes: int) -> None: ...

    def drain_transmits(self) -> list[Transmit]: ...

    def drain_packets(self) -> list[bytes]: ...


class TunPort(Protocol):
    """What the engine wants of a TUN: `edgeagent.io.tun.Tun`."""

    fd: int
    udp_offload: bool

    def read(self) -> bytes | None: ...

    def write(self, frame: Sequence[bytes]) -> bool: ...


class UdpPort(Protocol):
    """What the engine wants of the UDP sockets: `edgeagent.io.udp.Udp`."""

    blocked_fds: set[int]

    @property
    def fds(self) -> list[int]: ...

    def open(self, port: int) -> int: ...

    def set_uplinks(self, uplinks: list[tuple[str, int]]) -> list[str]: ...

    def close(self) -> None: ...

    @property
    def sockets(self) -> list[tuple[int, int, int, bool]]: ...

    @property
    def mtu_by_kernel(self) -> bool: ...

    def receive(self, fd: int, reads_max: int) -> list[tuple[bytes, Endpoint, int]]: ...

    def send(self, transmits: list[Transmit]) -> bool: ...

    def resume(self) -> None: ...

    def drain_source_failures(self) -> list[Endpoint]: ...

    def drain_too_long(self) -> list[tuple[Endpoint, int]]: ...

    def count_sent(self) -> None: ...

    def drain_sent(self) -> list[tuple[Endpoint, list[bytes]]]: ...


class Meter(Protocol):
    """Who counts what goes over the line: `edgeagent.meter.Meter`."""

    def received(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None: ...

    def sent(self, now: float, batches: list[tuple[Endpoint, list[bytes]]]) -> None: ...

    def carried(
        self, now: float, direction: Direction, endpoint: Endpoint, size: int, count: int, empty: int, *, relayed: bool
    ) -> None: ...


class EngineDrop(Enum):
    """Why the engine dropped a frame; the value is its name in `status`."""

    VNET_HEADER = "vnet-header"  # the TUN's frame contradicts its own offload header
    TUN_REFUSED = "tun-refused"  # the kernel would not take a frame: the interface is down


class PureEngine:
    """Moves packets between a TUN, a machine and a UDP port.

    Its descriptors are registered in `selector` with `readable` as their data: `key.data(now, key.fd)` for each that
    is ready, then `flush(now)`, which is also due after any other input to the machine, and at `poll_timeout()`. Work
    per call is bounded. Time and events of the machine are its owner's. Raises TunGone once the interface was removed.
    `is_router` is to be true where packets from the TUN's peers are forwarded: then their checksums are checked here.
    `count_with` gives it a meter, which hears of every datagram that came in, and of those that the kernel took.
    """

    __slots__ = (
        "_blocked_fds", "_has_uplinks", "_machine", "_meter", "_paused_at", "_read_tun", "_selector", "_tun", "_udp",
        "_udp_fds", "drops", "is_router",
    )  # fmt: skip

    def __init__(self, machine: Machine, tun: TunPort, udp: UdpPort, selector: BaseSelector) -> None:
        self.drops: dict[EngineDrop, int] = dict.fromkeys(EngineDrop, 0)
        self.is_router = True
        self._machine = machine
        self._meter: Meter | None = None
        self._tun = tun
        self._udp = udp
        self._selector = selector
        self._udp_fds: list[int] = []
        self._blocked_fds: set[int] = set()  # that the selector watches for room
        self._has_uplinks = False  # several of them, with sockets of their own
        self._paused_at: float | None = None  # since when the TUN is not read
        self._read_tun = False  # since the last flush
        selector.register(tun.fd, EVENT_READ, self.readable)

    def count_with(self, meter: Meter) -> None:
        self._meter = meter
        self._udp.count_sent()

    def bind(self, port: int) -> int:
        """(Re)open the UDP port, 0 for any, and return it. Raises OSError, and then the port is closed."""
        self.unbind()
        bound = self._udp.open(port)
        self._watch_udp()
        return bound

    def unbind(self) -> None:
        """Close the UDP port. What the machine still wants sent is dropped and counted."""
        self._leave_udp()
        self._has_uplinks = False
        self._udp.close()
        self._pause_tun(None)

    def tables(self) -> dict[str, dict[str, int | str]]:
        """As those of Node.status: it has none of its own."""
        return {}

    def set_uplinks(self, uplinks: list[tuple[str, int]]) -> list[str]:
        """(name, interface index) of those with sockets of their own. Returns the names of those not to be bound."""
        self._leave_udp()
        refused = self._udp.set_uplinks(uplinks)
        self._has_uplinks = bool(uplinks)
        self._watch_udp()
        if not self._blocked_fds:
            self._pause_tun(None)
        return refused

    def close(self) -> None:
        """Let go of the selector and the port; the TUN is its owner's to close."""
        self.unbind()
        self._selector.unregister(self._tun.fd)

    def readable(self, now: float, fd: int) -> None:
        """Take in what waits at one of the descriptors, up to a bound."""
        if fd != self._tun.fd:
            batch = self._udp.receive(fd, UDP_READS_MAX)
            if batch:
                if self._meter is not None:
                    self._meter.received(now, batch)
                self._machine.handle_datagrams(now, batch)
            return
        self._read_tun = True
        packets: list[bytes] = []
        for _ in range(TUN_FRAMES_MAX):
            frame = self._tun.read()
            if frame is None:
                break
            segments = split(frame)
            if segments is None:
                self.drops[EngineDrop.VNET_HEADER] += 1
            else:
                packets += segments
        if packets:
            self._machine.handle_packets(now, packets)

    def flush(self, now: float) -> None:
        """Hand on what the machine has for the TUN and for the UDP port."""
        packets = self._machine.drain_packets()
        if packets:
            write = self._tun.write
            for frame in coalesce(packets, udp=self._tun.udp_offload, verify=self.is_router):
                if not write(frame):
                    self.drops[EngineDrop.TUN_REFUSED] += 1
        if self._blocked_fds:
            self._udp.resume()
        waits = self._send(now)
        if self._udp.blocked_fds or self._blocked_fds:
            self._hold_back(now, waits and self._read_tun)
        self._read_tun = False

    def sync(self, now: float) -> None:
        """Let the machine know of all traffic up to this moment: it knows."""

    def poll_timeout(self) -> float | None:
        """When to `flush` though nothing happened; None for never."""
        return self._paused_at + LOOK_AGAIN_S if self._has_uplinks and self._paused_at is not None else None

    def _send(self, now: float) -> bool:
        """True where something waits for room. What proves too long for our own link is replaced by something shorter
        at once, where the machine has it: it searches for the length that passes."""
        machine, udp, waits = self._machine, self._udp, False
        for _ in range(SHORTER_MAX):
            transmits = machine.drain_transmits()
            if transmits and not udp.send(transmits):
                waits = True
            if self._meter is not None:
                self._meter.sent(now, udp.drain_sent())
            for endpoint in udp.drain_source_failures():
                machine.transmit_failed(now, endpoint)
            too_long = udp.drain_too_long()
            if not too_long:
                break
            for endpoint, size in dict.fromkeys(too_long):
                machine.transmit_too_long(now, endpoint, size)
        return waits

    def _hold_back(self, now: float, waits: bool) -> None:
        """Pause the TUN while a send buffer is full: its own queue then holds the senders back. With several uplinks
        only if what came from the TUN now `waits`, and for a moment: by then it may go another way."""
        blocked = self._udp.blocked_fds
        for fd in blocked ^ self._blocked_fds:
            self._selector.modify(fd, EVENT_READ | EVENT_WRITE if fd in blocked else EVENT_READ, self.readable)
        self._blocked_fds = set(blocked)
        if not blocked:
            self._pause_tun(None)
        elif waits or not self._has_uplinks:
            self._pause_tun(now)
        elif self._paused_at is not None and now - self._paused_at >= LOOK_AGAIN_S:
            self._pause_tun(None)

    def _pause_tun(self, since: float | None) -> None:
        if since is None and self._paused_at is not None:
            self._selector.register(self._tun.fd, EVENT_READ, self.readable)
        elif since is not None and self._paused_at is None:
            self._selector.unregister(self._tun.fd)
        self._paused_at = since

    def _watch_udp(self) -> None:
        self._udp_fds = self._udp.fds
        self._blocked_fds = set(self._udp.blocked_fds)
        for fd in self._udp_fds:
            events = EVENT_READ | EVENT_WRITE if fd in self._blocked_fds else EVENT_READ
            self._selector.register(fd, events, self.readable)

    def _leave_udp(self) -> None:
        for fd in self._udp_fds:
            self._selector.unregister(fd)
        self._udp_fds = []
        self._blocked_fds = set()
