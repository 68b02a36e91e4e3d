"""The verdict on each packet of a device whose map has a policy: by the flow that it belongs to, else by the rules.

What comes in is judged by the rules that say who may reach us. What goes out is judged by those that say whom we may
reach, only to answer early: the receiver is who enforces. So what cannot be told of a packet closes on the way in, and
not on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from edgeagent.proto import heads
from edgeagent.proto.conntrack import (
    FRAGMENTS_S,
    REVOKED,
    SWEEP_S,
    Conntrack,
    Flow,
    Holder,
    SharedTable,
    flow_key,
)
from edgeagent.proto.errors import DropReason
from edgeagent.proto.heads import Head
from edgeagent.proto.limits import FRAGMENTS_MAX
from edgeagent.proto.policy import NOBODY, Identity, Slice

if TYPE_CHECKING:
    from edgeagent.proto.peer import Peer

ANSWERS_PER_S = 100  # ICMP 'prohibited' to our own host


class Marks(Protocol):
    """Of an engine that carries flows by itself: `set` makes void what has another generation, `take` says what it has
    carried since the last time (conntrack.py)."""

    def set(self, number: int, generation: int) -> None: ...

    def take(self) -> Iterator[tuple[int, int]]: ...


class Firewall:
    """One for each time that there is a policy; `use` follows its changes. `marks` is an engine's, if it has any."""

    def __init__(self, now: float, policy: Slice, connections: int, marks: Marks | None) -> None:
        self.policy = policy
        self._marks = marks
        self.flows = Conntrack(connections, self._void)
        self.fragments: SharedTable[tuple[float, bool]] = SharedTable(FRAGMENTS_MAX)  # (until, whether they may pass)
        self.admitted = 0  # flows that a rule let in
        self.opened = 0  # flows that went out
        self.revoked = 0
        self._swept_at = now
        self._answers = float(ANSWERS_PER_S)
        self._answered_at = now

    # What changes

    def use(self, now: float, policy: Slice) -> None:
        """Other rules: each flow is judged again, and those that they do not allow end."""
        self.policy = policy
        self.fragments.clear()
        for flow in self.flows:
            self._judge_again(now, flow)

    def carry(self, marks: Marks | None) -> None:
        """An engine begins to carry flows."""
        self._marks = marks
        for flow in self.flows:
            self._void(flow.number, flow.generation)

    def record_changed(self, now: float, peer: Peer) -> None:
        """Who a peer is to the policy may be another now."""
        self._holder(now, peer)

    def forget(self, device: str) -> None:
        """It was removed from the network."""
        holder = self.flows.table.holders.get(device)
        for flow in list(holder.items.values()) if holder is not None else ():
            self.flows.remove(flow)

    # Packets

    def inbound(self, now: float, peer: Peer, packet: bytes) -> DropReason | None:
        """Of a packet from `peer`, whose length is sound and whose source is its own or one that it routes."""
        head = heads.read(packet)
        if head is None:
            return DropReason.FLOW_UNREADABLE
        holder = self._holder(now, peer)
        if head.kind == heads.LATER_FRAGMENT:
            until, passes = self._fragments_of(holder).items.get(head.fragment, (0.0, False))
            if until <= now:
                return DropReason.FRAGMENT_WITHOUT_FIRST
            return None if passes else DropReason.POLICY
        admitted = self._admit(now, holder, packet, head)
        if head.fragment:
            self.fragments.put(self._fragments_of(holder), head.fragment, (now + FRAGMENTS_S, admitted))
        return None if admitted else DropReason.POLICY

    def outbound(self, now: float, peer: Peer, packet: bytes) -> bool:
        """Whether a packet may go to `peer`."""
        head = heads.read(packet)
        if head is None or head.kind in (heads.LATER_FRAGMENT, heads.ICMP_ERROR):
            return True
        holder = self._holder(now, peer)
        key = flow_key(head, inbound=False)
        flow = self._find(now, holder, key, head.target)
        if flow is not None and not (head.begins and flow.inbound):
            if flow.state == REVOKED:
                return False
            self.flows.used(now, flow, head.flags, inbound=False)
            return True
        if self.policy.is_for_client(head.source, head.target):
            if not self._may_bring(head):
                return False
        elif not self._may_reach(holder, head.target, head.protocol, head.destination_port):
            return False
        # An answer or a reset to what is not known here is not the beginning of anything
        if head.kind in (heads.PLAIN, heads.ECHO_REQUEST) and not head.flags & heads.RST:
            self.flows.begin(now, holder, key, head, inbound=False)
            self.opened += 1
        return True

    def carried(self, now: float, peer: Peer, packet: bytes, *, inbound: bool) -> Flow | None:
        """The flow of a packet that was let through, if an engine may carry the next ones of it by itself."""
        head = heads.read(packet)
        if head is None or not head.carried:
            return None
        remote = head.source if inbound else head.target
        flow = self._find(now, self._holder(now, peer), flow_key(head, inbound=inbound), remote)
        return None if flow is None or flow.state == REVOKED else flow

    def may_answer(self, now: float) -> bool:
        """Whether one more ICMP error may be written to our host."""
        self._answers = min(ANSWERS_PER_S, self._answers + (now - self._answered_at) * ANSWERS_PER_S)
        self._answered_at = now
        if self._answers < 1:
            return False
        self._answers -= 1
        return True

    # Time

    def handle_traffic(self, now: float) -> None:
        """An engine has carried something: what, is asked now and then."""
        if now - self._swept_at >= SWEEP_S:
            self._sweep(now)

    def handle_timeout(self, now: float) -> None:
        if self.flows.sweep_at is not None and self.flows.sweep_at <= now:
            self._sweep(now)

    def poll_timeout(self) -> float | None:
        return self.flows.sweep_at

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        if self._marks is not None:
            self.flows.take_marks(now, self._marks.take())
        self.flows.sweep(now)

    # Judgement

    def _admit(self, now: float, holder: Holder[Flow], packet: bytes, head: Head) -> bool:
        if head.kind == heads.ICMP_ERROR and self._quotes_flow(now, holder, packet, head):
            return True
        key = flow_key(head, inbound=True)
        flow = self._find(now, holder, key, head.source)
        if flow is not None and flow.state != REVOKED and not (head.begins and not flow.inbound):
            self.flows.used(now, flow, head.flags, inbound=True)
            return True
        if not self._admits(holder, head.source, head.target, head.protocol, head.destination_port):
            return False
        if head.kind in (heads.PLAIN, heads.ECHO_REQUEST):
            self.flows.begin(now, holder, key, head, inbound=True)
            self.admitted += 1
        return True

    def _quotes_flow(self, now: float, holder: Holder[Flow], packet: bytes, head: Head) -> bool:
        """Whether an ICMP error is about a packet of ours, of a flow with this peer."""
        quoted = heads.read(packet[head.at + 8 :], quoted=True)
        if quoted is None or quoted.kind in (heads.LATER_FRAGMENT, heads.ICMP_ERROR):
            return False
        flow = self._find(now, holder, flow_key(quoted, inbound=False), quoted.target)
        return flow is not None and flow.state != REVOKED

    def _find(self, now: float, holder: Holder[Flow], key: bytes, remote: bytes) -> Flow | None:
        """A flow with this peer; or one with another router of `remote`: answers may take another way back, and when
        one fails the next one carries what is there."""
        flow = self.flows.find(now, holder, key)
        if flow is None and remote not in holder.addresses:
            for other in self.flows.table.holders.values():
                if key in other.items and remote not in other.addresses:
                    return self.flows.find(now, other, key)
        return flow

    def _may_bring(self, head: Head) -> bool:
        """What is forwarded to a plain client, which judges nothing: what was let in, or by rules on addresses."""
        if self.policy.brings(head.source, head.target):
            key = flow_key(head, inbound=True)
            flows = (holder.items.get(key) for holder in self.flows.table.holders.values())
            return any(flow is not None and flow.state != REVOKED for flow in flows)
        return self.policy.admits(NOBODY, False, head.source, head.target, head.protocol, head.destination_port)

    def _admits(self, holder: Holder[Flow], source: bytes, target: bytes, protocol: int, port: int) -> bool:
        if holder.record is None and self.policy.passes_on(source, target):
            return True
        identity = holder.identity or NOBODY
        return self.policy.admits(identity, source in holder.addresses, source, target, protocol, port)

    def _may_reach(self, holder: Holder[Flow], target: bytes, protocol: int, port: int) -> bool:
        return self.policy.may_reach(holder.identity or NOBODY, target in holder.addresses, target, protocol, port)

    def _judge_again(self, now: float, flow: Flow) -> None:
        local, remote, local_port, remote_port = flow.ends
        if flow.inbound:
            allowed = self._admits(flow.holder, remote, local, flow.protocol, local_port)
        elif self.policy.brings(local, remote):
            allowed = True  # it goes on for as long as what brings it here does
        elif self.policy.is_for_client(local, remote):
            allowed = self.policy.admits(NOBODY, False, local, remote, flow.protocol, remote_port)
        else:
            allowed = self._may_reach(flow.holder, remote, flow.protocol, remote_port)
        if flow.state == REVOKED:
            if allowed:
                self.flows.remove(flow)  # the next packet begins it
        elif not allowed:
            self.revoked += 1
            self.flows.revoke(now, flow)

    def _holder(self, now: float, peer: Peer) -> Holder[Flow]:
        """Of the device behind a peer, which may have another one by its next key."""
        record = peer.record
        holder = self.flows.table.holder(record.device if record is not None else peer.public_key.hex())
        if holder.identity is None or holder.record is not record:
            self._identify(now, holder, peer)
        return holder

    def _identify(self, now: float, holder: Holder[Flow], peer: Peer) -> None:
        record = peer.record
        before = holder.identity, holder.addresses
        holder.record = record
        if record is None:
            holder.identity, holder.addresses = NOBODY, frozenset()
        else:
            holder.identity = Identity(record.tags, record.user, record.groups)
            holder.addresses = frozenset(record.addresses)
        if before != (holder.identity, holder.addresses):
            for flow in list(holder.items.values()):
                self._judge_again(now, flow)

    def _fragments_of(self, holder: Holder[Flow]) -> Holder[tuple[float, bool]]:
        return self.fragments.holder(holder.device)

    def _void(self, number: int, generation: int) -> None:
        if self._marks is not None:
            self._marks.set(number, generation)
