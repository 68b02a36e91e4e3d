"""Relays as the hub knows them: what they say of themselves, which of them maps name, and what they must be told.

All maps of a network name the same relays. That list is kept as it was last said; whenever a relay speaks, comes, goes
or is put out it is chosen anew, and only if it is another list then are maps written again, in rounds of small steps.
"""

from __future__ import annotations

from typing import Any

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import RELAY_FIELDS, RELAYS_MAX
from hub.core.model import (
    PASS_LIFE_S,
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


def region_tag(region: str) -> str:
    """A relay's region is the one tag of its token."""
    return _TAG + region


def region_of(relay: Device) -> str:
    return relay.tags[0].removeprefix(_TAG) if relay.tags else ""


def fields_of(relay: Device) -> dict[str, Any]:
    """What it said of itself, by the names of `RELAY_FIELDS`; empty when it said nothing yet."""
    fields: dict[str, Any] = decode(relay.relay) if relay.relay else {}
    return fields


def take_word(tx: Tx, relay: Device, body: dict[str, Any], wall_s: int) -> None:
    """Keep what a relay says of itself. The number of its members is news to nobody but the operator."""
    relay.relay = encode({name: body[name] for name in RELAY_FIELDS})
    relay.members = body["m"]
    tx.save_device(relay)
    refresh(tx, wall_s)


def has_key(tx: Tx, key: bytes, but: str) -> bool:
    """Whether another relay than `but` has this relay key."""
    return any(relay.id != but and fields_of(relay).get("k") == key for relay in tx.relays())


def refresh(tx: Tx, wall_s: int) -> None:
    """Choose the relays that maps name, and have all maps written again if they are others than before."""
    before = tx.relay_list()
    listed = [relay["id"] for relay in decode(before)] if before else []
    chosen = choose(tx.relays(), listed, wall_s)
    encoded = encode(chosen) if chosen else b""
    if encoded != before:
        tx.save_relay_list(encoded)
        tx.add_job(JobKind.MAPS, "", "")


def choose(relays: list[Device], listed: list[str], wall_s: int) -> list[dict[str, Any]]:
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
        fields = {"id": relay.name, **fields_of(relay)}
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


def tell_cut_off(tx: Tx, device: Device) -> None:
    """Have every relay told that passes of a device which is no member any more are void."""
    if device.kind is Kind.DEVICE:
        for relay in tx.relays():
            tx.add_job(JobKind.GONE, relay.id, device.id)


def tell_all_cut_off(tx: Tx, relay: Device) -> None:
    """A relay has begun anew, and may have forgotten, or never heard, who was cut off."""
    tx.add_job(JobKind.CUT_OFF, relay.id, "")


def step_maps(tx: Tx, after: str) -> None:
    """One step of a round through all members: a MAP job for each."""
    if _waits(tx, JobKind.MAPS, "", after):
        return
    members = tx.devices(after=after, limit=ROUND_STEP, state=DeviceState.ACTIVE)
    for member in members:
        tx.add_job(JobKind.MAP, "", member.id)
    if len(members) == ROUND_STEP:
        tx.add_job(JobKind.MAPS, "", members[-1].id)


def step_cut_off(tx: Tx, relay: str, after: str, wall_s: int) -> None:
    """One step of a round through all that were cut off while passes of theirs may be about: a GONE job for each."""
    if _waits(tx, JobKind.CUT_OFF, relay, after):
        return
    gone = tx.cut_off(wall_s - PASS_LIFE_S, after=after, limit=ROUND_STEP)
    for device in gone:
        tx.add_job(JobKind.GONE, relay, device)
    if len(gone) == ROUND_STEP:
        tx.add_job(JobKind.CUT_OFF, relay, gone[-1])


def _waits(tx: Tx, kind: JobKind, reader: str, after: str) -> bool:
    """One round at a time: a new one goes behind the one under way, or the last members would never have their turn."""
    if after or not tx.has_round(kind, reader):
        return False
    tx.add_job(kind, reader, "")
    return True
