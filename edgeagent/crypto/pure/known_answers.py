"""The known-answer test that every provider passes when it is loaded: published vectors, one or two per primitive."""

TYPE_CHECKING = False  # type checkers take this name for true
if TYPE_CHECKING:
    from edgeagent.proto.crypto import Crypto


class WrongAnswer(Exception):
    """A primitive computes something else than its specification says; the text names it."""


def check(crypto: "Crypto") -> None:
    """Raises WrongAnswer. Damaged input is part of it: a provider that opens everything must not pass."""
    _check_x25519(crypto)
    _check_blake2s(crypto)
    _check_aead(crypto)
    _check_transport(crypto)
    _check_ed25519(crypto)
    if not crypto.equal(b"ab", b"ab") or crypto.equal(b"ab", b"ac") or crypto.equal(b"ab", b"abc"):
        raise WrongAnswer("equal")


def _check_x25519(crypto: "Crypto") -> None:
    # RFC 7748, section 5.2
    secret = crypto.x25519(
        bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
        bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"),
    )
    _same("x25519", secret, "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    public = crypto.x25519_base(b"\x09" + bytes(31))
    _same("x25519_base", public, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
    # RFC 7748, section 6.1: a point of order 4
    _same("x25519 of a low-order point", crypto.x25519(public, b"\x01" + bytes(31)), "00" * 32)


def _check_blake2s(crypto: "Crypto") -> None:
    # RFC 7693, appendix B; the first keyed vector of the reference implementation
    _same("blake2s", crypto.blake2s(b"abc"), "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982")
    mac = crypto.blake2s(b"", _COUNT)
    _same("blake2s with a key", mac, "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49")
    # No document has vectors for these two: computed with Python's hmac module
    mac = crypto.hmac_blake2s(_COUNT, b"abc")
    _same("hmac_blake2s", mac, "82623be5bc0a391b24dce53e67d028eff92d586de0485ac37822e597d049c74f")
    _same(
        "hkdf",
        b"".join(crypto.hkdf(_COUNT, b"abc", 3)),
        "c67e0b211ebf48c12c6d41da8fcee207d4c325a8c30f054d97401b14ed212f9f"
        "923b032867c597d1df124053325e553b104bf3b76180a46e0c21b44001ec50f6"
        "73e5eae9c5d230ea6becb29ab8a49f627aff1eb27586b938a71ae090d4c7a184",
    )


def _check_aead(crypto: "Crypto") -> None:
    # RFC 8439, section 2.8.2
    nonce = bytes.fromhex("070000004041424344454647")
    sealed = crypto.aead_seal(_KEY, nonce, _LADIES, _AD)
    _same(
        "aead_seal",
        sealed,
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691",
    )
    if crypto.aead_open(_KEY, nonce, sealed, _AD) != _LADIES:
        raise WrongAnswer("aead_open")
    for damaged in (_flip(sealed, 0), _flip(sealed, len(sealed) - 1), sealed[:-1], b""):
        if crypto.aead_open(_KEY, nonce, damaged, _AD) is not None:
            raise WrongAnswer("aead_open of damaged input")
    if crypto.aead_open(_KEY, nonce, sealed, _flip(_AD, 0)) is not None:
        raise WrongAnswer("aead_open with other additional data")
    # draft-irtf-cfrg-xchacha-03, appendix A.3.1
    nonce = bytes(range(0x40, 0x58))
    sealed = crypto.xaead_seal(_KEY, nonce, _LADIES, _AD)
    _same(
        "xaead_seal",
        sealed,
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39"
        "ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49",
    )
    if crypto.xaead_open(_KEY, nonce, sealed, _AD) != _LADIES:
        raise WrongAnswer("xaead_open")
    if crypto.xaead_open(_KEY, nonce, _flip(sealed, 0), _AD) is not None:
        raise WrongAnswer("xaead_open of damaged input")


def _check_transport(crypto: "Crypto") -> None:
    """Seven blocks and a part, so that code for many blocks at once is reached; against the AEAD checked above."""
    header = bytes(range(16))
    plaintext = bytes(range(225)) * 2
    counter = 0x0706050403020100
    datagram = crypto.seal_transport(_KEY, header, counter, plaintext)
    nonce = bytes(4) + bytes(range(8))  # WireGuard paper 5.4.6
    if datagram != header + crypto.aead_seal(_KEY, nonce, plaintext, b""):
        raise WrongAnswer("seal_transport")
    if crypto.open_transport(_KEY, counter, datagram) != plaintext:
        raise WrongAnswer("open_transport")
    if crypto.open_transport(_KEY, counter, _flip(datagram, 16)) is not None:
        raise WrongAnswer("open_transport of a damaged datagram")
    if crypto.open_transport(_KEY, counter + 1, datagram) is not None:
        raise WrongAnswer("open_transport under another counter")


def _check_ed25519(crypto: "Crypto") -> None:
    # RFC 8032, section 7.1, test 3
    seed = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    message = b"\xaf\x82"
    public = crypto.ed25519_public(seed)
    _same("ed25519_public", public, "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
    signature = crypto.ed25519_sign(seed, message)
    _same(
        "ed25519_sign",
        signature,
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    )
    if not crypto.ed25519_verify(public, message, signature):
        raise WrongAnswer("ed25519_verify")
    if crypto.ed25519_verify(public, b"\xaf\x83", signature):
        raise WrongAnswer("ed25519_verify of another message")
    # The same signature with S + L, which RFC 8032, section 5.1.7 refuses
    order = (1 << 252) + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    if crypto.ed25519_verify(public, message, signature[:32] + s.to_bytes(32, "little")):
        raise WrongAnswer("ed25519_verify of a malleated signature")


_COUNT = bytes(range(32))
_KEY = bytes(range(0x80, 0xA0))
_AD = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
_LADIES = (
    b"Ladies and Gentlemen of the class of '99: "
    b"If I could offer you only one tip for the future, sunscreen would be it."
)


def _same(what: str, value: bytes, expected: str) -> None:
    if value != bytes.fromhex(expected):
        raise WrongAnswer(what)


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
