"""Prefixes behind devices: what they offer, what an operator or the policy approves, and who is asked for an address.

A device offers with its birth. What is offered and approved goes into its record; the union of all that goes into the
maps of all others, so that a change of it is a round through all maps, one round at a time. Everything here is pure and
for any front end: `table` to show, `approve` and `unapprove` to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from edgeagent.proto import prefixes, via
from edgeagent.proto.codec import encode
from edgeagent.proto.control import MAP_ROUTES_MAX, ROUTERS_MAX
from edgeagent.proto.prefixes import EXIT, Prefix
from hub.core import ipam
from hub.core.model import Device, DeviceState, HubError, JobKind, Network, Route
from hub.core.on_routes import in_use
from hub.core.scribe import Scribe
from hub.core.store import Tx

KEPT_MAX = 64  # approvals of one device that it does not offer at present

Approves = Callable[[Prefix, Device], bool]  # a default route asks for the exit node


@dataclass(slots=True, frozen=True)
class Row:
    """One line of `table`."""

    device: Device
    prefix: str
    is_exit: bool
    advertised: bool
    approved: bool
    snat: bool
    via: str  # "192.168.1.0/24 via 7" of an IPv6 prefix that is that (4via6), else ""

    @property
    def state(self) -> str:
        if self.advertised:
            return "in use" if self.approved else "waits for approval"
        return "approved, not offered"


# From devices


def take_word(scribe: Scribe, tx: Tx, device: Device, body: dict[str, Any], approves: Approves, wall_s: int) -> int:
    """What a birth says of routes. Returns how many of them are refused."""
    offered = [(address, length) for address, length in body.get("ro", [])]
    good = [prefix for prefix in dict.fromkeys(offered) if why_refused(scribe.network, prefix) is None]
    snat = body.get("sn", True)
    known = {route.prefix: route for route in tx.routes(device.id)}
    before = in_use(known.values())
    for prefix in good:
        old = known.get(prefix)
        if old is None:
            new = Route(
                device.id, *prefix, advertised=True, approved=auto_approve(tx, prefix, device, approves), snat=snat
            )
        else:
            new = replace(old, advertised=True, snat=snat)
        if new != old:
            tx.save_route(new)
            tx.note("routes")
            known[prefix] = new
        if old is None and not new.approved:
            name = device.name or ""
            tx.emit("route.waiting", wall_s, device=device.id, name=name, prefix=prefixes.to_text(prefix))
    kept = 0
    for prefix, old in list(known.items()):
        if prefix in good:
            continue
        kept += old.approved
        if old.approved and kept <= KEPT_MAX:
            known[prefix] = replace(old, advertised=False)
            if old.advertised:
                tx.save_route(known[prefix])
                tx.note("routes")
        else:
            del known[prefix]
            tx.drop_route(device.id, *prefix)
            tx.note("routes")
    if in_use(known.values()) != before:
        _changed(scribe, tx, device)
    return len(set(offered)) - len(good)


def auto_approve(tx: Tx, prefix: Prefix, device: Device, approves: Approves) -> bool:
    """Whether the policy lets this device have the prefix without a person, and there is room for it."""
    return approves(prefix, device) and _has_room(tx, prefix)


def approve_waiting(scribe: Scribe, tx: Tx, approves: Approves) -> int:
    """The policy is another: what is offered, and it approves now, waits no more. How many that are."""
    found = [row for row in table(tx) if row.advertised and not row.approved]
    count = 0
    for row in found:
        prefix = prefixes.parse(row.prefix)
        if auto_approve(tx, prefix, row.device, approves):
            approve(scribe, tx, row.device, [prefix])
            count += 1
    return count


def why_refused(network: Network, prefix: Prefix) -> str | None:
    """Why no device of the network may route this; None where one may."""
    if prefix in EXIT:
        return None
    if why := prefixes.why_not(prefix) or via.why_not(prefix):
        return why
    own: tuple[Prefix, Prefix] = (
        (ipam.V4_NETWORK.to_bytes(4, "big"), ipam.V4_PREFIX),
        (ipam.ula_network(network.id), ipam.V6_PREFIX),
    )
    if any(prefixes.overlap(prefix, each) for each in own):
        return "it overlaps the network's own addresses"
    return None


# From operators


def table(tx: Tx) -> list[Row]:
    """All routes of all devices, by prefix and name."""
    rows, owners = [], {}
    after: tuple[str, bytes, int] = ("", b"", 0)
    while page := tx.all_routes(after=after, limit=500):
        for route in page:
            if route.device not in owners:
                owners[route.device] = tx.device(route.device)
            owner = owners[route.device]
            if owner is not None:
                rows.append(_row(route, owner))
        last = page[-1]
        after = (last.device, last.address, last.length)
    return sorted(rows, key=lambda row: (":" in row.prefix, not row.is_exit, row.prefix, row.device.name or ""))


def of_device(tx: Tx, device: Device) -> list[Row]:
    return [_row(route, device) for route in tx.routes(device.id)]


def read_prefixes(texts: Iterable[str]) -> list[Prefix]:
    """What an operator wrote: prefixes, IPv4 ones of a site (`192.168.1.0/24@7`), or `exit` for both default routes.
    Raises HubError."""
    found: list[Prefix] = []
    for text in texts:
        if text == "exit":
            found += EXIT
            continue
        try:
            found.append(via.read(text))
        except ValueError as error:
            raise HubError(f"prefix {error}") from None
    return found


def approve(scribe: Scribe, tx: Tx, device: Device, wanted: list[Prefix]) -> list[Prefix]:
    """Let others use what the device offers: `wanted` of it, all when empty. Returns what is new. Raises HubError."""
    routes = {route.prefix: route for route in tx.routes(device.id) if route.advertised}
    if not wanted:
        wanted = list(routes)
        if not wanted:
            raise HubError(
                f"{device.name}: it offers no routes. On the device: "
                "edgeagent routes set --advertise-routes 192.168.7.0/24"
            )
    if any(prefix in EXIT for prefix in wanted) and any(prefix in routes for prefix in EXIT):
        wanted = [prefix for prefix in wanted if prefix not in EXIT or prefix in routes]
    new = []
    for prefix in wanted:
        route = routes.get(prefix)
        if route is None:
            offers = ", ".join(map(prefixes.to_text, routes)) or "none"
            raise HubError(f"{device.name}: it does not offer {prefixes.to_text(prefix)}. It offers: {offers}")
        if route.approved:
            continue
        if not _has_room(tx, prefix):
            raise HubError(
                f"{prefixes.to_text(prefix)}: {MAP_ROUTES_MAX} prefixes are in use, and a map holds no more. "
                "Approve a shorter one instead of several, or unapprove those that nobody needs"
            )
        tx.save_route(replace(route, approved=True))
        new.append(prefix)
    if new:
        _changed(scribe, tx, device)
    return new


def unapprove(scribe: Scribe, tx: Tx, device: Device, wanted: list[Prefix]) -> list[Prefix]:
    """Take approval back: of `wanted`, of all when empty. Returns what it was taken from. Raises HubError."""
    routes = {route.prefix: route for route in tx.routes(device.id) if route.approved}
    wanted = wanted or list(routes)
    if any(prefix in EXIT and prefix in routes for prefix in wanted):
        wanted = [prefix for prefix in wanted if prefix not in EXIT or prefix in routes]
    for prefix in wanted:
        if prefix not in routes:
            raise HubError(
                f"{device.name}: {prefixes.to_text(prefix)} is not approved. `edgehub routes list` shows what is"
            )
        if routes[prefix].advertised:
            tx.save_route(replace(routes[prefix], approved=False))
        else:
            tx.drop_route(device.id, *prefix)
    if any(routes[prefix].advertised for prefix in wanted):
        _changed(scribe, tx, device)
    return wanted


# Who routes what


def routers_of(tx: Tx, reader: Device, address: bytes) -> list[Device]:
    """The devices behind whose longest prefix the address is, those online first, then by id; at most ROUTERS_MAX."""
    found = [route for route in tx.routes_holding(address) if route.length and route.device != reader.id]
    by_length: dict[int, list[str]] = {}
    for route in found:
        by_length.setdefault(route.length, []).append(route.device)
    for length in sorted(by_length, reverse=True):
        devices = [tx.device(device_id) for device_id in sorted(by_length[length])]
        active = [device for device in devices if device is not None and device.state is DeviceState.ACTIVE]
        if active:
            return sorted(active, key=lambda device: not device.online)[:ROUTERS_MAX]
    return []


def refresh(tx: Tx) -> None:
    """Have all maps written again when the prefixes in use are others than they say."""
    encoded = encode([list(prefix) for prefix in tx.prefixes_in_use(MAP_ROUTES_MAX)])
    if encoded != (tx.route_list() or encode([])):
        tx.save_route_list(encoded)
        tx.add_job(JobKind.MAPS, "", "")


def forget(tx: Tx, device: Device) -> None:
    """The device is removed."""
    for route in tx.routes(device.id):
        tx.drop_route(device.id, *route.prefix)
    refresh(tx)


def _has_room(tx: Tx, prefix: Prefix) -> bool:
    in_use = tx.prefixes_in_use(MAP_ROUTES_MAX)
    return prefix in EXIT or prefix in in_use or len(in_use) < MAP_ROUTES_MAX


def _changed(scribe: Scribe, tx: Tx, device: Device) -> None:
    scribe.push(tx, device)
    refresh(tx)


def _row(route: Route, owner: Device) -> Row:
    return Row(
        owner,
        prefixes.to_text(route.prefix),
        route.prefix in EXIT,
        advertised=route.advertised,
        approved=route.approved,
        snat=route.snat,
        via=via.to_text(route.prefix),
    )
