"""Whether an nftables table is still there: whoever reloads a firewall (`flush ruleset`) takes those of others with it.

By nfnetlink (linux/netfilter/nfnetlink.h, nf_tables.h): the kernel tells of each change, and says which tables it has.
"""

from __future__ import annotations

import errno
import socket
from struct import Struct

from edgeagent.io import rtnetlink as rt

_NETFILTER = 12  # NETLINK_NETFILTER
_GROUP_NFTABLES = 1 << 6  # NFNLGRP_NFTABLES, as a bit
_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_TABLE_NAME = 1
_HEAD = Struct("=BBH")  # family, version, resource
_ATTRIBUTE = Struct("=HH")
_INET = 1  # NFPROTO_INET
_READ_BYTES = 1 << 16
_READS_MAX = 64  # at one wake-up; what is left makes another
_TIMEOUT_S = 5.0


class NftWatch:
    """Of the table `inet name`. `fd` is readable when something has changed in any table: then ask `stands`.

    Raises OSError: EPERM without CAP_NET_ADMIN, EPROTONOSUPPORT in a kernel without netfilter."""

    __slots__ = ("_changes", "_name", "_questions", "_sequence", "fd")

    def __init__(self, name: str) -> None:
        self._name = name
        self._sequence = 0
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._changes = socket.socket(socket.AF_NETLINK, kind | socket.SOCK_NONBLOCK, _NETFILTER)
        self.fd = self._changes.fileno()
        try:
            self._changes.bind((0, _GROUP_NFTABLES))
            self._questions = socket.socket(socket.AF_NETLINK, kind, _NETFILTER)
        except OSError:
            self._changes.close()
            raise
        self._questions.settimeout(_TIMEOUT_S)

    def stands(self) -> bool:
        """False where the kernel says that there is no such table."""
        for _ in range(_READS_MAX):
            try:
                self._changes.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: there were more than it holds, and the table is looked at anyhow
                continue
        try:
            return self._ask() != errno.ENOENT
        except OSError:  # it does not answer
            return True

    def close(self) -> None:
        self._changes.close()
        self._questions.close()

    def _ask(self) -> int:
        name = self._name.encode() + b"\0"
        attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(name), _TABLE_NAME) + name + bytes(-len(name) % 4)
        self._sequence += 1
        self._questions.send(rt.request(_GET_TABLE, 0, self._sequence, _HEAD.pack(_INET, 0, 0) + attribute))
        for _ in range(_READS_MAX):
            for kind, _, sequence, body in rt.messages(self._questions.recv(_READ_BYTES)):
                if sequence == self._sequence:
                    return rt.error_number(body) if kind == rt.NLMSG_ERROR else 0
        return 0
