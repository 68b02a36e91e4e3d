"""The providers against each other on random input, and Ed25519's corners against textbook arithmetic."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.crypto import load

if TYPE_CHECKING:
    from edgeagent.proto.crypto import Crypto

FAST = load("pynacl")
SLOW = load("pure")

keys = st.binary(min_size=32, max_size=32)
texts = st.binary(max_size=2100) | st.integers(0, 5000).map(lambda size: bytes(i % 253 for i in range(size)))


@settings(max_examples=60)
@given(keys, st.binary(min_size=12, max_size=12), texts, st.binary(max_size=100))
def test_aead(key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> None:
    sealed = FAST.aead_seal(key, nonce, plaintext, ad)
    assert SLOW.aead_seal(key, nonce, plaintext, ad) == sealed
    assert FAST.aead_open(key, nonce, sealed, ad) == SLOW.aead_open(key, nonce, sealed, ad) == plaintext


@settings(max_examples=40)
@given(keys, st.binary(min_size=24, max_size=24), texts, st.binary(max_size=100))
def test_xaead(key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> None:
    sealed = FAST.xaead_seal(key, nonce, plaintext, ad)
    assert SLOW.xaead_seal(key, nonce, plaintext, ad) == sealed
    assert FAST.xaead_open(key, nonce, sealed, ad) == SLOW.xaead_open(key, nonce, sealed, ad) == plaintext


@settings(max_examples=60)
@given(keys, st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), texts)
def test_transport(key: bytes, header: bytes, counter: int, plaintext: bytes) -> None:
    datagram = FAST.seal_transport(key, header, counter, plaintext)
    assert SLOW.seal_transport(key, header, counter, plaintext) == datagram
    assert FAST.open_transport(key, counter, datagram) == SLOW.open_transport(key, counter, datagram) == plaintext


@settings(max_examples=100)
@given(keys, st.binary(max_size=200))
def test_neither_opens_noise(key: bytes, noise: bytes) -> None:
    for crypto in (FAST, SLOW):
        assert crypto.aead_open(key, bytes(12), noise, b"") is None
        assert crypto.xaead_open(key, bytes(24), noise, b"") is None
        assert crypto.open_transport(key, 0, noise) is None


@settings(max_examples=100)
@given(st.binary(max_size=400), st.binary(max_size=32), st.integers(1, 32))
def test_blake2s(data: bytes, key: bytes, size: int) -> None:
    assert FAST.blake2s(data, key, size) == SLOW.blake2s(data, key, size)


@settings(max_examples=60)
@given(st.binary(max_size=100), st.binary(max_size=200), st.integers(1, 3))
def test_hmac_and_hkdf(key: bytes, data: bytes, n: int) -> None:
    assert FAST.hmac_blake2s(key, data) == SLOW.hmac_blake2s(key, data)
    assert FAST.hkdf(key, data, n) == SLOW.hkdf(key, data, n)


@settings(max_examples=100)
@given(keys, keys)
def test_x25519(private: bytes, public: bytes) -> None:
    assert FAST.x25519(private, public) == SLOW.x25519(private, public)
    assert FAST.x25519_base(private) == SLOW.x25519_base(private)


@settings(max_examples=50)
@given(keys, st.binary(max_size=300))
def test_ed25519(seed: bytes, message: bytes) -> None:
    public = FAST.ed25519_public(seed)
    signature = FAST.ed25519_sign(seed, message)
    assert SLOW.ed25519_public(seed) == public
    assert SLOW.ed25519_sign(seed, message) == signature
    assert SLOW.ed25519_verify(public, message, signature)


@settings(max_examples=100)
@given(keys, keys, keys)
def test_ed25519_both_refuse_noise(public: bytes, r: bytes, s: bytes) -> None:
    assert not FAST.ed25519_verify(public, b"", r + s)
    assert not SLOW.ed25519_verify(public, b"", r + s)


# Ed25519's corners. A point is (x, y); the arithmetic is the textbook's, slow and obvious.

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]
BASE: Point = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    46316835694926478169428394003475163141307993866256225615783033603165251855960,
)
IDENTITY: Point = (0, 1)


def add(p: Point, q: Point) -> Point:
    product = D * p[0] * q[0] * p[1] * q[1] % P
    x = (p[0] * q[1] + q[0] * p[1]) * pow(1 + product, -1, P)
    y = (p[1] * q[1] + p[0] * q[0]) * pow(1 - product, -1, P)
    return x % P, y % P


def multiply(n: int, p: Point) -> Point:
    result = IDENTITY
    for bit in bin(n)[2:]:
        result = add(result, result)
        if bit == "1":
            result = add(result, p)
    return result


def encode(p: Point) -> bytes:
    return (p[1] | (p[0] & 1) << 255).to_bytes(32, "little")


def challenge(r: bytes, a: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + a + message).digest(), "little") % L


SCALAR, NONCE = 0x1234567890ABCDEF, 0xFEDCBA0987654321
A, R = multiply(SCALAR, BASE), multiply(NONCE, BASE)
# A point of order 8: y of the known encoding c7176a70…, x from the curve's equation by way of order 2 and 4
ORDER_8: Point = (
    14399317868200118260347934320527232580618823971194345261214217575416788799818,
    55188659117513257062467267217118295137698188065244968500265048394206261417927,
)
TORSION = [multiply(i, ORDER_8) for i in range(8)]


def test_the_torsion_points_are_what_they_should_be() -> None:
    assert all((-x * x + y * y - 1 - D * x * x * y * y) % P == 0 for x, y in [*TORSION, BASE])
    assert len(set(TORSION)) == 8
    assert multiply(8, ORDER_8) == IDENTITY


def signature_of(r: Point, a: Point, message: bytes, order: int = 0) -> bytes:
    """What the holder of SCALAR, who knows that r is NONCE·B plus torsion, can make up for the key a."""
    encoded = encode(r)
    s = (NONCE + challenge(encoded, encode(a), message) * SCALAR) % L + order
    return encoded + s.to_bytes(32, "little")


both = pytest.mark.parametrize("crypto", [FAST, SLOW], ids=lambda crypto: crypto.name)


@both
def test_ed25519_accepts_the_textbooks_signature(crypto: Crypto) -> None:
    assert crypto.ed25519_verify(encode(A), b"message", signature_of(R, A, b"message"))


@both
def test_ed25519_refuses_s_not_below_l(crypto: Crypto) -> None:
    for order in range(L, 2**256 - L, L):
        assert not crypto.ed25519_verify(encode(A), b"message", signature_of(R, A, b"message", order))


@both
def test_ed25519_refuses_keys_of_small_order(crypto: Crypto) -> None:
    """R = S·B holds for such a key whenever the challenge is a multiple of 8: a signature of every key holder."""
    s = 5
    r = encode(multiply(s, BASE))
    for torsion in TORSION:
        message = next(m for m in map(str.encode, map(str, range(200))) if challenge(r, encode(torsion), m) % 8 == 0)
        assert not crypto.ed25519_verify(encode(torsion), message, r + s.to_bytes(32, "little"))


@both
@pytest.mark.parametrize("y", [0, 1, 3, 4, 5, 9, 10, 13, 14, 15, 16, 18])
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_ed25519_refuses_keys_that_are_not_canonical(crypto: Crypto, y: int, sign: int) -> None:
    """y + p encodes the same point as y."""
    public = (y + P | sign).to_bytes(32, "little")
    s = 5
    r = encode(multiply(s, BASE))
    message = next(m for m in map(str.encode, map(str, range(200))) if challenge(r, public, m) % 8 == 0)
    assert not crypto.ed25519_verify(public, message, r + s.to_bytes(32, "little"))


@both
def test_ed25519_refuses_r_of_small_order(crypto: Crypto) -> None:
    for torsion in TORSION:
        r = encode(torsion)
        s = challenge(r, encode(A), b"message") * SCALAR % L
        assert not crypto.ed25519_verify(encode(A), b"message", r + s.to_bytes(32, "little"))


@both
def test_ed25519_has_no_cofactor_in_its_equation(crypto: Crypto) -> None:
    """Torsion in R is refused, torsion in A counts: else two versions could judge one signature differently."""
    for torsion in TORSION[1:]:
        assert not crypto.ed25519_verify(encode(A), b"message", signature_of(add(R, torsion), A, b"message"))
        mixed = add(A, torsion)
        for message in (b"0", b"1", b"2", b"3"):
            k = challenge(encode(R), encode(mixed), message)
            holds = multiply(k % 8, torsion) == IDENTITY
            assert crypto.ed25519_verify(encode(mixed), message, signature_of(R, mixed, message)) == holds
