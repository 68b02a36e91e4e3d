"""The C library as Python sees it: `fast.h` by ctypes. Whoever imports this wants it: ctypes costs 0.6 MiB."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import POINTER, c_char_p, c_int, c_int32, c_size_t, c_uint, c_uint8, c_uint32, c_uint64, c_void_p
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class PumpDrop(Enum):
    """Why the C library dropped a frame, a packet or a datagram, in the order of fast.h; the value is its name in
    `status`, where what the other parts drop for the same reason is added."""

    VNET_HEADER = "vnet-header"  # the TUN's frame contradicts its own offload header
    TUN_REFUSED = "tun-refused"  # the kernel would not take a frame: the interface is down
    MALFORMED = "malformed"  # empty, longer than a datagram can be, or from nowhere
    UNKNOWN_INDEX = "unknown-index"  # transport data for a receiver index that is nobody's
    KEY_EXPIRED = "key-expired"  # transport data under a key older than 180 s or used up
    AUTHENTICATION = "authentication"  # transport data that does not decrypt
    REPLAYED = "replayed"  # transport data with a counter seen before or behind the window (RFC 6479)
    INNER_MALFORMED = "inner-malformed"  # a decrypted packet that is not IPv4 or IPv6, or whose length lies
    INNER_ECN = "inner-ecn"  # congestion was marked outside, the packet inside cannot carry the mark (RFC 6040)
    UPCALLS_FULL = "upcalls-full"  # handshakes and other datagrams came faster than Python takes them
    NEW_FLOWS_FULL = "new-flows-full"  # packets of new flows came faster than Python takes them
    UPCALL_SHARE = "upcall-share"  # one source had its share of what waits for Python
    NEW_FLOWS_RATE = "new-flows-rate"  # more packets of new flows in a second than Python is asked about
    NO_SOCKET = "no-socket"  # the port is closed, or the system lacks that IP version
    SEND_BLOCKED = "send-blocked"  # the uplink is slower than the traffic
    TOO_LONG = "datagram-too-long"  # longer than the path takes, and not to be fragmented
    NO_ROUTE = "no-route"  # the kernel has no way to the endpoint
    REFUSED = "send-refused"  # by a firewall or for want of memory
    NO_KEYPAIR = "no-keypair"  # packets to be sealed under a keypair that is gone
    RECORD = "record"  # what Python told the C library made no sense, or found no room


DROPS = tuple(PumpDrop)
PULL_BYTES = 1 << 17  # the longest record has 70,008
RING_NET, RING_TUN, RING_REPORT = range(3)


class Limits(ctypes.Structure):
    _fields_ = (("peers", c_uint32), ("flows", c_uint32), ("down_bytes", c_uint32), ("up_bytes", c_uint32),
                ("entries", c_uint32))  # fmt: skip


class Socket(ctypes.Structure):
    _fields_ = (
        ("fd", c_int32), ("interface", c_uint32), ("family", c_uint8), ("segments", c_uint8),
        ("by_kernel", c_uint8), ("reserved", c_uint8),
    )  # fmt: skip


class Figures(ctypes.Structure):
    _fields_ = (
        ("drops", c_uint64 * len(DROPS)),
        *((name, c_uint64) for name in ("turns", "frames_in", "frames_out", "datagrams_in", "datagrams_out")),
        *((name, c_uint32) for name in ("flows_used", "flows_max", "peers_used", "peers_max")),
        *((name, c_uint32) for name in ("down_peak", "down_max", "net_peak", "net_max", "tun_peak", "tun_max")),
        ("tun_gone", c_uint32), ("mapped_kib", c_uint32), ("flows_evicted", c_uint64),
    )  # fmt: skip


class LibraryUnusable(Exception):
    """The C library is not there, or not one for this machine; the text says why."""


def load(path: str) -> ctypes.CDLL:
    """Raises LibraryUnusable."""
    try:
        library = ctypes.CDLL(path, use_errno=True)
        prototypes: tuple[tuple[str, object, tuple[object, ...]], ...] = (
            ("ea_new", c_void_p, (POINTER(Limits), c_char_p, c_char_p)),
            ("ea_free", None, (c_void_p,)),
            ("ea_set_tun", None, (c_void_p, c_int, c_int)),
            ("ea_set_sockets", c_int, (c_void_p, POINTER(Socket), c_uint)),
            ("ea_start", c_int, (c_void_p,)),
            ("ea_halt", None, (c_void_p,)),
            ("ea_turn", c_int, (c_void_p, c_int)),
            ("ea_sync", ctypes.c_bool, (c_void_p, c_int)),
            ("ea_push", c_int, (c_void_p, c_uint, c_char_p, c_size_t, c_char_p, c_size_t)),
            ("ea_pull", c_size_t, (c_void_p, c_uint, c_void_p, c_size_t)),
            ("ea_mark", None, (c_void_p, c_uint32, c_uint32)),
            ("ea_take_marks", None, (c_void_p, c_void_p)),
            ("ea_fd", c_int, (c_void_p,)),
            ("ea_rest", None, (c_void_p,)),
            ("ea_figures", None, (c_void_p, POINTER(Figures))),
        )
        for name, result, arguments in prototypes:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise LibraryUnusable(f"{path}: {error}") from None
    return library


class Pump:
    """One `struct ea_pump`. Raises OSError where the kernel refuses it its memory or descriptors."""

    def __init__(
        self, library: ctypes.CDLL, *, peers: int, flows: int, down_bytes: int, up_bytes: int, small: str, large: str,
        entries: int = 0,
    ) -> None:  # fmt: skip
        self._library = library
        self._entries = entries
        limits = Limits(peers, flows, down_bytes, up_bytes, entries)
        self._pump = library.ea_new(ctypes.byref(limits), small.encode(), large.encode())
        if not self._pump:
            number = ctypes.get_errno()
            raise OSError(number, f"fast engine: {os.strerror(number)}")
        self.fd: int = library.ea_fd(self._pump)
        self._buffer = ctypes.create_string_buffer(PULL_BYTES)

    def set_tun(self, fd: int, udp_offload: bool) -> None:
        self._library.ea_set_tun(self._pump, fd, udp_offload)

    def set_sockets(self, sockets: Sequence[Socket]) -> None:
        if self._library.ea_set_sockets(self._pump, (Socket * len(sockets))(*sockets), len(sockets)):
            raise OSError(errno.EINVAL, "fast engine: too many sockets")

    def start(self) -> None:
        number = self._library.ea_start(self._pump)
        if number:
            raise OSError(number, f"fast engine: {os.strerror(number)}")

    def halt(self) -> None:
        self._library.ea_halt(self._pump)

    def turn(self, timeout_ms: int) -> int:
        return int(self._library.ea_turn(self._pump, timeout_ms))

    def sync(self, timeout_ms: int) -> bool:
        """Whether in that time all that was pushed was followed, and all traffic so far reported."""
        return bool(self._library.ea_sync(self._pump, timeout_ms))

    def push(self, kind: int, head: bytes, body: bytes = b"") -> bool:
        """False where there is no room now."""
        number = self._library.ea_push(self._pump, kind, head, len(head), body, len(body))
        if number == errno.EMSGSIZE:
            raise ValueError(f"record {kind}: {len(head) + len(body)} bytes")
        return not number

    def pull(self, ring: int) -> bytes:
        """Records that came up, as many as one buffer holds."""
        size = self._library.ea_pull(self._pump, ring, self._buffer, PULL_BYTES)
        return ctypes.string_at(self._buffer, size) if size else b""

    def set(self, number: int, generation: int) -> None:
        """Flows of that entry hold while they have this generation, from their next packet on."""
        self._library.ea_mark(self._pump, number, generation)

    def take(self) -> Iterator[tuple[int, int]]:
        """(entry, marks) of those whose flows have carried something since the last call."""
        marks = ctypes.create_string_buffer(max(1, self._entries))
        self._library.ea_take_marks(self._pump, marks)
        return ((number, mark) for number, mark in enumerate(marks.raw) if mark)

    def rest(self) -> None:
        self._library.ea_rest(self._pump)

    def figures(self) -> Figures:
        figures = Figures()
        self._library.ea_figures(self._pump, ctypes.byref(figures))
        return figures

    def close(self) -> None:
        """Harmless when repeated."""
        if self._pump:
            self._library.ea_free(self._pump)
            self._pump = None
