"""The records of `fast.h`: what is said to the pump, and what it says. Layouts are those of the C structures."""

from __future__ import annotations

import sys
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgeagent.proto.session import Keypair

(CONFIG, PEER, KEYPAIR, FORGET, FLOW, UNFLOW, SEAL, SEND, TUN, OPEN, RELAYS) = range(1, 12)
UP_DATAGRAM, UP_FRAME, UP_PACKET, UP_SEALED, UP_UNSENT, UP_REPORT = range(1, 7)
WAY_NONE, WAY_UDP, WAY_RELAY, WAY_UP = range(4)
PEER_NEW, PEER_GONE = 1, 2
POSITION_NONE = 4
RECORD_MAX = 70_000
PACKET_HEAD = 72  # bytes of a packet that name its flow
NS = 1_000_000_000

_WAY = Struct("=BBBBHHII16s16sII")
WAY_BYTES = _WAY.size
_CONFIG = Struct("=IBBHIB3x")
SLOT = Struct("=HBBI")
_PEER = Struct("=HBBB3xII")
_KEYPAIR = Struct("=HBBIIIq32s32s")
_FLOW = Struct("=HBxIII")
_SEND = Struct(f"={WAY_BYTES}sBBHI")
_RECORD = Struct("=IHH")
_REPORT = Struct("=HBBIQQQqqqqqqq4Q4IIIII")
_HEARD = Struct(f"={WAY_BYTES}sqQII")


def write_way(
    kind: int,
    address: bytes = b"",
    port: int = 0,
    *,
    fragment: bool = False,
    local: bytes = b"",
    interface: int = 0,
    scope: int = 0,
    session: int = 0,
    channel: int = 0,
) -> bytes:
    """`local` empty: as the kernel's routes have it."""
    family = 6 if len(address) == 16 else 4
    return _WAY.pack(
        kind, family, fragment, bool(local), port, channel, session, scope, address, local, interface, 0
    )  # fmt: skip


class Way:
    """A way as it came up."""

    __slots__ = ("address", "channel", "interface", "kind", "local", "port", "scope", "session")

    def __init__(self, raw: bytes) -> None:
        kind, family, _, pinned, port, channel, session, scope, address, local, interface, _ = _WAY.unpack(raw)
        size = 16 if family == 6 else 4
        self.kind = kind
        self.address = address[:size]
        self.port = port
        self.local = local[:size] if pinned else b""
        self.interface = interface
        self.scope = scope
        self.session = session
        self.channel = channel


def write_config(
    *, mtu: int, router: bool, unknown_up: bool, report_ms: int, new_flows_per_s: int, exact: bool = False
) -> bytes:
    return _CONFIG.pack(mtu, router, unknown_up, report_ms, new_flows_per_s, exact)


def write_peer(
    slot: int, flags: int, ways: Sequence[bytes], current: int | None, mtu: int, quiet_ms: int = 0
) -> tuple[bytes, bytes]:
    head = _PEER.pack(slot, flags, len(ways), POSITION_NONE if current is None else current, mtu, quiet_ms)
    return head, b"".join(ways)


def write_keypair(slot: int, position: int, keypair: Keypair, *, unconfirmed: bool) -> bytes:
    return _KEYPAIR.pack(
        slot, position, unconfirmed, keypair.local_index, keypair.remote_index, 0, int(keypair.created_at * NS),
        keypair.send_key, keypair.receive_key,
    )  # fmt: skip


def write_flow(slot: int, *, inbound: bool, entry: int | None = None, generation: int = 0) -> bytes:
    """`entry` and `generation` of the owner's table, for a flow that it may end at any time."""
    return _FLOW.pack(slot, inbound, 0 if entry is None else entry + 1, generation, 0)


def write_send(way: bytes, count: int, *, ecn: int = 0, ttl: int = 0) -> bytes:
    return _SEND.pack(way, ecn, ttl, 0, count)


def split_packets(packets: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """(count, body) of records that hold them all, in order."""
    at = 0
    while at < len(packets):
        total, end = 0, at
        while end < len(packets) and total + len(packets[end]) + 16 <= RECORD_MAX - 128:
            total += len(packets[end]) + 4
            end += 1
        end = max(end, at + 1)  # one alone is at most an IP packet, and fits
        batch = packets[at:end]
        table = b"".join([len(packet).to_bytes(4, sys.byteorder) for packet in batch])
        yield len(batch), b"".join((table, bytes(-len(table) & 7), *batch))
        at = end


def read_records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(kind, where it begins, where it ends) of each."""
    at, size = 0, _RECORD.size
    while at < len(data):
        length, kind, _ = _RECORD.unpack_from(data, at)
        at += size
        yield kind, at, at + length
        at += (length + 7) & ~7


def read_send(data: bytes, at: int) -> tuple[bytes, int, int, int]:
    """(way, ECN field, errno, count); what follows begins SEND_BYTES behind `at`."""
    way, ecn, _, number, count = _SEND.unpack_from(data, at)
    return way, ecn, number, count


SEND_BYTES = _SEND.size


class Report:
    """What a peer's packets did, as fast.h has it; times in seconds, None for never."""

    __slots__ = ("confirmed", "generation", "heard", "largest", "rx_bytes", "send_counter", "sent", "sent_bytes",
                 "sent_empty", "slot", "times", "tx_bytes", "unanswered_since", "used")  # fmt: skip

    def __init__(self, data: bytes, at: int) -> None:
        fields = _REPORT.unpack_from(data, at)
        self.slot, self.used, heards, self.largest, self.tx_bytes, self.rx_bytes, self.send_counter = fields[:7]
        self.times = [each / NS if each else None for each in fields[7:13]]
        self.unanswered_since = fields[13] / NS if fields[13] else None
        self.sent_bytes = fields[14:18]
        self.sent = fields[18:22]
        self.sent_empty, self.generation, confirmed, confirms = fields[22:26]
        self.confirmed = confirmed if confirms else None
        at += _REPORT.size
        # (way, at, bytes, datagrams, empty ones), the latest last
        self.heard = sorted(
            (_HEARD.unpack_from(data, at + i * _HEARD.size) for i in range(heards)), key=lambda each: each[1]
        )
