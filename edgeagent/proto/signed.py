"""Signed objects: a verifier checks the bytes that came and never encodes them again; (epoch, seq) tells replays."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from edgeagent.proto.codec import MESSAGE_BYTES_MAX, decode, encode_and_read, encode_strings
from edgeagent.proto.control import HEAD, check_body, check_validity_fields
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.schema import Blob, Raw, Row

WILL_SEQ = 1 << 32  # a Last Will is newer than all of its session, and older than the next session

_OBJECT = Row(Blob(MESSAGE_BYTES_MAX), Raw(64))
_NOT_YET_SLACK_S = 300


class Signed:
    """A signed object whose signature, kind, network, subject and fields are checked. `raw` is what came."""

    __slots__ = (
        "body",
        "epoch",
        "kind",
        "network",
        "not_after",
        "not_before",
        "raw",
        "seq",
        "subject",
        "wall_s",
    )

    def __init__(self, head: dict[str, Any], body: dict[str, Any], raw: bytes) -> None:
        self.kind: str = head["t"]
        self.network: str = head["n"]
        self.subject: str = head["s"]
        self.epoch: int = head["e"]
        self.seq: int = head["q"]
        self.wall_s: int = head["w"]
        self.not_before: int | None = head.get("nb")
        self.not_after: int | None = head.get("na")
        self.body = body
        self.raw = raw

    @property
    def stamp(self) -> tuple[int, int]:
        """(epoch, seq): only goes up."""
        return self.epoch, self.seq

    def check_dates(self, wall_s: float) -> None:
        """Raise ControlError, EXPIRED or NOT_YET. `wall_s` may be late, so the writer's own time counts beside it."""
        if self.not_after is not None and self.not_after < wall_s:
            raise ControlError(ControlDrop.EXPIRED, f"{self.kind}.na: {self.not_after} has passed")
        if self.not_before is not None and self.not_before > max(wall_s, self.wall_s) + _NOT_YET_SLACK_S:
            raise ControlError(ControlDrop.NOT_YET, f"{self.kind}.nb: {self.not_before} has not come")


def sign_object(
    crypto: Crypto,
    seed: bytes,
    *,
    kind: str,
    network: str,
    subject: str,
    epoch: int,
    seq: int,
    wall_s: int,
    body: dict[str, Any],
    not_before: int | None = None,
    not_after: int | None = None,
) -> bytes:
    """A signed object. Raises LocalProtocolError when a field is not as the table of bodies says."""
    payload = write_payload(kind, network, subject, epoch, seq, wall_s, body, not_before, not_after)
    return encode_strings(payload, crypto.ed25519_sign(seed, signing_input(kind, payload)))


def open_signed(
    crypto: Crypto,
    public_key: bytes,
    data: bytes,
    *,
    kind: str,
    network: str,
    subject: str,
    max_bytes: int = MESSAGE_BYTES_MAX,
) -> Signed:
    """Check form, signature, kind, network, subject and body. Dates and replays are the caller's.

    Raises ControlError; nothing of an object is looked at before its signature is.
    """
    payload, signature = split_object(data, kind, max_bytes)
    verify(crypto, public_key, kind, payload, signature)
    return read_payload(payload, data, kind, network, subject)


def peek_payload(data: bytes, kind: str, *, max_bytes: int = MESSAGE_BYTES_MAX) -> dict[str, Any]:
    """The head of an object whose signature is NOT checked: to find the key to check it with, and for nothing else."""
    payload, _ = split_object(data, kind, max_bytes)
    head: dict[str, Any] = HEAD.check(decode(payload), kind)
    return head


def peek_subject(data: bytes) -> str:
    """The unverified subject: to choose whose key to verify with, and for nothing else."""
    subject: str = peek_payload(data, "object")["s"]
    return subject


def signing_input(kind: str, payload: bytes) -> bytes:
    """What a signature is over."""
    return b"em1 signed\0" + kind.encode() + b"\0" + payload


def verify(crypto: Crypto, public_key: bytes, kind: str, payload: bytes, signature: bytes) -> None:
    if not crypto.ed25519_verify(public_key, signing_input(kind, payload), signature):
        raise ControlError(ControlDrop.BAD_SIGNATURE, f"{kind}: not signed by the key that must have signed it")


def split_object(data: bytes, kind: str, max_bytes: int) -> tuple[bytes, bytes]:
    """(payload, signature), both unchecked."""
    payload, signature = _OBJECT.check(decode(data, max_bytes=max_bytes), kind)
    return payload, signature


def write_payload(
    kind: str,
    network: str,
    subject: str,
    epoch: int,
    seq: int,
    wall_s: int,
    body: dict[str, Any],
    not_before: int | None = None,
    not_after: int | None = None,
) -> bytes:
    """The payload of an object of ours, checked with the reader's own table."""
    head: dict[str, Any] = {"t": kind, "n": network, "s": subject, "e": epoch, "q": seq, "w": wall_s, "b": body}
    if not_before is not None:
        head["nb"] = not_before
    if not_after is not None:
        head["na"] = not_after
    payload, seen = encode_and_read(head)
    try:
        if len(payload) > MESSAGE_BYTES_MAX:
            raise ControlError(ControlDrop.TOO_LONG, f"message: at most {MESSAGE_BYTES_MAX} bytes, got {len(payload)}")
        _read_head(seen, payload, kind, network, subject)
    except ControlError as error:
        raise LocalProtocolError(f"cannot be signed: {error}") from error
    return payload


def read_payload(payload: bytes, raw: bytes, kind: str, network: str, subject: str) -> Signed:
    """The object in a payload whose signature was checked."""
    return _read_head(decode(payload), raw, kind, network, subject)


def _read_head(value: Any, raw: bytes, kind: str, network: str, subject: str) -> Signed:
    head = HEAD.check(value, kind)
    if head["t"] != kind:
        raise ControlError(ControlDrop.WRONG_KIND, f"{kind}.t: {kind} expected")
    if head["n"] != network:
        raise ControlError(ControlDrop.WRONG_NETWORK, f"{kind}.n: network {network} expected, got {head['n']}")
    if head["s"] != subject:
        raise ControlError(ControlDrop.WRONG_SUBJECT, f"{kind}.s: {subject} expected, got {head['s']}")
    check_validity_fields(kind, head.get("nb"), head.get("na"))
    return Signed(head, check_body(kind, head["b"]), raw)


class SeqGuard:
    """The last (epoch, seq) of each of at most `size_max` keys; who was not heard for longest is forgotten first."""

    __slots__ = ("_last", "_size_max", "gave_way")

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self.gave_way = 0  # keys forgotten because others needed the room
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def accept(self, key: str, epoch: int, seq: int) -> bool:
        """True, and remembered, when (epoch, seq) is newer than all before under `key`."""
        last = self._last.get(key)
        if last is not None and (epoch, seq) <= last:
            return False
        self._last[key] = (epoch, seq)
        self._last.move_to_end(key)
        if len(self._last) > self._size_max:
            self._last.popitem(last=False)
            self.gave_way += 1
        return True

    def last(self, key: str) -> tuple[int, int] | None:
        return self._last.get(key)

    def forget(self, key: str) -> None:
        self._last.pop(key, None)

    def export(self) -> list[list[Any]]:
        """[[key, epoch, seq] …], the one heard last at the end."""
        return [[key, epoch, seq] for key, (epoch, seq) in self._last.items()]

    def load(self, rows: list[list[Any]]) -> None:
        """Take in what `export` gave; never lowers what is already known."""
        for key, epoch, seq in rows:
            self.accept(key, epoch, seq)
