"""The network lock as the hub keeps it: it holds and passes on what lock keys have signed, and can sign none of it.

What a lock key signs is made by `hub.core.lock_signer`, on whatever machine that key is; here it is checked and stored
before it goes to devices, so that a slip of the operator is an error and not a fleet that falls silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeagent.proto.control import LOCK_KEYS_MAX, LOCK_REVOKED_MAX, LOCK_SIGNATURES_MAX, STATEMENTS_MAX
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.lock import Statement, device_input, node_input, open_statement
from edgeagent.proto.refusals import ControlError
from hub.core.model import Device, DeviceState, HubError, JobKind, Kind, LockSignature
from hub.core.store import Tx

STATEMENTS_KEPT_MAX = 1_000
NODE_SIGNATURE_GAIN_S = 86_400  # a signature that holds no longer than this beyond the one that is kept is no news
WAY_BYTES_MAX = 2_048  # what earlier statements may take of a map
_PAGE = 500
_SHOWN = (DeviceState.ACTIVE, DeviceState.EXPIRED)


@dataclass(slots=True, frozen=True)
class Draft:
    """A statement before it is signed: who may sign from now on, whether devices insist, whose signatures are void."""

    network: str
    sequence: int
    on: bool
    keys: tuple[bytes, ...]
    revoked: tuple[tuple[str, int], ...]


class LockView:
    """What maps and records say of the lock; keeps the statements as they were checked last."""

    def __init__(self, crypto: Crypto, network: str) -> None:
        self._crypto = crypto
        self._network = network
        self._raws: list[bytes] = []
        self._statements: list[Statement] = []

    def statements(self, tx: Tx) -> list[Statement]:
        """All that there ever were, the one in force last; empty without a lock."""
        raws = tx.lock_statements()
        if raws != self._raws:
            self._statements = [open_statement(self._crypto, self._network, raw) for raw in raws]
            self._raws = raws
        return self._statements

    def in_force(self, tx: Tx) -> Statement | None:
        statements = self.statements(tx)
        return statements[-1] if statements else None

    def of_record(self, tx: Tx, device: Device, node_keys: list[list[Any]]) -> dict[str, Any]:
        """The field `lk` of a record; nothing without a lock."""
        statement = self.in_force(tx)
        if statement is None or device.kind is not Kind.DEVICE:
            return {}
        return {"lk": _signatures(tx, statement, device, node_keys)}

    def of_map(self, tx: Tx, device: Device, node_keys: list[list[Any]]) -> dict[str, Any]:
        """The field `lk` of a map; nothing without a lock, and for relays, which check no records."""
        statement = self.in_force(tx)
        if statement is None or device.kind is not Kind.DEVICE:
            return {}
        shown = [each.raw for each in way_to_last(self.statements(tx))]
        return {"lk": {"s": shown, **_signatures(tx, statement, device, node_keys)}}


def _signatures(tx: Tx, statement: Statement, device: Device, node_keys: list[list[Any]]) -> dict[str, Any]:
    by_key = {each.by: each for each in tx.lock_signatures([device.id])}
    counting = [by_key[key] for key in statement.keys if key in by_key and _counts(statement, by_key[key])]
    own = tx.node_signatures(device.id)
    return {
        "c": [[each.by, each.not_after, each.sequence, each.signature] for each in counting[:LOCK_SIGNATURES_MAX]],
        "k": [[key, *own[key]] for key, _ in node_keys if key in own],
    }


def _counts(statement: Statement, signature: LockSignature) -> bool:
    return signature.by in statement.keys and signature.sequence > statement.revoked.get(signature.device, -1)


def way_to_last(statements: list[Statement]) -> list[Statement]:
    """Those that lead a device from whatever statement it holds to the last: its signer's first, and so on back.

    A device follows any later statement that a key signed which it holds, so one that still holds the signer of the
    last needs no other. At most STATEMENTS_MAX and, but for the last, WAY_BYTES_MAX: a device that slept through more
    changes of all keys is given a key by hand.
    """
    way = [statements[-1]]
    room = WAY_BYTES_MAX
    signer, index = statements[-1].by, len(statements) - 1
    while len(way) < STATEMENTS_MAX:
        while index > 0 and signer in statements[index - 1].keys:
            index -= 1  # held the signer as well
        if index == 0 or statements[index].by == signer:
            break  # the first of a chain: nobody who held one before it can be led here
        room -= len(statements[index].raw)
        if room < 0:
            return way
        way.insert(0, statements[index])
        signer = statements[index].by
    first = statements[0]
    if first not in way and len(way) < STATEMENTS_MAX and len(first.raw) <= room:
        way.insert(0, first)  # for those that were given a key of the first by hand or by token
    return way


# what came signed


def take_statement(view: LockView, crypto: Crypto, tx: Tx, raw: bytes, *, anew: bool = False) -> Statement:
    """Put a statement in force, and have all maps written. `anew`: the first of a new lock, that nothing leads to."""
    statements = view.statements(tx)
    try:
        statement = open_statement(crypto, tx.network().id, raw)
    except ControlError as error:
        raise HubError(f"lock statement: {error}. It is damaged, or another network's: have it signed again") from error
    last = statements[-1] if statements else None
    if statement.sequence != (number := _next_number(tx, last)):
        raise HubError(
            f"lock statement {statement.sequence}: number {number} is next. Another change came between: export the "
            "request again and have that one signed"
        )
    if last is not None and statement.by not in last.keys and not anew:
        raise HubError("lock statement: signed by a key that is none of the lock's, so no device would follow it")
    if len(statements) >= STATEMENTS_KEPT_MAX:
        raise HubError(f"lock: {STATEMENTS_KEPT_MAX} statements are kept, and there is no room for another")
    tx.add_lock_statement(statement.sequence, raw)
    tx.add_job(JobKind.MAPS, "", "")
    return statement


def take_signature(view: LockView, crypto: Crypto, tx: Tx, signature: LockSignature) -> Device:
    """Keep a lock key's signature of a device; the caller pushes the device, which is returned."""
    statement = require(view, tx)
    device = tx.device(signature.device)
    if device is None or device.kind is not Kind.DEVICE or device.state is DeviceState.REMOVED:
        raise HubError(f"signature of {signature.device}: there is no such device (any more). Leave its line out")
    if signature.by not in statement.keys:
        raise HubError(
            f"signature of {device.name}: by a key that is none of the lock's. `edgehub lock status` shows those"
        )
    text = device_input(tx.network().id, device.id, device.device_key, signature.not_after, signature.sequence)
    if not crypto.ed25519_verify(signature.by, text, signature.signature):
        raise HubError(f"signature of {device.name}: it is wrong: made for another network or device, or damaged")
    if not _counts(statement, signature):
        raise HubError(f"signature of {device.name}: made before it was revoked. Sign it anew")
    for old in tx.lock_signatures([device.id]):
        if old.by not in statement.keys:
            tx.drop_lock_signature(device.id, old.by)
    tx.save_lock_signature(signature)
    return device


def take_node_signatures(crypto: Crypto, tx: Tx, device: Device, rows: list[list[Any]]) -> tuple[bool, bool]:
    """What a device has signed of its own node keys: (whether all was right, whether something is news)."""
    network, own, kept = tx.network().id, {each.key for each in tx.node_keys(device.id)}, tx.node_signatures(device.id)
    news = False
    for key, not_after, signature in rows:
        if not crypto.ed25519_verify(device.device_key, node_input(network, device.id, key, not_after), signature):
            return False, news
        if key in own and not_after > kept.get(key, (-NODE_SIGNATURE_GAIN_S, b""))[0] + NODE_SIGNATURE_GAIN_S:
            tx.save_node_signature(key, device.id, not_after, signature)
            news = True
    return True, news


# what an operator wants


def require(view: LockView, tx: Tx) -> Statement:
    statement = view.in_force(tx)
    if statement is None:
        raise HubError("the network has no lock. `edgehub lock init` makes one")
    return statement


def first_draft(view: LockView, tx: Tx, keys: list[bytes], *, anew: bool = False) -> Draft:
    """A lock that is not on yet: devices take its keys and sign their node keys, and refuse nothing."""
    statements = view.statements(tx)
    if statements and not anew:
        raise HubError(
            "the network has a lock already. `edgehub lock add-key` gives it another key; if all its keys are lost, "
            "--replace begins anew, and each device must be told with `edgeagent up --lock KEY`"
        )
    return _draft(tx, statements[-1] if statements else None, False, keys, {})


def next_draft(
    view: LockView,
    tx: Tx,
    *,
    on: bool | None = None,
    add: bytes | None = None,
    remove: bytes | None = None,
    revoke: tuple[str, int] | None = None,
) -> Draft:
    """The statement in force with a change."""
    last = require(view, tx)
    keys, revoked = list(last.keys), dict(last.revoked)
    if add is not None:
        if add in keys:
            raise HubError("this key is one of the lock's already. `edgehub lock status` shows them")
        keys.append(add)
    if remove is not None:
        if remove not in keys:
            raise HubError("no key of the lock is this one. `edgehub lock status` shows them")
        if len(keys) == 1:
            raise HubError("the lock's only key cannot be removed. Add another one before, or turn the lock off")
        keys.remove(remove)
    if revoke is not None:
        revoked[revoke[0]] = revoke[1]
    return _draft(tx, last, last.on if on is None else on, keys, revoked)


def _next_number(tx: Tx, last: Statement | None) -> int:
    """From the hub's epoch on, so that after a restore they go on above all that devices may hold."""
    return max(last.sequence + 1 if last is not None else 1, tx.network().epoch)


def _draft(tx: Tx, last: Statement | None, on: bool, keys: list[bytes], revoked: dict[str, int]) -> Draft:
    if not 1 <= len(keys) <= LOCK_KEYS_MAX or len(set(keys)) != len(keys):
        raise HubError(f"{len(keys)} lock keys: 1 to {LOCK_KEYS_MAX} different ones are possible")
    if len(revoked) > LOCK_REVOKED_MAX:
        raise HubError(
            f"{LOCK_REVOKED_MAX} devices are revoked: a statement has no room for more. Add a new key, sign all that "
            "are to stay with it, and remove the keys from before: what those signed is void then"
        )
    return Draft(tx.network().id, _next_number(tx, last), on, tuple(keys), tuple(sorted(revoked.items())))


@dataclass(slots=True, frozen=True)
class Standing:
    """A device beside the lock. `by`: lock keys whose signature of it counts; `node_key`: whether it has signed the
    node key in use itself, which it does when it is online; `until`: when it is to be signed again (0 = never)."""

    device: Device
    by: tuple[bytes, ...]
    node_key: bool
    until: int

    @property
    def is_pending(self) -> bool:
        """Whether others refuse it when the lock is on."""
        return not self.by or not self.node_key


def standing(view: LockView, tx: Tx, devices: list[Device], wall_s: int) -> list[Standing]:
    """In the order of `devices`; relays and removed ones are left out. Empty without a lock."""
    statement = view.in_force(tx)
    if statement is None:
        return []
    found = [device for device in devices if device.kind is Kind.DEVICE and device.state in _SHOWN]
    by: dict[str, list[LockSignature]] = {}
    for signature in tx.lock_signatures([device.id for device in found]):
        if _counts(statement, signature) and (not signature.not_after or signature.not_after >= wall_s):
            by.setdefault(signature.device, []).append(signature)
    signed = tx.signed_node_keys([device.id for device in found], wall_s)
    standings = []
    for each in found:
        counting = by.get(each.id, [])
        ends = [signature.not_after for signature in counting]
        until = 0 if 0 in ends else max(ends, default=0)
        keys = tuple(signature.by for signature in counting)
        standings.append(Standing(each, keys, each.node_key in signed, until))
    return standings


def standings(view: LockView, tx: Tx, wall_s: int) -> list[Standing]:
    """Of all devices, in the order of their ids."""
    found: list[Standing] = []
    after = ""
    while page := tx.devices(after=after, limit=_PAGE):
        found += standing(view, tx, page, wall_s)
        after = page[-1].id
    return found


def unsigned(view: LockView, tx: Tx, devices: list[Device], wall_s: int) -> set[str]:
    """Ids of those among `devices` that others refuse under the lock, on or not; empty without one."""
    found: set[str] = set()
    for start in range(0, len(devices), _PAGE):
        page = standing(view, tx, devices[start : start + _PAGE], wall_s)
        found |= {each.device.id for each in page if each.is_pending}
    return found


def refuse_to_silence(found: list[Standing], *, keys: tuple[bytes, ...]) -> None:
    """Raise HubError when a lock that is on and has these keys would cut off devices that can be met now."""
    lost = [
        each
        for each in found
        if each.device.state is DeviceState.ACTIVE and not (each.node_key and any(by in keys for by in each.by))
    ]
    if lost:
        names = ", ".join(each.device.name or each.device.id for each in lost[:5]) + (", …" if len(lost) > 5 else "")
        raise HubError(
            f"{len(lost)} of {len(found)} devices would be in nobody's reach: {names}. `edgehub lock pending` shows "
            "what each lacks; sign them, wait for those that are offline, or cut them off with --force"
        )
