"""Published vectors, bad lengths and hostile input, over every provider through one fixture."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import TYPE_CHECKING

import cryptography_vectors
import pytest

from edgeagent.crypto import PROVIDERS, load
from edgeagent.crypto.pure import chacha, sha512

if TYPE_CHECKING:
    from edgeagent.proto.crypto import Crypto

KEY = bytes(range(32))


@pytest.fixture(params=PROVIDERS)
def crypto(request: pytest.FixtureRequest) -> Crypto:
    return load(request.param)


# X25519


def test_x25519_rfc7748(crypto: Crypto) -> None:
    cases = list(vectors("asymmetric/X25519/rfc7748.txt"))
    assert len(cases) == 3
    for case in cases:
        assert crypto.x25519(unhex(case["INPUT_SCALAR"]), unhex(case["INPUT_U"])) == unhex(case["OUTPUT_U"])


def test_x25519_iterated(crypto: Crypto) -> None:
    """RFC 7748, section 5.2."""
    k = u = b"\x09" + bytes(31)
    for turn in range(1000):
        k, u = crypto.x25519(k, u), k
        if turn == 0:
            assert k.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_x25519_agreement(crypto: Crypto) -> None:
    a, b = KEY, KEY[::-1]
    assert crypto.x25519(a, crypto.x25519_base(b)) == crypto.x25519(b, crypto.x25519_base(a)) != bytes(32)


P25519 = 2**255 - 19
LOW_ORDER_U = (
    0,
    1,
    P25519 - 1,
    P25519,  # not reduced: 0
    P25519 + 1,  # not reduced: 1
    325606250916557431795983626356110631294008115727848805560023387167927233504,  # order 8
    39382357235489614581723060781553021112529911719440698176882885853963445705823,  # order 8
)


@pytest.mark.parametrize("u", LOW_ORDER_U)
@pytest.mark.parametrize("top_bit", [0, 1 << 255])
def test_x25519_of_a_low_order_point_is_zero(crypto: Crypto, u: int, top_bit: int) -> None:
    assert crypto.x25519(KEY, (u | top_bit).to_bytes(32, "little")) == bytes(32)


def test_x25519_ignores_the_top_bit_and_reduces(crypto: Crypto) -> None:
    """RFC 7748, section 5: "implementations MUST accept non-canonical values"."""
    nine = crypto.x25519_base(KEY)
    assert crypto.x25519(KEY, (9 | 1 << 255).to_bytes(32, "little")) == nine
    assert crypto.x25519(KEY, (P25519 + 9).to_bytes(32, "little")) == nine


# BLAKE2s, HMAC, HKDF, SHA-512


def test_blake2s_vectors(crypto: Crypto) -> None:
    cases = list(vectors("hashes/blake2/blake2s.txt"))
    assert len(cases) == 7
    for case in cases:
        assert crypto.blake2s(unhex(case["Msg"])[: int(case["Len"]) // 8]) == unhex(case["MD"])


def test_blake2s_rfc7693_appendix_e(crypto: Crypto) -> None:
    """Hashes and MACs of 4 sizes over 6 lengths, all folded into one hash."""
    folded = b""
    for size in (16, 20, 28, 32):
        for length in (0, 3, 64, 65, 255, 1024):
            data = appendix_e_sequence(length)
            folded += crypto.blake2s(data, size=size)
            folded += crypto.blake2s(data, key=appendix_e_sequence(size), size=size)
    assert crypto.blake2s(folded).hex() == "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe"


def appendix_e_sequence(length: int) -> bytes:
    a, b = 0xDEAD4BAD * length & 0xFFFFFFFF, 1
    sequence = bytearray()
    for _ in range(length):
        a, b = b, (a + b) & 0xFFFFFFFF
        sequence.append(b >> 24)
    return bytes(sequence)


def test_blake2s_keyed_reference_vectors(crypto: Crypto) -> None:
    assert crypto.blake2s(b"", KEY).hex() == "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49"
    assert crypto.blake2s(b"\0", KEY).hex() == "40d15fee7c328830166ac3f918650f807e7e01e177258cdc0a39b11f598066f1"


@pytest.mark.parametrize("key_size", [0, 1, 32, 63, 64, 65, 200])
def test_hmac_is_rfc2104(crypto: Crypto, key_size: int) -> None:
    key = (KEY * 7)[:key_size]
    for data in (b"", b"a", KEY * 5):
        assert crypto.hmac_blake2s(key, data) == hmac.digest(key, data, hashlib.blake2s)


def test_hkdf_is_extract_and_expand(crypto: Crypto) -> None:
    """RFC 5869 with an empty info, which is the KDF of the WireGuard paper, section 5.4."""
    secret = hmac.digest(KEY, b"input", hashlib.blake2s)
    expected: list[bytes] = []
    for i in (1, 2, 3):
        expected.append(hmac.digest(secret, b"".join(expected[-1:]) + bytes((i,)), hashlib.blake2s))
        assert crypto.hkdf(KEY, b"input", i) == tuple(expected)


@pytest.mark.parametrize("size", [0, 1, 111, 112, 113, 127, 128, 129, 239, 240, 1000])
def test_own_sha512_is_hashlibs(size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    assert sha512.sha512(data) == hashlib.sha512(data).digest()


# ChaCha20, Poly1305 and the AEADs


def test_chacha20_rfc8439() -> None:
    cases = list(vectors("ciphers/ChaCha20/rfc7539.txt"))
    assert len(cases) == 3
    for case in cases:
        plaintext = unhex(case["PLAINTEXT"])
        stream = chacha.chacha20_stream(
            unhex(case["KEY"]), unhex(case["NONCE"]), int(case["INITIAL_BLOCK_COUNTER"]), len(plaintext)
        )
        assert bytes(a ^ b for a, b in zip(plaintext, stream, strict=False)) == unhex(case["CIPHERTEXT"])


def test_poly1305_rfc8439() -> None:
    cases = list(vectors("poly1305/rfc7539.txt"))
    assert len(cases) == 11
    for case in cases:
        assert chacha.poly1305(unhex(case["KEY"]), unhex(case["MSG"])) == unhex(case["TAG"])


def test_hchacha20_draft() -> None:
    """draft-irtf-cfrg-xchacha-03, section 2.2.1."""
    subkey = chacha.hchacha20(KEY, bytes.fromhex("000000090000004a0000000031415927"))
    assert subkey.hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


def test_chacha20_poly1305_vectors(crypto: Crypto) -> None:
    cases = list(vectors("ciphers/ChaCha20Poly1305/boringssl.txt"))
    assert len(cases) == 66
    for case in cases:
        key, nonce, plaintext, ad = (unhex(case[field]) for field in ("KEY", "NONCE", "IN", "AD"))
        sealed = unhex(case["CT"]) + unhex(case["TAG"])
        assert crypto.aead_seal(key, nonce, plaintext, ad) == sealed
        assert crypto.aead_open(key, nonce, sealed, ad) == plaintext


def test_chacha20_poly1305_openssl_vectors(crypto: Crypto) -> None:
    """The nonces shorter than 12 B are zero-padded there, at the front; one case is a forgery."""
    forgeries = 0
    for case in vectors("ciphers/ChaCha20Poly1305/openssl.txt"):
        key, nonce, plaintext, ad = (unhex(case[field]) for field in ("Key", "IV", "Plaintext", "AAD"))
        sealed = unhex(case["Ciphertext"]) + unhex(case["Tag"])
        opened = crypto.aead_open(key, nonce.rjust(12, b"\0"), sealed, ad)
        if case.get("Result") == "CIPHERFINAL_ERROR":
            forgeries += 1
            assert opened is None
        else:
            assert opened == plaintext
    assert forgeries == 1


def test_an_opened_message_is_whole_and_authentic(crypto: Crypto) -> None:
    """Every byte of it counts: one bit flipped anywhere, or one byte gone, and nothing comes out."""
    for seal, open_, nonce in (
        (crypto.aead_seal, crypto.aead_open, bytes(12)),
        (crypto.xaead_seal, crypto.xaead_open, bytes(24)),
    ):
        sealed = seal(KEY, nonce, b"plaintext", b"ad")
        assert open_(KEY, nonce, sealed, b"ad") == b"plaintext"
        for at in range(len(sealed)):
            assert open_(KEY, nonce, flip(sealed, at), b"ad") is None
            assert open_(KEY, nonce, sealed[:at], b"ad") is None
        assert open_(KEY, nonce, sealed + b"\0", b"ad") is None
        assert open_(KEY, nonce, sealed, b"AD") is None
        assert open_(KEY, nonce, sealed, b"") is None
        assert open_(KEY, flip(nonce, 0), sealed, b"ad") is None
        assert open_(flip(KEY, 0), nonce, sealed, b"ad") is None


@pytest.mark.parametrize("size", [0, 1, 16, 1420, 65_536])
def test_transport_is_the_aead_with_a_counter(crypto: Crypto, size: int) -> None:
    plaintext = (KEY * 2048)[:size]
    header = b"\x04\0\0\0indx" + (2**64 - 2).to_bytes(8, "little")
    datagram = crypto.seal_transport(KEY, header, 2**64 - 2, plaintext)
    nonce = bytes(4) + header[8:]
    assert datagram == header + crypto.aead_seal(KEY, nonce, plaintext, b"")
    assert crypto.open_transport(KEY, 2**64 - 2, datagram) == plaintext
    assert crypto.open_transport(KEY, 2**64 - 1, datagram) is None
    for at in {16, len(datagram) - 1}:
        assert crypto.open_transport(KEY, 2**64 - 2, flip(datagram, at)) is None
    for short in (0, 15, 16, 31, len(datagram) - 1):
        assert crypto.open_transport(KEY, 2**64 - 2, datagram[:short]) is None


def test_what_is_too_long_to_have_been_sealed_here_is_not_opened(crypto: Crypto) -> None:
    long = bytes(65_537 + 16)
    assert crypto.aead_open(KEY, bytes(12), long, b"") is None
    assert crypto.xaead_open(KEY, bytes(24), long, b"") is None
    assert crypto.open_transport(KEY, 0, bytes(16) + long) is None


# Ed25519


def test_ed25519_rfc8032_and_more(crypto: Crypto) -> None:
    """The 1,024 vectors of the original authors; the first ones are those of RFC 8032. Every 16th for the slow one."""
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        lines = file.read().split()
    assert len(lines) == 1024
    for line in lines[:5] + lines[5 :: 16 if crypto.name == "pure" else 1]:
        secret, public, message, signed = (bytes.fromhex(field) for field in line.split(":")[:4])
        signature = signed[:64]
        assert crypto.ed25519_public(secret[:32]) == public
        assert crypto.ed25519_sign(secret[:32], message) == signature
        assert crypto.ed25519_verify(public, message, signature)


def test_ed25519_every_byte_counts(crypto: Crypto) -> None:
    public, signature = crypto.ed25519_public(KEY), crypto.ed25519_sign(KEY, b"message")
    assert crypto.ed25519_verify(public, b"message", signature)
    for at in range(64):
        assert not crypto.ed25519_verify(public, b"message", flip(signature, at))
    for at in range(32):
        assert not crypto.ed25519_verify(flip(public, at), b"message", signature)
    assert not crypto.ed25519_verify(public, b"messagf", signature)


def test_ed25519_of_wrong_lengths_is_a_bad_signature(crypto: Crypto) -> None:
    """Keys and signatures come from the network: they refuse, they do not raise."""
    public, signature = crypto.ed25519_public(KEY), crypto.ed25519_sign(KEY, b"")
    for bad_public, bad_signature in (
        (public[:31], signature),
        (public + b"\0", signature),
        (public, signature[:63]),
        (public, signature + b"\0"),
        (b"", b""),
    ):
        assert not crypto.ed25519_verify(bad_public, b"", bad_signature)


# Our own misuse: what it raises for, as a call on a provider

NEED_32 = {
    "x25519 private": lambda crypto, key: crypto.x25519(key, KEY),
    "x25519 public": lambda crypto, key: crypto.x25519(KEY, key),
    "x25519_base": lambda crypto, key: crypto.x25519_base(key),
    "aead_seal": lambda crypto, key: crypto.aead_seal(key, bytes(12), b"", b""),
    "aead_open": lambda crypto, key: crypto.aead_open(key, bytes(12), bytes(16), b""),
    "xaead_seal": lambda crypto, key: crypto.xaead_seal(key, bytes(24), b"", b""),
    "xaead_open": lambda crypto, key: crypto.xaead_open(key, bytes(24), bytes(16), b""),
    "seal_transport": lambda crypto, key: crypto.seal_transport(key, bytes(16), 0, b""),
    "open_transport": lambda crypto, key: crypto.open_transport(key, 0, bytes(32)),
    "ed25519_public": lambda crypto, key: crypto.ed25519_public(key),
    "ed25519_sign": lambda crypto, key: crypto.ed25519_sign(key, b""),
}


@pytest.mark.parametrize("call", NEED_32)
@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_length_than_32_raises(crypto: Crypto, call: str, size: int) -> None:
    with pytest.raises(ValueError, match=f": {size} B, must be 32 B"):
        NEED_32[call](crypto, bytes(size))


LONG = bytes(65_537)
MISUSE = {
    "nonce: 11 B, must be 12 B": lambda crypto: crypto.aead_seal(KEY, bytes(11), b"", b""),
    "nonce: 13 B, must be 12 B": lambda crypto: crypto.aead_open(KEY, bytes(13), bytes(16), b""),
    "nonce: 12 B, must be 24 B": lambda crypto: crypto.xaead_seal(KEY, bytes(12), b"", b""),
    "nonce: 25 B, must be 24 B": lambda crypto: crypto.xaead_open(KEY, bytes(25), bytes(16), b""),
    "header: 15 B, must be 16 B": lambda crypto: crypto.seal_transport(KEY, bytes(15), 0, b""),
    "counter: -1 does not fit": lambda crypto: crypto.seal_transport(KEY, bytes(16), -1, b""),
    "counter: 18446744073709551616 does not": lambda crypto: crypto.seal_transport(KEY, bytes(16), 1 << 64, b""),
    "counter: -2 does not fit": lambda crypto: crypto.open_transport(KEY, -2, bytes(32)),
    "counter: 18446744073709551617 does not": lambda crypto: crypto.open_transport(KEY, (1 << 64) + 1, bytes(32)),
    "plaintext: 65537 B, at most 65536": lambda crypto: crypto.aead_seal(KEY, bytes(12), LONG, b""),
    "plaintext: 65537 B, at most 65536 B": lambda crypto: crypto.xaead_seal(KEY, bytes(24), LONG, b""),
    "plaintext: 65537 B, at most": lambda crypto: crypto.seal_transport(KEY, bytes(16), 0, LONG),
    "1": lambda crypto: crypto.blake2s(b"", size=0),
    "32": lambda crypto: crypto.blake2s(b"", size=33),
    "key|32": lambda crypto: crypto.blake2s(b"", key=bytes(33)),
    "n: ": lambda crypto: crypto.hkdf(KEY, b"", 0),
    "n: .*3": lambda crypto: crypto.hkdf(KEY, b"", 4),
}


@pytest.mark.parametrize("said", MISUSE)
def test_misuse_raises(crypto: Crypto, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MISUSE[said](crypto)


def test_equal(crypto: Crypto) -> None:
    assert crypto.equal(b"", b"")
    assert crypto.equal(KEY, bytes(bytearray(KEY)))
    assert not crypto.equal(KEY, KEY[:31])
    assert not crypto.equal(b"", KEY)
    for at in range(32):
        assert not crypto.equal(KEY, flip(KEY, at))


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 0x80,)) + data[at + 1 :]


def vectors(path: str) -> Iterator[dict[str, str]]:
    """The cases of a file of `name = value` lines, one case after each empty line."""
    case: dict[str, str] = {}
    with cryptography_vectors.open_vector_file(path, "r") as file:
        for line in [*file, "\n"]:
            name, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                case[name.strip()] = value.strip()
            elif not line.strip() and len(case) > 1:
                yield case
                case = {}


def unhex(value: str) -> bytes:
    """Hexadecimal, or the text itself where it stands in quotes."""
    return value[1:-1].encode() if value.startswith('"') else bytes.fromhex(value)
