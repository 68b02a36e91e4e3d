"""The join token: one line that takes a device into a network (docs/protocol.md). Its errors are read by people."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import CLAIM, HOSTS, KEY, LOCK_KEYS_MAX, TAGS
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError, RemoteProtocolError
from edgeagent.proto.names import network_id
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.schema import Fields, List, Raw, Uint

PREFIX = "em1."
TOKEN_CHARACTERS_MAX = 4_096
SECRET_SIZE = 16
_CHECKSUM_SIZE = 4
_BASE64URL = re.compile("[A-Za-z0-9_-]*")
_FIELDS = Fields(
    {
        "h": HOSTS,
        "n": KEY,
        "x": KEY,
        "p": Raw(32),
        "c": CLAIM,
        "s": Raw(SECRET_SIZE),
        "na": Uint(),
        "u": Uint(),
        "g": TAGS,
    },
    {"l": List(KEY, LOCK_KEYS_MAX, 1), "b": Raw(112)},
)


class TokenError(RemoteProtocolError):
    """The text cannot be a join token; str() is a sentence for the person who typed it."""


class Token:
    """What a device must know to join. `not_after` is 0 for never, `uses` is 0 for no limit.

    `hosts` are brokers, "host:port", always TLS; `ca_sha256` is the pin of the CA certificate (DER) behind them.
    `lock_keys` are those of the network's lock, where it has one: the device trusts no others. `broker_pass`
    (brokerpass.py) is for brokers that know no accounts; empty where they do.
    """

    __slots__ = (
        "broker_pass",
        "ca_sha256",
        "claim",
        "hosts",
        "hub_box_key",
        "lock_keys",
        "network_key",
        "not_after",
        "secret",
        "tags",
        "uses",
    )

    def __init__(
        self,
        *,
        hosts: list[str],
        network_key: bytes,
        hub_box_key: bytes,
        ca_sha256: bytes,
        claim: str,
        secret: bytes,
        not_after: int = 0,
        uses: int = 0,
        tags: list[str] | None = None,
        lock_keys: list[bytes] | None = None,
        broker_pass: bytes = b"",
    ) -> None:
        self.hosts = hosts
        self.network_key = network_key
        self.hub_box_key = hub_box_key
        self.ca_sha256 = ca_sha256
        self.claim = claim
        self.secret = secret
        self.not_after = not_after
        self.uses = uses
        self.tags = tags or []
        self.lock_keys = lock_keys or []
        self.broker_pass = broker_pass

    def encode(self, crypto: Crypto) -> str:
        """One line. Raises LocalProtocolError when a field is not of its form."""
        fields = {
            "h": self.hosts,
            "n": self.network_key,
            "x": self.hub_box_key,
            "p": self.ca_sha256,
            "c": self.claim,
            "s": self.secret,
            "na": self.not_after,
            "u": self.uses,
            "g": self.tags,
            **({"l": self.lock_keys} if self.lock_keys else {}),
            **({"b": self.broker_pass} if self.broker_pass else {}),
        }
        try:
            _FIELDS.check(fields, "token")
        except ControlError as error:
            raise LocalProtocolError(str(error)) from error
        data = encode(fields)
        return PREFIX + base64url(data + crypto.blake2s(data)[:_CHECKSUM_SIZE])

    @classmethod
    def decode(cls, crypto: Crypto, text: str) -> Token:
        """Raises TokenError. Whether the token is expired is for the caller, who knows the time."""
        data = _unwrap(crypto, text.strip())
        try:
            fields = _FIELDS.check(decode(data), "token")
        except ControlError as error:
            raise TokenError(f"this join token was not made by a hub of this version ({error})") from error
        return cls(
            hosts=fields["h"],
            network_key=fields["n"],
            hub_box_key=fields["x"],
            ca_sha256=fields["p"],
            claim=fields["c"],
            secret=fields["s"],
            not_after=fields["na"],
            uses=fields["u"],
            tags=fields["g"],
            lock_keys=fields.get("l"),
            broker_pass=fields.get("b", b""),
        )

    def network_id(self, crypto: Crypto) -> str:
        return network_id(crypto, self.network_key)

    def password(self, crypto: Crypto) -> str:
        """The MQTT password of the claim's user."""
        if self.broker_pass:
            from edgeagent.proto.brokerpass import CLAIM, bearer

            return bearer(self.network_id(crypto), CLAIM, self.claim, self.broker_pass)
        return claim_password(crypto, self.secret)

    def expired(self, wall_s: float) -> bool:
        return self.not_after != 0 and self.not_after < wall_s


def claim_password(crypto: Crypto, secret: bytes) -> str:
    """The MQTT password that goes with a claim's secret."""
    return base64url(crypto.blake2s(b"em1 claim" + secret))


def base64url(data: bytes) -> str:
    """RFC 4648, section 5, without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _unwrap(crypto: Crypto, text: str) -> bytes:
    if not text.startswith(PREFIX):
        raise TokenError(f"this is not a join token: one begins with {PREFIX}")
    if len(text) > TOKEN_CHARACTERS_MAX:
        raise TokenError(f"this is not a join token: one has at most {TOKEN_CHARACTERS_MAX} characters")
    coded = text[len(PREFIX) :]
    if _BASE64URL.fullmatch(coded) is None:
        raise TokenError("this join token holds a character that no token has; copy the whole line again")
    data = urlsafe_b64decode(coded + "=" * (-len(coded) % 4)) if len(coded) % 4 != 1 else b""
    body, checksum = data[:-_CHECKSUM_SIZE], data[-_CHECKSUM_SIZE:]
    # Bits behind the last byte are no data and no checksum sees them, but they too can be mistyped
    if not body or crypto.blake2s(body)[:_CHECKSUM_SIZE] != checksum or base64url(data) != coded:
        raise TokenError("this join token is cut short or mistyped (its checksum is wrong); copy the whole line again")
    return body
