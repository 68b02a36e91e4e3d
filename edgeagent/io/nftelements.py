"""Elements of an nftables table's verdict maps and of its sets with timeouts, changed without the program nft.

By nfnetlink (linux/netfilter/nfnetlink.h, nf_tables.h): a batch is taken as a whole or not at all.
"""

from __future__ import annotations

import errno
import os
import socket
from struct import Struct
from typing import TYPE_CHECKING

from edgeagent.io import rtnetlink as rt

if TYPE_CHECKING:
    from collections.abc import Iterable

    Element = tuple[str, bytes]  # name of the map or set, key: its fields behind one another

_NETFILTER = 12  # NETLINK_NETFILTER
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 16, 17
_NEW_ELEMENT, _DELETE_ELEMENT = _NFTABLES << 8 | 12, _NFTABLES << 8 | 14
_HEAD = Struct("=BBH")  # family, version, resource
_ATTRIBUTE = Struct("=HH")
_INET = 1  # NFPROTO_INET
_NESTED = 0x8000
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT, _KEY, _DATA, _TIMEOUT = 1, 1, 2, 4
_VALUE, _VERDICT, _CODE, _CHAIN = 1, 2, 1, 2
_JUMP = Struct("!i").pack(-3)  # NFT_JUMP
_MILLISECONDS = Struct("!Q")
_PIECE_BYTES = 32_768  # of elements in one message: an attribute says at most 64 KiB of itself
_SEND_BYTES = 1 << 21  # a batch has to be sent at once
_READ_BYTES = 1 << 16
_READS_MAX = 64
_TIMEOUT_S = 5.0


class NftElements:
    """Of the table `inet name`. Raises OSError as the kernel says it: ENOENT for an element that is not there to be
    deleted, or without the table; EEXIST for one that leads elsewhere."""

    __slots__ = ("_name", "_sequence", "_socket")

    def __init__(self, name: str) -> None:
        self._name = name.encode() + b"\0"
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BYTES)
        except OSError:  # without CAP_NET_ADMIN there is no table either
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        self._socket.settimeout(_TIMEOUT_S)

    def change(self, gone: Iterable[Element], new: Iterable[tuple[Element, str]]) -> None:
        """First delete, then add with the chain that each is to lead to; all or nothing."""
        deleted: dict[str, list[bytes]] = {}
        for name, key in gone:
            deleted.setdefault(name, []).append(_element(key))
        added: dict[str, list[bytes]] = {}
        for (name, key), chain in new:
            verdict = _attribute(_CODE, _JUMP) + _attribute(_CHAIN, chain.encode() + b"\0")
            data = _nest(_DATA, _nest(_VERDICT, verdict))
            added.setdefault(name, []).append(_element(key, data))
        self._send([(_DELETE_ELEMENT, deleted), (_NEW_ELEMENT, added)])

    def renew(self, name: str, key: bytes, lasts_s: int) -> None:
        """Let an element of a set last from now on for so long. (Adding what is there does not prolong it.)"""
        there = {name: [_element(key)]}
        again = {name: [_element(key, _attribute(_TIMEOUT, _MILLISECONDS.pack(1000 * lasts_s)))]}
        self._send([(_NEW_ELEMENT, again), (_DELETE_ELEMENT, there), (_NEW_ELEMENT, again)])

    def close(self) -> None:
        self._socket.close()

    def _send(self, steps: list[tuple[int, dict[str, list[bytes]]]]) -> None:
        first = self._sequence + 1
        batch = [self._message(_BATCH_BEGIN, 0, _HEAD.pack(0, 0, socket.htons(_NFTABLES)))]
        for kind, elements in steps:
            flags = rt.NLM_F_CREATE if kind == _NEW_ELEMENT else 0
            for name, its in elements.items():
                for piece in _pieces(its):
                    body = _attribute(_LIST_TABLE, self._name) + _attribute(_LIST_SET, name.encode() + b"\0")
                    body = _HEAD.pack(_INET, 0, 0) + body + _nest(_LIST_ELEMENTS, piece)
                    batch.append(self._message(kind, flags, body))
        if len(batch) == 1:
            return
        batch[-1] = _with_flags(batch[-1], rt.NLM_F_ACK)
        last = self._sequence
        batch.append(self._message(_BATCH_END, 0, _HEAD.pack(0, 0, socket.htons(_NFTABLES))))
        self._socket.send(b"".join(batch))
        for _ in range(_READS_MAX):
            for kind, _, sequence, body in rt.messages(self._socket.recv(_READ_BYTES)):
                if kind == rt.NLMSG_ERROR and first <= sequence <= self._sequence:
                    if number := rt.error_number(body):
                        raise OSError(number, os.strerror(number))
                    if sequence == last:
                        return
        raise OSError(errno.EMSGSIZE, "netlink answer without an end")

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return rt.request(kind, flags, self._sequence, body)


_SO_SNDBUFFORCE = 31 if socket.SOL_SOCKET == 0xFFFF else 32  # MIPS and its kin first
_FLAGS_AT = 6
_FLAGS = Struct("=H")


def _with_flags(message: bytes, more: int) -> bytes:
    (flags,) = _FLAGS.unpack_from(message, _FLAGS_AT)
    return message[:_FLAGS_AT] + _FLAGS.pack(flags | more) + message[_FLAGS_AT + _FLAGS.size :]


def _pieces(elements: list[bytes]) -> Iterable[bytes]:
    at = 0
    while at < len(elements):
        size, end = 0, at
        while end < len(elements) and size + len(elements[end]) <= _PIECE_BYTES:
            size += len(elements[end])
            end += 1
        yield b"".join(elements[at:end])
        at = end


def _element(key: bytes, more: bytes = b"") -> bytes:
    return _nest(_ELEMENT, _nest(_KEY, _attribute(_VALUE, key)) + more)


def _nest(kind: int, body: bytes) -> bytes:
    return _attribute(kind | _NESTED, body)


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-len(value) % 4)
