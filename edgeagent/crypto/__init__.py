"""Crypto providers behind one interface, `edgeagent.proto.crypto.Crypto`, and the choice between them.

`pynacl` is what a data path runs on, `sodium` the same library by ctypes where PyNaCl is not. `pure` is the slow twin
that the tests compare them with and that MicroPython can run; it is not constant-time, so it is taken only when it is
asked for by name.
"""

from __future__ import annotations

import os

from edgeagent.crypto.pure.known_answers import WrongAnswer, check
from edgeagent.proto.errors import EdgeError

TYPE_CHECKING = False  # type checkers take this name for true; the `typing` module costs a device 1.7 MiB
if TYPE_CHECKING:
    from edgeagent.proto.crypto import Crypto

PROVIDERS = ("pynacl", "sodium", "pure")
PROVIDER_VARIABLE = "EDGEAGENT_CRYPTO"


class CryptoUnavailable(EdgeError):
    """No provider that may carry traffic; the text says which, why, and what to do."""


def load(name: str | None = None, *, beside_ctypes: bool = False) -> Crypto:
    """A new provider that has just passed its known-answer test (0.5 ms for pynacl, some 10 ms for pure, on a PC).

    `name`, else the environment variable EDGEAGENT_CRYPTO, else `pynacl` and, where it is not installed, `sodium`; the
    other way round for a process that has ctypes anyhow, which saves it the 0.5 MiB of PyNaCl.
    Raises CryptoUnavailable. A provider reuses its buffers: threads that seal or open at the same time each load their
    own.
    """
    chosen = name or os.environ.get(PROVIDER_VARIABLE) or ""
    crypto: Crypto
    if chosen in ("", "pynacl", "sodium"):
        crypto = _libsodium(chosen, beside_ctypes=beside_ctypes)
        chosen = crypto.name
    elif chosen == "pure":
        from edgeagent.crypto.pure.provider import Pure

        crypto = Pure()
    else:
        raise CryptoUnavailable(
            f"crypto provider {chosen!r}: there is none of that name. Use one of {', '.join(PROVIDERS)}, "
            f"or leave {PROVIDER_VARIABLE} unset"
        )
    try:
        check(crypto)
    except WrongAnswer as wrong:
        raise CryptoUnavailable(
            f"crypto provider {chosen}: its known-answer test failed at {wrong}. Do not use this build: "
            f"reinstall it, and if that does not help test the memory of this device"
        ) from wrong
    return crypto


def _libsodium(chosen: str, *, beside_ctypes: bool) -> Crypto:
    """The provider of that name, the first that is there for ""."""
    faults = []
    for name in (chosen,) if chosen else ("sodium", "pynacl") if beside_ctypes else ("pynacl", "sodium"):
        try:
            if name == "pynacl":
                from edgeagent.crypto.pynacl import PyNaCl

                return PyNaCl()
            from edgeagent.crypto.sodium import Sodium

            return Sodium()
        except (ImportError, AttributeError, OSError) as why:
            faults.append(f"{name}: {why}")
    raise CryptoUnavailable(
        f"crypto provider {'; '.join(faults)}. Install PyNaCl 1.5 or newer (Debian: python3-nacl; elsewhere: pip "
        f"install PyNaCl), or libsodium (Debian: libsodium23; OpenWrt: libsodium and python3-ctypes). "
        f"{PROVIDER_VARIABLE}=pure does without them, 50 times slower and not in constant time"
    )
