"""Peer records: who is who in the network, as the hub signed it; a bounded table that forgets the least recently used.

Memory is O(limits.records), never O(fleet). A record counts only while it is newer than all before it of the same
device, than the device's removal, and before its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from edgeagent.proto.control import RECORD_BYTES_MAX
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.names import device_id
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.signed import SeqGuard, Signed, open_signed, peek_subject

Query = tuple[str, bytes | str]  # ("a", address) | ("h", host name) | ("k", node key)
UdpAddress = tuple[bytes, int]  # address of 4 or 16 B, port


class Record:
    """A verified record. `node_keys` are (key, not_after or 0), the one in use first; `routes` (address, length)."""

    __slots__ = (
        "addresses",
        "device",
        "device_key",
        "groups",
        "name",
        "node_keys",
        "not_after",
        "raw",
        "routes",
        "stamp",
        "tags",
        "user",
        "wall_s",
    )

    def __init__(self, signed: Signed) -> None:
        body = signed.body
        self.raw = signed.raw
        self.device = signed.subject
        self.stamp = signed.stamp
        self.wall_s = signed.wall_s
        self.not_after = signed.not_after or 0
        self.name: str = body["name"]
        self.addresses: list[bytes] = body["addrs"]
        self.device_key: bytes = body["dk"]
        self.node_keys: list[tuple[bytes, int]] = [(key, not_after) for key, not_after in body["nk"]]
        self.tags: list[str] = body["tags"]
        self.user: str = body["user"]
        self.groups: list[str] = body.get("gr", [])  # of the policy's, that the user is in
        self.routes: list[tuple[bytes, int]] = [(address, length) for address, length in body["routes"]]

    def has_node_key(self, key: bytes) -> bool:
        return any(key == known for known, _ in self.node_keys)

    def key_end(self, key: bytes) -> float:
        """Until when a node key of this record counts, in wall seconds."""
        return max((not_after or float("inf") for known, not_after in self.node_keys if known == key), default=0.0)

    def prefixes(self) -> Iterator[tuple[bytes, int]]:
        """Everything that is reached through this device: (address, length)."""
        for address in self.addresses:
            yield address, 8 * len(address)
        yield from self.routes

    def cover_length(self, address: bytes) -> int:
        """The length of the longest prefix that holds `address`; -1 when it is neither this device's nor behind it."""
        bits = 8 * len(address)
        value = int.from_bytes(address, "big")
        longest = -1
        for prefix, length in self.prefixes():
            shift = bits - length
            if len(prefix) == len(address) and value >> shift == int.from_bytes(prefix, "big") >> shift:
                longest = max(longest, length)
        return longest

    def queries(self) -> list[Query]:
        """All questions about this device itself."""
        return [
            *(("a", address) for address in self.addresses),
            ("h", self.name),
            *(("k", key) for key, _ in self.node_keys),
        ]

    def answers(self, query: Query) -> bool:
        """Whether this is what `query` asks for."""
        form, value = query
        if isinstance(value, str):
            return form == "h" and value == self.name
        return self.cover_length(value) >= 0 if form == "a" else self.has_node_key(value)


class Entry:
    """A record and what belongs to it: the key of its feed, and what the feed said last."""

    __slots__ = (
        "disco_key",
        "endpoints",
        "feed_boot",
        "feed_generation",
        "feed_key",
        "feed_node_key",
        "feed_stamp",
        "home_relay",
        "inbox",
        "last_endpoint",
        "nat",
        "record",
        "refreshed_at",
        "timestamps",
    )

    def __init__(self, record: Record, feed_key: bytes, feed_generation: int) -> None:
        self.record = record
        self.feed_key = feed_key
        self.feed_generation = feed_generation
        self.feed_stamp = (-1, -1)
        self.feed_boot = b""
        self.feed_node_key: bytes | None = None
        self.endpoints: list[UdpAddress] = []
        self.disco_key: bytes | None = None  # of its present life, so it is not saved
        self.home_relay: str | None = None
        self.nat: str | None = None
        self.inbox: str | None = None  # the capability of its signal inbox
        self.last_endpoint: UdpAddress | None = None  # where it was last heard
        self.timestamps: dict[bytes, bytes] = {}  # the last TAI64N under each node key, while there is no peer for it
        self.refreshed_at: float | None = None  # when the hub was last asked whether the record is still right

    def node_key(self) -> bytes:
        """The key to begin a handshake with: what the device says, and before that what the hub believes."""
        if self.feed_node_key is not None and self.record.has_node_key(self.feed_node_key):
            return self.feed_node_key
        return self.record.node_keys[0][0]

    def key_failed(self, key: bytes) -> None:
        """Nobody answered under `key`: try another of the record next."""
        others = [other for other, _ in self.record.node_keys if other != key]
        if others and self.node_key() == key:
            self.feed_node_key = others[0]

    def take_feed(self, feed: Signed) -> None:
        """A feed whose signature and newness were checked."""
        self.feed_stamp = feed.stamp
        self.feed_boot = feed.body["boot"]
        self.feed_node_key = feed.body["nk"]
        self.endpoints = [(address, port) for address, port in feed.body["ep"]]
        self.disco_key = feed.body["dk"]
        self.home_relay = feed.body["hr"]
        self.nat = feed.body["nat"]
        self.inbox = feed.body["cap"]


class RecordTable:
    """At most `records_max` entries and `tombstones_max` removals. `take` puts in, `find` and `by_…` look up."""

    def __init__(self, records_max: int, tombstones_max: int) -> None:
        self.records_max = records_max
        self.gave_way = 0  # records forgotten because others needed the room
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # device id → entry, least recently used first
        self._by_address: dict[bytes, str] = {}
        self._by_name: dict[str, str] = {}
        self._by_node_key: dict[bytes, str] = {}
        self._tombstones = SeqGuard(tombstones_max)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """The least recently used first."""
        return iter(list(self._entries.values()))

    def get(self, device: str) -> Entry | None:
        return self._entries.get(device)

    def find(self, query: Query, wall_s: float) -> Entry | None:
        """The entry that answers `query`, if its record has not ended; it counts as used."""
        form, value = query
        device = None
        if isinstance(value, str):
            device = self._by_name.get(value)
        elif form == "k":
            device = self._by_node_key.get(value)
        else:
            device = self._by_address.get(value) or self._by_route(value)
        entry = self._entries.get(device) if device is not None else None
        if entry is None or entry.record.not_after < wall_s:
            return None
        self._entries.move_to_end(entry.record.device)
        return entry

    def check(self, record: Record, feed_generation: int) -> None:
        """Raise ControlError, TOMBSTONED, REPLAYED or BAD_FIELD, where `take` must not take it."""
        for key, _ in record.node_keys:
            # One of the two devices has taken the other's key for its own, and the second to come is the likelier
            if self._by_node_key.get(key, record.device) != record.device:
                raise ControlError(ControlDrop.BAD_FIELD, "record.nk: the key of another device")
        removed = self._tombstones.last(record.device)
        if removed is not None and record.stamp <= removed:
            raise ControlError(ControlDrop.TOMBSTONED, "record.q: the device was removed after this record")
        entry = self._entries.get(record.device)
        if entry is not None and (record.stamp < entry.record.stamp or feed_generation < entry.feed_generation):
            raise ControlError(ControlDrop.REPLAYED, "record.q: older than the record that is held")

    def take(self, record: Record, feed_key: bytes, feed_generation: int) -> tuple[Entry, list[Entry]]:
        """Put in a verified record that `check` let pass; an equal one may bring a newer feed key.

        Returns its entry and those that gave way to it.
        """
        entry = self._entries.get(record.device)
        if entry is None:
            entry = self._entries[record.device] = Entry(record, feed_key, feed_generation)
        else:
            self._unindex(entry.record)
            entry.record, entry.feed_key, entry.feed_generation = record, feed_key, feed_generation
        self._entries.move_to_end(record.device)
        self._index(record)
        evicted = []
        while len(self._entries) > self.records_max:
            _, oldest = self._entries.popitem(last=False)
            self._unindex(oldest.record)
            self.gave_way += 1
            evicted.append(oldest)
        return entry, evicted

    def holder(self, address: bytes) -> str | None:
        """The device whose own address this is."""
        return self._by_address.get(address)

    def touch(self, device: str) -> None:
        """It is in use: others are forgotten first."""
        if device in self._entries:
            self._entries.move_to_end(device)

    def remove(self, device: str) -> Entry | None:
        """Forget a record; a newer or an equal one may come again."""
        entry = self._entries.pop(device, None)
        if entry is not None:
            self._unindex(entry.record)
        return entry

    def check_gone(self, gone: Signed) -> None:
        """Raise ControlError(REPLAYED) where `bury` must not act."""
        entry = self._entries.get(gone.subject)
        if entry is not None and gone.stamp < entry.record.stamp:
            raise ControlError(ControlDrop.REPLAYED, "gone.q: older than the record that is held")
        last = self._tombstones.last(gone.subject)
        if last is not None and gone.stamp <= last:
            raise ControlError(ControlDrop.REPLAYED, "gone.q: not newer than the last removal")

    def bury(self, gone: Signed) -> Entry | None:
        """A verified removal that `check_gone` let pass: forget the record, and never take an older one again."""
        self._tombstones.accept(gone.subject, *gone.stamp)
        return self.remove(gone.subject)

    @property
    def tombstones(self) -> SeqGuard:
        return self._tombstones

    def _by_route(self, address: bytes) -> str | None:
        best, longest = None, -1
        for device, entry in self._entries.items():
            length = entry.record.cover_length(address) if entry.record.routes else -1
            if length > longest:
                best, longest = device, length
        return best

    def _index(self, record: Record) -> None:
        for address in record.addresses:
            self._claim(self._by_address, address, record)
        self._claim(self._by_name, record.name, record)
        for key, _ in record.node_keys:
            self._by_node_key[key] = record.device

    def _claim(self, index: dict[Any, str], key: bytes | str, record: Record) -> None:
        """An address or a name given to another device: the record that was signed later has it."""
        holder = self._entries.get(index.get(key, ""))
        if holder is None or holder.record is record or holder.record.wall_s <= record.wall_s:
            index[key] = record.device

    def _unindex(self, record: Record) -> None:
        for address in record.addresses:
            self._release(self._by_address, address, record)
        self._release(self._by_name, record.name, record)
        for key, _ in record.node_keys:
            self._release(self._by_node_key, key, record)

    @staticmethod
    def _release(index: dict[Any, str], key: bytes | str, record: Record) -> None:
        if index.get(key) == record.device:
            del index[key]


def open_record(crypto: Crypto, network_key: bytes, data: bytes, *, network: str, wall_s: float) -> Record:
    """A record of any device of the network. Raises ControlError."""
    signed = open_signed(
        crypto,
        network_key,
        data,
        kind="record",
        network=network,
        subject=peek_subject(data),
        max_bytes=RECORD_BYTES_MAX,
    )
    if device_id(crypto, signed.body["dk"]) != signed.subject:
        raise ControlError(ControlDrop.WRONG_SUBJECT, "record.dk: not the key behind the subject's id")
    signed.check_dates(wall_s)
    return Record(signed)


def open_gone(crypto: Crypto, network_key: bytes, data: bytes, *, network: str) -> Signed:
    """A removal of any device of the network. Raises ControlError."""
    return open_signed(crypto, network_key, data, kind="gone", network=network, subject=peek_subject(data))
