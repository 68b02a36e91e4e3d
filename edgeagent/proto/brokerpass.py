"""The MQTT password at brokers that keep no list of accounts but believe a signed word: NATS (docs/scale.md).

NATS takes a JSON web token (docs.nats.io, "JWT authentication"). All of it but a date, the signer and the signature is
known to both sides, so that is what the hub hands out: 112 bytes in a join token and in a map, instead of a kilobyte.
"""

from __future__ import annotations

from base64 import b32encode, urlsafe_b64encode
from binascii import crc_hqx

from edgeagent.proto.crypto import Crypto

DEVICE, CLAIM = "device", "claim"
SIZE = 112  # since when (8, wall seconds, big-endian) ‖ until when (8, 0 = no end) ‖ account key 32 ‖ signature 64
MESSAGE_BYTES_MAX = 98_304  # of a message; the protocol's own limits are lower
DEVICE_SUBS_MAX, CLAIM_SUBS_MAX = 4_096, 16
INTERNAL = "$MQTT.sub.>"  # what a node subscribes to for a QoS 1 subscription, with its user's rights
# Prefixes of public keys as text (github.com/nats-io/nkeys, strkey.go).
OPERATOR_KEY, ACCOUNT_KEY, USER_KEY = 14 << 3, 0, 20 << 3

_HEADER = "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ"  # {"typ":"JWT","alg":"ed25519-nkey"}


def bearer(network: str, role: str, user: str, broker_pass: bytes) -> str:
    """The password of a device (its id) or of a join token (its claim id)."""
    since, until = int.from_bytes(broker_pass[:8], "big"), int.from_bytes(broker_pass[8:16], "big")
    signed = words(network, role, user, since, until, broker_pass[16:48])
    return f"{signed}.{_base64url(broker_pass[48:])}"


def words(network: str, role: str, user: str, since_s: int, until_s: int, account: bytes) -> str:
    """What the account's key signs: who it is, and what it may publish and subscribe to."""
    net = f"em1.{network}"
    me = f"{net}.{user}"
    if role == DEVICE:
        publish, subs = [f"{me}.u.>", f"{me}.p", f"{net}.*.s.*"], DEVICE_SUBS_MAX
        # To MQTT `d/#` is `d` as well. All feeds at once cannot be denied where each alone is allowed.
        subscribe = [f"{me}.d", f"{me}.d.>", f"{me}.s", f"{me}.s.>", f"{net}.*.p", f"{net}.hub.state", INTERNAL]
    else:
        publish, subscribe, subs = [f"{me}.u.join"], [f"{me}.d.*", f"{net}.hub.state", INTERNAL], CLAIM_SUBS_MAX
    return claims(
        f'"iss":"{nkey(ACCOUNT_KEY, account)}","sub":"{user_key(user)}","name":"{user}","iat":{since_s},'
        + (f'"exp":{until_s},' if until_s else ""),
        f'{rights(publish, subscribe, subs)},"payload":{MESSAGE_BYTES_MAX},"bearer_token":true,'
        '"allowed_connection_types":["MQTT"],"type":"user"',
    )


def session_id(crypto: Crypto, private: bytes, public: bytes) -> str:
    """The MQTT client id of a device, from the box keys of device and hub: NATS lets anybody use any, and whoever knew
    it could take the session over. The hub knows it, to end the session of a device that it has removed."""
    return _base64url(crypto.blake2s(b"em1 session" + crypto.x25519(private, public), size=16))


def claims(head: str, body: str, jti: str = "em1") -> str:
    """Header and payload of a token of NATS' second version, in the one spelling that both sides sign and check."""
    payload = f'{{"jti":"{jti}",{head}"nats":{{{body},"version":2}}}}'
    return f"{_HEADER}.{_base64url(payload.encode())}"


def rights(publish: list[str], subscribe: list[str], subs: int) -> str:
    """What is not named is denied; `subs` is how many subscriptions, of which one of QoS 1 is two."""
    allowed = [",".join(f'"{subject}"' for subject in subjects) for subjects in (publish, subscribe)]
    return f'"pub":{{"allow":[{allowed[0]}]}},"sub":{{"allow":[{allowed[1]}]}},"subs":{subs},"data":-1'


def nkey(prefix: int, key: bytes) -> str:
    """A public key of 32 B as NATS writes it."""
    data = bytes([prefix]) + key
    return b32encode(data + crc_hqx(data, 0).to_bytes(2, "little")).decode().rstrip("=")


def user_key(user: str) -> str:
    """What NATS knows a user by. It is no key: nobody proves anything by it, the password is all."""
    return nkey(USER_KEY, user.encode().ljust(32, b"\0"))


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
