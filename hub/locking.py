"""The network lock as operators work it: what is to be signed, and audited taking of what was signed elsewhere.

No lock key is ever here. What `requests` and `draft_request` return goes to the machine that has one, as lines
(`hub.io.locklines`); what comes back goes to `take_answers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeagent.proto.lock import Statement
from hub.core import actions, lock
from hub.core.lock_signer import Answer, DeviceRequest, SignedStatement, key_text
from hub.core.model import Device, HubError, LockSignature
from hub.core.store import Tx
from hub.operations import Doing


def requests(
    view: lock.LockView, tx: Tx, wall_s: int, devices: Sequence[Device] = (), *, by: bytes | None = None, end: int = 0
) -> list[DeviceRequest]:
    """What is to be signed of `devices`. Without any: of all that the key `by` has not signed, or that none has.

    `end`: until when the signatures shall hold (wall seconds), 0 for good. Raises HubError without a lock.
    """
    statement = lock.require(view, tx)
    if not devices:
        standings = lock.standings(view, tx, wall_s)
        devices = [each.device for each in standings if (by not in each.by if by else not each.by)]
    network = tx.network().id
    return [
        DeviceRequest(network, each.id, each.name or "-", each.device_key, end, statement.revoked.get(each.id, -1))
        for each in devices
    ]


def draft_request(view: lock.LockView, tx: Tx, wall_s: int, *, force: bool = False, **what: Any) -> lock.Draft:
    """The statement in force with a change (see `lock.next_draft`), to be signed.

    Raises HubError; without `force` also when a lock that is on would cut off devices that can be met now.
    """
    draft = lock.next_draft(view, tx, **what)
    if draft.on and not force:
        lock.refuse_to_silence(lock.standings(view, tx, wall_s), keys=draft.keys)
    return draft


def revocation(tx: Tx, wall_s: int, device: str) -> tuple[str, int]:
    """(id, until when), for `lock.next_draft`: all that was signed of a device so far, of a removed one (id) too."""
    found = tx.device(device) or actions.find_device(tx, device)
    made = [signature.sequence for signature in tx.lock_signatures([found.id])]  # maybe by a clock that is ahead
    return found.id, max([wall_s, *made])


def take_statement(do: Doing, raw: bytes, *, anew: bool = False) -> None:
    """Put a signed statement in force, which was checked as a draft. `anew`: the first of a new lock."""
    statement = _put_in_force(do, raw, anew=anew)
    do.note("lock.statement", f"lock:{statement.sequence}", **_said(statement))
    do.tx.note("lock")


def take_signatures(do: Doing, signatures: Sequence[LockSignature]) -> None:
    """Lock keys' signatures of devices: all, or none if one is wrong."""
    devices = [_take(do, signature) for signature in signatures]
    if devices:
        do.note("lock.sign", "", devices=len(devices), ids=" ".join(each.id for each in devices))
        do.tx.note("lock")


def take_answers(do: Doing, answers: Sequence[Answer], *, anew: bool = False, force: bool = False) -> tuple[int, int]:
    """Put in force what was signed elsewhere, in its order: all, or none if one is wrong.

    Without `force` a statement is refused that would cut off devices which it does not revoke. Returns how many
    (statements, devices). Raises HubError.
    """
    network = do.tx.network().id
    said: dict[str, str | int] = {}
    statements, devices = 0, []
    for answer in answers:
        found = answer.network if isinstance(answer, SignedStatement) else answer[0]
        if found != network:
            raise HubError(f"signatures for network {found}, and this is {network}. Is this the right file?")
        if not isinstance(answer, SignedStatement):
            devices.append(_take(do, answer[1]).id)
            continue
        before = lock.standings(do.scribe.lock, do.tx, do.wall_s)  # whom the statement itself revokes it means to lose
        statement = _put_in_force(do, answer.raw, anew=anew)
        if statement.on and not force:
            lock.refuse_to_silence(before, keys=tuple(statement.keys))
        statements += 1
        said = {"statement": statement.sequence, **_said(statement)}
    if not statements and not devices:
        raise HubError("no signatures in it. Sign requests with `edgehub lock sign-requests` first")
    do.note("lock.import", "", devices=len(devices), ids=" ".join(devices), **said)
    do.tx.note("lock")
    return statements, len(devices)


def _put_in_force(do: Doing, raw: bytes, *, anew: bool) -> Statement:
    statement = lock.take_statement(do.scribe.lock, do.scribe.crypto, do.tx, raw, anew=anew)
    do.tx.emit("lock.changed", do.wall_s, statement=statement.sequence, on=int(statement.on))
    return statement


def _take(do: Doing, signature: LockSignature) -> Device:
    device = lock.take_signature(do.scribe.lock, do.scribe.crypto, do.tx, signature)
    do.scribe.push(do.tx, device)
    return device


def _said(statement: Statement) -> dict[str, str | int]:
    return {
        "lock": "on" if statement.on else "off",
        "keys": " ".join(key_text(key) for key in statement.keys),
        "by": key_text(statement.by),
        "revoked": len(statement.revoked),
    }
