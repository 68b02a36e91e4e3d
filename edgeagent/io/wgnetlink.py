"""Generic netlink's wireguard family (linux/wireguard.h, genetlink.h) as bytes: requests built, answers read.

Numbers are in native byte order, ports and addresses in network order. What comes from the kernel is parsed within
bounds all the same. A request is at most REQUEST_BYTES_MAX long: a peer with many prefixes takes several.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    Prefix = tuple[bytes, int]

GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
GET_DEVICE, SET_DEVICE = 0, 1
FAMILY = "wireguard"
REQUEST_BYTES_MAX = 16_384  # below the 64 KiB that an attribute can say of itself
PEERS_MAX = 1 << 16  # of one answer
PREFIXES_MAX = 1 << 16  # of one peer in an answer
KEY_BYTES = 32

_VERSION = 1
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_A_IFINDEX, _A_PRIVATE_KEY, _A_PUBLIC_KEY, _A_FLAGS, _A_LISTEN_PORT, _A_FWMARK, _A_PEERS = 1, 3, 4, 5, 6, 7, 8
_F_REPLACE_PEERS = 1
(
    _P_PUBLIC_KEY, _P_PRESHARED_KEY, _P_FLAGS, _P_ENDPOINT, _P_KEEPALIVE, _P_HANDSHAKE, _P_RX, _P_TX, _P_ALLOWEDIPS,
) = range(1, 10)  # fmt: skip
_PF_REMOVE, _PF_REPLACE_ALLOWEDIPS, _PF_UPDATE_ONLY = 1, 2, 4
_I_FAMILY, _I_ADDRESS, _I_CIDR = 1, 2, 3
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_AF_INET, _AF_INET6 = 2, 10

_GENL = Struct("=BBH")  # command, version, reserved
_ATTRIBUTE = Struct("=HH")  # length, type
_U16, _U32, _U64 = Struct("=H"), Struct("=I"), Struct("=Q")
_TIMESPEC = Struct("=qq")
_SOCKADDR4 = Struct("=H2s4s8x")  # sockaddr_in
_SOCKADDR6 = Struct("=H2sI16sI")  # sockaddr_in6: family, port, flow, address, scope


class PeerChange:
    """What is to become of one peer; None leaves a property as it is. `prefixes` are all that it is to have.

    `endpoint` is (address of 4 or 16 B, port, scope id). With `update_only` a peer that is not there stays so.
    """

    __slots__ = ("endpoint", "keepalive_s", "prefixes", "preshared", "public", "remove", "update_only")

    def __init__(
        self,
        public: bytes,
        *,
        remove: bool = False,
        update_only: bool = False,
        preshared: bytes | None = None,
        endpoint: tuple[bytes, int, int] | None = None,
        keepalive_s: int | None = None,
        prefixes: list[Prefix] | None = None,
    ) -> None:
        self.public = public
        self.remove = remove
        self.update_only = update_only
        self.preshared = preshared
        self.endpoint = endpoint
        self.keepalive_s = keepalive_s
        self.prefixes = prefixes


class PeerState:
    """What the kernel says of one peer. `handshake_s` is wall time, 0.0 for never; bytes are whole datagrams."""

    __slots__ = ("endpoint", "handshake_s", "keepalive_s", "prefixes", "public", "rx_bytes", "tx_bytes")

    def __init__(self, public: bytes) -> None:
        self.public = public
        self.endpoint: tuple[bytes, int, int] | None = None
        self.keepalive_s = 0
        self.handshake_s = 0.0
        self.rx_bytes = 0
        self.tx_bytes = 0
        self.prefixes: list[Prefix] = []


class DeviceState:
    """An interface. `public` is empty where there is no private key."""

    __slots__ = ("fwmark", "listen_port", "peers", "public")

    def __init__(self) -> None:
        self.public = b""
        self.listen_port = 0
        self.fwmark = 0
        self.peers: dict[bytes, PeerState] = {}


# Building: bodies for rtnetlink.request


def family_query(name: str = FAMILY) -> bytes:
    return _GENL.pack(CTRL_CMD_GETFAMILY, 1, 0) + _attribute(_CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")


def device_query(index: int) -> bytes:
    """To be dumped."""
    return _GENL.pack(GET_DEVICE, _VERSION, 0) + _attribute(_A_IFINDEX, _U32.pack(index))


def device_change(
    index: int,
    *,
    private: bytes | None = None,
    listen_port: int | None = None,
    fwmark: int | None = None,
    replace_peers: bool = False,
) -> bytes:
    """Of the interface itself; None leaves a property as it is. Secret where `private` is given."""
    body = _GENL.pack(SET_DEVICE, _VERSION, 0) + _attribute(_A_IFINDEX, _U32.pack(index))
    if replace_peers:
        body += _attribute(_A_FLAGS, _U32.pack(_F_REPLACE_PEERS))
    if private is not None:
        body += _attribute(_A_PRIVATE_KEY, private)
    if listen_port is not None:
        body += _attribute(_A_LISTEN_PORT, _U16.pack(listen_port))
    if fwmark is not None:
        body += _attribute(_A_FWMARK, _U32.pack(fwmark))
    return body


def peer_changes(index: int, changes: list[PeerChange]) -> Iterator[bytes]:
    """Bodies, to be sent in this order. The kernel applies one change of a body after the other."""
    head = _GENL.pack(SET_DEVICE, _VERSION, 0) + _attribute(_A_IFINDEX, _U32.pack(index))
    pieces: list[bytes] = []
    size = 0
    for change in changes:
        for piece in _peer(change):
            if pieces and size + len(piece) > REQUEST_BYTES_MAX:
                yield head + _attribute(_A_PEERS | _NESTED, b"".join(pieces))
                pieces, size = [], 0
            pieces.append(piece)
            size += len(piece)
    if pieces:
        yield head + _attribute(_A_PEERS | _NESTED, b"".join(pieces))


def _peer(change: PeerChange) -> Iterator[bytes]:
    flags = _PF_REMOVE if change.remove else 0
    flags |= _PF_UPDATE_ONLY if change.update_only else 0
    flags |= _PF_REPLACE_ALLOWEDIPS if change.prefixes is not None else 0
    body = _attribute(_P_PUBLIC_KEY, change.public)
    if flags:
        body += _attribute(_P_FLAGS, _U32.pack(flags))
    if change.preshared is not None:
        body += _attribute(_P_PRESHARED_KEY, change.preshared)
    if change.endpoint is not None:
        body += _attribute(_P_ENDPOINT, _sockaddr(*change.endpoint))
    if change.keepalive_s is not None:
        body += _attribute(_P_KEEPALIVE, _U16.pack(change.keepalive_s))
    prefixes: list[bytes] = []
    size = 0
    for address, cidr in change.prefixes or ():
        prefix = _attribute(_NESTED, _prefix(address, cidr))
        if size + len(prefix) > REQUEST_BYTES_MAX // 2:
            yield _attribute(_NESTED, body + _attribute(_P_ALLOWEDIPS | _NESTED, b"".join(prefixes)))
            body = _attribute(_P_PUBLIC_KEY, change.public) + _attribute(_P_FLAGS, _U32.pack(_PF_UPDATE_ONLY))
            prefixes, size = [], 0
        prefixes.append(prefix)
        size += len(prefix)
    if prefixes:
        body += _attribute(_P_ALLOWEDIPS | _NESTED, b"".join(prefixes))
    yield _attribute(_NESTED, body)


def _prefix(address: bytes, cidr: int) -> bytes:
    family = _AF_INET if len(address) == 4 else _AF_INET6
    return (
        _attribute(_I_FAMILY, _U16.pack(family)) + _attribute(_I_ADDRESS, address) + _attribute(_I_CIDR, bytes((cidr,)))
    )


def _sockaddr(address: bytes, port: int, scope: int) -> bytes:
    in_order = port.to_bytes(2, "big")
    if len(address) == 4:
        return _SOCKADDR4.pack(_AF_INET, in_order, address)
    return _SOCKADDR6.pack(_AF_INET6, in_order, 0, address, scope)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


# Reading


def read_family(body: bytes) -> int:
    """The number of the family, of the answer to `family_query`; 0 where it does not say."""
    for kind, value in _attributes(body, _GENL.size):
        if kind == _CTRL_ATTR_FAMILY_ID and len(value) == 2:
            return int(_U16.unpack(value)[0])
    return 0


def read_device(state: DeviceState, body: bytes) -> None:
    """Add what one message of a dump says. What does not fit its type is left out."""
    for kind, value in _attributes(body, _GENL.size):
        if kind == _A_PUBLIC_KEY and len(value) == KEY_BYTES:
            state.public = value
        elif kind == _A_LISTEN_PORT and len(value) == 2:
            state.listen_port = _U16.unpack(value)[0]
        elif kind == _A_FWMARK and len(value) == 4:
            state.fwmark = _U32.unpack(value)[0]
        elif kind == _A_PEERS:
            for _, peer in _attributes(value, 0):
                _read_peer(state, peer)


def _read_peer(state: DeviceState, body: bytes) -> None:
    """A peer with many prefixes comes in several messages, and only the first says more than its key."""
    found = dict(_attributes(body, 0))
    public = found.get(_P_PUBLIC_KEY, b"")
    if len(public) != KEY_BYTES:
        return
    peer = state.peers.get(public)
    if peer is None:
        if len(state.peers) >= PEERS_MAX:
            return
        peer = state.peers[public] = PeerState(public)
    if (endpoint := found.get(_P_ENDPOINT)) is not None:
        peer.endpoint = _read_sockaddr(endpoint)
    if len(value := found.get(_P_KEEPALIVE, b"")) == 2:
        peer.keepalive_s = _U16.unpack(value)[0]
    if len(value := found.get(_P_HANDSHAKE, b"")) == _TIMESPEC.size:
        seconds, nanoseconds = _TIMESPEC.unpack(value)
        peer.handshake_s = seconds + nanoseconds / 1e9
    if len(value := found.get(_P_RX, b"")) == 8:
        peer.rx_bytes = _U64.unpack(value)[0]
    if len(value := found.get(_P_TX, b"")) == 8:
        peer.tx_bytes = _U64.unpack(value)[0]
    for _, prefix in _attributes(found.get(_P_ALLOWEDIPS, b""), 0):
        parts = dict(_attributes(prefix, 0))
        address, cidr = parts.get(_I_ADDRESS, b""), parts.get(_I_CIDR, b"")
        fits = len(address) in (4, 16) and len(cidr) == 1 and cidr[0] <= 8 * len(address)
        if fits and len(peer.prefixes) < PREFIXES_MAX:
            peer.prefixes.append((address, cidr[0]))


def _read_sockaddr(value: bytes) -> tuple[bytes, int, int] | None:
    family = _U16.unpack_from(value)[0] if len(value) >= 2 else 0
    if family == _AF_INET and len(value) >= _SOCKADDR4.size:
        _, port, address = _SOCKADDR4.unpack_from(value)
        return address, int.from_bytes(port, "big"), 0
    if family == _AF_INET6 and len(value) >= _SOCKADDR6.size:
        _, port, _, address, scope = _SOCKADDR6.unpack_from(value)
        return address, int.from_bytes(port, "big"), scope
    return None


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each whole attribute; stops at the first that does not fit."""
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            return
        yield kind & _TYPE_MASK, body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
