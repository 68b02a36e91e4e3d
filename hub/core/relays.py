"""Relays as the hub knows them: what they say of themselves, which of them maps name, and what they must be told.

All maps of a network name the same relays. That list is kept as it was last said; whenever a relay speaks, comes, goes
or is put out it is chosen anew, and only if it is another list then are maps written again, in rounds of small steps.
A relay that changes is listed as it was until its time has come: one of them must not keep all maps changing.
"""

from __future__ import annotations

from typing import Any

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import RELAY_FIELDS, RELAYS_MAX
from hub.core.model import (
    PASS_LIFE_S,
    PASS_RENEW_S,
    RELAY_CHANGE_MAX_S,
    RELAY_CHANGE_S,
    RELAY_GRACE_S,
    RELAY_LIST_BYTES_MAX,
    Device,
    DeviceState,
    JobKind,
    Kind,
)
from hub.core.store import Tx

ROUND_STEP = 32  # members of one step of a round
_TAG = "tag:"
_CHANGED = "changed"  # beside RELAY_FIELDS in what is kept of a relay


def region_tag(region: str) -> str:
    """A relay's region is the one tag of its token."""
    return _TAG + region


def region_of(relay: Device) -> str:
    return relay.tags[0].removeprefix(_TAG) if relay.tags else ""


def fields_of(relay: Device) -> dict[str, Any]:
    """What it said of itself, by the names of `RELAY_FIELDS`; empty when it said nothing yet."""
    kept: dict[str, Any] = decode(relay.relay) if relay.relay else {}
    return {name: value for name, value in kept.items() if name in RELAY_FIELDS}


def take_word(tx: Tx, relay: Device, body: dict[str, Any], wall_s: int) -> bool:
    """Keep what a relay says of itself; False when maps name it as it was for a while.

    The number of its members is news to nobody but the operator.
    """
    _keep(relay, {name: body[name] for name in RELAY_FIELDS}, *_changed(relay))
    relay.members = body["m"]
    tx.save_device(relay)
    refresh(tx, wall_s)
    return _listed(tx).get(relay.name or "") in (None, _entry(relay))


def _keep(relay: Device, fields: dict[str, Any], at: int, spacing_s: int) -> None:
    relay.relay = encode({**fields, _CHANGED: [at, spacing_s]})


def _changed(relay: Device) -> tuple[int, int]:
    """When maps named a relay otherwise than before, and how long it has to stay so; zeros when they never did."""
    at, spacing_s = (decode(relay.relay) if relay.relay else {}).get(_CHANGED, (0, 0))
    return at, spacing_s


def _listed(tx: Tx) -> dict[str, dict[str, Any]]:
    """The entries of maps by name."""
    encoded = tx.relay_list()
    return {entry["id"]: entry for entry in decode(encoded)} if encoded else {}


def _entry(relay: Device) -> dict[str, Any]:
    return {"id": relay.name, **fields_of(relay)}


def has_key(tx: Tx, key: bytes, but: str) -> bool:
    """Whether another relay than `but` has this relay key."""
    return any(relay.id != but and fields_of(relay).get("k") == key for relay in tx.relays())


def refresh(tx: Tx, wall_s: int) -> None:
    """Choose the relays that maps name, and have all maps written again if they are others than before."""
    known, listed = tx.relays(), _listed(tx)
    chosen = choose(known, listed, wall_s)
    encoded = encode(chosen) if chosen else b""
    if encoded == tx.relay_list():
        return
    tx.save_relay_list(encoded)
    tx.add_job(JobKind.MAPS, "", "")
    new = {entry["id"] for entry in chosen if listed.get(entry["id"], entry) != entry}
    for relay in known:
        if relay.name in new:
            at, spacing_s = _changed(relay)
            spacing_s = min(2 * spacing_s, RELAY_CHANGE_MAX_S) if wall_s - at < 2 * spacing_s else RELAY_CHANGE_S
            _keep(relay, fields_of(relay), wall_s, spacing_s)
            tx.save_device(relay)


def choose(relays: list[Device], listed: dict[str, dict[str, Any]], wall_s: int) -> list[dict[str, Any]]:
    """At most RELAYS_MAX that are up, the regions in turn, those that are `listed` first; ordered by region and id.

    A relay is up for RELAY_GRACE_S more after it went. When none is up, those that are listed stay: they may well serve
    while they do not reach the broker.
    """
    ready = [relay for relay in relays if relay.state is DeviceState.ACTIVE and relay.relay and relay.name]
    up = [relay for relay in ready if relay.online or wall_s - relay.last_seen_s < RELAY_GRACE_S]
    if not up:
        up = [relay for relay in ready if relay.name in listed]
    by_region: dict[str, list[dict[str, Any]]] = {}
    for relay in sorted(up, key=lambda relay: (relay.name not in listed, relay.name)):
        fields = _entry(relay)
        at, spacing_s = _changed(relay)
        if at <= wall_s < at + spacing_s:
            fields = listed.get(relay.name or "", fields)
        by_region.setdefault(fields["rg"], []).append(fields)
    chosen: list[dict[str, Any]] = []
    size = 3  # the list's head
    while by_region and len(chosen) < RELAYS_MAX:
        for region in sorted(by_region):
            fields = by_region[region].pop(0)
            if not by_region[region]:
                del by_region[region]
            length = len(encode(fields))
            if len(chosen) < RELAYS_MAX and size + length <= RELAY_LIST_BYTES_MAX:
                chosen.append(fields)
                size += length
    return sorted(chosen, key=lambda fields: (fields["rg"], fields["id"]))


def void(device: Device, wall_s: int) -> int:
    """Its `removed_s` when it is cut off now: no pass that it was given is later, though the clock was set back."""
    newest = device.pass_renew_s - PASS_RENEW_S if device.pass_renew_s else 0
    return max(wall_s, device.removed_s + 1, device.created_s, newest)


def tell_cut_off(tx: Tx, device: Device) -> None:
    """Have every relay told that the passes which a device had when it was cut off are void."""
    if device.kind is Kind.DEVICE:
        for relay in tx.relays():
            tx.add_job(JobKind.GONE, relay.id, device.id)


def tell_all_cut_off(tx: Tx, relay: Device) -> None:
    """A relay has begun anew, and may have forgotten, or never heard, who was cut off."""
    tx.add_job(JobKind.CUT_OFF, relay.id, "")


def step_maps(tx: Tx, after: str) -> None:
    """One step of a round through all members: a MAP job for each."""
    if round_waits(tx, JobKind.MAPS, "", after):
        return
    members = tx.devices(after=after, limit=ROUND_STEP, state=DeviceState.ACTIVE)
    for member in members:
        tx.add_job(JobKind.MAP, "", member.id)
    if len(members) == ROUND_STEP:
        tx.add_job(JobKind.MAPS, "", members[-1].id)


def step_cut_off(tx: Tx, relay: str, after: str, wall_s: int) -> None:
    """One step of a round through all that were cut off while passes from before may be about: a GONE job for each.

    Also those that came back: to a relay that did not hear of it, what they had would be as good as what they have.
    """
    if round_waits(tx, JobKind.CUT_OFF, relay, after):
        return
    gone = tx.cut_off(wall_s - PASS_LIFE_S, after=after, limit=ROUND_STEP)
    for device in gone:
        tx.add_job(JobKind.GONE, relay, device)
    if len(gone) == ROUND_STEP:
        tx.add_job(JobKind.CUT_OFF, relay, gone[-1])


def round_waits(tx: Tx, kind: JobKind, reader: str, after: str) -> bool:
    """One round at a time: a new one goes behind the one under way, or the last members would never have their turn."""
    if after or not tx.has_round(kind, reader):
        return False
    tx.add_job(kind, reader, "")
    return True
