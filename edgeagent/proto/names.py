"""Ids and names: how they are made, and the exact form that each is checked against before any use."""

from __future__ import annotations

import re
from base64 import b32encode

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import RemoteProtocolError
from edgeagent.proto.ip import ip_to_bytes
from edgeagent.proto.keys import Entropy

HUB = "hub"
DOMAIN_BYTES_MAX = 253

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"  # RFC 1123, section 2.1, lower case
_NETWORK = re.compile("[a-z2-7]{16}")
_DEVICE = re.compile("[a-z2-7]{24}")
_CLAIM = re.compile("c-[a-z2-7]{16}")
_HOST = re.compile(_LABEL)
_TAG = re.compile(f"tag:{_LABEL}")
_GROUP = re.compile("group:[A-Za-z0-9](?:[A-Za-z0-9._@+-]{0,61}[A-Za-z0-9])?")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_CAPABILITY = re.compile("[A-Za-z0-9_-]{8,43}")
_TARGET = re.compile("[A-Za-z0-9][A-Za-z0-9._+~-]{0,93}")
# "1.root.json", "timestamp.json"; a target by its SHA-256 (consistent snapshots, TUF section 6.2)
_UPDATE_FILE = re.compile(
    "(?:metadata/(?:[1-9][0-9]{0,8}[.])?(?:root|timestamp|snapshot|targets)[.]json)"
    "|(?:targets/[0-9a-f]{64}[.][A-Za-z0-9][A-Za-z0-9._+~-]{0,93})"
)
_PORT = re.compile("[1-9][0-9]{0,4}")


def network_id(crypto: Crypto, network_key: bytes) -> str:
    """16 characters for an Ed25519 network key."""
    return _base32(crypto.blake2s(b"em1 network" + network_key)[:10])


def device_id(crypto: Crypto, device_key: bytes) -> str:
    """24 characters for an Ed25519 device key."""
    return _base32(crypto.blake2s(b"em1 device" + device_key)[:15])


def make_claim_id(entropy: Entropy) -> str:
    """A new claim id, 18 characters."""
    return "c-" + _base32(entropy(10))


def is_network_id(text: object) -> bool:
    return isinstance(text, str) and _NETWORK.fullmatch(text) is not None


def is_device_id(text: object) -> bool:
    return isinstance(text, str) and _DEVICE.fullmatch(text) is not None


def is_claim_id(text: object) -> bool:
    return isinstance(text, str) and _CLAIM.fullmatch(text) is not None


def is_host_name(text: object) -> bool:
    """One DNS label."""
    return isinstance(text, str) and _HOST.fullmatch(text) is not None


def is_tag(text: object) -> bool:
    return isinstance(text, str) and _TAG.fullmatch(text) is not None


def is_group(text: object) -> bool:
    """A group of the policy, with its prefix."""
    return isinstance(text, str) and _GROUP.fullmatch(text) is not None


def is_domain(text: object) -> bool:
    """DNS labels with dots between them, at most 253 characters."""
    return isinstance(text, str) and len(text) <= DOMAIN_BYTES_MAX and _DOMAIN.fullmatch(text) is not None


def is_capability(text: object) -> bool:
    """The unguessable last part of a signal inbox's topic."""
    return isinstance(text, str) and _CAPABILITY.fullmatch(text) is not None


def is_target(text: object) -> bool:
    """A file that updates bring: no path, nothing hidden."""
    return isinstance(text, str) and _TARGET.fullmatch(text) is not None


def is_update_file(text: object) -> bool:
    """A file of the hub's repository of updates, metadata or target."""
    return isinstance(text, str) and _UPDATE_FILE.fullmatch(text) is not None


def is_subject(text: object) -> bool:
    """What a signed object may speak of or to."""
    return text == HUB or is_device_id(text)


def is_host_port(text: object) -> bool:
    """`name:port`, `192.0.2.1:port` or `[2001:db8::1]:port`."""
    if not isinstance(text, str):
        return False
    try:
        split_host_port(text)
    except RemoteProtocolError:
        return False
    return True


def split_host_port(text: str, field: str = "address") -> tuple[str, int]:
    """(host without brackets, port). Raises RemoteProtocolError, which names `field`."""
    host, colon, port = text.rpartition(":")
    if not colon or len(text) > DOMAIN_BYTES_MAX + 6 or _PORT.fullmatch(port) is None or int(port) > 65535:
        raise RemoteProtocolError(f"{field}: host:port with a port of 1 to 65535 expected")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise RemoteProtocolError(f"{field}: no IPv6 address between the brackets")
    elif not is_domain(host.lower()):
        raise RemoteProtocolError(
            f"{field}: a host name, an IPv4 address or [an IPv6 address] expected before the port"
        )
    return host, int(port)


def _is_ipv6(text: str) -> bool:
    try:
        return len(ip_to_bytes(text)) == 16
    except ValueError:
        return False


def _base32(data: bytes) -> str:
    return b32encode(data).decode("ascii").rstrip("=").lower()
