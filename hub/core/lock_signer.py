"""What a lock key signs, and how it travels to a machine without a network and back: lines of JSON, pure."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.lock import device_input
from edgeagent.proto.names import device_id, is_device_id, is_network_id
from edgeagent.proto.signed import sign_object
from hub.core.lock import Draft
from hub.core.model import HubError, LockSignature

LINES_MAX = 200_000
LINE_CHARACTERS_MAX = 8_192


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


def request_line(request: Request) -> str:
    if isinstance(request, Draft):
        return _line(
            sign="statement",
            network=request.network,
            sequence=request.sequence,
            on=request.on,
            keys=[_text(key) for key in request.keys],
            revoked=dict(request.revoked),
        )
    return _line(
        sign="device",
        network=request.network,
        device=request.device,
        name=request.name,
        key=_text(request.key),
        not_after=request.not_after,
        beyond=request.beyond,
    )


def answer_line(answer: Answer) -> str:
    if isinstance(answer, SignedStatement):
        return _line(signed="statement", network=answer.network, object=_text(answer.raw))
    network, signature = answer
    return _line(
        signed="device",
        network=network,
        device=signature.device,
        by=_text(signature.by),
        not_after=signature.not_after,
        sequence=signature.sequence,
        signature=_text(signature.signature),
    )


def read_requests(lines: Iterable[str]) -> list[Request]:
    """Raises HubError, naming the line."""
    return [_read_request(row) for row in _rows(lines)]


def read_answers(lines: Iterable[str]) -> list[Answer]:
    """Raises HubError, naming the line. No signature is checked here."""
    return [_read_answer(row) for row in _rows(lines)]


def describe(request: Request) -> str:
    """For the person who is to sign it."""
    if isinstance(request, Draft):
        state = "on" if request.on else "off"
        keys = " ".join(_text(key) for key in request.keys)
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


class _Row:
    """One line, and what must be in it."""

    def __init__(self, number: int, fields: dict[str, Any]) -> None:
        self.number = number
        self._fields = fields

    def fault(self, what: str) -> HubError:
        return HubError(f"line {self.number}: {what}. Export or sign it again; do not edit such a file")

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str) or not value.isprintable():
            raise self.fault(f"{name}: text expected")
        return value

    def whole(self, name: str, low: int = 0) -> int:
        return self.checked_whole(name, self._fields.get(name), low)

    def checked_whole(self, name: str, value: object, low: int) -> int:
        if type(value) is not int or not low <= value < 1 << 48:
            raise self.fault(f"{name}: a whole number from {low} expected")
        return value

    def data(self, name: str, *sizes: int) -> bytes:
        return self.checked_data(name, self._fields.get(name), sizes)

    def checked_data(self, name: str, value: object, sizes: tuple[int, ...]) -> bytes:
        try:
            data = b64decode(value, validate=True) if isinstance(value, str) else b""
        except ValueError:
            data = b""
        if not data or (sizes and len(data) not in sizes):
            raise self.fault(f"{name}: {' or '.join(map(str, sizes)) or 'some'} bytes in base64 expected")
        return data

    def network(self) -> str:
        network = self.text("network")
        if not is_network_id(network):
            raise self.fault("network: a network id expected")
        return network

    def device(self) -> str:
        device = self.text("device")
        if not is_device_id(device):
            raise self.fault("device: a device id expected")
        return device

    def get(self, name: str) -> Any:
        return self._fields.get(name)


def _rows(lines: Iterable[str]) -> Iterable[_Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line) if len(line) <= LINE_CHARACTERS_MAX and number <= LINES_MAX else None
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise HubError(f"line {number}: not one of `edgehub lock`. Is this the right file?")
        yield _Row(number, fields)


def _read_request(row: _Row) -> Request:
    if row.get("sign") == "device":
        return DeviceRequest(
            row.network(),
            row.device(),
            row.text("name"),
            row.data("key", 32),
            row.whole("not_after"),
            row.whole("beyond", -1),
        )
    if row.get("sign") != "statement":
        raise row.fault("sign: device or statement expected")
    keys, revoked = row.get("keys"), row.get("revoked")
    if type(row.get("on")) is not bool or not isinstance(keys, list) or not isinstance(revoked, dict):
        raise row.fault("on, keys, revoked: missing, or not of their form")
    return Draft(
        row.network(),
        row.whole("sequence", 1),
        row.get("on"),
        tuple(row.checked_data("keys", key, (32,)) for key in keys),
        tuple((device, row.checked_whole("revoked", until, 0)) for device, until in sorted(revoked.items())),
    )


def _read_answer(row: _Row) -> Answer:
    if row.get("signed") == "statement":
        return SignedStatement(row.network(), row.data("object"))
    if row.get("signed") != "device":
        raise row.fault("signed: device or statement expected. Was it signed with `edgehub lock sign-requests`?")
    signature = LockSignature(
        row.device(), row.data("by", 32), row.whole("not_after"), row.whole("sequence"), row.data("signature", 64)
    )
    return row.network(), signature


def _line(**fields: Any) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _text(data: bytes) -> str:
    return b64encode(data).decode()
