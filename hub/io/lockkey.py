"""The file that a lock key, or a key of updates, is in: its owner's alone, and under a passphrase if they wish.

JSON `{"edgehub-lock": 1, "public": base64, "seed": base64}`, or instead of `seed`, `{"salt", "ops", "memory", "box"}`:
a secret box (XSalsa20-Poly1305) under argon2id (RFC 9106) of the passphrase. Keys are Ed25519; what one is for is its
first field, so that none is taken for another.
"""

from __future__ import annotations

import json
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nacl import exceptions, pwhash, secret, utils

from edgeagent.crypto import load
from hub.core.lock_signer import Signer
from hub.core.model import HubError

FILE_BYTES_MAX = 4_096
_MARK, UPDATE_MARK = "edgehub-lock", "edgehub-update"
_OPS_MAX = 16  # what a file may ask of this machine
_MEMORY_MAX_BYTES = 1 << 31


def make(path: Path, passphrase: str) -> Signer:
    """A new key in a new file, mode 0600; an empty passphrase is none. Raises HubError where a file is already."""
    return Signer(load(), make_seed(path, passphrase, _MARK))


def make_seed(path: Path, passphrase: str, mark: str) -> bytes:
    """As `make`, for a key of whatever use: its seed, 32 B."""
    seed = os.urandom(32)
    fields: dict[str, Any] = {mark: 1, "public": _text(load().ed25519_public(seed))}
    if passphrase:
        ops, memory, salt = (
            pwhash.argon2id.OPSLIMIT_MODERATE,
            pwhash.argon2id.MEMLIMIT_MODERATE,
            utils.random(pwhash.argon2id.SALTBYTES),
        )
        box = secret.SecretBox(_stretch(passphrase, salt, ops, memory)).encrypt(seed)
        fields |= {"salt": _text(salt), "ops": ops, "memory": memory, "box": _text(box)}
    else:
        fields["seed"] = _text(seed)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise HubError(f"{path}: it is there already, and a key is never written over. Name another file") from None
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(json.dumps(fields) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return seed


def read(path: Path, ask: Callable[[], str]) -> Signer:
    """The key in a file; `ask` is called for its passphrase where it has one. Raises HubError."""
    return Signer(load(), read_seed(path, ask, _MARK, f"`edgehub lock key --key-file {path}` makes one"))


def read_seed(path: Path, ask: Callable[[], str], mark: str, maker: str) -> bytes:
    """As `read`, for a key of whatever use; `maker` says what makes one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HubError(f"{path}: no such file. {maker}") from None
    with open(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise HubError(f"{path}: others can read it (mode {mode:03o}). If nobody did: chmod 600 {path}")
        data = file.read(FILE_BYTES_MAX + 1)
    try:
        fields = json.loads(data) if len(data) <= FILE_BYTES_MAX else None
        if not isinstance(fields, dict) or fields.get(mark) != 1:
            raise ValueError
        seed = _data(fields, "seed", 32) if "seed" in fields else _unbox(fields, ask, path)
        if load().ed25519_public(seed) != _data(fields, "public", 32):
            raise ValueError
    except (ValueError, RecursionError):
        what = "a lock key" if mark == _MARK else "a key of updates"
        raise HubError(f"{path}: not a file of {what}, or damaged. Use a copy") from None
    return seed


def _unbox(fields: dict[str, Any], ask: Callable[[], str], path: Path) -> bytes:
    ops, memory = fields.get("ops"), fields.get("memory")
    if type(ops) is not int or type(memory) is not int or not 1 <= ops <= _OPS_MAX:
        raise ValueError
    if not pwhash.argon2id.MEMLIMIT_MIN <= memory <= _MEMORY_MAX_BYTES:
        raise ValueError
    box = _data(fields, "box", secret.SecretBox.NONCE_SIZE + secret.SecretBox.MACBYTES + 32)
    key = _stretch(ask(), _data(fields, "salt", pwhash.argon2id.SALTBYTES), ops, memory)
    try:
        return secret.SecretBox(key).decrypt(box)
    except exceptions.CryptoError:
        raise HubError(f"{path}: the passphrase is wrong, or the file is damaged") from None


def _stretch(passphrase: str, salt: bytes, ops: int, memory: int) -> bytes:
    try:
        return pwhash.argon2id.kdf(secret.SecretBox.KEY_SIZE, passphrase.encode(), salt, opslimit=ops, memlimit=memory)
    except exceptions.RuntimeError:
        raise HubError(f"argon2id: {memory >> 20} MiB of memory are needed for a moment, and are not free") from None


def _data(fields: dict[str, Any], name: str, size: int) -> bytes:
    value = fields.get(name)
    data = b64decode(value, validate=True) if isinstance(value, str) else b""
    if len(data) != size:
        raise ValueError(name)
    return data


def _text(data: bytes) -> str:
    return b64encode(data).decode()
