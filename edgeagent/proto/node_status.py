"""What a node says about itself: everything a person may want to know, as JSON could say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent.proto.ip import ip_to_text
from edgeagent.proto.outbox import PUBLISHES_MAX
from edgeagent.proto.relay_endpoint import RelayEndpoint

if TYPE_CHECKING:
    from edgeagent.proto.node import Node
    from edgeagent.proto.peering import Link


def status(now: float, node: Node) -> dict[str, Any]:
    """Self, hub, tables (used and ceiling), what was dropped and why. Times in seconds."""
    client, device_map = node.client, node.map
    return {
        "self": {
            "device": node.identity.device_id,
            "name": device_map.name,
            "network": node.admission.network,
            "domain": device_map.domain,
            "addresses": [ip_to_text(address) for address in device_map.addresses],
            "tags": device_map.tags,
            "endpoints": [_udp_text(*endpoint) for endpoint in client.own_feed.endpoints],
            "home_relay": node.finder.home_relay,
            "mapped": [_udp_text(*endpoint) for endpoint in node.outside.mapped],
            "nat_mapping": node.finder.shared.nat,
            "keepalive_s": node.relays.sessions.idle_s,
            "node_key_renewal": node.renewal.state.value,
            "admitted_until": device_map.not_after,
            "removed": node.removed,
        },
        "hub": {
            "connected": client.connected,
            "hub_up": client.hub_up,
            "reconnect_in_s": None if node.next_connect_at is None else max(0.0, node.next_connect_at - now),
            "map": list(device_map.stamp),
            "feed_generation": device_map.feed_generation,
            "wall_s": int(node.wall.at(now)),
            "wall_known": node.wall.known,
        },
        "tables": {
            "peers": _table(len(node.device.peers), node.limits.peers, node.peering.gave_way),
            "allowed_ips": _table(len(node.device.allowed_ips), node.limits.allowed_ips),
            "records": _table(len(client.records), node.limits.records, client.records.gave_way),
            "feeds": _table(len(client.feeds), node.limits.feeds),
            "asks": _table(len(client.questions), node.limits.asks),
            "negatives": _table(client.questions.negatives, node.limits.negatives),
            "tombstones": _table(len(client.records.tombstones), node.limits.tombstones),
            "unresolved_destinations": _table(len(node.resolver.unresolved), node.limits.unresolved_destinations),
            "publishes": _table(client.publishes, PUBLISHES_MAX),
            "unknown_initiations": _table(len(node.resolver.strangers), node.limits.unknown_initiations),
        },
        "uplinks": [] if node.reach.uplinks is None else node.reach.uplinks.rows(now),
        "drops": {
            **{reason.value: count for reason, count in node.device.drops.items() if count},
            **{reason.value: count for reason, count in client.all_drops().items() if count},
            **{reason.value: count for reason, count in node.finder.drops.items() if count},
            **{reason.value: count for reason, count in node.relays.sessions.drops.items() if count},
            **{reason.value: count for reason, count in node.outside.drops.items() if count},
        },
        "relays": [
            {
                "id": session.relay.id,
                "region": session.relay.region,
                "home": session.relay.id == node.relays.home,
                "carrier": None if session.client.carrier is None else session.client.carrier.value,
                "serves": session.client.alive,
                "latency_ms": None if session.client.latency_s is None else round(1e3 * session.client.latency_s, 3),
            }
            for session in node.relays.sessions.all
        ],
    }


def peers(now: float, node: Node) -> list[dict[str, Any]]:
    """One row a link, by name."""
    rows = []
    for link in sorted(node.peering.links.values(), key=lambda link: (link.name, link.device)):
        entry = node.client.records.get(link.device)
        addresses = [] if entry is None else entry.record.addresses
        at = link.peer.last_handshake_at
        path = node.finder.current(link.device)
        uplink = None if path is None else node.finder.shared.ways.uplinks.get(path.endpoint.uplink)
        rows.append(
            {
                "device": link.device,
                "name": link.name,
                "addresses": [ip_to_text(address) for address in addresses],
                "path": _way(link) if link.is_live(now) else "none",
                "path_kind": None if path is None else path.kind.value,
                "path_uplink": None if uplink is None else uplink.name,
                "path_state": None if path is None else path.state.value,
                "latency_ms": None if path is None else path.latency_ms,
                "path_mtu": None if path is None or not path.frame_bytes else link.peer.mtu,
                "endpoint": None if link.peer.endpoint is None else str(link.peer.endpoint),
                "handshake_age_s": None if at is None else now - at,
                "rx_bytes": link.peer.rx_bytes,
                "tx_bytes": link.peer.tx_bytes,
            }
        )
    return rows


def _way(link: Link) -> str:
    """Where its packets go, whoever decided that."""
    return "relay" if isinstance(link.peer.endpoint, RelayEndpoint) else "direct"


def _table(used: int, ceiling: int, gave_way: int | None = None) -> dict[str, int]:
    table = {"used": used, "ceiling": ceiling}
    return table if gave_way is None else {**table, "gave_way": gave_way}


def _udp_text(address: bytes, port: int) -> str:
    host = ip_to_text(address)
    return f"{host}:{port}" if len(address) == 4 else f"[{host}]:{port}"
