"""Numbered packets and the oracle that sees each leave and arrive: to the right device, from the right one, once.

A packet is IPv4 or IPv6 with UDP, and its payload is `MAGIC ‖ number 8 ‖ filler`. It may arrive in fragments.
"""

from __future__ import annotations

from typing import Protocol

from edgeagent.proto.icmp import checksum
from tests.sim.world import World

MAGIC = b"edgesim!"
UDP, ICMP, ICMP6, FRAGMENT = 17, 1, 58, 44
PORT = 7_777
_UDP_HEADER = 8


class Inner(Protocol):
    """A device as the oracle sees it."""

    name: str

    @property
    def inner_addresses(self) -> tuple[bytes, bytes] | None:
        """IPv4 and IPv6 within the tunnel; None while it has none."""

    def from_tun(self, packets: list[bytes]) -> None:
        """The system sends `packets` into the tunnel."""


class Sent:
    __slots__ = ("arrived_at", "packet", "receiver", "sender", "sent_at")

    def __init__(self, sent_at: float, sender: str, receiver: str, packet: bytes) -> None:
        self.sent_at = sent_at
        self.sender = sender
        self.receiver = receiver
        self.packet = packet
        self.arrived_at: float | None = None


class Traffic:
    """`send` puts one packet into a tunnel, `arrived` is told what comes out; a breach of the rules fails the run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent: dict[int, Sent] = {}
        self.unreachable = 0  # ICMP errors that devices gave their own system
        self.removed_at: dict[str, float] = {}  # device: when its removal counts everywhere
        self.last_arrival: dict[tuple[str, str], float] = {}  # (from, to): when a packet last came through
        self.told_mtu: dict[tuple[str, int], int] = {}  # (device, family): what 'too big' said last
        self.fragments = 0
        self._pieces: dict[tuple[str, bytes], dict[int, tuple[bytes, bool]]] = {}  # (receiver, which packet) → offset →
        self._number = 0

    def send(self, sender: Inner, receiver: Inner, *, family: int = 4, size: int = 64, cut: bool = False) -> int | None:
        """The packet's number; None when one of the two has no address in the tunnel. `size` is of its filler; IPv4
        has DF unless it may be `cut`."""
        ours, theirs = sender.inner_addresses, receiver.inner_addresses
        if ours is None or theirs is None:
            return None
        self._number += 1
        number = self._number
        payload = MAGIC + number.to_bytes(8, "big") + bytes(max(0, size))
        which = 0 if family == 4 else 1
        packet = udp_packet(ours[which], theirs[which], payload, number if cut else None)
        self.sent[number] = Sent(self.world.now, sender.name, receiver.name, packet)
        sender.from_tun([packet])
        return number

    def arrived(self, receiver: Inner, packet: bytes) -> None:
        """`packet` came out of the tunnel of `receiver`."""
        version = packet[0] >> 4
        protocol, header = (packet[9], 20) if version == 4 else (packet[6], 40)
        if protocol in (ICMP, ICMP6):
            self._icmp(receiver, packet, header)
            return
        if (version == 4 and int.from_bytes(packet[6:8], "big") & 0x3FFF) or protocol == FRAGMENT:
            self._join(receiver, packet)
            return
        payload = packet[header + _UDP_HEADER :]
        if protocol != UDP or payload[:8] != MAGIC:
            self.world.fail(f"{receiver.name} got a packet that nobody sent: {packet.hex()}")
        number = int.from_bytes(payload[8:16], "big")
        sent = self.sent.get(number)
        if sent is None or sent.packet != packet:
            self.world.fail(f"{receiver.name} got packet {number}, which was never sent like this: {packet.hex()}")
            return
        if sent.receiver != receiver.name:
            self.world.fail(f"{receiver.name} got packet {number} from {sent.sender} to {sent.receiver}")
        if sent.arrived_at is not None:
            self.world.fail(f"{receiver.name} got packet {number} from {sent.sender} a second time")
        for name in (sent.sender, sent.receiver):
            gone_at = self.removed_at.get(name)
            if gone_at is not None and self.world.now > gone_at:
                self.world.fail(f"{name} was removed, and packet {number} from {sent.sender} reached {sent.receiver}")
        sent.arrived_at = self.world.now
        self.last_arrival[sent.sender, sent.receiver] = self.world.now

    def _icmp(self, receiver: Inner, packet: bytes, header: int) -> None:
        if packet[header : header + 2] == b"\x03\x04":
            self.told_mtu[receiver.name, 4] = int.from_bytes(packet[header + 4 : header + 8], "big")
        elif packet[0] >> 4 == 6 and packet[header] == 2:
            self.told_mtu[receiver.name, 6] = int.from_bytes(packet[header + 4 : header + 8], "big")
        else:
            self.unreachable += 1

    def _join(self, receiver: Inner, packet: bytes) -> None:
        """One fragment more; the packet arrives with the last."""
        self.fragments += 1
        if packet[0] >> 4 == 4:
            word, key, body = int.from_bytes(packet[6:8], "big"), packet[4:6] + packet[12:20], packet[20:]
            offset, more = 8 * (word & 0x1FFF), bool(word & 0x2000)
        else:
            word, key, body = int.from_bytes(packet[42:44], "big"), packet[44:48] + packet[8:40], packet[48:]
            offset, more = word & 0xFFF8, bool(word & 1)
        pieces = self._pieces.setdefault((receiver.name, key), {})
        pieces[offset] = (body, more)
        joined, is_last = b"", False
        while len(joined) in pieces and not is_last:
            body, more = pieces[len(joined)]
            joined, is_last = joined + body, not more
        if not is_last:
            return
        del self._pieces[receiver.name, key]
        if packet[0] >> 4 == 4:
            header = packet[:2] + (20 + len(joined)).to_bytes(2, "big") + packet[4:6] + bytes(2) + packet[8:10]
            header += bytes(2) + packet[12:20]
            whole = header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + joined
        else:
            whole = packet[:4] + len(joined).to_bytes(2, "big") + packet[40:41] + packet[7:40] + joined
        self.arrived(receiver, whole)

    @property
    def count(self) -> int:
        """Packets sent so far."""
        return self._number

    def has_arrived(self, number: int | None) -> bool:
        return number is not None and self.sent[number].arrived_at is not None

    def came_through(self, sender: Inner, receiver: Inner, since: float) -> bool:
        """Whether a packet from one to the other arrived after `since`."""
        return self.last_arrival.get((sender.name, receiver.name), -1.0) > since

    def lost(self, since: float = 0.0, until: float = float("inf")) -> list[int]:
        """Numbers of packets sent in that time which did not arrive."""
        return [n for n, sent in self.sent.items() if sent.arrived_at is None and since <= sent.sent_at < until]

    def forget(self, before: float) -> None:
        """Drop what was sent before that moment, so that a long run stays small. Late arrivals then fail."""
        self.sent = {number: sent for number, sent in self.sent.items() if sent.sent_at >= before}


def udp_packet(source: bytes, destination: bytes, payload: bytes, identification: int | None = None) -> bytes:
    """With an `identification` it may be fragmented."""
    udp = PORT.to_bytes(2, "big") * 2 + (_UDP_HEADER + len(payload)).to_bytes(2, "big") + bytes(2)
    if len(source) == 4:
        which = b"\0\0\x40\0" if identification is None else (identification & 0xFFFF).to_bytes(2, "big") + bytes(2)
        header = b"\x45\x00" + (28 + len(payload)).to_bytes(2, "big") + which + bytes((64, UDP, 0, 0))
        header += source + destination
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + udp + payload
    return (
        b"\x60\0\0\0"
        + (len(udp) + len(payload)).to_bytes(2, "big")
        + bytes((UDP, 64))
        + source
        + destination
        + udp
        + payload
    )
