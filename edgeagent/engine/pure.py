"""The `pure` engine: every packet passes through Python. The specification of the faster engines."""

from __future__ import annotations

from enum import Enum
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Protocol

from edgeagent.engine.offload import coalesce, split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from selectors import BaseSelector

    from edgeagent.proto.endpoint import Endpoint, Transmit

TUN_FRAMES_MAX = 4  # read at one wake-up; each may hold 64 KiB
UDP_READS_MAX = 4  # at one wake-up and IP version; each may hold 64 datagrams


class Machine(Protocol):
    """What the engine drives: a Device, or the mesh node around one."""

    def handle_datagrams(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None: ...

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        """IP packets from the TUN; what has nowhere to go is the machine's own business."""

    def transmit_failed(self, now: float, endpoint: Endpoint) -> None: ...

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

    blocked_fd: int | None
    sent: list[tuple[Endpoint, list[bytes]]] | None

    @property
    def fds(self) -> list[int]: ...

    def open(self, port: int) -> int: ...

    def close(self) -> None: ...

    def receive(self, fd: int, reads_max: int) -> list[tuple[bytes, Endpoint, int]]: ...

    def send(self, transmits: list[Transmit]) -> None: ...

    def resume(self) -> None: ...

    def drain_source_failures(self) -> list[Endpoint]: ...


class Meter(Protocol):
    """Who counts what goes over the line: `edgeagent.meter.Meter`."""

    def received(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None: ...

    def sent(self, now: float, batches: list[tuple[Endpoint, list[bytes]]]) -> None: ...


class EngineDrop(Enum):
    """Why the engine dropped a frame; the value is its name in `status`."""

    VNET_HEADER = "vnet-header"  # the TUN's frame contradicts its own offload header
    TUN_REFUSED = "tun-refused"  # the kernel would not take a frame: the interface is down


class PureEngine:
    """Moves packets between a TUN, a machine and a UDP port.

    Its descriptors are registered in `selector` with `readable` as their data: `key.data(now, key.fd)` for each that
    is ready, then `flush(now)`, which is also due after any other input to the machine. Work per call is bounded.
    Time and events of the machine are its owner's. Raises TunGone once the interface was removed. `is_router` is to
    be true where packets from the TUN's peers are forwarded: then their checksums are checked here. `count_with` gives
    it a meter, which hears of every datagram that came in, and of those that the kernel took.
    """

    __slots__ = ("_blocked_fd", "_machine", "_meter", "_selector", "_tun", "_udp", "_udp_fds", "drops", "is_router")

    def __init__(self, machine: Machine, tun: TunPort, udp: UdpPort, selector: BaseSelector) -> None:
        self.drops: dict[EngineDrop, int] = dict.fromkeys(EngineDrop, 0)
        self.is_router = True
        self._machine = machine
        self._meter: Meter | None = None
        self._tun = tun
        self._udp = udp
        self._selector = selector
        self._udp_fds: list[int] = []
        self._blocked_fd: int | None = None
        selector.register(tun.fd, EVENT_READ, self.readable)

    def count_with(self, meter: Meter) -> None:
        self._meter = meter
        self._udp.sent = []

    def bind(self, port: int) -> int:
        """(Re)open the UDP port, 0 for any, and return it. Raises OSError, and then the port is closed."""
        self.unbind()
        bound = self._udp.open(port)
        self._udp_fds = self._udp.fds
        for fd in self._udp_fds:
            self._selector.register(fd, EVENT_READ, self.readable)
        return bound

    def unbind(self) -> None:
        """Close the UDP port. What the machine still wants sent is dropped and counted."""
        self._unblock()
        for fd in self._udp_fds:
            self._selector.unregister(fd)
        self._udp_fds = []
        self._udp.close()

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
        if self._blocked_fd is not None:
            self._udp.resume()
        transmits = self._machine.drain_transmits()
        if transmits:
            self._udp.send(transmits)
        if self._meter is not None and self._udp.sent:
            self._meter.sent(now, self._udp.sent)
            self._udp.sent.clear()
        for endpoint in self._udp.drain_source_failures():
            self._machine.transmit_failed(now, endpoint)
        if self._udp.blocked_fd != self._blocked_fd:
            self._block()

    def _block(self) -> None:
        """Pause the TUN while a send buffer is full: its own queue then holds the senders back."""
        fd = self._udp.blocked_fd
        self._unblock()
        if fd is not None:
            self._selector.modify(fd, EVENT_READ | EVENT_WRITE, self.readable)
            self._selector.unregister(self._tun.fd)
            self._blocked_fd = fd

    def _unblock(self) -> None:
        if self._blocked_fd is not None:
            self._selector.modify(self._blocked_fd, EVENT_READ, self.readable)
            self._selector.register(self._tun.fd, EVENT_READ, self.readable)
            self._blocked_fd = None
