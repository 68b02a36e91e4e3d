"""MQTT passwords as the broker keeps them: PBKDF2-SHA512, in Mosquitto's `$7$` form.

The passwords are 128 random bits or more, so the few iterations that Mosquitto uses by default are enough; they are
spent at every connect of every device.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from hashlib import pbkdf2_hmac

from edgeagent.proto.keys import Entropy

ITERATIONS = 101
SALT_SIZE = 12  # what Mosquitto's plugin holds
PASSWORD_CHARACTERS_MIN = 16


def make_credential(entropy: Entropy, password: str) -> str:
    """`$7$iterations$salt$hash`, base64."""
    return _credential(password, entropy(SALT_SIZE))


def check_credential(credential: str, password: str) -> bool:
    return hmac.compare_digest(_credential(password, split_credential(credential)[0]), credential)


def split_credential(credential: str) -> tuple[bytes, bytes]:
    """(salt, hash)."""
    _, _, _, salt, digest = credential.split("$")
    return b64decode(salt), b64decode(digest)


def is_strong(password: str) -> bool:
    """Long enough to be the random text that a device must make, and of characters that every broker takes."""
    return len(password) >= PASSWORD_CHARACTERS_MIN and password.isascii() and password.isprintable()


def _credential(password: str, salt: bytes) -> str:
    digest = pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"$7${ITERATIONS}${b64encode(salt).decode()}${b64encode(digest).decode()}"
