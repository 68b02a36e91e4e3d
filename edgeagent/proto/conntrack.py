"""Flows that were let through, so that their answers are, too: bounded, and fair between the devices at the other end.

Where the table is full, the device that has the most of it loses its least recently used flow: a scan of ports by one
costs the others nothing. Each flow has a number below the ceiling and a generation: an engine that carries flows by
itself looks at the generation of a number before each packet, so that a flow can be made void at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from edgeagent.proto.heads import FIN, ICMP, ICMPV6, RST, SYN, TCP, Head
from edgeagent.proto.policy import Identity

UDP_S = 180.0  # without a packet; also other protocols (RFC 4787, REQ-5 wants at least 2 minutes)
TCP_ESTABLISHED_S = 7_440.0  # RFC 5382, REQ-5
TCP_TRANSITORY_S = 240.0  # not yet answered, or being closed (RFC 5382, REQ-5)
ECHO_S = 60.0  # RFC 5508, REQ-2
FRAGMENTS_S = 60.0  # a datagram's reassembly (RFC 8200, section 4.5)
SWEEP_S = 10.0  # at most so long a flow that is over may still be carried, and at most so often is looked

# What an engine tells of a flow that it has carried since it was last asked
USED, CLOSING = 1, 2

OPENING, ESTABLISHED, CLOSED, REVOKED = range(4)
_GENERATION_MAX = (1 << 32) - 1

V = TypeVar("V")


class Holder(Generic[V]):
    """What one device has of a table: the least recently used first."""

    __slots__ = ("addresses", "device", "identity", "items", "record")

    def __init__(self, device: str) -> None:
        self.device = device
        self.items: OrderedDict[bytes, V] = OrderedDict()
        # who it is to the policy, as of this record (firewall.py)
        self.record: object = None
        self.identity: Identity | None = None
        self.addresses: frozenset[bytes] = frozenset()


class SharedTable(Generic[V]):
    """At most `ceiling` items; `leave` is called with each that gives way."""

    def __init__(self, ceiling: int, leave: Callable[[V], None] = lambda value: None) -> None:
        self.ceiling = ceiling
        self.gave_way = 0
        self.holders: dict[str, Holder[V]] = {}
        self._leave = leave
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def holder(self, device: str) -> Holder[V]:
        """New or known. One that holds nothing is forgotten by the next `put` that needs room."""
        holder = self.holders.get(device)
        if holder is None:
            if len(self.holders) >= self.ceiling:
                self.holders = {name: each for name, each in self.holders.items() if each.items}
            holder = self.holders[device] = Holder(device)
        return holder

    def make_room(self) -> None:
        """For one more."""
        if self._count >= self.ceiling:
            largest = max(self.holders.values(), key=lambda each: len(each.items))
            _, gone = largest.items.popitem(last=False)
            self._count -= 1
            self.gave_way += 1
            self._leave(gone)

    def put(self, holder: Holder[V], key: bytes, value: V) -> None:
        if key not in holder.items:
            self.make_room()
            self._count += 1
        self.holders[holder.device] = holder
        holder.items[key] = value
        holder.items.move_to_end(key)

    def clear(self) -> None:
        self.holders.clear()
        self._count = 0

    def remove(self, holder: Holder[V], key: bytes) -> V:
        self._count -= 1
        return holder.items.pop(key)


class Flow:
    """`key` is flow_key's. `inbound`: the other side began it. `until` is when it ends if nothing comes."""

    __slots__ = ("answered", "generation", "holder", "inbound", "key", "number", "protocol", "state", "until")

    def __init__(self, holder: Holder[Flow], key: bytes, protocol: int, number: int, generation: int) -> None:
        self.holder = holder
        self.key = key
        self.protocol = protocol
        self.number = number
        self.generation = generation
        self.inbound = False
        self.answered = False
        self.state = OPENING
        self.until = 0.0

    @property
    def ends(self) -> tuple[bytes, bytes, int, int]:
        """(local address, remote address, local port, remote port)"""
        key = self.key
        size = (len(key) - 5) // 2
        return key[5 : 5 + size], key[5 + size :], key[1] << 8 | key[2], key[3] << 8 | key[4]


def flow_key(head: Head, *, inbound: bool) -> bytes:
    """Protocol, local and remote port, local and remote address: the same for both directions of a flow."""
    if inbound:
        return b"%c%c%c%c%c%b%b" % (
            head.protocol, head.destination_port >> 8, head.destination_port & 255, head.source_port >> 8,
            head.source_port & 255, head.target, head.source,
        )  # fmt: skip
    return b"%c%c%c%c%c%b%b" % (
        head.protocol, head.source_port >> 8, head.source_port & 255, head.destination_port >> 8,
        head.destination_port & 255, head.source, head.target,
    )  # fmt: skip


class Conntrack:
    """`void(number, generation)` is called when flows of that number with another generation are no more."""

    def __init__(self, ceiling: int, void: Callable[[int, int], None]) -> None:
        self._void = void
        self.table: SharedTable[Flow] = SharedTable(ceiling, self._release)
        self._by_number: list[Flow | None] = [None] * ceiling
        self._generations = [0] * ceiling
        self._free = list(range(ceiling - 1, -1, -1))
        self.sweep_at: float | None = None  # when the next flow may be over

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Flow]:
        return iter([flow for flow in self._by_number if flow is not None])

    def find(self, now: float, holder: Holder[Flow], key: bytes) -> Flow | None:
        flow = holder.items.get(key)
        if flow is not None and flow.until <= now:
            self.remove(flow)
            return None
        return flow

    def begin(self, now: float, holder: Holder[Flow], key: bytes, head: Head, *, inbound: bool) -> Flow:
        """A flow in place of one with the same key."""
        known = holder.items.get(key)
        if known is not None:
            self.remove(known)
        self.table.make_room()
        number = self._free.pop()
        flow = Flow(holder, key, head.protocol, number, self._next_generation(number))
        flow.inbound = inbound
        self._by_number[number] = flow
        self.table.put(holder, key, flow)
        self.used(now, flow, head.flags, inbound=inbound)
        return flow

    def used(self, now: float, flow: Flow, flags: int = 0, *, inbound: bool) -> None:
        """A packet of it went by, with these flags of TCP."""
        if inbound is not flow.inbound:
            flow.answered = True
        self._step(now, flow, flags)
        flow.holder.items.move_to_end(flow.key)

    def take_marks(self, now: float, marks: Iterator[tuple[int, int]]) -> None:
        """(number, USED or with CLOSING): what an engine has carried by itself."""
        for number, mark in marks:
            flow = self._by_number[number] if number < len(self._by_number) else None
            if flow is not None and flow.state != REVOKED:
                self._step(now, flow, FIN if mark & CLOSING else 0)
                flow.holder.items.move_to_end(flow.key)

    def revoke(self, now: float, flow: Flow) -> None:
        """No longer admitted. What the other side began is remembered, so that our answers to it do not begin it
        again the other way round."""
        if flow.inbound:
            flow.state = REVOKED
            flow.generation = self._next_generation(flow.number)
        else:
            self.remove(flow)

    def remove(self, flow: Flow) -> None:
        self.table.remove(flow.holder, flow.key)
        self._release(flow)

    def sweep(self, now: float) -> None:
        """Those that are over, and when the next may be."""
        earliest = None
        for flow in self:
            if flow.until <= now:
                self.remove(flow)
            elif earliest is None or flow.until < earliest:
                earliest = flow.until
        self.sweep_at = None if earliest is None else max(earliest, now + SWEEP_S)

    def _step(self, now: float, flow: Flow, flags: int) -> None:
        if flow.protocol == TCP:
            if flags & (FIN | RST):
                flow.state = CLOSED
            elif flags & SYN:
                flow.state = OPENING
            elif flow.answered and flow.state == OPENING:
                flow.state = ESTABLISHED
            lasts = TCP_ESTABLISHED_S if flow.state == ESTABLISHED else TCP_TRANSITORY_S
        else:
            lasts = ECHO_S if flow.protocol in (ICMP, ICMPV6) else UDP_S
        flow.until = now + lasts
        if self.sweep_at is None or flow.until < self.sweep_at:
            self.sweep_at = flow.until

    def _release(self, flow: Flow) -> None:
        self._by_number[flow.number] = None
        self._free.append(flow.number)
        flow.generation = self._next_generation(flow.number)

    def _next_generation(self, number: int) -> int:
        generation = self._generations[number] = (self._generations[number] + 1) & _GENERATION_MAX
        self._void(number, generation)
        return generation
