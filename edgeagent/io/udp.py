"""One UDP port on IPv4 and IPv6; with several uplinks, on each of them by a socket of its own."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from edgeagent.io.udpsocket import BACKLOG_DATAGRAMS_MAX, ENDPOINTS_MAX, UdpDrop, UdpShared, UdpSocket

if TYPE_CHECKING:
    from edgeagent.proto.endpoint import Endpoint, Transmit

UPLINKS_MAX = 8  # with sockets of their own
_PORT_TRIES_MAX = 100
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Udp:
    """`open`, then `receive(fd)` whenever one of `fds` is readable, and `send`.

    After `send`, `drain_source_failures` names the endpoints whose sticky source address is gone, and whose datagrams
    went out from another one (or, bound to an uplink that has no way there, not at all); `drain_too_long` those that
    got a datagram longer than our own link takes. While `blocked_fds` is not empty, those send buffers are full:
    `resume` when one is writable, and until then better ask for no more to be sent there. Sockets stay in the network
    namespace in which `open` was called; `set_uplinks` is to be called in it.

    Datagrams that may not be fragmented (`Transmit.fragment`) leave with DF, and no ICMP message changes that;
    `mtu_by_kernel` leaves all of this to the kernel.
    """

    __slots__ = ("_by_fd", "_by_uplink", "_general", "_kind", "_shared", "blocked_fds", "port")

    def __init__(self, *, mtu_by_kernel: bool = False, kind: type[UdpSocket] = UdpSocket) -> None:
        self._kind = kind
        self.port = 0
        self.blocked_fds: set[int] = set()
        self._shared = UdpShared(mtu_by_kernel)
        self._by_fd: dict[int, UdpSocket] = {}  # all of them
        self._general: dict[int, UdpSocket] = {}  # by address family
        self._by_uplink: dict[tuple[int, int], UdpSocket] = {}  # by interface index and address family

    @property
    def drops(self) -> dict[UdpDrop, int]:
        return self._shared.drops

    @property
    def mark(self) -> int:
        return self._shared.mark

    # Opening

    def open(self, port: int) -> int:
        """Bind both IP versions to `port` (0: the kernel picks one that is free in both) and return it.

        Raises OSError: EADDRINUSE, EACCES, EAFNOSUPPORT where there is neither IP version.
        """
        self.close()
        for attempt in range(_PORT_TRIES_MAX):
            try:
                self._open_both(port)
                return self.port
            except OSError as error:
                self.close()
                if port or error.errno != errno.EADDRINUSE or attempt == _PORT_TRIES_MAX - 1:
                    raise
        raise OSError(errno.EADDRINUSE, "no port is free in both IP versions")

    def _open_both(self, port: int) -> None:
        for family in _FAMILIES:
            try:
                opened = self._general[family] = self._kind(self._shared, family, port)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                continue
            self._by_fd[opened.fd] = opened
            port = self.port = opened.port
        if not self._general:
            raise OSError(errno.EAFNOSUPPORT, "neither IPv4 nor IPv6")

    def set_uplinks(self, uplinks: list[tuple[str, int]]) -> list[str]:
        """Those that want sockets of their own, by name and interface index, at most UPLINKS_MAX: none where there is
        but one. Returns the names of those that could not be bound, because they are gone."""
        wanted = {index: name for name, index in uplinks[:UPLINKS_MAX]}
        for key in [key for key in self._by_uplink if key[0] not in wanted]:
            self._close(self._by_uplink.pop(key))
        self._shared.endpoints.clear()  # the same source is another Endpoint by the socket of its uplink
        refused = []
        self._share_port(True)
        for index, name in wanted.items():
            for family in self._general:
                if (index, family) in self._by_uplink:
                    continue
                try:
                    opened = self._kind(self._shared, family, self.port, (name, index))
                except OSError:
                    refused.append(name)
                    break
                self._by_uplink[index, family] = self._by_fd[opened.fd] = opened
        self._share_port(False)
        return refused

    def _share_port(self, shared: bool) -> None:
        """Only for the moment in which our own are bound: nobody else may put a socket in their place."""
        for each in self._by_fd.values():
            each.share_port(shared)

    def set_mark(self, mark: int) -> None:
        """SO_MARK of all that is sent, now and after later opens; 0 for none. Raises OSError: EPERM."""
        for each in self._by_fd.values():
            each.set_mark(mark)
        self._shared.mark = mark

    def close(self) -> None:
        """Close all sockets and drop what waits. Harmless when repeated."""
        for each in list(self._by_fd.values()):
            self._close(each)
        self._general.clear()
        self._by_uplink.clear()
        self.port = 0

    def _close(self, closing: UdpSocket) -> None:
        self.blocked_fds.discard(closing.fd)
        del self._by_fd[closing.fd]
        closing.close()

    @property
    def fds(self) -> list[int]:
        return list(self._by_fd)

    @property
    def sockets(self) -> list[tuple[int, int, int, bool]]:
        """(descriptor, interface index that it is bound to or 0, IP version, whether UDP_SEGMENT works), for an engine
        that receives and sends by itself."""
        return [
            (each.fd, each.uplink, 4 if each.family == socket.AF_INET else 6, each.segments)
            for each in self._by_fd.values()
        ]

    def tables(self) -> dict[str, dict[str, int | str]]:
        """As those of Node.status; the backlog is that of the socket with the longest."""
        waiting = max((each.waiting for each in self._by_fd.values()), default=0)
        lost = self.drops[UdpDrop.BACKLOG_FULL]
        return {
            "udp_backlog": {"used": waiting, "ceiling": BACKLOG_DATAGRAMS_MAX, "gave_way": lost},
            "udp_endpoints": {"used": len(self._shared.endpoints), "ceiling": ENDPOINTS_MAX},
        }

    @property
    def mtu_by_kernel(self) -> bool:
        return self._shared.mtu_by_kernel

    # Receiving and sending

    def receive(self, fd: int, reads_max: int) -> list[tuple[bytes, Endpoint, int]]:
        """(datagram, source, ECN field) of up to `reads_max` reads; one may hold 64 datagrams of one source."""
        readable = self._by_fd.get(fd)
        return [] if readable is None else readable.receive(reads_max)

    def send(self, transmits: list[Transmit]) -> bool:
        """Send, those of one socket in order. What a full buffer refuses waits in its backlog; beyond the bound of that
        it is dropped. False when something has to wait."""
        nothing_waits = True
        for transmit in transmits:
            endpoint = transmit.endpoint
            family = socket.AF_INET if len(endpoint.addr) == 2 else socket.AF_INET6
            chosen = self._general.get(family)
            if self._by_uplink and endpoint.local is not None:
                chosen = self._by_uplink.get((endpoint.local[1], family), chosen)
            if chosen is None:
                self._shared.drop(UdpDrop.NO_SOCKET, transmit.datagrams)
            elif not chosen.send(transmit):
                nothing_waits = False
                self.blocked_fds.add(chosen.fd)
        return nothing_waits

    def resume(self) -> None:
        """One of `blocked_fds` is writable: send the backlogs on."""
        for fd in list(self.blocked_fds):
            self._by_fd[fd].resume()
            if not self._by_fd[fd].is_blocked:
                self.blocked_fds.discard(fd)

    def drain_source_failures(self) -> list[Endpoint]:
        failures, self._shared.failures = self._shared.failures, []
        return failures

    def count_sent(self) -> None:
        """From now on `drain_sent` has what the kernel took, and is to be called after each `send` and `resume`."""
        self._shared.sent = []

    def drain_sent(self) -> list[tuple[Endpoint, list[bytes]]]:
        """(endpoint as it was used, datagrams), in order."""
        sent = self._shared.sent
        if not sent:
            return []
        self._shared.sent = []
        return sent

    def drain_too_long(self) -> list[tuple[Endpoint, int]]:
        """(endpoint, bytes of the datagram) of what was not sent because the link takes no more in one piece."""
        too_long, self._shared.too_long = self._shared.too_long, []
        return too_long
