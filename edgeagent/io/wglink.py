"""An interface of the kernel's WireGuard: made, set and read by netlink."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING

from edgeagent.io import rtnetlink as rt
from edgeagent.io import wgnetlink as wg

if TYPE_CHECKING:
    from collections.abc import Iterable

_KERNEL = 0  # the port number that kernel messages come from
_READ_BYTES = 1 << 16
_READS_MAX = 4096  # of one dump
_TIMEOUT_S = 5.0
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 4, 18, 1
_IFINFO = Struct("=BxHiII")  # family, device type, index, flags, change
_ATTRIBUTE = Struct("=HH")
_U32 = Struct("=I")
_GENERIC = 16  # NETLINK_GENERIC


class WgLink:
    """The interface `name`, made here and gone with `close()`; its port is shut until it is up.

    Raises OSError as the kernel says it: EOPNOTSUPP where there is no wireguard module, EPERM, EEXIST. All of it stays
    in the network namespace in which it was made.
    """

    __slots__ = ("_family", "_generic", "_route", "_sequence", "index", "name")

    def __init__(self, name: str, mtu: int | None) -> None:
        """With an `mtu` it is made; without, it is one that is there already. ENODEV, EOPNOTSUPP: it is none."""
        self.name = name
        self.index = 0
        self._sequence = 0
        self._route = _socket(socket.NETLINK_ROUTE)
        try:
            self._generic = _socket(_GENERIC)
        except OSError:
            self._route.close()
            raise
        try:
            if mtu is not None:
                flags = rt.NLM_F_ACK | rt.NLM_F_CREATE | rt.NLM_F_EXCL
                self._exchange(self._route, rt.RTM_NEWLINK, flags, _new(name, mtu))
                self.index = socket.if_nametoindex(name)
            self._family = self._find_family()
            if mtu is None:
                found = socket.if_nametoindex(name)
                self._exchange(self._generic, self._family, rt.NLM_F_DUMP, wg.device_query(found))
                self.index = found
        except OSError:
            self.close()
            raise

    def set_up(self, up: bool) -> None:
        """Up, it is bound to its port; raises EADDRINUSE."""
        self._exchange(self._route, rt.RTM_NEWLINK, rt.NLM_F_ACK, rt.link_change(self.index, up=up))

    def set_device(
        self, *, private: bytes | None = None, listen_port: int | None = None, fwmark: int | None = None
    ) -> None:
        """Change what is not None. A port of 0 is one that the kernel chooses. Raises EADDRINUSE."""
        body = wg.device_change(self.index, private=private, listen_port=listen_port, fwmark=fwmark)
        self._exchange(self._generic, self._family, rt.NLM_F_ACK, body)

    def change_peers(self, changes: list[wg.PeerChange]) -> None:
        for body in wg.peer_changes(self.index, changes):
            self._exchange(self._generic, self._family, rt.NLM_F_ACK, body)

    def read(self) -> wg.DeviceState:
        state = wg.DeviceState()
        for body in self._exchange(self._generic, self._family, rt.NLM_F_DUMP, wg.device_query(self.index)):
            wg.read_device(state, body)
        return state

    def close(self) -> None:
        """Harmless when repeated."""
        if self.index:
            with suppress(OSError):  # somebody else removed it
                self._exchange(self._route, rt.RTM_DELLINK, rt.NLM_F_ACK, _IFINFO.pack(0, 0, self.index, 0, 0))
        self.let_go()

    def let_go(self) -> None:
        """Leave the interface as it is."""
        self.index = 0
        self._route.close()
        self._generic.close()

    def _find_family(self) -> int:
        for body in self._exchange(self._generic, wg.GENL_ID_CTRL, 0, wg.family_query()):
            if number := wg.read_family(body):
                return number
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), wg.FAMILY)

    def _exchange(self, by: socket.socket, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send a request and gather the bodies of its answers up to the last one."""
        self._sequence += 1
        by.send(rt.request(kind, flags, self._sequence, body))
        answers: list[bytes] = []
        for _ in range(_READS_MAX):
            data, (sender, _) = by.recvfrom(_READ_BYTES)
            if sender != _KERNEL:
                continue
            for answer, _, sequence, content in rt.messages(data):
                if sequence != self._sequence:
                    continue  # the rest of a request that timed out
                if answer == rt.NLMSG_ERROR:
                    if number := rt.error_number(content):
                        raise OSError(number, os.strerror(number))
                    return answers
                if answer == rt.NLMSG_DONE:
                    return answers
                answers.append(content)
                if not flags & (rt.NLM_F_ACK | rt.NLM_F_DUMP):
                    return answers
        raise OSError(errno.EMSGSIZE, "netlink answer without an end")


def _socket(protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    made.settimeout(_TIMEOUT_S)
    made.bind((0, 0))
    return made


def _new(name: str, mtu: int) -> bytes:
    kind = _attributes([(_IFLA_INFO_KIND, wg.FAMILY.encode())])
    return _IFINFO.pack(0, 0, 0, 0, 0) + _attributes(
        [(_IFLA_IFNAME, name.encode() + b"\0"), (_IFLA_MTU, _U32.pack(mtu)), (_IFLA_LINKINFO | 0x8000, kind)]
    )


def _attributes(pairs: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(
        _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4) for kind, value in pairs
    )
