"""The agent's electricity meter: what its sockets sent and received goes into the ledger, by uplink and cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.io import tcpinfo
from edgeagent.proto.causes import Direction, book, book_batch
from edgeagent.proto.ledger import CAUSES, IPV4_UDP, IPV6_UDP, Cause, tcp_bytes
from edgeagent.proto.messages import TRANSPORT_SIZE_MIN
from edgeagent.proto.relay_frames import DATAGRAM_HEAD_SIZE

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from edgeagent.io.tcpinfo import TcpCounts
    from edgeagent.proto.causes import Carried
    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.ledger import Ledger
    from edgeagent.uplinknames import UplinkNames

CONNECTIONS_MAX = 64


class _Connection:
    """A TCP connection as far as it is booked. `ahead` is what was booked of it before it was sent, by direction."""

    __slots__ = ("ahead", "counts", "port", "uplink")

    def __init__(self, port: int, uplink: str) -> None:
        self.port = port
        self.uplink = uplink
        self.counts = tcpinfo.NOTHING
        self.ahead = dict.fromkeys(Direction, 0)


class Meter:
    """Drive it: the engine calls `received` and `sent`; `tcp` is for each connection, now and then and before it is
    closed, `aside` for the datagrams of other sockets, whose cause only their owner knows.
    """

    __slots__ = ("_connections", "_ledger", "_names")

    def __init__(self, ledger: Ledger, names: UplinkNames) -> None:
        self._ledger = ledger
        self._names = names
        self._connections: dict[int, _Connection] = {}  # by descriptor

    @property
    def connections(self) -> int:
        """That are counted."""
        return len(self._connections)

    def received(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        groups: dict[tuple[str, bool], list[bytes]] = {}
        source = None
        for datagram, endpoint, _ in batch:
            if endpoint is not source:
                source = endpoint
                add = groups.setdefault(self._group(endpoint), []).append
            add(datagram)
        self._book(now, Direction.RECEIVED, groups)

    def sent(self, now: float, batches: list[tuple[Endpoint, list[bytes]]]) -> None:
        groups: dict[tuple[str, bool], list[bytes]] = {}
        for endpoint, datagrams in batches:
            group = self._group(endpoint)
            if group in groups:
                groups[group] += datagrams
            else:
                groups[group] = datagrams.copy() if len(batches) > 1 else datagrams
        self._book(now, Direction.SENT, groups)

    def carried(
        self, now: float, direction: Direction, endpoint: Endpoint, size: int, count: int, empty: int, *, relayed: bool
    ) -> None:
        """`count` transport messages, `size` bytes with a relay's headers, `empty` of them keepalives, that an engine
        moved by itself to or from `endpoint`, which is the relay's where they are `relayed`."""
        uplink, ipv6 = self._group(endpoint)
        # Those of one report may have gone over to the relay, or from it, half-way
        heads = min(DATAGRAM_HEAD_SIZE * count, size - empty * TRANSPORT_SIZE_MIN) if relayed else 0
        keepalives = empty * (TRANSPORT_SIZE_MIN + (IPV6_UDP if ipv6 else IPV4_UDP))
        counts = [0] * CAUSES
        counts[Cause.RELAY] = heads
        counts[Cause.KEEPALIVE] = keepalives
        counts[Cause.PAYLOAD] = size + count * (IPV6_UDP if ipv6 else IPV4_UDP) - heads - keepalives
        book(self._ledger, now, uplink, direction, counts)

    def aside(
        self,
        now: float,
        sock: socket.socket,
        cause: Cause,
        *,
        sent: Sequence[bytes] = (),
        received: Sequence[bytes] = (),
    ) -> None:
        """Datagrams of a UDP socket that is not the tunnel's."""
        headers = IPV6_UDP if ":" in sock.getsockname()[0] else IPV4_UDP
        both = [sum(map(len, each)) + headers * len(each) for each in (sent, received)]
        self._ledger.book(now, self._names.of_socket(sock), cause, *both)

    def tcp(
        self,
        now: float,
        sock: socket.socket,
        cause: Cause,
        carried: Carried | None = None,
        *,
        uplink: str | None = None,
        closing: bool = False,
    ) -> None:
        """Book what a connection took since the last time: all to `cause`, but for what it `carried` for others.

        `uplink` where the caller knows it; else it is asked for once.
        """
        counts = tcpinfo.counts(sock)
        if counts is None:
            return
        connection = self._connection(sock, counts, uplink)
        before, connection.counts = connection.counts, counts
        farewell = counts.farewell if closing else 0
        ipv6 = ":" in sock.getsockname()[0]
        for direction, stream, segments in (
            (Direction.SENT, counts.sent - before.sent, counts.segments_out - before.segments_out),
            (Direction.RECEIVED, counts.received - before.received, counts.segments_in - before.segments_in),
        ):
            shares = [0] * CAUSES if carried is None else carried.take(direction)
            own = tcp_bytes(stream, segments + farewell, ipv6=ipv6) - sum(shares) - connection.ahead[direction]
            connection.ahead[direction] = max(0, -own)  # it waits in the kernel to be sent
            shares[cause] += max(0, own)
            book(self._ledger, now, connection.uplink, direction, shares)
        if closing:
            del self._connections[sock.fileno()]

    def _connection(self, sock: socket.socket, counts: TcpCounts, uplink: str | None) -> _Connection:
        """A descriptor with another port, or with less on its clock, is another connection whose end was not told."""
        fd, port = sock.fileno(), sock.getsockname()[1]
        known = self._connections.get(fd)
        if known is None or known.port != port or known.counts.segments_out > counts.segments_out:
            if known is None and len(self._connections) >= CONNECTIONS_MAX:
                del self._connections[next(iter(self._connections))]
            known = _Connection(port, uplink or self._names.of_socket(sock))
        self._connections.pop(fd, None)
        self._connections[fd] = known  # as the one looked at last
        return known

    def _group(self, endpoint: Endpoint) -> tuple[str, bool]:
        return self._names.of_endpoint(endpoint), ":" in endpoint.addr[0]

    def _book(self, now: float, direction: Direction, groups: dict[tuple[str, bool], list[bytes]]) -> None:
        for (uplink, ipv6), datagrams in groups.items():
            book_batch(self._ledger, now, uplink, direction, datagrams, ipv6=ipv6)
