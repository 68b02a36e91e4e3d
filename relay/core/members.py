"""Who is logged in, of which network, and on which of the region's relays everybody else is."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.relay_frames import OWN_CHANNEL, FrameSplitter
from edgeagent.proto.relay_login import SessionKeys
from edgeagent.proto.relay_pass import Pass
from edgeagent.proto.sendqueue import SendQueue
from relay.core.buckets import TokenBucket
from relay.core.limits import Rate

# A link to a sibling carries what many members say
SIBLING_CONTROLS_MAX = 1_024  # frames of up to 256 keys: what a link has to say when it comes up
SIBLING_PACKETS_MAX = 1_024
SIBLING_QUEUE_BYTES_MAX = 2_097_152
CLAIMS_MAX = 4  # siblings that say of one key that they have it; the newest counts, the oldest gives way


COUNTER_MAX = 0xFFFF_FFFF  # of control datagrams one way
COUNTER_LAST = COUNTER_MAX - (1 << 20)  # from here on a session is ended: more than it says between two sweeps


class Network:
    """A tenant: what its members may send together, and what they sent."""

    __slots__ = ("bucket", "bytes", "dropped", "id", "members", "packets")

    def __init__(self, now: float, network: str, rate: Rate) -> None:
        self.id = network
        self.bucket = TokenBucket(now, rate)
        self.members = 0
        self.packets = 0
        self.bytes = 0
        self.dropped = 0


class StreamState(Enum):
    """What the other end of a stream is to us."""

    STRANGER = "stranger"  # has our challenge
    MEMBER = "member"
    CALLED = "called"  # a sibling that we called: its challenge is to come
    ASKED = "asked"  # a sibling that has our login
    SIBLING = "sibling"
    CLOSED = "closed"


class Stream:
    """A connection of the TLS carrier."""

    __slots__ = (
        "challenge",
        "claimed",
        "claims",
        "conn",
        "heard_at",
        "keys",
        "member",
        "queue",
        "sibling",
        "sibling_key",
        "source",
        "splitter",
        "state",
        "unsent_bytes",
    )

    def __init__(self, now: float, conn: int, source: bytes, queue: SendQueue) -> None:
        self.conn = conn
        self.source = source  # address, 4 or 16 B
        self.queue = queue
        self.unsent_bytes = 0  # of a write that the kernel did not take whole
        self.state = StreamState.STRANGER
        self.heard_at = now
        self.splitter = FrameSplitter()
        self.challenge = b""
        self.member: Member | None = None
        self.sibling = ""  # its id, "" for what is no sibling
        self.sibling_key = b""
        self.keys: SessionKeys | None = None  # of our own login at a sibling
        self.claims: dict[str, set[bytes]] = {}  # network → keys that this sibling says it has
        self.claimed = 0  # how many those are


class Session:
    """A session of the UDP carrier: where its member is, and what its channels mean."""

    __slots__ = ("channels", "down_counter", "endpoint", "id", "keys", "nonce", "numbers", "up_counter")

    def __init__(self, session: int, endpoint: Endpoint, keys: SessionKeys, nonce: bytes, key: bytes) -> None:
        self.id = session
        self.endpoint = endpoint
        self.keys = keys
        self.nonce = nonce
        self.up_counter = -1
        self.down_counter = 0
        self.channels: dict[int, bytes] = {OWN_CHANNEL: key}
        self.numbers: dict[bytes, int] = {key: OWN_CHANNEL}


class Member:
    """One login of one device: by a `stream` or by a UDP `session`, never both."""

    __slots__ = (
        "bucket",
        "gone_at",
        "heard_at",
        "key",
        "network",
        "pass_",
        "replaced_at",
        "session",
        "silence_s",
        "stream",
    )

    def __init__(
        self, now: float, pass_: Pass, network: Network, bucket: TokenBucket, silence_s: int, via: Stream | Session
    ) -> None:
        self.key = pass_.node_key
        self.pass_ = pass_
        self.network = network
        self.bucket = bucket
        self.silence_s = silence_s
        self.heard_at = now
        self.gone_at = 0.0
        self.replaced_at: float | None = None
        self.stream = via if isinstance(via, Stream) else None
        self.session = via if isinstance(via, Session) else None


class Roster:
    """The members by key. Of two logins of one key the newer gets what is sent to it; the older may still send."""

    def __init__(self) -> None:
        self.by_key: dict[bytes, Member] = {}
        self.by_session: dict[int, Member] = {}
        self.networks: dict[str, Network] = {}
        self._older: dict[bytes, Member] = {}  # replaced, the longest ago first; one a key
        self._by_device: dict[tuple[str, str], set[Member]] = {}  # (network, device)
        # Network → key → the siblings that have it, the newest claim first. What one network's relays claim is nothing
        # to another, whatever keys they name.
        self._away: dict[str, dict[bytes, tuple[Stream, ...]]] = {}
        self._claims = 0

    def __len__(self) -> int:
        return len(self.by_key) + len(self._older)

    def __iter__(self) -> Iterator[Member]:
        yield from list(self._older.values())
        yield from list(self.by_key.values())

    def add(self, now: float, member: Member) -> Member | None:
        """Returns the login that this one replaces. There must be no older one: see `older`."""
        before = self.by_key.get(member.key)
        if before is not None:
            before.replaced_at = now
            self._older[member.key] = before
        self.by_key[member.key] = member
        member.network.members += 1
        self._by_device.setdefault((member.network.id, member.pass_.device), set()).add(member)
        if member.session is not None:
            self.by_session[member.session.id] = member
        return before

    def remove(self, member: Member) -> bool:
        """True when with it the key has gone. An older login that still lingers serves again."""
        if member.session is not None:
            del self.by_session[member.session.id]
        member.network.members -= 1
        device = member.network.id, member.pass_.device
        self._by_device[device].remove(member)
        if not self._by_device[device]:
            del self._by_device[device]
        older = self._older.pop(member.key, None)
        if older is member:
            return False
        if older is None:
            del self.by_key[member.key]
            return True
        older.replaced_at = None
        self.by_key[member.key] = older
        return False

    def older(self, key: bytes) -> Member | None:
        """The login of a key that was replaced and lingers."""
        return self._older.get(key)

    @property
    def replaced(self) -> int:
        """Logins that were replaced and linger."""
        return len(self._older)

    def longest_replaced(self) -> Member:
        """Of those the one that was replaced the longest ago. There must be one."""
        return next(iter(self._older.values()))

    def replaced_before(self, now: float) -> list[Member]:
        """The logins that were replaced before `now`."""
        return [member for member in self._older.values() if (member.replaced_at or 0.0) <= now]

    def of_device(self, network: str, device: str) -> list[Member]:
        return list(self._by_device.get((network, device), ()))

    # What siblings have

    @property
    def away(self) -> int:
        return sum(map(len, self._away.values()))

    def find_away(self, key: bytes, network: str) -> Stream | None:
        """The link to the sibling that has a member of `network`."""
        found = self._away.get(network)
        links = found.get(key) if found is not None else None
        return links[0] if links is not None else None

    def set_away(self, key: bytes, link: Stream, network: str, link_max: int, all_max: int) -> bool:
        """False when the sibling has no more room: of `link_max` for itself, or of `all_max` for all siblings."""
        claims = link.claims.setdefault(network, set())
        if key in claims:
            return True
        if link.claimed >= link_max or self._claims >= all_max:
            return False
        claims.add(key)
        link.claimed += 1
        self._claims += 1
        keys = self._away.setdefault(network, {})
        links = keys.get(key, ())
        if len(links) >= CLAIMS_MAX:
            self.unset_away(key, links[-1], network)
            links = links[:-1]
        keys[key] = (link, *links)
        return True

    def unset_away(self, key: bytes, link: Stream, network: str) -> None:
        """Of what this sibling claimed; the member may have moved on to another."""
        claims = link.claims.get(network)
        if claims is None or key not in claims:
            return
        claims.remove(key)
        link.claimed -= 1
        self._claims -= 1
        keys = self._away[network]
        left = tuple(each for each in keys[key] if each is not link)
        if left:
            keys[key] = left
        else:
            del keys[key]

    def forget_network(self, network: str) -> None:
        """Nobody of it is here any more."""
        self.networks.pop(network, None)
        for key, links in list(self._away.get(network, {}).items()):
            for link in links:
                self.unset_away(key, link, network)
        self._away.pop(network, None)

    def forget_link(self, link: Stream) -> None:
        for network, keys in list(link.claims.items()):
            for key in list(keys):
                self.unset_away(key, link, network)
