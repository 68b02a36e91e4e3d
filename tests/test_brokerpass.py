"""The password at brokers that believe a signed word: its form, and that nobody's rights reach another's topics."""

from __future__ import annotations

import json
from base64 import b32decode, urlsafe_b64decode
from binascii import crc_hqx
from typing import Any

import pytest

from edgeagent import crypto as providers
from edgeagent.proto.brokerpass import ACCOUNT_KEY, CLAIM, DEVICE, SIZE, bearer, nkey, session_id, user_key, words

NETWORK, ID, CLAIM_ID = "n" * 16, "d" * 24, "c-" + "a" * 16
PASS = (5).to_bytes(8, "big") + (9).to_bytes(8, "big") + bytes(range(32)) + bytes(64)


def payload(role: str, user: str, broker_pass: bytes = PASS) -> Any:
    head, body, signature = bearer(NETWORK, role, user, broker_pass).split(".")
    assert json.loads(urlsafe_b64decode(head + "==")) == {"typ": "JWT", "alg": "ed25519-nkey"}
    assert len(urlsafe_b64decode(signature + "==")) == 64
    return json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))


@pytest.mark.parametrize(("role", "user"), [(DEVICE, ID), (CLAIM, CLAIM_ID)])
def test_the_form(role: str, user: str) -> None:
    assert len(PASS) == SIZE
    said = payload(role, user)
    assert (said["name"], said["iat"], said["exp"]) == (user, 5, 9)
    assert said["iss"] == nkey(ACCOUNT_KEY, bytes(range(32))) and said["sub"] == user_key(user)
    nats = said["nats"]
    assert nats["type"] == "user" and nats["version"] == 2 and nats["bearer_token"]
    assert nats["allowed_connection_types"] == ["MQTT"], "or $MQTT.sub.> would be open to NATS' own clients"
    mine = f"em1.{NETWORK}.{user}."
    for subject in nats["pub"]["allow"]:
        assert subject.startswith(mine) or subject == f"em1.{NETWORK}.*.s.*"
    for subject in nats["sub"]["allow"]:
        assert f"{subject}.".startswith(mine) or subject in (
            *([f"em1.{NETWORK}.*.p"] if role == DEVICE else []),
            f"em1.{NETWORK}.hub.state",
            "$MQTT.sub.>",
        )


def test_without_an_end_there_is_none() -> None:
    assert "exp" not in payload(DEVICE, ID, PASS[:8] + bytes(8) + PASS[16:])


def test_a_key_is_written_as_nats_does() -> None:
    # What nats-server reads: a prefix, the key, and CRC-16 (XMODEM), little-endian; base32 without padding.
    text = nkey(ACCOUNT_KEY, bytes(32))
    data = b32decode(text)
    assert text[0] == "A" and len(text) == 56 and data[1:33] == bytes(32)
    assert int.from_bytes(data[33:], "little") == crc_hqx(data[:33], 0)
    assert user_key(ID)[0] == "U" and user_key(ID) != user_key(ID[:-1])


def test_what_is_signed_depends_on_all_of_it() -> None:
    def text(**changes: Any) -> str:
        fields: dict[str, Any] = {"network": NETWORK, "role": DEVICE, "user": ID, "since_s": 5, "until_s": 9}
        return words(**{**fields, "account": bytes(32), **changes})

    changed: list[dict[str, Any]] = [
        {"network": "m" * 16},
        {"role": CLAIM},
        {"user": "e" * 24},
        {"since_s": 6},
        {"until_s": 0},
    ]
    assert len({text(), *(text(**change) for change in changed), text(account=bytes(31) + b"\1")}) == 7


def test_a_session_is_known_to_both_ends_alone() -> None:
    crypto = providers.load()
    ours, theirs = bytes(31) + b"\1", bytes(31) + b"\2"
    found = session_id(crypto, ours, crypto.x25519_base(theirs))
    assert found == session_id(crypto, theirs, crypto.x25519_base(ours)) and len(found) == 22
    assert found != session_id(crypto, ours, crypto.x25519_base(ours))
