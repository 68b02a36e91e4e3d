"""How a device comes in: a join with a token, at once or after a person's approval.

All is decided inside one write transaction, so a token for one device admits one, however many ask at the same time.
"""

from __future__ import annotations

from typing import Any

from hub.core import hostnames, ipam, naming
from hub.core.credential import check_credential, make_credential
from hub.core.model import (
    DEVICES_MAX,
    NODE_KEY_LIFE_S,
    NODE_KEY_UNUSED_S,
    PENDING_MAX,
    RELAYS_KNOWN_MAX,
    Device,
    DeviceState,
    HubError,
    Kind,
    NodeKey,
    Op,
    Outgoing,
    Role,
    Token,
)
from hub.core.nats import bar
from hub.core.scribe import NODE_KEYS_SHOWN_MAX, Scribe
from hub.core.store import Tx

RELAY_FACT = "relay"  # among the facts of a join: its version, when it is a relay that joins


class Join:
    """A join whose signature is checked: the fields that admission needs."""

    __slots__ = ("boot", "box_key", "claim", "device_id", "device_key", "facts", "host", "node_key", "password")

    def __init__(self, claim: str, device_id: str, body: dict[str, Any]) -> None:
        self.claim = claim
        self.device_id = device_id
        self.device_key: bytes = body["dk"]
        self.node_key: bytes = body["nk"]
        self.box_key: bytes = body["bk"]
        self.password: str = body["pw"]
        self.host: str = body["host"]
        self.boot: bytes = body["boot"]
        self.facts: dict[str, str] = body["facts"]


def answer_join(
    scribe: Scribe, tx: Tx, join: Join, token: Token, device: Device | None, wall_s: int, *, newest: bool
) -> None:
    """Decide on a join whose secret is right, and put the answer into the outbox.

    One that is not the `newest` of its device is answered as before, and changes nothing.
    """
    owner = tx.device_by_node_key(join.node_key)
    if owner is not None and owner.id != join.device_id:
        refuse(scribe, tx, join, "bad-request", wall_s)
    elif device is not None and device.state in (DeviceState.ACTIVE, DeviceState.PENDING):
        if newest:
            _refresh(scribe, tx, join, device, wall_s)
        if device.state is DeviceState.PENDING:
            _answer_wait(scribe, tx, device, wall_s)
        else:
            _answer_ok(scribe, tx, device, wall_s)
    else:
        refusal = token.refusal(wall_s) or _refusal(tx, join, token, device)
        if refusal is None:
            refusal = _come_in(scribe, tx, join, token, device, wall_s)
        if refusal is not None:
            refuse(scribe, tx, join, refusal, wall_s)


def approve(scribe: Scribe, tx: Tx, device: Device, wall_s: int) -> None:
    """A person lets a waiting device in."""
    password = device.pending_password
    device.state = DeviceState.ACTIVE
    device.pending_password = ""
    _give_addresses(scribe, tx, device)
    _give_feed_key(scribe, device)
    tx.put_out(Outgoing(Op.ADMIT, device.id, password.encode(), role=Role.DEVICE))
    _answer_ok(scribe, tx, device, wall_s)


def deny(scribe: Scribe, tx: Tx, device: Device, wall_s: int) -> None:
    """Tell a device that waits for approval that it does not get it."""
    body = {"no": "denied", "name": device.name or ""}
    scribe.admit(tx, device.claim, device.id, device.box_key, body, wall_s)


def refuse(scribe: Scribe, tx: Tx, join: Join, why: str, wall_s: int) -> None:
    """`why` is one of the reasons of `admit`."""
    scribe.admit(tx, join.claim, join.device_id, join.box_key, {"no": why, "name": join.host}, wall_s)


def add_node_key(tx: Tx, device: Device, key: bytes, wall_s: int) -> None:
    """A new node key beside the one in use, which stays until a birth names another."""
    unused = [known for known in tx.node_keys(device.id) if known.key not in (key, device.node_key)]
    for known in unused[: NODE_KEYS_SHOWN_MAX - 2]:
        end = min(known.not_after, wall_s + NODE_KEY_UNUSED_S)
        tx.save_node_key(NodeKey(known.key, device.id, end))
    for known in unused[NODE_KEYS_SHOWN_MAX - 2 :]:  # room for the one in use and the new one
        tx.drop_node_key(known.key)
    tx.save_node_key(NodeKey(key, device.id, wall_s + NODE_KEY_LIFE_S))


def use_node_key(tx: Tx, device: Device, key: bytes) -> None:
    """The device has gone over to a key of its own: the one before is dropped. The caller saves the device."""
    tx.drop_node_key(device.node_key)
    device.node_key = key


def _refusal(tx: Tx, join: Join, token: Token, device: Device | None) -> str | None:
    """Why this device may not come in, though the token is good."""
    if device is not None and device.state is DeviceState.REMOVED and token.created_seq <= device.removed_seq:
        return "denied"  # put out after this token was made: only a new token is an operator's word that it may return
    if device is None and tx.row_count() >= DEVICES_MAX:
        return "denied"
    if (RELAY_FACT in join.facts) is not (token.kind is Kind.RELAY):
        return "bad-request"  # the wrong kind of token: a relay is of no use as a device, nor the other way round
    if device is not None and device.kind is not token.kind:
        return "denied"  # others may know it as what it was
    if token.kind is Kind.RELAY and len(tx.relays()) >= RELAYS_KNOWN_MAX:
        return "denied"
    if token.needs_approval and tx.state_count(DeviceState.PENDING) >= PENDING_MAX:
        return "denied"
    return None


def _come_in(scribe: Scribe, tx: Tx, join: Join, token: Token, old: Device | None, wall_s: int) -> str | None:
    """Take one use of the token and let the device in, or to the queue of those who wait; else the reason why not."""
    device = Device(
        id=join.device_id,
        state=DeviceState.PENDING if token.needs_approval else DeviceState.ACTIVE,
        claim=join.claim,
        device_key=join.device_key,
        box_key=join.box_key,
        node_key=join.node_key,
        created_s=wall_s,
        tags=token.tags,
        boot=join.boot,
        facts=join.facts,
        credential=make_credential(scribe.entropy, join.password),
        last_seen_s=wall_s,
        kind=token.kind,
        user=token.user,
    )
    if old is not None:  # expired or removed: what it still has stays, and its feed's generation goes on
        device.name, device.v4, device.v6 = old.name, old.v4, old.v6
        device.feed_key, device.feed_generation = old.feed_key, old.feed_generation
        device.user, device.created_s = token.user or old.user, old.created_s
        device.removed_s, device.barred_s = old.removed_s, old.barred_s
    try:
        if device.name is None:
            device.name = hostnames.choose_name(
                join.host,
                lambda name: tx.device_by_name(name) is not None or naming.is_taken(tx, name),
                tx.next_suffix,
            )
        if not token.needs_approval:
            _give_addresses(scribe, tx, device)
    except HubError:
        return "denied"
    token.used += 1
    if token.uses and token.used >= token.uses:
        token.finished_s = wall_s
    tx.save_token(token)
    if old is None:
        tx.add_device(device)
    else:
        tx.save_device(device)
    add_node_key(tx, device, device.node_key, wall_s)
    if token.needs_approval:
        device.pending_password = join.password
        if old is not None and old.state is DeviceState.EXPIRED:
            device.barred_s = bar(old, wall_s)
            tx.put_out(Outgoing(Op.REVOKE, device.id))
        tx.save_device(device)
        _answer_wait(scribe, tx, device, wall_s)
        tx.emit(f"{device.kind.value}.waiting", wall_s, device=device.id, name=device.name)
        return None
    _give_feed_key(scribe, device)
    known = old is not None and old.state is DeviceState.EXPIRED
    tx.put_out(Outgoing(Op.REPASS if known else Op.ADMIT, device.id, join.password.encode(), role=Role.DEVICE))
    if known:
        scribe.push(tx, device)
    _answer_ok(scribe, tx, device, wall_s)
    tx.emit(f"{device.kind.value}.joined", wall_s, device=device.id, name=device.name)
    return None


def _refresh(scribe: Scribe, tx: Tx, join: Join, device: Device, wall_s: int) -> None:
    """A device that is in, or waits, asks again: nothing is used up, and what it says of itself counts."""
    if not check_credential(device.credential, join.password):
        device.credential = make_credential(scribe.entropy, join.password)
        if device.state is DeviceState.ACTIVE:
            tx.put_out(Outgoing(Op.REPASS, device.id, join.password.encode(), role=Role.DEVICE))
        else:
            device.pending_password = join.password
    device.claim = join.claim  # where it waits for the answer
    device.box_key = join.box_key
    device.facts = join.facts
    device.last_seen_s = wall_s
    if device.node_key != join.node_key:
        add_node_key(tx, device, join.node_key, wall_s)
        use_node_key(tx, device, join.node_key)
        scribe.push(tx, device)
    tx.save_device(device)


def _give_addresses(scribe: Scribe, tx: Tx, device: Device) -> None:
    if device.v4 is None:
        device.v4 = ipam.choose_v4(device.id, lambda address: ipam.is_taken_v4(tx, address))
    if device.v6 is None:
        device.v6 = ipam.choose_v6(scribe.network.id, device.id, lambda address: ipam.is_taken_v6(tx, address))


def _give_feed_key(scribe: Scribe, device: Device) -> None:
    if not device.feed_key:
        device.feed_key = scribe.entropy(32)
        device.feed_generation += 1


def _answer_ok(scribe: Scribe, tx: Tx, device: Device, wall_s: int) -> None:
    body = {"ok": True, "map": scribe.map(tx, device, wall_s), "ca": scribe.network.ca_der}
    scribe.admit(tx, device.claim, device.id, device.box_key, body, wall_s)


def _answer_wait(scribe: Scribe, tx: Tx, device: Device, wall_s: int) -> None:
    scribe.admit(tx, device.claim, device.id, device.box_key, {"wait": True}, wall_s)
