"""The join token: what a person can get wrong has a sentence of its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.codec import encode
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.token import Token, TokenError, base64url, claim_password
from tests.control_kit import CLAIM, CRYPTO, HUB_BOX_KEY, NETWORK, NETWORK_KEY, WALL_S

FIELDS: dict[str, Any] = {
    "h": ["hub.example:8883", "[2001:db8::1]:443"],
    "n": NETWORK_KEY,
    "x": HUB_BOX_KEY,
    "p": bytes(32),
    "c": CLAIM,
    "s": bytes(range(16)),
    "na": WALL_S,
    "u": 3,
    "g": ["tag:edge"],
}


def token() -> Token:
    return Token(
        hosts=FIELDS["h"],
        network_key=FIELDS["n"],
        hub_box_key=FIELDS["x"],
        ca_sha256=FIELDS["p"],
        claim=FIELDS["c"],
        secret=FIELDS["s"],
        not_after=FIELDS["na"],
        uses=FIELDS["u"],
        tags=FIELDS["g"],
    )


def text_of(fields: Any) -> str:
    data = encode(fields)
    return "em1." + base64url(data + CRYPTO.blake2s(data)[:4])


TEXT = token().encode(CRYPTO)


def test_roundtrip() -> None:
    assert text_of(FIELDS) == TEXT
    again = Token.decode(CRYPTO, f"  {TEXT}\n")
    for name in Token.__slots__:
        assert getattr(again, name) == getattr(token(), name)
    assert again.network_id(CRYPTO) == NETWORK
    assert again.password(CRYPTO) == claim_password(CRYPTO, FIELDS["s"])
    assert len(again.password(CRYPTO)) == 43


def test_expiry_is_told_with_the_callers_time() -> None:
    assert not token().expired(WALL_S)
    assert token().expired(WALL_S + 1)
    never = token()
    never.not_after = 0
    assert not never.expired(1e12)


def test_the_secret_is_not_in_the_password() -> None:
    assert base64url(FIELDS["s"]) not in claim_password(CRYPTO, FIELDS["s"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "one begins with em1."),
        ("hello", "one begins with em1."),
        ("EM1." + TEXT[4:], "one begins with em1."),
        ("em1.", "cut short"),
        (TEXT[:-1], "cut short"),
        (TEXT[:40], "cut short"),
        (TEXT + "A", "cut short"),
        (TEXT[:9] + ("A" if TEXT[9] != "A" else "B") + TEXT[10:], "cut short or mistyped"),
        (TEXT[:30] + " " + TEXT[30:], "character that no token has"),
        (TEXT + "=", "character that no token has"),
        ("em1." + "A" * 5000, "at most 4096 characters"),
        (text_of({**FIELDS, "h": ["hub"]}), "token.h[0]: host:port"),
        (text_of({**FIELDS, "s": bytes(15)}), "token.s: 16 bytes, got 15 bytes"),
        (text_of({**FIELDS, "c": "claim"}), "token.c: claim id"),
        (text_of({**FIELDS, "z": 1}), "token: unknown field z"),
        (text_of({key: FIELDS[key] for key in FIELDS if key != "x"}), "token.x: missing"),
        (text_of([1]), "token: map of h"),
    ],
)
def test_each_fault_has_its_sentence(text: str, says: str) -> None:
    with pytest.raises(TokenError) as caught:
        Token.decode(CRYPTO, text)
    assert says in str(caught.value)
    assert base64url(FIELDS["s"]) not in str(caught.value)


@given(st.text() | st.text(alphabet="ABCDEFabcdef0123-_").map("em1.".__add__))
def test_any_text_is_a_token_error(text: str) -> None:
    with pytest.raises(TokenError):
        Token.decode(CRYPTO, text)


@given(st.integers(0, len(TEXT) - 1), st.characters(codec="ascii"))
def test_one_wrong_character_is_noticed(position: int, character: str) -> None:
    mutated = TEXT[:position] + character + TEXT[position + 1 :]
    if mutated.strip() != TEXT:
        with pytest.raises(TokenError):
            Token.decode(CRYPTO, mutated)


def test_a_bad_token_of_our_own_is_our_bug() -> None:
    bad = token()
    bad.secret = b""
    with pytest.raises(LocalProtocolError, match=r"token\.s"):
        bad.encode(CRYPTO)
