"""Choosing a provider, what it costs to import, and the PyNaCl that the fast one was written for."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import nacl
import pytest
from nacl._sodium import ffi, lib

from edgeagent.crypto import CryptoUnavailable, load, sodium
from edgeagent.crypto.libsodium import MESSAGE_MAX
from edgeagent.crypto.pure.known_answers import WrongAnswer, check
from edgeagent.crypto.pure.provider import MESSAGE_MAX as PURE_MESSAGE_MAX
from edgeagent.crypto.pure.provider import Pure
from edgeagent.crypto.pynacl import PyNaCl

# `nacl._sodium` is no public interface. When this fails: look whether the prototypes below still hold, measure
# seal_transport again, then add the version.
PYNACL_KNOWN = ("1.5", "1.6")

_BYTES = "unsigned char *"
_SIZE = "unsigned long long"
_SEAL = f"int(*)({_BYTES}, {_SIZE} *, {_BYTES}, {_SIZE}, {_BYTES}, {_SIZE}, {_BYTES}, {_BYTES}, {_BYTES})"
_OPEN = f"int(*)({_BYTES}, {_SIZE} *, {_BYTES}, {_BYTES}, {_SIZE}, {_BYTES}, {_SIZE}, {_BYTES}, {_BYTES})"
PROTOTYPES = {
    "crypto_aead_chacha20poly1305_ietf_encrypt": _SEAL,
    "crypto_aead_chacha20poly1305_ietf_decrypt": _OPEN,
    "crypto_aead_xchacha20poly1305_ietf_encrypt": _SEAL,
    "crypto_aead_xchacha20poly1305_ietf_decrypt": _OPEN,
    "crypto_scalarmult": f"int(*)({_BYTES}, {_BYTES}, {_BYTES})",
    "crypto_scalarmult_base": f"int(*)({_BYTES}, {_BYTES})",
    "crypto_sign": f"int(*)({_BYTES}, {_SIZE} *, {_BYTES}, {_SIZE}, {_BYTES})",
    "crypto_sign_open": f"int(*)({_BYTES}, {_SIZE} *, {_BYTES}, {_SIZE}, {_BYTES})",
    "crypto_sign_seed_keypair": f"int(*)({_BYTES}, {_BYTES}, {_BYTES})",
    "sodium_init": "int(*)()",
    "sodium_memcmp": "int(*)(void *, void *, size_t)",
    "sodium_memzero": "void(*)(void *, size_t)",
}


def test_beside_ctypes_the_systems_libsodium_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEAGENT_CRYPTO", raising=False)
    assert load(beside_ctypes=True).name == "sodium"
    assert load("pynacl", beside_ctypes=True).name == "pynacl"
    monkeypatch.setattr(sodium, "NAMES", ("libsodium.so.none",))
    assert load(beside_ctypes=True).name == "pynacl"


def test_pynacl_is_a_known_version() -> None:
    assert ".".join(nacl.__version__.split(".")[:2]) in PYNACL_KNOWN


@pytest.mark.parametrize("function", PROTOTYPES)
def test_pynacl_has_the_prototypes_that_we_call(function: str) -> None:
    assert ffi.typeof(getattr(lib, function)).cname == PROTOTYPES[function]


@pytest.mark.parametrize("function", PROTOTYPES)
def test_ctypes_is_told_the_same_prototypes(function: str) -> None:
    told = sodium.PROTOTYPES[function]
    wanted = [argument.cname for argument in ffi.typeof(getattr(lib, function)).args]
    words = {
        _BYTES: (ctypes.c_char_p,), "void *": (ctypes.c_char_p,), f"{_SIZE} *": (ctypes.c_void_p,),
        _SIZE: (ctypes.c_ulonglong,), "size_t": (ctypes.c_size_t,),
    }  # fmt: skip
    assert len(told) == len(wanted)
    assert [name for name, each in zip(wanted, told, strict=True) if each not in words[name]] == []
    assert PROTOTYPES.keys() == sodium.PROTOTYPES.keys()


def test_both_have_one_limit() -> None:
    assert MESSAGE_MAX == PURE_MESSAGE_MAX


def test_pynacl_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEAGENT_CRYPTO", raising=False)
    assert load().name == load("pynacl").name == "pynacl"
    assert load() is not load()


def test_pure_is_taken_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAGENT_CRYPTO", "pure")
    assert load().name == "pure"
    assert load("pynacl").name == "pynacl"
    monkeypatch.setenv("EDGEAGENT_CRYPTO", "")
    assert load().name == "pynacl"
    assert load("pure").name == "pure"


def test_without_pynacl_libsodium_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEAGENT_CRYPTO", raising=False)
    monkeypatch.delitem(sys.modules, "edgeagent.crypto.pynacl")
    monkeypatch.setitem(sys.modules, "nacl._sodium", None)
    assert load().name == "sodium"
    with pytest.raises(CryptoUnavailable, match=r"provider pynacl: .*nacl.*Install PyNaCl .*EDGEAGENT_CRYPTO=pure"):
        load("pynacl")
    monkeypatch.setattr(sodium, "NAMES", ("libsodium.so.0",))
    with pytest.raises(CryptoUnavailable, match=r"provider pynacl: .*nacl.*; sodium: no libsodium: .*libsodium.so.0"):
        load()


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAGENT_CRYPTO", "rot13")
    with pytest.raises(
        CryptoUnavailable, match=r"'rot13': there is none of that name\. Use one of pynacl, sodium, pure"
    ):
        load()


def test_a_provider_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PyNaCl, "x25519", lambda self, private, public: bytes(32))
    with pytest.raises(CryptoUnavailable, match=r"pynacl: its known-answer test failed at x25519\. Do not use"):
        load("pynacl")


WRONG: dict[str, Any] = {
    "x25519": lambda right: lambda *a: flip(right(*a)),
    "x25519_base": lambda right: lambda *a: flip(right(*a)),
    "blake2s": lambda right: lambda *a, **k: flip(right(*a, **k)),
    "hmac_blake2s": lambda right: lambda *a: flip(right(*a)),
    "hkdf": lambda right: lambda *a: right(*a)[::-1],
    "aead_seal": lambda right: lambda *a: flip(right(*a)),
    "aead_open": lambda right: lambda key, nonce, sealed, ad: right(key, nonce, sealed, ad) or b"forged",
    "xaead_seal": lambda right: lambda *a: flip(right(*a)),
    "xaead_open": lambda right: lambda key, nonce, sealed, ad: right(key, nonce, sealed, ad) or b"forged",
    "seal_transport": lambda right: lambda key, header, counter, plaintext: right(key, header, 0, plaintext),
    "open_transport": lambda right: lambda *a: right(*a) or b"forged",
    "ed25519_public": lambda right: lambda *a: flip(right(*a)),
    "ed25519_sign": lambda right: lambda *a: flip(right(*a)),
    "ed25519_verify": lambda right: lambda *a: True,
    "equal": lambda right: lambda a, b: True,
}


@pytest.mark.parametrize("method", WRONG)
def test_the_known_answers_find_a_wrong_primitive(method: str) -> None:
    class Broken(PyNaCl):
        pass

    check(Broken())
    broken = Broken()
    setattr(broken, method, WRONG[method](getattr(broken, method)))
    with pytest.raises(WrongAnswer, match=method.partition("_")[0]):
        check(broken)


def flip(value: bytes) -> bytes:
    return bytes((value[0] ^ 1,)) + value[1:]


def test_known_answers_cover_every_method() -> None:
    methods = {name for name in vars(Pure) if not name.startswith("_")} - {"name", "wipe"}
    assert methods == set(WRONG)


def test_wipe_clears_the_secret_and_nothing_else() -> None:
    crypto = PyNaCl()
    kept = bytes(range(32))
    secret = crypto.x25519_base(kept)
    assert secret != bytes(32)
    crypto.wipe(secret)
    assert secret == bytes(32)
    assert kept == bytes(range(32))
    crypto.wipe(b"")
    crypto.wipe(secret[:1])
    assert secret[:1] == b"\0"


def test_instances_do_not_share_their_buffers() -> None:
    one, other = PyNaCl(), PyNaCl()
    sealed = one.seal_transport(bytes(32), bytes(16), 0, b"plaintext")
    other.seal_transport(bytes(32), bytes(16), 1, b"something")
    assert one.seal_transport(bytes(32), bytes(16), 0, b"plaintext") == sealed
    assert one.open_transport(bytes(32), 0, sealed) == b"plaintext"


def test_importing_it_is_cheap() -> None:
    """nacl.bindings would cost a device 2.4 MiB, OpenSSL 3.6 and `typing` 1.7: none may come in by this door."""
    program = "import sys\nfrom edgeagent.crypto import load\nload('pynacl')\nprint(*sorted(sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    loaded = done.stdout.split()
    assert "nacl._sodium" in loaded
    dear = ("nacl.bindings", "nacl.utils", "hashlib", "_hashlib", "hmac", "typing", "asyncio", "cryptography")
    assert [name for name in (*dear, "edgeagent.crypto.pure.provider") if name in loaded] == []


def test_the_self_test_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeagent.crypto.pure"], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "pure crypto: all known answers are right\n"
