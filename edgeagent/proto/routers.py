"""Who carries the prefixes behind devices: one router for each, another one within seconds when its paths are silent.

Which prefixes there are, the map says (`ro`); who routes them, records. Of several routers of one prefix one has its
allowed IPs; the others stand by: their feeds are read while the prefix is in use, so that neither hub nor broker is
needed to go over. A router is given up when traffic for it is without an answer and probes along all its paths are too.
Back it goes only after the preferred one has answered several probes in a row, more each time that it failed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto import prefixes
from edgeagent.proto.control import ROUTERS_MAX
from edgeagent.proto.control_client import Answer
from edgeagent.proto.prefixes import EXIT, Prefix
from edgeagent.proto.records import Entry

if TYPE_CHECKING:
    from edgeagent.proto.control_client import ControlClient
    from edgeagent.proto.device import Device
    from edgeagent.proto.pathfinder import Pathfinder
    from edgeagent.proto.peering import Link, Peering

GROUPS_MAX = 256
USED_S = 60.0  # after a packet: so long a prefix is in use, and its routers are watched
LOOK_S = 1.0
SUSPECT_S = 1.2  # without an answer: all paths to it are probed,
DEAD_S = 3.0  # and without one to those it is given up
LATENCY_MAX_S = 1.0  # that is added to this
DEAD_BARE_S = 13.0  # of one without a disco key: WireGuard itself answers one-way traffic after 10 s
AGAIN_S = 30.0  # before a router that was given up is taken as a substitute, and between two questions for others
PROOF_S = 5.0  # between two probes of the preferred one while another serves
PROOFS, PROOFS_MAX = 3, 48  # of those that it has to answer in a row; doubled each time that it fails again
STEADY_S = 600.0  # a router that served for so long is believed as easily as in the beginning


class Group:
    """The routers of one prefix. `order` are device ids as the hub would take them."""

    __slots__ = ("active", "asked_at", "failed", "order", "proofs", "proofs_needed", "proved_at", "since", "switches")

    def __init__(self) -> None:
        self.active: str | None = None
        self.order: list[str] = []
        self.failed: dict[str, float] = {}  # when each was given up
        self.since = 0.0  # when the active one became so
        self.asked_at: float | None = None
        self.proved_at = 0.0
        self.proofs = 0
        self.proofs_needed = PROOFS
        self.switches = 0


class Routers:
    """Drive it: `used` with traffic, the other inputs when something comes to be known, `handle_timeout` at
    `poll_timeout`; then send `drain_packets` again, which waited for a router that was given up.

    `accept` False: no prefix of others is used. `exit_name` is the host name of the exit node in use, or empty.
    """

    def __init__(self, client: ControlClient, peering: Peering, device: Device, finder: Pathfinder) -> None:
        self._client = client
        self._peering = peering
        self._device = device
        self._finder = finder
        self._waiting: dict[str, float] = {}  # routers that something is staged for, since when that is seen
        self._packets: list[bytes] = []
        self._look_at: float | None = None
        self.groups: dict[Prefix, Group] = {}
        self.accept = True
        self.exit_name = ""

    def size(self) -> tuple[int, int]:
        """Prefixes that were used, and how many there may be."""
        return len(self.groups), GROUPS_MAX

    # What is routed where

    def lookup(self, now: float, address: bytes) -> Entry | Answer:
        """Who is to get a packet for an address that no peer has."""
        device_map = self._client.map
        if device_map.holds(address):
            return self._client.lookup(now, ("a", address))
        prefix = self.prefix_of(address)
        if prefix is None:
            if self.exit_name:
                return self._exit(now) or Answer.NO
            return self._client.ask(now, ("a", address)) if self.accept and device_map.routes is None else Answer.NO
        found, group = self._candidates(prefix), self._group(prefix)
        if not found or group is None:
            return self._client.ask(now, ("a", address))
        return next((entry for entry in found if entry.record.device == group.active), found[0])

    def prefix_of(self, address: bytes) -> Prefix | None:
        """The longest prefix in use that holds it."""
        found = [prefix for prefix in self._usable() if prefixes.holds(prefix, address)]
        return max(found, key=lambda prefix: prefix[1], default=None)

    def carries(self, entry: Entry, address: bytes) -> bool:
        """Whether packets for an address go to that device now."""
        if any(prefixes.holds(own, address) for own in entry.record.own_prefixes()):
            return True
        prefix = self.prefix_of(address)
        if prefix is None:
            return self.is_exit(entry) and not self._client.map.holds(address)
        return prefix in self.prefixes_of(entry)

    def prefixes_of(self, entry: Entry) -> list[Prefix]:
        """Those that its peer has as allowed IPs. The first that comes becomes the router of a prefix."""
        mine = []
        for prefix in self.sources_of(entry):
            group = self._group(prefix)
            if group is None:
                continue
            if group.active is None:
                group.active = entry.record.device
            if group.active == entry.record.device:
                mine.append(prefix)
        return [*mine, *EXIT] if self.is_exit(entry) else mine

    def sources_of(self, entry: Entry) -> list[Prefix]:
        """Those that packets may come from through it, whoever gets the packets that go there."""
        if not self.accept:
            return []
        usable = self._client.map.routes
        return [prefix for prefix in entry.record.routes if usable is None or prefix in usable]

    def is_exit(self, entry: Entry) -> bool:
        return bool(self.exit_name) and entry.record.is_exit and entry.record.name == self.exit_name

    def settle_for(self, accept: bool, exit_name: str) -> None:
        """What this device wants to use, from now on."""
        self.accept, self.exit_name = accept, exit_name
        own = [self._client.map.v4, self._client.map.v6]
        # Whoever in there is not known is to be asked for, and not to be looked for in the internet
        self._device.allowed_ips.set_holes([*own, *self._usable()] if exit_name else [])
        self.map_came()

    # What comes to be known

    def told(self, now: float, address: bytes, via: list[str]) -> None:
        """The hub's answer to a question for an address."""
        prefix = self.prefix_of(address)
        group = None if prefix is None else self._group(prefix)
        if group is not None:
            group.order = list(dict.fromkeys(via))
            self.used(now)

    def map_came(self) -> None:
        """Other prefixes may be in use."""
        usable = self._client.map.routes
        if usable is not None or not self.accept:
            for prefix in [each for each in self.groups if not self.accept or each not in (usable or ())]:
                del self.groups[prefix]
        if self.exit_name:
            own = [self._client.map.v4, self._client.map.v6]
            self._device.allowed_ips.set_holes([*own, *self._usable()])
        self._peering.give_addresses()

    def record_came(self, now: float, entry: Entry) -> None:
        """A device may no longer route what it did."""
        for prefix, group in self.groups.items():
            if group.active == entry.record.device and prefix not in entry.record.routes:
                self._replace(now, prefix, group)

    def record_lost(self, now: float, device: str) -> None:
        for prefix, group in self.groups.items():
            if group.active == device:
                self._replace(now, prefix, group)

    def used(self, now: float) -> None:
        """There is traffic."""
        if self.groups and self._look_at is None:
            self._look_at = now + LOOK_S

    # Time

    def poll_timeout(self) -> float | None:
        return self._look_at

    def handle_timeout(self, now: float) -> None:
        if self._look_at is None or now < self._look_at:
            return
        in_use = {prefix: group for prefix, group in self.groups.items() if self._is_used(now, group)}
        self._look_at = now + LOOK_S if in_use else None
        self._waiting = {device: at for device, at in self._waiting.items() if device in self._peering.links}
        silent = {
            device: self._silent_s(now, device) for device in {group.active for group in in_use.values()} if device
        }
        for prefix, group in in_use.items():
            if group.active is None or self._look_at is None:
                continue
            silent_s, dead_s = silent[group.active], self._dead_s(group.active)
            if silent_s >= dead_s:
                self._fail(now, prefix, group)
            elif silent_s > 0.0:
                self._look_at = min(self._look_at, now + max(0.05, dead_s - silent_s))
            if now - group.proved_at >= PROOF_S:
                self._stand_by(now, prefix, group)
        for device, silent_s in silent.items():
            if silent_s >= SUSPECT_S:
                self._finder.prove(now, device)
            elif silent_s > 0.0 and self._look_at is not None:
                self._look_at = min(self._look_at, now + max(0.05, SUSPECT_S - silent_s))

    def drain_packets(self) -> list[bytes]:
        packets, self._packets = self._packets, []
        return packets

    # Inner

    def _usable(self) -> list[Prefix]:
        if not self.accept:
            return []
        if self._client.map.routes is not None:
            return self._client.map.routes
        return list({prefix: None for entry in self._client.records for prefix in entry.record.routes})

    def _group(self, prefix: Prefix) -> Group | None:
        """None where there are too many."""
        group = self.groups.get(prefix)
        if group is None and len(self.groups) < GROUPS_MAX:
            group = self.groups[prefix] = Group()
        return group

    def _exit(self, now: float) -> Entry | None:
        found = self._client.lookup(now, ("h", self.exit_name))
        return found if isinstance(found, Entry) and found.record.is_exit else None

    def _candidates(self, prefix: Prefix) -> list[Entry]:
        """Whose records are known, the preferred first."""
        found = {entry.record.device: entry for entry in self._client.records if prefix in entry.record.routes}
        group = self.groups.get(prefix)
        order = [] if group is None else group.order
        ranked = [
            *(device for device in order if device in found),
            *sorted(each for each in found if each not in order),
        ]
        return [found[device] for device in ranked[:ROUTERS_MAX]]

    def _is_used(self, now: float, group: Group) -> bool:
        link = self._link(group.active)
        return link is not None and (bool(link.peer.staged) or now - link.used_at() < USED_S)

    def _link(self, device: str | None) -> Link | None:
        return None if device is None else self._peering.links.get(device)

    def _silent_s(self, now: float, device: str) -> float:
        """For how long traffic has been without an answer, or any other sign of life; 0 where none waits for one."""
        link = self._link(device)
        if link is None:
            return 0.0
        since = link.peer.timers.unanswered_since
        if link.peer.staged or link.peer.endpoint is None:
            since = self._waiting.setdefault(device, now)
        else:
            self._waiting.pop(device, None)
        if since is None:
            return 0.0
        return max(0.0, now - max(since, self._finder.heard_at(device)))

    def _dead_s(self, device: str) -> float:
        """A long way takes its time."""
        path = self._finder.current(device)
        if path is None and device not in self._finder.peers:
            return DEAD_BARE_S
        latency_s = 0.0 if path is None or path.latency_ms is None else path.latency_ms / 1e3
        return DEAD_S + min(LATENCY_MAX_S, 2.0 * latency_s)

    def _fail(self, now: float, prefix: Prefix, group: Group) -> None:
        """Go over to the next router that was not given up lately; where there is none, ask the hub for others."""
        assert group.active is not None
        group.failed = {device: at for device, at in group.failed.items() if now - at < AGAIN_S}
        group.failed.setdefault(group.active, now)
        for entry in self._candidates(prefix):
            device = entry.record.device
            if device != group.active and device not in group.failed:
                self._switch(now, prefix, group, entry)
                return
        if group.asked_at is None or now - group.asked_at >= AGAIN_S:
            group.asked_at = now
            self._client.ask(now, ("a", prefix[0]))

    def _replace(self, now: float, prefix: Prefix, group: Group) -> None:
        """The active one is a router of it no more."""
        before, group.active = group.active, None
        entry = next((each for each in self._candidates(prefix) if each.record.device != before), None)
        if entry is not None and self._link(before) is not None:
            self._switch(now, prefix, group, entry)

    def _switch(self, now: float, prefix: Prefix, group: Group, entry: Entry) -> None:
        old, group.active = self._link(group.active), entry.record.device
        group.since, group.proofs = now, 0
        group.switches += 1
        self._peering.connect(now, entry)
        self._peering.give_addresses(entry.record.device, *([] if old is None else [old.device]))
        self._waiting.pop(entry.record.device, None)
        if old is not None:
            staged = list(old.peer.staged)
            old.peer.staged.clear()
            for packet in staged:
                address = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
                if prefixes.holds(prefix, address):
                    self._packets.append(packet)
                else:
                    old.peer.staged.append(packet)

    def _stand_by(self, now: float, prefix: Prefix, group: Group) -> None:
        """Read the feeds of the others, while there is room; and find out whether the preferred one is back."""
        before, group.proved_at = group.proved_at, now
        found = self._candidates(prefix)
        for entry in found:
            if entry.record.device not in self._peering.links and self._peering.has_room:
                self._peering.connect(now, entry)
        if not found or found[0].record.device == group.active:
            if group.proofs_needed > PROOFS and now - group.since >= STEADY_S:
                group.proofs_needed = PROOFS
            return
        preferred = found[0].record.device
        answered = self._finder.heard_at(preferred) >= max(before, group.since)
        group.proofs = group.proofs + 1 if answered else 0
        if group.proofs >= group.proofs_needed:
            group.proofs_needed = min(2 * group.proofs_needed, PROOFS_MAX)
            group.failed.pop(preferred, None)
            self._switch(now, prefix, group, found[0])
        else:
            self._finder.prove(now, preferred)
