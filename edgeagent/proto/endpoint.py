"""Where datagrams come from and go to."""

from __future__ import annotations

from edgeagent.proto.ip import ip_to_bytes


class Endpoint:
    """A UDP endpoint of a peer, with the local source address that reached it (a sticky source).

    `addr` is the sockaddr of the socket module: (host, port), or (host, port, 0, scope id) for IPv6.
    `local` is (our source address as 4 or 16 B, interface index), or None to let the kernel choose.
    Treated as immutable; two endpoints are equal when both parts are.
    """

    __slots__ = ("addr", "local")

    def __init__(
        self, addr: tuple[str, int] | tuple[str, int, int, int], local: tuple[bytes, int] | None = None
    ) -> None:
        self.addr = addr
        self.local = local

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Endpoint) and self.addr == other.addr and self.local == other.local

    def __hash__(self) -> int:
        return hash(self.addr)

    def __repr__(self) -> str:
        return f"Endpoint({self})"

    def __str__(self) -> str:
        host, port = self.addr[0], self.addr[1]
        if ":" not in host:
            return f"{host}:{port}"
        scope = self.addr[3] if len(self.addr) == 4 else 0
        return f"[{host}%{scope}]:{port}" if scope and "%" not in host else f"[{host}]:{port}"

    def ip_bytes(self) -> bytes:
        """The remote address, 4 or 16 B."""
        return ip_to_bytes(self.addr[0].partition("%")[0])

    @property
    def size(self) -> int:
        """Of the remote address: 4 or 16 B."""
        return 4 if len(self.addr) == 2 else 16

    def source_bytes(self) -> bytes:
        """What stands for the sender in a cookie: address ‖ port, big-endian (WireGuard paper 5.4.7)."""
        return self.ip_bytes() + self.addr[1].to_bytes(2, "big")

    def unpinned(self) -> Endpoint:
        """The same remote, with the source address left to the kernel."""
        return Endpoint(self.addr)

    @property
    def uplink(self) -> int:
        """The interface index of the uplink that it is bound to; 0: the kernel's routes decide."""
        return 0

    @property
    def is_relay(self) -> bool:
        """Whether it is a member of a relay and no address."""
        return False


class UplinkEndpoint(Endpoint):
    """An endpoint by way of one uplink, where a device has several: what is sent there leaves by that uplink's socket.

    `local` is always there; its address is all zeros while the source is left to the kernel.
    """

    __slots__ = ()

    @classmethod
    def by(cls, uplink: int, endpoint: Endpoint) -> UplinkEndpoint:
        """The way to the remote of `endpoint` that goes by the interface `uplink`."""
        return cls(endpoint.addr, (bytes(4 if len(endpoint.addr) == 2 else 16), uplink))

    def unpinned(self) -> UplinkEndpoint:
        return UplinkEndpoint.by(self.uplink, self)

    @property
    def uplink(self) -> int:
        assert self.local is not None
        return self.local[1]


class Transmit:
    """Datagrams to one endpoint, all with one ECN field (0–3), in order.

    `ttl` is the hop limit they leave with, None for the system's own: a first probe opens our NAT and dies on the way.
    `fragment` lets routers cut them up where they are longer than a link takes; else they are lost there (RFC 8899).
    """

    __slots__ = ("datagrams", "ecn", "endpoint", "fragment", "ttl")

    def __init__(
        self,
        endpoint: Endpoint,
        datagrams: list[bytes],
        ecn: int = 0,
        ttl: int | None = None,
        fragment: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.datagrams = datagrams
        self.ecn = ecn
        self.ttl = ttl
        self.fragment = fragment

    def __repr__(self) -> str:
        return f"Transmit({self.endpoint}, {len(self.datagrams)} datagrams, ecn={self.ecn})"
