"""Join tokens on their way into images: read from files, never from an argument list, and checked before any use."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import time
from typing import cast

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.token import TOKEN_CHARACTERS_MAX, Token, TokenError
from flash.errors import FlashError

# A device that is flashed today is shipped first: less than this is told, and is no error.
SHORT_LIFE_S = 86_400
FILE_BYTES_MAX = 4 << 20
_STATE_HEADER = struct.Struct(">4sII32s")  # edgeagent/io/keystore.py: magic, version, length, digest


class _Hashes:
    """Of a crypto provider, all that reading a token takes."""

    @staticmethod
    def blake2s(data: bytes, key: bytes = b"", size: int = 32) -> bytes:
        return hashlib.blake2s(data, key=key, digest_size=size).digest()


def decode(text: str, what: str, wall_s: float) -> Token:
    """A token that still works. FlashError says what is wrong with it, and never what it is."""
    try:
        token = Token.decode(cast(Crypto, _Hashes()), text)
    except TokenError as error:
        raise FlashError(f"{what}: {error}.") from None
    if token.expired(wall_s):
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(token.not_after))
        raise FlashError(f"{what}: the token ({token.claim}) expired at {when}. Make another: edgehub token create.")
    return token


def read_file(path: str) -> bytes:
    """Of a file, or of standard input for -."""
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise FlashError(f"{path}: {error.strerror}.") from None
    if len(data) > FILE_BYTES_MAX:
        raise FlashError(f"{path}: more than {FILE_BYTES_MAX >> 20} MiB. That is no file of tokens.")
    return data


def read_tokens(path: str) -> list[str]:
    """The tokens of a file: one a line (# begins a comment), or what `edgehub token create --json` prints."""
    text = read_file(path).decode("utf-8", "replace").strip()
    if text.startswith(("{", "[")):
        return _from_json(path, text)
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            if not line.startswith("em1.") or len(line) > TOKEN_CHARACTERS_MAX:
                raise FlashError(f"{path}:{number}: this is not a join token: one begins with em1.")
            found.append(line)
    if not found:
        raise FlashError(f"{path}: there is no token in it. Make one: edgehub token create > {path}")
    return found


def read_token(path: str) -> str:
    """The one token of a file."""
    found = read_tokens(path)
    if len(found) != 1:
        raise FlashError(f"{path}: holds {len(found)} tokens, and this is for one device. For many: edgeflash batch.")
    return found[0]


def _from_json(path: str, text: str) -> list[str]:
    decoder, at, values = json.JSONDecoder(), 0, []
    try:
        while at < len(text):  # one value, or several one after the other
            value, at = decoder.raw_decode(text, at)
            values += value if isinstance(value, list) else [value]
            while at < len(text) and text[at].isspace():
                at += 1
    except (ValueError, RecursionError) as error:
        raise FlashError(f"{path}: is neither lines of tokens nor JSON ({error.__class__.__name__}).") from None
    found = [value.get("token") if isinstance(value, dict) else value for value in values]
    for number, token in enumerate(found, 1):
        if not isinstance(token, str) or not token.startswith("em1."):
            raise FlashError(
                f"{path}: value {number} has no token. What `edgehub token create --json` prints is wanted."
            )
    return cast(list[str], found)


def state_file(token: str) -> bytes:
    """The agent's state file `token`: it joins with that at its first start, and removes it once it is answered."""
    body = token.strip().encode("ascii")
    digest = hashlib.blake2s(b"token\0" + body).digest()
    return _STATE_HEADER.pack(b"edst", 1, len(body), digest) + body
