"""The kernel's WireGuard as the engine `kernel` has it: interface, peers, routes to them, and their filter."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from edgeagent.engine.kernel import ruleset
from edgeagent.engine.kernel.ports import FilterError
from edgeagent.io import forwarding
from edgeagent.io.marks import MARK
from edgeagent.io.netlink import Netlink
from edgeagent.io.nftelements import NftElements
from edgeagent.io.nftwatch import NftWatch
from edgeagent.io.wglink import WgLink
from edgeagent.io.wgnetlink import PeerChange
from edgeagent.kernelroutes import KernelRoutes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgeagent.engine.kernel.ports import Prefix, SocketAddress
    from edgeagent.engine.kernel.rights import Element
    from edgeagent.io.wgnetlink import PeerState

ENDING = "-wg"  # of the interface's name, behind that of the TUN
NAME_MAX = 15
IFNAMSIZ = 16
SEND_BYTES = 1 << 20
KEEPALIVE_S = 25  # for a moment; see `begin`


def interface_name(tun: str) -> str:
    return tun[: NAME_MAX - len(ENDING)] + ENDING


def remove_leftover(name: str) -> bool:
    """An interface outlives an agent that was killed, and goes on: it holds the port, and routes lead there. True where
    there was one, which is gone now; one of somebody else's, without our mark, is left."""
    try:
        link = WgLink(name, None)
    except OSError:
        return False
    try:
        ours = link.read().fwmark == MARK
    except OSError:  # it went meanwhile
        ours = False
    if not ours:
        link.let_go()
        return False
    link.close()
    with suppress(forwarding.NftError):
        forwarding.nft(ruleset.removal(name))
    return True


class KernelPort:
    """`source` gives our own address of 4 or 16 B, which packets to peers leave from; None where there is none.

    Raises OSError as the kernel says it: EOPNOTSUPP without the module, EEXIST where the interface is there.
    """

    def __init__(self, name: str, mtu: int, source: Callable[[int], bytes | None]) -> None:
        self.name = name
        self._watch = NftWatch(ruleset.table_name(name))
        self.filter_fd = self._watch.fd
        self._elements = NftElements(ruleset.table_name(name))
        self._netlink = Netlink()
        self._raw: list[socket.socket] = []
        try:
            self._link = WgLink(name, mtu)
        except OSError:
            self._netlink.close()
            self._watch.close()
            self._elements.close()
            raise
        self._routes = KernelRoutes(self._netlink, self._link.index, source)
        try:
            self._link.set_device(fwmark=MARK)
            for family in (socket.AF_INET, socket.AF_INET6):
                self._raw.append(_raw_socket(family, name))
        except OSError:
            self.close()
            raise

    def bind(self, port: int) -> int:
        self._link.set_up(False)
        self._link.set_device(listen_port=port)
        self._link.set_up(True)
        self._routes.put()
        return self._link.read().listen_port

    def unbind(self) -> None:
        with suppress(OSError):  # somebody else removed it
            self._link.set_up(False)

    def set_private_key(self, key: bytes) -> None:
        self._link.set_device(private=key)

    def set_peer(self, public: bytes, endpoint: SocketAddress | None, prefixes: list[Prefix] | None) -> None:
        self._link.change_peers([PeerChange(public, endpoint=endpoint, prefixes=prefixes)])

    def set_routes(self, public: bytes, prefixes: list[Prefix]) -> None:
        self._routes.set(public, prefixes)

    def remove_peer(self, public: bytes) -> None:
        self._link.change_peers([PeerChange(public, remove=True)])
        self._routes.set(public, [])

    def begin(self, public: bytes) -> None:
        # There is no command for it: a keepalive is sent when its interval is set, and the interval goes again
        changes = [PeerChange(public, update_only=True, keepalive_s=interval_s) for interval_s in (KEEPALIVE_S, 0)]
        self._link.change_peers(changes)

    def inject(self, packet: bytes) -> bool:
        four = packet[0] >> 4 == 4
        raw = packet[16:20] if four else packet[24:40]
        host = socket.inet_ntop(socket.AF_INET if four else socket.AF_INET6, raw)
        try:
            self._raw[0 if four else 1].sendto(packet, (host, 0))
        except OSError:
            return False
        return True

    def let_in(self, ruleset: str) -> None:
        try:
            forwarding.nft(ruleset)
        except forwarding.NftError as error:
            raise FilterError(str(error)) from None

    def change_filter(self, gone: Iterable[Element], new: Iterable[tuple[Element, str]]) -> None:
        self._elements.change(gone, new)

    def renew_filter(self) -> None:
        self._elements.renew(ruleset.ALIVE, self.name.encode().ljust(IFNAMSIZ, b"\0"), ruleset.ALIVE_S)

    def filter_stands(self) -> bool:
        return self._watch.stands()

    def read(self) -> dict[bytes, PeerState]:
        return self._link.read().peers

    def close(self) -> None:
        for raw in self._raw:
            raw.close()
        self._link.close()
        self._netlink.close()
        self._watch.close()
        self._elements.close()
        with suppress(forwarding.NftError):  # then there was none
            forwarding.nft(ruleset.removal(self.name))


def _raw_socket(family: int, interface: str) -> socket.socket:
    """Sends whole IP packets by one interface, whatever the routes."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    made = socket.socket(family, kind, socket.IPPROTO_RAW)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    except OSError:
        made.close()
        raise
    return made
