"""Who may come in: challenges that cost no memory, logins that work once, passes checked without asking anybody."""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct
from typing import TypeVar

from edgeagent.proto.control import PASS_BYTES_MAX
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.keys import Entropy
from edgeagent.proto.names import network_id
from edgeagent.proto.ratelimiter import RateLimiter
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.relay_frames import CHALLENGE_SIZE, MAC_SIZE, Refusal, RelayError
from edgeagent.proto.relay_login import Login, Role, open_login
from edgeagent.proto.relay_pass import Pass, open_pass
from edgeagent.proto.signed import open_signed, peek_payload
from relay.core.limits import RelayLimits

CHALLENGE_LIFE_S = 10.0
_STAMP = Struct(">Q")
_GONE_BYTES_MAX = 1_024

K = TypeVar("K")
V = TypeVar("V")


class Served:
    """A network that is served: its Ed25519 key, and the id and the region that it knows this relay by."""

    __slots__ = ("key", "region", "relay")

    def __init__(self, key: bytes, relay: str, region: str) -> None:
        self.key = key
        self.relay = relay
        self.region = region


class Neighbour:
    """Another relay of the region, and the networks that both serve; None: all, as the settings say so."""

    __slots__ = ("id", "networks")

    def __init__(self, neighbour: str, networks: frozenset[str] | None = None) -> None:
        self.id = neighbour
        self.networks = networks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Neighbour) and (self.id, self.networks) == (other.id, other.networks)

    def __hash__(self) -> int:
        return hash((self.id, self.networks))


class Guest:
    """Somebody whose login holds: a member with its pass, or a sibling by its id."""

    __slots__ = ("login", "pass_", "sibling")

    def __init__(self, login: Login, pass_: Pass | None, sibling: str | None) -> None:
        self.login = login
        self.pass_ = pass_
        self.sibling = sibling


class Admission:
    """`create_challenge`, then `admit` with what was made of it. Everything that is not plainly right is refused.

    `networks` are the Ed25519 keys of the networks that know the relay as `relay` in `region`; `serve` adds others, by
    whatever names those have for it. `siblings` maps the relay keys of the region's other relays to what is known of
    them.
    """

    def __init__(
        self,
        *,
        crypto: Crypto,
        entropy: Entropy,
        relay: str,
        region: str,
        private: bytes,
        networks: list[bytes],
        siblings: dict[bytes, Neighbour],
        limits: RelayLimits,
    ) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self.relay = relay  # as the settings say; without a network of theirs, as the first hub does
        self.region = region
        self._named = bool(networks)
        self._private = private
        self.public = crypto.x25519_base(private)
        self.networks = {network_id(crypto, key): Served(key, relay, region) for key in networks}
        self.siblings = siblings
        self._secret = entropy(32)
        self._limiter = RateLimiter(
            limits.doorway, float(limits.logins_per_source_per_s), 2.0 * limits.logins_per_source_per_s
        )
        self._memory_max = limits.logins_remembered
        self._logins: OrderedDict[bytes, bytes] = OrderedDict()  # key → stamp of the last challenge that it used
        self._passes: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # node key → stamp of the newest pass
        # Network → device → wall time of its removal. A table each: a network that removes many does not make the relay
        # forget the removals of another
        self._revoked: dict[str, OrderedDict[str, int]] = {}

    def serve(self, key: bytes, relay: str, region: str) -> str:
        """One more network, or new names for one that is served. Returns its id."""
        network = network_id(self._crypto, key)
        self.networks[network] = Served(key, relay, region)
        if not self._named:
            self._named = True
            self.relay, self.region = relay, region
        return network

    def shares(self, sibling_key: bytes, network: str) -> bool:
        """Whether a sibling may hear and speak of members of a network."""
        sibling = self.siblings.get(sibling_key)
        return sibling is not None and (sibling.networks is None or network in sibling.networks)

    def create_challenge(self, now: float, source: bytes) -> bytes:
        """For whoever is at `source`; nothing is remembered."""
        stamp = _STAMP.pack(int(now * 1000))
        return stamp + self._mac(stamp, source)

    def check_challenge(self, now: float, challenge: bytes, source: bytes, life_s: float = CHALLENGE_LIFE_S) -> bool:
        """Whether it was made for `source` within the last `life_s`: for a login or a new address CHALLENGE_LIFE_S."""
        stamp = challenge[: _STAMP.size]
        if len(challenge) != CHALLENGE_SIZE or not self._crypto.equal(
            self._mac(stamp, source), challenge[_STAMP.size :]
        ):
            return False
        age_s: float = now - _STAMP.unpack(stamp)[0] / 1000
        return 0 <= age_s <= life_s

    def allow_attempt(self, now: float, source: bytes) -> bool:
        """Whether an address (4 or 16 B) may try one more login: each costs public-key operations."""
        return self._limiter.allow(now, source)

    def open(self, challenge: bytes, sealed: bytes) -> Login:
        """The login whose proof holds for `challenge`, which the caller checked. Raises RelayError(BAD_LOGIN)."""
        names = dict.fromkeys(served.relay for served in self.networks.values())  # most often one
        refused = RelayError(Refusal.WRONG_NETWORK, "login: this relay serves no network yet")
        for name in names:
            try:
                return open_login(
                    self._crypto,
                    relay=name,
                    relay_private=self._private,
                    relay_key=self.public,
                    challenge=challenge,
                    login=sealed,
                )
            except RelayError as error:
                refused = error
        raise refused

    def use_challenge(self, key: bytes, challenge: bytes) -> None:
        """A challenge serves one login of a key, and no older one serves after it. Raises RelayError(REPLAYED)."""
        stamp = challenge[: _STAMP.size]
        if stamp <= self._logins.get(key, b""):
            raise RelayError(Refusal.REPLAYED, "login: this challenge, or a newer one, was used")
        _remember(self._logins, key, stamp, self._memory_max)

    def admit(self, wall_s: float, login: Login) -> Guest:
        """Raises RelayError with the reason."""
        if login.role is Role.SIBLING:
            sibling = self.siblings.get(login.key)
            if sibling is None:
                raise RelayError(Refusal.BAD_LOGIN, "login: no relay of this region has this key")
            return Guest(login, None, sibling.id)
        pass_ = self._open_pass(wall_s, login)
        if pass_.stamp < self._passes.get(login.key, pass_.stamp):
            raise RelayError(Refusal.REPLAYED, "pass: a newer one was seen")
        if pass_.wall_s <= self._revoked_at(pass_.network, pass_.device):
            raise RelayError(Refusal.REVOKED, "pass: its device was removed")
        _remember(self._passes, login.key, pass_.stamp, self._memory_max)
        return Guest(login, pass_, None)

    def _open_pass(self, wall_s: float, login: Login) -> Pass:
        """By the names that the pass's own network has for this relay. Raises RelayError."""
        try:
            network = peek_payload(login.pass_object, "pass", max_bytes=PASS_BYTES_MAX)["n"]
        except ControlError as error:
            raise RelayError(Refusal.BAD_PASS, str(error)) from None
        served = self.networks.get(network)
        if served is None:
            raise RelayError(Refusal.WRONG_NETWORK, "pass: of a network that this relay does not serve")
        keys = {network: served.key}
        return open_pass(self._crypto, keys, served.relay, served.region, login.key, wall_s, login.pass_object)

    def revoke(self, data: bytes) -> tuple[str, str, int] | None:
        """A signed `gone`: no pass of that device from before it counts again. Returns (network, device, when), None
        when that was known.

        Raises RelayError: WRONG_NETWORK or BAD_PASS.
        """
        try:
            head = peek_payload(data, "gone", max_bytes=_GONE_BYTES_MAX)
            served = self.networks.get(head["n"])
            if served is None:
                raise RelayError(Refusal.WRONG_NETWORK, "gone: of a network that this relay does not serve")
            if head["w"] <= self._revoked_at(head["n"], head["s"]):
                return None
            gone = open_signed(
                self._crypto,
                served.key,
                data,
                kind="gone",
                network=head["n"],
                subject=head["s"],
                max_bytes=_GONE_BYTES_MAX,
            )
        except ControlError as error:
            raise RelayError(Refusal.BAD_PASS, str(error)) from None
        _remember(self._revoked.setdefault(gone.network, OrderedDict()), gone.subject, gone.wall_s, self._memory_max)
        return gone.network, gone.subject, gone.wall_s

    def _revoked_at(self, network: str, device: str) -> int:
        """-1 when it was not, or nobody remembers."""
        revoked = self._revoked.get(network)
        return revoked.get(device, -1) if revoked is not None else -1

    def _mac(self, stamp: bytes, source: bytes) -> bytes:
        return self._crypto.blake2s(stamp + source, self._secret, MAC_SIZE)


def _remember(memory: OrderedDict[K, V], key: K, value: V, size_max: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > size_max:
        memory.popitem(last=False)
