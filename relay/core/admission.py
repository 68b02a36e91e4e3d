"""Who may come in: challenges that cost no memory, logins that work once, passes checked without asking anybody."""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct
from typing import TypeVar

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


class Guest:
    """Somebody whose login holds: a member with its pass, or a sibling by its id."""

    __slots__ = ("login", "pass_", "sibling")

    def __init__(self, login: Login, pass_: Pass | None, sibling: str | None) -> None:
        self.login = login
        self.pass_ = pass_
        self.sibling = sibling


class Admission:
    """`create_challenge`, then `admit` with what was made of it. Everything that is not plainly right is refused.

    `networks` are the Ed25519 keys of the networks that the relay serves, `siblings` maps the relay keys of the
    region's other relays to their ids.
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
        siblings: dict[bytes, str],
        limits: RelayLimits,
    ) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self.relay = relay
        self.region = region
        self._private = private
        self.public = crypto.x25519_base(private)
        self.networks = {network_id(crypto, key): key for key in networks}
        self._siblings = siblings
        self._secret = entropy(32)
        self._limiter = RateLimiter(
            limits.doorway, float(limits.logins_per_source_per_s), 2.0 * limits.logins_per_source_per_s
        )
        self._memory_max = limits.logins_remembered
        self._logins: OrderedDict[bytes, bytes] = OrderedDict()  # key → stamp of the last challenge that it used
        self._passes: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # node key → stamp of the newest pass
        self._revoked: OrderedDict[tuple[str, str], int] = OrderedDict()  # (network, device) → wall time of its removal

    def create_challenge(self, now: float, source: bytes) -> bytes:
        """For whoever is at `source`; nothing is remembered."""
        stamp = _STAMP.pack(int(now * 1000))
        return stamp + self._mac(stamp, source)

    def check_challenge(self, now: float, challenge: bytes, source: bytes) -> bool:
        """Whether it was made for `source` within the last CHALLENGE_LIFE_S."""
        stamp = challenge[: _STAMP.size]
        if len(challenge) != CHALLENGE_SIZE or not self._crypto.equal(
            self._mac(stamp, source), challenge[_STAMP.size :]
        ):
            return False
        age_s: float = now - _STAMP.unpack(stamp)[0] / 1000
        return 0 <= age_s <= CHALLENGE_LIFE_S

    def allow_attempt(self, now: float, source: bytes) -> bool:
        """Whether an address (4 or 16 B) may try one more login: each costs public-key operations."""
        return self._limiter.allow(now, source)

    def open(self, challenge: bytes, sealed: bytes) -> Login:
        """The login whose proof holds for `challenge`, which the caller checked. Raises RelayError(BAD_LOGIN)."""
        return open_login(
            self._crypto,
            relay=self.relay,
            relay_private=self._private,
            relay_key=self.public,
            challenge=challenge,
            login=sealed,
        )

    def use_challenge(self, key: bytes, challenge: bytes) -> None:
        """A challenge serves one login of a key, and no older one serves after it. Raises RelayError(REPLAYED)."""
        stamp = challenge[: _STAMP.size]
        if stamp <= self._logins.get(key, b""):
            raise RelayError(Refusal.REPLAYED, "login: this challenge, or a newer one, was used")
        _remember(self._logins, key, stamp, self._memory_max)

    def admit(self, wall_s: float, login: Login) -> Guest:
        """Raises RelayError with the reason."""
        if login.role is Role.SIBLING:
            sibling = self._siblings.get(login.key)
            if sibling is None:
                raise RelayError(Refusal.BAD_LOGIN, "login: no relay of this region has this key")
            return Guest(login, None, sibling)
        pass_ = open_pass(self._crypto, self.networks, self.relay, self.region, login.key, wall_s, login.pass_object)
        if pass_.stamp < self._passes.get(login.key, pass_.stamp):
            raise RelayError(Refusal.REPLAYED, "pass: a newer one was seen")
        if pass_.wall_s <= self._revoked.get((pass_.network, pass_.device), -1):
            raise RelayError(Refusal.REVOKED, "pass: its device was removed")
        _remember(self._passes, login.key, pass_.stamp, self._memory_max)
        return Guest(login, pass_, None)

    def revoke(self, data: bytes) -> tuple[str, str]:
        """A signed `gone`: no pass of that device from before it counts again. Returns (network, device).

        Raises RelayError: WRONG_NETWORK or BAD_PASS.
        """
        try:
            head = peek_payload(data, "gone", max_bytes=_GONE_BYTES_MAX)
            key = self.networks.get(head["n"])
            if key is None:
                raise RelayError(Refusal.WRONG_NETWORK, "gone: of a network that this relay does not serve")
            gone = open_signed(
                self._crypto, key, data, kind="gone", network=head["n"], subject=head["s"], max_bytes=_GONE_BYTES_MAX
            )
        except ControlError as error:
            raise RelayError(Refusal.BAD_PASS, str(error)) from None
        who = (gone.network, gone.subject)
        _remember(self._revoked, who, max(gone.wall_s, self._revoked.get(who, 0)), self._memory_max)
        return who

    def _mac(self, stamp: bytes, source: bytes) -> bytes:
        return self._crypto.blake2s(stamp + source, self._secret, MAC_SIZE)


def _remember(memory: OrderedDict[K, V], key: K, value: V, size_max: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > size_max:
        memory.popitem(last=False)
