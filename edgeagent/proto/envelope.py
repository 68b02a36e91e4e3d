"""What is on the wire, signed by its writer and sealed for its reader: a pair of functions for each direction."""

from __future__ import annotations

from typing import Any

from edgeagent.proto.codec import DEVICE_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX, encode
from edgeagent.proto.constants import TAG_SIZE
from edgeagent.proto.control import check_body
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.keys import Entropy
from edgeagent.proto.names import HUB, device_id
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.seal import open_box, seal_box
from edgeagent.proto.signed import (
    Signed,
    open_signed,
    peek_payload,
    read_payload,
    sign_object,
    signing_input,
    split_object,
    verify,
    write_payload,
)

FEED_BYTES_MAX = 2_048
_NONCE_SIZE = 24


def write_up(
    crypto: Crypto,
    entropy: Entropy,
    device_seed: bytes,
    hub_box_key: bytes,
    topic: str,
    *,
    kind: str,
    network: str,
    device: str,
    epoch: int,
    seq: int,
    wall_s: int,
    body: dict[str, Any],
) -> bytes:
    """Device → hub, published on `topic`. Raises LocalProtocolError, also for more than 8 KiB."""
    signed = sign_object(
        crypto, device_seed, kind=kind, network=network, subject=device, epoch=epoch, seq=seq, wall_s=wall_s, body=body
    )
    data = seal_box(crypto, entropy, hub_box_key, topic, signed)
    if len(data) > DEVICE_MESSAGE_BYTES_MAX:
        raise LocalProtocolError(f"{kind}: at most {DEVICE_MESSAGE_BYTES_MAX} bytes, got {len(data)}")
    return data


def read_up(
    crypto: Crypto,
    hub_box_private: bytes,
    device_key: bytes,
    topic: str,
    data: bytes,
    *,
    kind: str,
    network: str,
    device: str,
) -> Signed:
    """What `device` wrote to the hub. Raises ControlError; replays are the caller's to check."""
    signed = _unbox(crypto, hub_box_private, topic, data, DEVICE_MESSAGE_BYTES_MAX)
    return open_signed(crypto, device_key, signed, kind=kind, network=network, subject=device)


def read_join(crypto: Crypto, hub_box_private: bytes, topic: str, data: bytes, *, network: str, claim: str) -> Signed:
    """A join: it brings its own device key, which must be the one behind its subject. Raises ControlError.

    Whether `claim` and the secret are good is for the hub to say.
    """
    signed = _unbox(crypto, hub_box_private, topic, data, DEVICE_MESSAGE_BYTES_MAX)
    body = check_body("join", peek_payload(signed, "join")["b"])
    subject = device_id(crypto, body["dk"])
    join = open_signed(crypto, body["dk"], signed, kind="join", network=network, subject=subject)
    if join.body["claim"] != claim:
        raise ControlError(ControlDrop.WRONG_SUBJECT, f"join.claim: {claim} expected on this topic")
    return join


def write_down(
    crypto: Crypto,
    entropy: Entropy,
    network_seed: bytes,
    device_box_key: bytes,
    topic: str,
    *,
    kind: str,
    network: str,
    device: str,
    epoch: int,
    seq: int,
    wall_s: int,
    body: dict[str, Any],
) -> bytes:
    """Hub → device, published on `topic`. Raises LocalProtocolError, also for more than 64 KiB."""
    signed = sign_object(
        crypto, network_seed, kind=kind, network=network, subject=device, epoch=epoch, seq=seq, wall_s=wall_s, body=body
    )
    data = seal_box(crypto, entropy, device_box_key, topic, signed)
    if len(data) > MESSAGE_BYTES_MAX:
        raise LocalProtocolError(f"{kind}: at most {MESSAGE_BYTES_MAX} bytes, got {len(data)}")
    return data


def read_down(
    crypto: Crypto,
    device_box_private: bytes,
    network_key: bytes,
    topic: str,
    data: bytes,
    *,
    kind: str,
    network: str,
    device: str,
    max_bytes: int = MESSAGE_BYTES_MAX,
) -> Signed:
    """What the hub wrote to `device`. Raises ControlError; replays and dates are the caller's to check."""
    signed = _unbox(crypto, device_box_private, topic, data, max_bytes)
    return open_signed(crypto, network_key, signed, kind=kind, network=network, subject=device)


def write_hub_state(
    crypto: Crypto,
    network_seed: bytes,
    *,
    network: str,
    epoch: int,
    seq: int,
    wall_s: int,
    up: bool,
    hub_box_key: bytes,
) -> bytes:
    """The hub's presence, retained on hub/state: signed, and open to every device of the network."""
    body = {"up": up, "bx": hub_box_key}
    return sign_object(
        crypto, network_seed, kind="hub", network=network, subject=HUB, epoch=epoch, seq=seq, wall_s=wall_s, body=body
    )


def read_hub_state(crypto: Crypto, network_key: bytes, data: bytes, *, network: str) -> Signed:
    """Raises ControlError."""
    return open_signed(
        crypto, network_key, data, kind="hub", network=network, subject=HUB, max_bytes=DEVICE_MESSAGE_BYTES_MAX
    )


def write_feed(
    crypto: Crypto,
    entropy: Entropy,
    device_seed: bytes,
    feed_key: bytes,
    topic: str,
    *,
    network: str,
    device: str,
    epoch: int,
    seq: int,
    wall_s: int,
    body: dict[str, Any],
) -> bytes:
    """Device → devices: sealed under its feed key, and signed, so that who knows the key can read and not write."""
    payload = write_payload("feed", network, device, epoch, seq, wall_s, body)
    nonce = entropy(_NONCE_SIZE)
    sealed = nonce + crypto.xaead_seal(feed_key, nonce, payload, topic.encode())
    data = encode([sealed, crypto.ed25519_sign(device_seed, signing_input("feed", sealed))])
    if len(data) > FEED_BYTES_MAX:
        raise LocalProtocolError(f"feed: at most {FEED_BYTES_MAX} bytes, got {len(data)}")
    return data


def read_feed(
    crypto: Crypto, device_key: bytes, feed_key: bytes, topic: str, data: bytes, *, network: str, device: str
) -> Signed:
    """The feed of `device`. Raises ControlError, FEED_KEY when it is genuine and sealed under another key."""
    sealed, signature = split_object(data, "feed", FEED_BYTES_MAX)
    verify(crypto, device_key, "feed", sealed, signature)
    payload = None
    if len(sealed) >= _NONCE_SIZE + TAG_SIZE:
        payload = crypto.xaead_open(feed_key, sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], topic.encode())
    if payload is None:
        raise ControlError(ControlDrop.FEED_KEY, "feed: sealed under another feed key")
    return read_payload(payload, data, "feed", network, device)


def _unbox(crypto: Crypto, reader_private: bytes, topic: str, data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise ControlError(ControlDrop.TOO_LONG, f"message: at most {max_bytes} bytes, got {len(data)}")
    return open_box(crypto, reader_private, topic, data)
