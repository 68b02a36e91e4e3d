"""Requests to sign and signatures as lines of JSON: how they travel to a machine without a network, and back."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from typing import Any

from edgeagent.proto.names import is_device_id, is_network_id
from hub.core.lock import Draft
from hub.core.lock_signer import Answer, DeviceRequest, Request, SignedStatement
from hub.core.model import HubError, LockSignature

LINES_MAX = 200_000
LINE_CHARACTERS_MAX = 8_192


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


def _rows(lines: Iterable[str]) -> Iterator[_Row]:
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
