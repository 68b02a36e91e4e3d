"""A device's side of the control plane: reads what the hub and other devices say, asks, and keeps what it learned.

```
MQTT messages ──handle_message──▶ ┌───────────────┐ ──drain_publishes, drain_subscriptions──▶ broker
connection ─────handle_…connected▶│ ControlClient │ ──drain_news────────▶ the node
questions ──────lookup──────────▶ └───────────────┘ ──next_connect_at───▶ when to connect
```

Nothing that is refused changes anything: a message is verified whole, then checked for newness, then applied.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto import topics
from edgeagent.proto.backoff import GROWTH, Backoff
from edgeagent.proto.control import HAVE_MAX
from edgeagent.proto.control_news import (
    Answered,
    CommandCame,
    CutOff,
    EpochBehind,
    FeedCame,
    LockChanged,
    MapCame,
    News,
    PartCame,
    RecordCame,
    RecordLost,
    RoutersTold,
)
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.envelope import read_down, read_feed, read_hub_state
from edgeagent.proto.feeds import FeedSubscriptions
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.limits import Limits
from edgeagent.proto.outbox import Outbox
from edgeagent.proto.ownfeed import OwnFeed
from edgeagent.proto.publishing import Publish
from edgeagent.proto.questions import Questions
from edgeagent.proto.records import Entry, Query, Record, RecordTable, open_gone, open_record
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.signed import SeqGuard, Signed
from edgeagent.proto.walltime import WallFloor

if TYPE_CHECKING:
    from edgeagent.proto.lock import Lock

KEEPALIVE_MAX_S = 3600
STABLE_S = 60.0  # a connection that lasted so long was a good one
REFRESH_SPACING_S = 60.0  # between two questions whether one record is still right
REFRESH_ALL_S = 6 * 3600.0  # between two rounds over all records, while the broker keeps our session
NEGATIVE_TTL_MAX_S = 3600.0
LOCKED_TTL_S = 60.0  # a device whose record the lock refuses is not asked for again for so long


class Answer(Enum):
    """What a lookup says when it has no record."""

    NO = "no"
    PENDING = "pending"


class ControlClient:
    """Drive it by the handle methods and `lookup`, then drain publishes, subscriptions and news, and sleep until
    `poll_timeout()`. `map` is the map in use, `drops` counts what was refused, by reason.
    """

    def __init__(
        self,
        now: float,
        *,
        crypto: Crypto,
        jitter: Callable[[], float],
        limits: Limits,
        identity: Identity,
        admission: Admission,
        wall: WallFloor,
        outbox: Outbox,
        boot: bytes,
        version: str,
        facts: dict[str, str],
        lock: Lock | None = None,
    ) -> None:
        self._crypto = crypto
        self._limits = limits
        self._identity = identity
        self._admission = admission
        self._wall = wall
        self._outbox = outbox
        self._boot = boot
        self._version = version
        self.facts = facts  # with the next birth
        self.advertised: tuple[list[tuple[bytes, int]], bool] = ([], True)  # routes, whether sources are translated
        self._network = admission.network
        self._backoff = Backoff(jitter, 1.0, 300.0)
        self._connected_at: float | None = None
        self._heard = False  # something came on our own topics in this session, so the subscription to them holds
        self._hub_box_wall_s = -1
        self._refreshed_all_at: float | None = None
        self._subscriptions: list[tuple[str, bool]] = []
        self._news: list[News] = []
        self.map = admission.open_map(crypto, identity.device_id)
        self.records = RecordTable(limits.records, limits.tombstones)
        self.questions = Questions(limits.asks, limits.negatives, jitter)
        self.feeds = FeedSubscriptions(self._network, limits.feeds)
        self.own_feed = OwnFeed(identity, boot)
        self.guard = SeqGuard(8)  # the hub's (epoch, seq) by kind
        self.hub_up: bool | None = None  # None: not known
        self.time_is_fresh = False  # the hub has answered the birth of this connection
        self.drops: dict[ControlDrop, int] = dict.fromkeys(ControlDrop, 0)
        self.next_connect_at: float | None = now
        self.keepalive_factor = 1  # by which the uplink of the next connection wants fewer pings
        self.lock = lock  # what is held of the network's lock; None: this device never heard of one
        self._apply_settings()
        self._follow_lock(now)

    @property
    def connected(self) -> bool:
        return self._connected_at is not None

    @property
    def keepalive_s(self) -> int:
        """Of the MQTT connection."""
        wanted_s = self.map.setting("mqtt_keepalive_s", 300, 10, KEEPALIVE_MAX_S)
        return min(KEEPALIVE_MAX_S, self.keepalive_factor * wanted_s)

    @property
    def reachable(self) -> bool:
        """Whether a question makes sense now."""
        return self.connected and self.hub_up is not False

    @property
    def publishes(self) -> int:
        """Messages that wait to be drained."""
        return len(self._outbox)

    # The connection

    def handle_connected(self, now: float, session_present: bool) -> None:
        self._connected_at = now
        self.time_is_fresh = False
        self.next_connect_at = None
        if not session_present:
            self._heard = False  # a broker that refuses the subscriptions, or dies before them, may keep the session
            self.hub_up = None  # else what changed comes by itself
            self.feeds.session_lost()
            self.own_feed.forget_published()
        if not self._heard or self.hub_up is None:
            self._subscriptions.append((topics.down_filter(self._network, self._identity.device_id), True))
            self._subscriptions.append((topics.hub_state(self._network), True))
        self.write_birth(now)
        self._outbox.write(now, "state", {"up": True}, retain=True)
        self.own_feed.changed(now, self.map)
        self.questions.connected(now)
        # While the broker keeps our session, what changed comes by itself
        due = self._refreshed_all_at is None or now - self._refreshed_all_at >= REFRESH_ALL_S
        # NATS delivers again, behind newer ones, what the last connection did not acknowledge: that is dropped as old
        if due or not session_present or self.map.broker_pass:
            self._refreshed_all_at = now
            self._refresh(now, list(self.records))
        self._send_due(now)

    def handle_disconnected(self, now: float) -> None:
        """The connection ended, or could not be made."""
        if self._connected_at is not None and now - self._connected_at >= STABLE_S:
            self._backoff.reset()
        self._connected_at = None
        self._subscriptions.clear()
        self._outbox.clear()
        # A connection may have been dead for so long before it was noticed, and taken what was written into it along
        unsure_s = 2.0 * self.keepalive_s
        self.feeds.connection_lost()
        self.own_feed.connection_lost(now, unsure_s)
        if self._refreshed_all_at is not None and now - self._refreshed_all_at < unsure_s:
            self._refreshed_all_at = None
        self.questions.disconnected()
        self.next_connect_at = now + self._backoff.wait_s()

    def network_changed(self, now: float) -> None:
        """This host's addresses are others: what failed before may work now, so a long pause is cut short."""
        soon = now + GROWTH * self._backoff.base_s  # the longest of all first waits
        if self.next_connect_at is not None and self.next_connect_at > soon:
            self._backoff.reset()
            self.next_connect_at = now + self._backoff.wait_s()

    def write_birth(self, now: float) -> None:
        """Tell the hub who is here, with which map and which node key."""
        body: dict[str, object] = {
            "boot": self._boot,
            "ver": self._version,
            "map": list(self.map.stamp),
            "nk": self._identity.node_key,
            "facts": self.facts,
        }
        routes, snat = self.advertised
        if routes:
            body |= {"ro": [list(prefix) for prefix in routes], "sn": snat}
        self._outbox.write(now, "birth", body)

    def farewell(self, now: float, *, returns: bool = False) -> None:
        """The connection is about to be closed on purpose. `returns`: the next one comes at once, so the feed stays."""
        if not self.connected:
            return
        if not returns:
            self.own_feed.leave_relay(now, self.map, self._outbox)
        self._outbox.write(now, "state", {"up": False}, retain=True)

    # Questions

    def lookup(self, now: float, query: Query) -> Entry | Answer:
        """What is known now; PENDING ends in Answered."""
        entry = self.records.find(query, self._wall.at(now))
        return entry if entry is not None else self.ask(now, query)

    def ask(self, now: float, query: Query) -> Answer:
        """Have the hub asked, whatever is known: NO where it said so a short while ago."""
        if self.questions.is_refused(now, query):
            return Answer.NO
        if not self.questions.ask(now, query, reachable=self.reachable):
            self.count(ControlDrop.TABLE_FULL)
            return Answer.NO
        self._send_due(now)
        return Answer.PENDING

    def is_known(self, now: float, query: Query) -> bool:
        """Whether `lookup` would have a record."""
        return self.records.find(query, self._wall.at(now)) is not None

    def refresh(self, now: float, entry: Entry) -> None:
        """Something does not fit the record: ask whether it is still right, once a minute at most."""
        if entry.refreshed_at is None or now - entry.refreshed_at >= REFRESH_SPACING_S:
            self._refresh(now, [entry])

    def all_drops(self) -> dict[ControlDrop, int]:
        """What was refused, by reason."""
        return {**self.drops, ControlDrop.PUBLISH_FULL: self._outbox.dropped}

    def count(self, reason: ControlDrop, number: int = 1) -> None:
        self.drops[reason] += number

    # Time

    def handle_timeout(self, now: float) -> None:
        for query in self.questions.expired(now):
            self._news.append(Answered(query, None))
        self._send_due(now)
        if self.connected and self.own_feed.due_at is not None and self.own_feed.due_at <= now:
            self.own_feed.publish(now, self.map, self._outbox)

    def poll_timeout(self) -> float | None:
        times = [self.questions.poll_timeout(), self.own_feed.due_at if self.connected else None]
        return min((at for at in times if at is not None), default=None)

    # Outputs

    def drain_publishes(self) -> list[Publish]:
        return self._outbox.drain()

    def drain_subscriptions(self) -> list[tuple[str, bool]]:
        """(topic, whether to subscribe); empty while there is no connection."""
        if not self.connected:
            return []
        changes, self._subscriptions = self._subscriptions, []
        return changes + self.feeds.drain()

    def drain_news(self) -> list[News]:
        news, self._news = self._news, []
        return news

    # Messages

    def handle_message(self, now: float, topic: str, payload: bytes) -> None:
        try:
            self._read(now, topic, payload)
        except ControlError as error:
            self.count(error.reason)

    def _read(self, now: float, topic: str, payload: bytes) -> None:
        parts = topics.parse(topic)
        if parts is None or parts.network != self._network:
            raise ControlError(ControlDrop.UNKNOWN_TOPIC, "topic: not one that this device reads")
        if not payload:
            return  # what the broker retained on this topic was taken back
        if parts.way == "hub":
            self._read_hub_state(now, payload)
        elif parts.way == "p":
            self._read_feed(now, parts.owner, topic, payload)
        elif parts.way == "d" and parts.owner == self._identity.device_id and parts.leaf in _READERS:
            _READERS[parts.leaf](self, now, self._open(parts.leaf, topic, payload))
        else:
            raise ControlError(ControlDrop.UNKNOWN_TOPIC, "topic: not one that this device reads")

    def _open(self, kind: str, topic: str, payload: bytes) -> Signed:
        return read_down(
            self._crypto,
            self._identity.box_private,
            self._admission.network_key,
            topic,
            payload,
            kind=kind,
            network=self._network,
            device=self._identity.device_id,
            max_bytes=self._limits.message_bytes,
        )

    def _newer(self, now: float, signed: Signed) -> None:
        """The last check of what the hub wrote, and its first effect: it is newer than all before, and its time too."""
        signed.check_dates(self._wall.at(now))
        if not self.guard.accept(signed.kind, *signed.stamp):
            raise ControlError(ControlDrop.REPLAYED, f"{signed.kind}.q: not newer than the last one")
        self._wall.raise_to(now, signed.wall_s)
        if signed.kind != "hub":
            self._heard = True

    def _read_hub_state(self, now: float, payload: bytes) -> None:
        state = read_hub_state(self._crypto, self._admission.network_key, payload, network=self._network)
        # Each subscription brings the retained message again
        if self.guard.last("hub") != state.stamp:
            self._newer(now, state)
        elif self.hub_up is not None:
            return
        self._use_hub_box_key(state.body["bx"], state.wall_s)
        came_up = self.hub_up is False and state.body["up"]
        self.hub_up = state.body["up"]
        if not self.hub_up:
            self.questions.disconnected()
        elif came_up:
            self.questions.connected(now)
            self._send_due(now)

    def _read_map(self, now: float, signed: Signed) -> None:
        self._heard = True
        if signed.stamp == self.map.stamp:
            return  # retained: each subscription brings it again
        device_map = DeviceMap(signed)
        if signed.stamp < self.map.stamp:
            raise ControlError(ControlDrop.REPLAYED, "map.q: older than the map in use")
        # The map that is held guards itself: its stamp is kept with it, and not apart from it
        signed.check_dates(self._wall.at(now))
        self._wall.raise_to(now, signed.wall_s)
        if device_map.policy != self.map.policy:
            self.questions.forget_refusals()  # what was forbidden may be allowed now
        self.map = device_map
        self._admission.map_object = device_map.raw
        self._admission.hosts = device_map.hosts
        self._apply_settings()
        self._follow_lock(now)
        self.own_feed.changed(now, device_map)
        self._news.append(MapCame())

    def _read_time(self, now: float, signed: Signed) -> None:
        self._newer(now, signed)
        self.time_is_fresh = True
        epoch = signed.body.get("e")
        if epoch is not None and self._outbox.epochs.behind(epoch):
            self._backoff.reset()
            self._news.append(EpochBehind())

    def _read_cmd(self, now: float, signed: Signed) -> None:
        self._newer(now, signed)
        self._news.append(CommandCame(signed.body))

    def _read_part(self, now: float, signed: Signed) -> None:
        """Not guarded: what it holds counts for nothing before the repository's own signatures say so."""
        self._heard = True
        self._news.append(PartCame(signed.body))

    def _read_rec(self, now: float, signed: Signed) -> None:
        body = signed.body
        wall_s = max(self._wall.at(now), signed.wall_s)
        if "gone" in body:
            gone = open_gone(self._crypto, self._admission.network_key, body["gone"], network=self._network)
            if gone.subject != self._identity.device_id:
                self.records.check_gone(gone)
            self._newer(now, signed)
            self._take_gone(gone)
        elif "no" in body:
            self._newer(now, signed)
            query = self.questions.query_of(body["id"])
            if query is not None:
                self.questions.refused(now, query, min(max(body["ttl"], 1), NEGATIVE_TTL_MAX_S))
                self._news.append(Answered(query, None))
        else:
            record = open_record(
                self._crypto, self._admission.network_key, body["rec"], network=self._network, wall_s=wall_s
            )
            asked = self.questions.query_of(body["id"]) if "id" in body else None
            if asked is not None and not record.answers(asked):
                raise ControlError(ControlDrop.BAD_FIELD, "rec.rec: not what was asked for")
            try:
                self.unlock(record, wall_s)
                if asked is not None and not record.answers(asked):
                    raise ControlError(ControlDrop.LOCK_UNSIGNED, "rec.rec: the key that was asked for is not signed")
            except ControlError:
                if asked is not None:  # until it is signed, and pushed, nobody can say more
                    self.questions.refused(now, asked, LOCKED_TTL_S)
                    self._news.append(Answered(asked, None))
                raise
            self._check(record, body["fg"])
            self._newer(now, signed)
            if asked is not None and asked[0] == "a" and isinstance(asked[1], bytes) and "via" in body:
                self._news.append(RoutersTold(asked[1], body["via"]))
            self._take_record(record, body["fk"], body["fg"], asked="id" in body)

    def unlock(self, record: Record, wall_s: float, *, verified: bool = False) -> None:
        """Leave to a record what the network's lock lets count. Raises ControlError; see Lock.admit."""
        if self.lock is not None:
            self.lock.admit(record, wall_s, verified=verified)

    def _follow_lock(self, now: float) -> None:
        """After each map. What the map says of a lock counts as far as it follows from what is held."""
        offered = self.map.lock
        if self.lock is None:
            if offered is None:
                return
            from edgeagent.proto.lock import Lock  # most networks have none

            self.lock = Lock(self._crypto, self._network)
        try:
            changed = self.lock.follow(offered["s"] if offered is not None else [])
        except ControlError as error:
            self.count(error.reason)
            return
        if not changed:
            return
        self._news.append(LockChanged())
        wall_s = self._wall.at(now)
        fewer, refused = self.records.judge(lambda record: self.unlock(record, wall_s))
        self.count(ControlDrop.LOCK_UNSIGNED, len(refused))
        for entry in fewer:
            self._news.append(RecordCame(entry))
        for entry in refused:
            self.feeds.leave(entry.record.device)
            self._news.append(RecordLost(entry, gone=False, locked=True))

    def keep(self, record: Record, feed_key: bytes, feed_generation: int) -> tuple[Entry, list[Entry]]:
        """Put a verified record into the table. Returns its entry and those that gave way. Raises ControlError."""
        self._check(record, feed_generation)
        # A route over the network's own prefixes would hide every device that is not known yet
        record.routes = [route for route in record.routes if not self.map.overlaps(*route)]
        return self.records.take(record, feed_key, feed_generation)

    def _check(self, record: Record, feed_generation: int) -> None:
        """Raise ControlError unless this is another device's record, and not older than what is known."""
        if record.device == self._identity.device_id:
            raise ControlError(ControlDrop.WRONG_SUBJECT, "record.s: this device")
        if record.has_node_key(self._identity.node_key):
            raise ControlError(ControlDrop.BAD_FIELD, "record.nk: this device's own key")
        self.records.check(record, feed_generation)

    def _take_record(self, record: Record, feed_key: bytes, feed_generation: int, *, asked: bool) -> None:
        known = self.records.get(record.device)
        before = None if known is None else known.feed_key
        # What the hub says unasked is news about a device that we know, or that one asks for us
        introduced = not asked and (known is None or known.record.stamp == record.stamp)
        entry, evicted = self.keep(record, feed_key, feed_generation)
        for lost in evicted:
            self.feeds.leave(lost.record.device)
            self._news.append(RecordLost(lost, gone=False))
        if before is not None and before != feed_key:
            self.feeds.again(record.device)  # the retained feed did not open, or will be another
        self._news.append(RecordCame(entry, introduced=introduced))
        for query in self.questions.open_queries():
            if record.answers(query):
                self._news.append(Answered(query, entry))
        for query in record.queries() + [query for query in self.questions.open_queries() if record.answers(query)]:
            self.questions.answered(query)

    def _take_gone(self, gone: Signed) -> None:
        if gone.subject == self._identity.device_id:
            self._news.append(CutOff())
            return
        entry = self.records.bury(gone)
        self.feeds.leave(gone.subject)
        if entry is not None:
            self._news.append(RecordLost(entry, gone=True))

    def _read_feed(self, now: float, device: str, topic: str, payload: bytes) -> None:
        entry = self.records.get(device)
        self.feeds.heard(device)
        self.feeds.stray(device)
        if entry is None:
            raise ControlError(ControlDrop.UNKNOWN_FEED, "feed: of a device whose record is not held")
        try:
            feed = read_feed(
                self._crypto,
                entry.record.device_key,
                entry.feed_key,
                topic,
                payload,
                network=self._network,
                device=device,
            )
        except ControlError as error:
            if error.reason is ControlDrop.FEED_KEY:
                self.refresh(now, entry)
            raise
        # Retained: each subscription brings it again. Of what an earlier life heard, only the stamp is kept; and the
        # key was changed where nobody answered under it
        if feed.stamp == entry.feed_stamp and entry.feed_boot and feed.body["nk"] == entry.feed_node_key:
            return
        if feed.stamp < entry.feed_stamp:
            raise ControlError(ControlDrop.REPLAYED, "feed.q: older than the feed that is held")
        entry.take_feed(feed)
        self._news.append(FeedCame(entry))

    # Inner

    def _apply_settings(self) -> None:
        self._use_hub_box_key(self.map.hub_box_key, self.map.wall_s)
        self._backoff.base_s = self.map.setting("reconnect_min_s", 1, 1, 3600)
        self._backoff.cap_s = max(self._backoff.base_s, self.map.setting("reconnect_max_s", 300, 5, 86_400))
        self.questions.timeout_s = self.map.setting("ask_timeout_s", 4, 1, 60)

    def _use_hub_box_key(self, key: bytes, wall_s: int) -> None:
        """The hub says its box key in two places: what it said last counts."""
        if wall_s >= self._hub_box_wall_s:
            self._hub_box_wall_s = wall_s
            self._outbox.hub_box_key = key

    def _send_due(self, now: float) -> None:
        for question in self.questions.due(now):
            form, value = question.query
            self._outbox.write(now, "ask", {"id": question.number, form: value})

    def _refresh(self, now: float, entries: list[Entry]) -> None:
        if not self.connected:
            return
        for start in range(0, len(entries), HAVE_MAX):
            have = []
            for entry in entries[start : start + HAVE_MAX]:
                entry.refreshed_at = now
                have.append([entry.record.device, *entry.record.stamp, entry.feed_generation])
            self._outbox.write(now, "ask", {"id": self.questions.next_number(), "have": have})


_READERS: dict[str, Callable[[ControlClient, float, Signed], None]] = {
    "map": ControlClient._read_map,
    "rec": ControlClient._read_rec,
    "time": ControlClient._read_time,
    "cmd": ControlClient._read_cmd,
    "part": ControlClient._read_part,
}
