"""mac1, mac2 and cookies (WireGuard paper, sections 5.3, 5.4.4 and 5.4.7).

What stands for the source address in a cookie is `Endpoint.source_bytes()`: address and port.
"""

from __future__ import annotations

from enum import Enum

from edgeagent.proto.constants import (
    COOKIE_LATENCY_S,
    COOKIE_NONCE_SIZE,
    COOKIE_SECRET_MAX_AGE_S,
    COOKIE_SIZE,
    KEY_SIZE,
    LABEL_COOKIE,
    LABEL_MAC1,
    MAC_SIZE,
)
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.keys import Entropy
from edgeagent.proto.messages import CookieReply


class MacState(Enum):
    INVALID = "invalid"  # mac1 is wrong: the sender does not know our public key
    MAC1 = "mac1"  # mac1 is right, mac2 is not
    MAC2 = "mac2"  # both are right: the sender can receive at its source address


class CookieChecker:
    """The responder's side: judges macs and makes cookies. One for each private key."""

    def __init__(self, crypto: Crypto, static_public: bytes) -> None:
        self._crypto = crypto
        self._mac1_key = crypto.blake2s(LABEL_MAC1 + static_public)
        self._cookie_key = crypto.blake2s(LABEL_COOKIE + static_public)
        self._secret = b""
        self._secret_made_at = 0.0

    def check(self, now: float, datagram: bytes, source: bytes) -> MacState:
        """The macs of an initiation or a response. `source` as in `Endpoint.source_bytes()`."""
        crypto = self._crypto
        signed = datagram[: -2 * MAC_SIZE]
        mac1, mac2 = datagram[-2 * MAC_SIZE : -MAC_SIZE], datagram[-MAC_SIZE:]
        if not crypto.equal(crypto.blake2s(signed, self._mac1_key, MAC_SIZE), mac1):
            return MacState.INVALID
        if not self._secret or now - self._secret_made_at >= COOKIE_SECRET_MAX_AGE_S:
            return MacState.MAC1
        cookie = crypto.blake2s(source, self._secret, COOKIE_SIZE)
        if crypto.equal(crypto.blake2s(signed + mac1, cookie, MAC_SIZE), mac2):
            return MacState.MAC2
        return MacState.MAC1

    def create_reply(
        self, now: float, entropy: Entropy, datagram: bytes, source: bytes, receiver_index: int
    ) -> CookieReply:
        """The cookie for the sender of `datagram`, sealed with its mac1 as associated data."""
        if not self._secret or now - self._secret_made_at >= COOKIE_SECRET_MAX_AGE_S:
            self._secret = entropy(KEY_SIZE)
            self._secret_made_at = now
        cookie = self._crypto.blake2s(source, self._secret, COOKIE_SIZE)
        nonce = entropy(COOKIE_NONCE_SIZE)
        mac1 = datagram[-2 * MAC_SIZE : -MAC_SIZE]
        return CookieReply(receiver_index, nonce, self._crypto.xaead_seal(self._cookie_key, nonce, cookie, mac1))


class CookieGenerator:
    """The initiator's side towards one peer: puts macs under messages and keeps the peer's last cookie."""

    __slots__ = ("_cookie", "_cookie_at", "_cookie_key", "_crypto", "_last_mac1", "_mac1_key")

    def __init__(self, crypto: Crypto, remote_static: bytes) -> None:
        self._crypto = crypto
        self._mac1_key = crypto.blake2s(LABEL_MAC1 + remote_static)
        self._cookie_key = crypto.blake2s(LABEL_COOKIE + remote_static)
        self._cookie = b""
        self._cookie_at = 0.0
        self._last_mac1 = b""

    def add_macs(self, now: float, body: bytes) -> bytes:
        """`body` ‖ mac1 ‖ mac2, ready to be sent; mac2 is zero without a fresh cookie."""
        mac1 = self._crypto.blake2s(body, self._mac1_key, MAC_SIZE)
        self._last_mac1 = mac1
        if self._cookie and now - self._cookie_at < COOKIE_SECRET_MAX_AGE_S - COOKIE_LATENCY_S:
            return body + mac1 + self._crypto.blake2s(body + mac1, self._cookie, MAC_SIZE)
        return body + mac1 + bytes(MAC_SIZE)

    @property
    def expects_reply(self) -> bool:
        """Whether a message went out that a cookie reply could belong to."""
        return bool(self._last_mac1)

    def consume_reply(self, now: float, reply: CookieReply) -> bool:
        """Keep the cookie for the next message; nothing is sent at once (paper 6.6). False if it does not decrypt."""
        if not self._last_mac1:
            return False
        cookie = self._crypto.xaead_open(self._cookie_key, reply.nonce, reply.sealed_cookie, self._last_mac1)
        if cookie is None:
            return False
        self._cookie = cookie
        self._cookie_at = now
        self._last_mac1 = b""
        return True
