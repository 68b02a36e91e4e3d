"""What records and maps say of routes and of plain WireGuard clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeagent.proto.codec import decode
from edgeagent.proto.prefixes import Prefix
from hub.core.model import Device, Kind, Route
from hub.core.store import Tx


def in_use(routes: Iterable[Route]) -> set[Prefix]:
    """What others are told that a device routes."""
    return {route.prefix for route in routes if route.advertised and route.approved}


def for_record(tx: Tx, device: Device) -> dict[str, Any]:
    clients = [address for each in tx.clients(device.id) for address in (each.v4.to_bytes(4, "big"), each.v6)]
    return {"routes": _own(tx, device), **({"cl": clients} if clients else {})}


def for_map(tx: Tx, device: Device) -> dict[str, Any]:
    """The prefixes of others, its own that are approved, and its clients; a relay has none of that."""
    if device.kind is Kind.RELAY:
        return {}
    own, encoded = _own(tx, device), tx.route_list()
    said: dict[str, Any] = {"ro": [each for each in (decode(encoded) if encoded else []) if each not in own]}
    if own:
        said["ra"] = own
    if clients := tx.clients(device.id):
        said["cl"] = [[each.key, each.v4.to_bytes(4, "big"), each.v6] for each in clients]
    return said


def _own(tx: Tx, device: Device) -> list[list[Any]]:
    return [list(prefix) for prefix in sorted(in_use(tx.routes(device.id)), key=lambda each: (len(each[0]), *each))]
