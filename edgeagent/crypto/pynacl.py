"""The provider for data paths: libsodium as PyNaCl carries it.

`nacl.bindings` allocates three buffers and copies twice per packet, and importing it costs 3 MiB. `nacl._sodium`, the
extension module below it, takes bytes objects as they are and costs 0.7 MiB. It is not PyNaCl's public interface:
tests/test_crypto_load.py pins the versions and the C prototypes that this was written for.
"""

from __future__ import annotations

from nacl._sodium import ffi, lib

from edgeagent.crypto.libsodium import Libsodium


class PyNaCl(Libsodium):
    """Implements `edgeagent.proto.crypto.Crypto`. One instance per thread."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("pynacl", lib, lambda size: ffi.new("unsigned char[]", size), ffi.buffer, ffi.NULL)
