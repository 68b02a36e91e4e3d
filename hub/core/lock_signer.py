"""What a lock key signs: made where the key is, with no need of a hub. Pure."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.lock import device_input
from edgeagent.proto.names import device_id
from edgeagent.proto.signed import sign_object
from hub.core.lock import Draft
from hub.core.model import HubError, LockSignature


@dataclass(slots=True, frozen=True)
class DeviceRequest:
    """A device to be signed. `beyond`: signatures made up to then (wall seconds) are revoked; `not_after` 0: no end."""

    network: str
    device: str
    name: str
    key: bytes
    not_after: int = 0
    beyond: int = -1


@dataclass(slots=True, frozen=True)
class SignedStatement:
    """A statement as it goes to devices."""

    network: str
    raw: bytes


Request = DeviceRequest | Draft
Answer = tuple[str, LockSignature] | SignedStatement  # (network, signature of a device)


class Signer:
    """One lock key at work. `public` is its public half."""

    def __init__(self, crypto: Crypto, seed: bytes) -> None:
        self._crypto = crypto
        self._seed = seed
        self.public = crypto.ed25519_public(seed)

    def device(self, request: DeviceRequest, wall_s: int) -> LockSignature:
        if device_id(self._crypto, request.key) != request.device:
            raise HubError(f"{request.name}: its key is not the one behind the id {request.device}. Do not sign this")
        sequence = max(wall_s, request.beyond + 1)
        text = device_input(request.network, request.device, request.key, request.not_after, sequence)
        signature = self._crypto.ed25519_sign(self._seed, text)
        return LockSignature(request.device, self.public, request.not_after, sequence, signature)

    def statement(self, draft: Draft, wall_s: int) -> bytes:
        if self.public not in draft.keys:
            raise HubError(
                "this key is none of those that the statement names, and who signs stays: use another key of the lock"
            )
        body = {
            "by": self.public,
            "on": draft.on,
            "k": list(draft.keys),
            "rv": [[device, until] for device, until in draft.revoked],
        }
        try:
            return sign_object(
                self._crypto,
                self._seed,
                kind="lock",
                network=draft.network,
                subject="hub",
                epoch=0,
                seq=draft.sequence,
                wall_s=wall_s,
                body=body,
            )
        except LocalProtocolError as error:
            raise HubError(f"lock statement: {error}. Export the request again") from error

    def sign(self, request: Request, wall_s: int) -> Answer:
        if isinstance(request, Draft):
            return SignedStatement(request.network, self.statement(request, wall_s))
        return request.network, self.device(request, wall_s)


def describe(request: Request) -> str:
    """For the person who is to sign it."""
    if isinstance(request, Draft):
        state = "on" if request.on else "off"
        keys = " ".join(key_text(key) for key in request.keys)
        revoked = "".join(f", revoked {device}" for device, _ in request.revoked)
        return f"network {request.network}: statement {request.sequence}: lock {state}, keys {keys}{revoked}"
    return f"network {request.network}: device {request.device} ({request.name})"


def parse_key(text: str) -> bytes:
    """A public lock key as it is printed. Raises HubError."""
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise HubError(f"lock key {text[:60]!r}: 44 characters as `edgehub lock key` prints them expected")
    return key


def key_text(key: bytes) -> str:
    """A public lock key as it is printed."""
    return b64encode(key).decode()
