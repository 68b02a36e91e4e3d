"""What a node keeps on flash so that a cold start meshes while the hub is away: bounded, and only its own to read back.

CBOR `[payload, BLAKE2s-256 of payload under a key that only this device has]`. The records within were verified when
they came; the keyed hash says that they are still those, so a start need not verify 256 signatures again.
"""

from __future__ import annotations

from typing import Any

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import FEED_ENDPOINTS_MAX, KEY, NETWORK, RECORD_BYTES_MAX, STAMP
from edgeagent.proto.control_client import ControlClient
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.epochs import Epochs
from edgeagent.proto.identity import Identity
from edgeagent.proto.records import Entry, Record
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.schema import Blob, Fields, List, Nullable, Raw, Row, Text, Uint
from edgeagent.proto.signed import Signed, peek_subject, read_payload, split_object
from edgeagent.proto.walltime import WallFloor

SNAPSHOT_BYTES_MAX = 262_144
RECORDS_MAX = 256
TOMBSTONES_MAX = 512
_UDP = Row(Raw(4, 16), Uint(1, 65_535))
_RECORD = Fields(
    {
        "r": Blob(RECORD_BYTES_MAX),
        "fk": KEY,
        "fg": Uint(),
        "st": Nullable(Row(STAMP, STAMP)),
        "nk": Nullable(KEY),
        "ep": List(_UDP, FEED_ENDPOINTS_MAX),
        "at": Nullable(_UDP),
    }
)
_STAMPS = List(Row(Text(32), STAMP, STAMP), TOMBSTONES_MAX)
_SNAPSHOT = Fields(
    {
        "v": Uint(1, 1),
        "n": NETWORK,
        "e": STAMP,
        "w": Uint(),
        "hub": _STAMPS,
        "gone": _STAMPS,
        "rec": List(_RECORD, RECORDS_MAX),
    },
    {"lk": Raw(32)},  # the statement of the network's lock that the records were verified under
)
_FILE = Row(Blob(SNAPSHOT_BYTES_MAX), Raw(32))


def read(crypto: Crypto, identity: Identity, network: str, saved: bytes) -> dict[str, Any]:
    """What `write` wrote for this device in this network. Raises ControlError(BAD_CACHE)."""
    try:
        payload, mac = _FILE.check(decode(saved, max_bytes=SNAPSHOT_BYTES_MAX), "cache")
        if not crypto.equal(mac, _mac(crypto, identity, payload)):
            raise ControlError(ControlDrop.BAD_CACHE, "cache: damaged, or another device's")
        fields = _check(decode(payload, max_bytes=SNAPSHOT_BYTES_MAX))
    except ControlError as error:
        raise ControlError(ControlDrop.BAD_CACHE, str(error)) from error
    if fields["n"] != network:
        raise ControlError(ControlDrop.BAD_CACHE, "cache.n: another network's")
    return fields


def _check(data: Any) -> dict[str, Any]:
    """All fields. A record that is not as it should be is left out: epochs and removals must not be lost with it."""
    if isinstance(data, dict) and isinstance(data.get("rec"), list):
        data = {**data, "rec": [row for row in data["rec"] if _fits(row)]}
    fields: dict[str, Any] = _SNAPSHOT.check(data, "cache")
    return fields


def _fits(row: Any) -> bool:
    try:
        _RECORD.check(row, "cache.rec")
    except ControlError:
        return False
    return True


def write(
    now: float,
    crypto: Crypto,
    identity: Identity,
    network: str,
    *,
    epochs: Epochs,
    wall: WallFloor,
    client: ControlClient,
) -> bytes:
    """At most SNAPSHOT_BYTES_MAX; when not all records fit, the least recently used are left out."""
    rows: list[dict[str, Any]] = []
    room = SNAPSHOT_BYTES_MAX - 4_096 - 64 * TOMBSTONES_MAX
    for entry in reversed(list(client.records)):
        row = _row(entry)
        room -= len(encode(row))
        if room < 0 or len(rows) == RECORDS_MAX:
            break
        rows.append(row)
    payload = encode(
        {
            "v": 1,
            "n": network,
            "e": epochs.reserved,
            "w": int(wall.at(now)),
            "hub": client.guard.export(),
            "gone": client.records.tombstones.export()[-TOMBSTONES_MAX:],
            "rec": rows[::-1],
            **({} if client.lock is None else {"lk": client.lock.digest()}),
        }
    )
    return encode([payload, _mac(crypto, identity, payload)])


def restore(now: float, fields: dict[str, Any], network: str, client: ControlClient, wall: WallFloor) -> None:
    """Put back what `read` gave. A record that cannot be read or has ended is left out and counted."""
    wall.restore(now, fields["w"])
    client.guard.load(fields["hub"])
    client.records.tombstones.load(fields["gone"])
    same_lock = client.lock is not None and fields.get("lk") == client.lock.digest()
    for row in fields["rec"]:
        try:
            signed = _signed(row["r"], network)
            signed.check_dates(wall.at(now))
            record = Record(signed)
            client.unlock(record, wall.at(now), verified=same_lock)
            entry, _ = client.keep(record, row["fk"], row["fg"])
        except ControlError as error:
            client.count(error.reason)
            continue
        entry.feed_stamp = (row["st"][0], row["st"][1]) if row["st"] is not None else entry.feed_stamp
        entry.feed_node_key = row["nk"]
        entry.endpoints = [(address, port) for address, port in row["ep"]]
        entry.last_endpoint = (row["at"][0], row["at"][1]) if row["at"] is not None else None


def _signed(raw: bytes, network: str) -> Signed:
    payload, _ = split_object(raw, "record", RECORD_BYTES_MAX)
    return read_payload(payload, raw, "record", network, peek_subject(raw))


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "r": entry.record.raw,
        "fk": entry.feed_key,
        "fg": entry.feed_generation,
        "st": None if entry.feed_stamp[0] < 0 else list(entry.feed_stamp),
        "nk": entry.feed_node_key,
        "ep": [list(endpoint) for endpoint in entry.endpoints],
        "at": None if entry.last_endpoint is None else list(entry.last_endpoint),
    }


def _mac(crypto: Crypto, identity: Identity, payload: bytes) -> bytes:
    key = crypto.blake2s(b"em1 cache" + identity.device_seed)
    return crypto.blake2s(payload, key=key)
