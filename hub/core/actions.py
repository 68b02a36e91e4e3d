"""What an operator does: tokens, approval, names, dates, removal. Each runs inside a write transaction."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_address

from edgeagent.proto.names import is_host_name, is_tag, make_claim_id
from edgeagent.proto.token import SECRET_SIZE, claim_password
from edgeagent.proto.token import Token as JoinToken
from hub.core import admission, clients, naming, relays, routes
from hub.core.credential import make_credential
from hub.core.hostnames import RESERVED, is_reserved
from hub.core.model import TOKENS_MAX, Device, DeviceState, HubError, JobKind, Kind, Op, Outgoing, Role, Token
from hub.core.nats import bar, hosts_for
from hub.core.scribe import Scribe
from hub.core.store import Tx

TAGS_MAX = 32


def create_token(
    scribe: Scribe,
    tx: Tx,
    wall_s: int,
    *,
    uses: int = 1,
    not_after: int = 0,
    tags: tuple[str, ...] = (),
    needs_approval: bool = False,
    kind: Kind = Kind.DEVICE,
    user: str = "",
) -> JoinToken:
    """A new join token; its secret is in what is returned, and nowhere else. `uses` and `not_after`: 0 = no limit."""
    _check_tags(tags)
    if tx.token_count() >= TOKENS_MAX:
        raise HubError(f"{TOKENS_MAX} tokens: there is no room for another. Revoke those that nobody needs")
    network = scribe.network
    locked = scribe.lock.in_force(tx)
    secret = scribe.entropy(SECRET_SIZE)
    claim = make_claim_id(scribe.entropy)
    password = claim_password(scribe.crypto, secret)
    tx.add_token(
        Token(
            claim=claim,
            secret_hash=scribe.crypto.blake2s(secret),
            credential=make_credential(scribe.entropy, password),
            created_s=wall_s,
            created_seq=tx.next_seq(),
            not_after=not_after,
            uses=uses,
            tags=tags,
            needs_approval=needs_approval,
            kind=kind,
            user=user,
        )
    )
    tx.put_out(Outgoing(Op.ADMIT, claim, password.encode(), role=Role.CLAIM))
    return JoinToken(
        hosts=hosts_for(network, claim),
        network_key=network.key,
        hub_box_key=network.box_key,
        ca_sha256=sha256(network.ca_der).digest(),
        claim=claim,
        secret=secret,
        not_after=not_after,
        uses=uses,
        tags=list(tags),
        lock_keys=list(locked.keys) if locked is not None and kind is Kind.DEVICE else [],
        broker_pass=b"" if scribe.nats is None else scribe.nats.claim_pass(claim, not_after),
    )


def invite_relay(scribe: Scribe, tx: Tx, wall_s: int, *, region: str, uses: int = 1, not_after: int = 0) -> JoinToken:
    """A join token for relays of one region."""
    if not is_host_name(region):
        raise HubError(
            f"region {region!r}: one DNS label expected, a-z, 0-9 and -, at most 63 characters. Write for example fra"
        )
    tags = (relays.region_tag(region),)
    return create_token(scribe, tx, wall_s, uses=uses, not_after=not_after, tags=tags, kind=Kind.RELAY)


def revoke_token(tx: Tx, claim: str, wall_s: int) -> Token:
    """Nobody new may join with it; devices that did stay."""
    token = tx.token(claim)
    if token is None:
        raise HubError(f"token {claim}: there is none of this id. `edgehub token list` shows them")
    if not token.revoked_s:
        token.revoked_s = wall_s
        token.finished_s = token.finished_s or wall_s
        tx.save_token(token)
    return token


def find_device(tx: Tx, text: str) -> Device:
    """By host name, device id or address; never a relay."""
    device = tx.device(text) or tx.device_by_name(text.lower())
    if device is None:
        address = _address(text)
        if isinstance(address, int):
            device = tx.device_by_v4(address)
        elif address is not None:
            device = tx.device_by_v6(address)
    if device is None:
        raise HubError(f"device {text}: there is none of this name, id or address. `edgehub devices list` shows them")
    if device.kind is Kind.RELAY:
        raise HubError(f"device {text}: this is a relay. `edgehub relays` shows and removes relays")
    return device


def find_relay(tx: Tx, text: str) -> Device:
    """By its name in the relay map, or the id of its device key."""
    relay = tx.device_by_name(text.lower()) or tx.device(text)
    if relay is None or relay.kind is not Kind.RELAY:
        raise HubError(f"relay {text}: there is none of this id. `edgehub relays list` shows them")
    return relay


def approve_device(scribe: Scribe, tx: Tx, device: Device, wall_s: int) -> None:
    if device.state is not DeviceState.PENDING:
        raise HubError(f"device {device.name or device.id}: it is {device.state.value}, not waiting for approval")
    admission.approve(scribe, tx, device, wall_s)


def rename_device(scribe: Scribe, tx: Tx, device: Device, name: str) -> None:
    """Those who know it learn the new name with its new record."""
    _refuse_removed(device)
    if not is_host_name(name) or is_reserved(name):
        raise HubError(
            f"name {name!r}: a host name has a-z, 0-9 and -, at most 63 characters, and is none of "
            f"{', '.join(RESERVED)}, nor one as 192-168-1-20-via-7. Choose another"
        )
    owner = tx.device_by_name(name)
    if owner is not None and owner.id != device.id:
        raise HubError(f"name {name}: device {owner.id} has it. Choose another, or rename that one first")
    if naming.is_taken(tx, name):
        raise HubError(f"name {name}: a record has it. Choose another, or remove it with `edgehub dns record remove`")
    device.name = name
    _tell(scribe, tx, device)


def tag_device(scribe: Scribe, tx: Tx, device: Device, tags: tuple[str, ...]) -> None:
    """Its tags are these from now on; those who know it are told."""
    _refuse_removed(device)
    _check_tags(tags)
    device.tags = tuple(dict.fromkeys(tags))
    _tell(scribe, tx, device)


def assign_device(scribe: Scribe, tx: Tx, device: Device, user: str) -> None:
    """Whose device it is: a login, or "" for nobody's. Policy looks at it when the device has no tags."""
    _refuse_removed(device)
    device.user = user
    _tell(scribe, tx, device)


def expire_device(scribe: Scribe, tx: Tx, device: Device, not_after: int, wall_s: int) -> None:
    """Set when the admission ends: now or in the past ends it, later or 0 (never) renews it."""
    _refuse_removed(device)
    if device.state is DeviceState.PENDING:
        raise HubError(f"device {device.name}: it is not admitted yet. Approve or remove it")
    device.not_after = not_after
    device.state = DeviceState.ACTIVE if not not_after or not_after > wall_s else DeviceState.EXPIRED
    if device.state is DeviceState.EXPIRED:
        device.removed_s = relays.void(device, wall_s)
        relays.tell_cut_off(tx, device)
    scribe.push(tx, device)


def remove_device(scribe: Scribe, tx: Tx, device: Device, wall_s: int) -> None:
    """Cut a device or relay off: its account and session end, all who know it are told, and their feed keys change."""
    _refuse_removed(device)
    if device.state is DeviceState.PENDING:
        admission.deny(scribe, tx, device, wall_s)
    else:
        if device.kind is Kind.RELAY:
            scribe.gone(tx, device, device.id, wall_s)  # it may have members whose maps name it still
        tx.put_out(Outgoing(Op.REVOKE, device.id))
        scribe.clear(tx, device.id)
        tx.add_jobs_for_acquaintances(JobKind.GONE, device.id)
        tx.add_jobs_for_acquaintances(JobKind.ROTATE, device.id)
        tx.forget_acquaintances(device.id)
    for known in tx.node_keys(device.id):
        tx.drop_node_key(known.key)
    for signature in tx.lock_signatures([device.id]):
        tx.drop_lock_signature(device.id, signature.by)  # who comes back is signed again
    tx.save_device(
        replace(
            device,
            state=DeviceState.REMOVED,
            name=None,
            v4=None,
            v6=None,
            credential="",
            pending_password="",
            feed_key=b"",
            record=b"",
            record_renew_s=0,
            online=False,
            facts={},
            removed_s=relays.void(device, wall_s),
            removed_seq=tx.next_seq(),
            barred_s=bar(device, wall_s),
            relay=b"",
            members=0,
            pass_renew_s=0,
        )
    )
    relays.tell_cut_off(tx, device)
    if device.kind is Kind.RELAY:
        relays.refresh(tx, wall_s)
    else:
        clients.forget(tx, device)
        routes.forget(tx, device)


def start_again(tx: Tx, wall_s: int) -> None:
    """After a restore: what devices hold may be newer than what this hub remembers, so all of it is made anew."""
    after = ""
    while batch := tx.devices(after=after, limit=500):
        for device in batch:
            device.record = b""
            device.record_renew_s = 0
            device.feed_generation += 1_000_000  # above all that the lost days may have given out
            device.online = False
            if device.kind is Kind.RELAY:
                device.last_seen_s = wall_s  # it has its time to come back, before maps leave it out
            tx.save_device(device)
            if device.state in (DeviceState.ACTIVE, DeviceState.EXPIRED):
                tx.add_job(JobKind.ROTATE, "", device.id)
        after = batch[-1].id


def _check_tags(tags: tuple[str, ...]) -> None:
    for tag in tags:
        if not is_tag(tag):
            raise HubError(f"tag {tag!r}: a tag is `tag:` and a name of a-z, 0-9 and -. Write for example tag:camera")
    if len(tags) > TAGS_MAX:
        raise HubError(f"{len(tags)} tags: a device can have {TAGS_MAX}. Use fewer")


def _tell(scribe: Scribe, tx: Tx, device: Device) -> None:
    """Those who know it get its new record; nobody knows one that waits for approval."""
    if device.state is DeviceState.PENDING:
        tx.save_device(device)
    else:
        scribe.push(tx, device)


def _refuse_removed(device: Device) -> None:
    if device.state is DeviceState.REMOVED:
        raise HubError(f"device {device.id}: it was removed. It comes back by joining with a new token")


def _address(text: str) -> int | bytes | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return int(address) if address.version == 4 else address.packed
