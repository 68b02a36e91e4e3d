"""What a node says about itself: everything a person may want to know, as JSON could say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent.proto.errors import DropReason
from edgeagent.proto.ip import ip_to_text
from edgeagent.proto.limits import FRAGMENTS_MAX
from edgeagent.proto.outbox import PUBLISHES_MAX
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.relay_sessions import SESSIONS_MAX

if TYPE_CHECKING:
    from edgeagent.proto.boundedqueue import BoundedQueue
    from edgeagent.proto.lock import Lock
    from edgeagent.proto.node import Node
    from edgeagent.proto.peering import Link
    from edgeagent.proto.records import Record


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
            "wall_likely_s": int(node.wall.likely(now)),
        },
        "policy": policy(node),
        "lock": None if client.lock is None else _lock(now, node, client.lock),
        "tables": tables(node),
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


def _lock(now: float, node: Node, lock: Lock) -> dict[str, Any]:
    own = node.map.lock["c"] if node.map.lock is not None else []
    return lock.describe(node.identity.device_id, node.identity.device_key, own, node.wall.at(now))


def peers(now: float, node: Node) -> list[dict[str, Any]]:
    """One row a link, by name; then devices that the network's lock refused lately."""
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
                "refused": None,
            }
        )
    if node.client.lock is not None:
        rows += [_refused(record, reason) for record, reason in node.client.lock.refused.values()]
    return rows


def policy(node: Node, *, rules: bool = False) -> dict[str, Any] | None:
    """What the hub lets others reach here, and what came of it; None: no policy, everything. With `rules` each of them,
    prefixes as text."""
    firewall, drops = node.device.firewall, node.device.drops
    if firewall is None:
        return None
    body = firewall.policy.body
    told: dict[str, Any] = {
        "version": firewall.policy.version,
        "rules_in": len(body["in"]),
        "rules_out": len(body["out"]),
        "admitted": firewall.admitted,  # flows that others began
        "opened": firewall.opened,  # flows that this device began
        "revoked": firewall.revoked,  # flows that a change ended
        "denied": sum(
            drops[reason]  # packets that others sent
            for reason in (DropReason.POLICY, DropReason.FRAGMENT_WITHOUT_FIRST, DropReason.FLOW_UNREADABLE)
        ),
        "prohibited": drops[DropReason.PROHIBITED],  # packets that this device sent
        "connections": len(firewall.flows),
        "connections_max": firewall.flows.table.ceiling,
    }
    if rules:
        told["user"] = firewall.policy.me.user
        told["in"] = [
            {"from": _selectors(sources), "to": _selectors(targets), "services": services}
            for sources, targets, services in body["in"]
        ]
        told["out"] = [{"to": _selectors(targets), "services": services} for targets, services in body["out"]]
    return told


def _selectors(selectors: list[Any]) -> list[str]:
    return [each if isinstance(each, str) else f"{ip_to_text(each[0])}/{each[1]}" for each in selectors]


def _refused(record: Record, reason: ControlDrop) -> dict[str, Any]:
    """A device that the network's lock keeps out: as a peer that is none."""
    nothing = ("path_kind", "path_uplink", "path_state", "latency_ms", "path_mtu", "endpoint", "handshake_age_s")
    return {
        "device": record.device,
        "name": record.name,
        "addresses": [ip_to_text(address) for address in record.addresses],
        "path": "refused",
        **dict.fromkeys(nothing),
        "rx_bytes": 0,
        "tx_bytes": 0,
        "refused": reason.value,
    }


def _way(link: Link) -> str:
    """Where its packets go, whoever decided that."""
    return "relay" if isinstance(link.peer.endpoint, RelayEndpoint) else "direct"


def tables(node: Node) -> dict[str, dict[str, int]]:
    """What may grow, and how far: `used` and `ceiling`, items; where it is counted, `gave_way`: how many made room for
    others or found none, and `peak`: the most that there ever was."""
    client, limits, device = node.client, node.limits, node.device
    questions, responder, events = client.questions, device.responder, device.events
    firewall = device.firewall
    return {
        "peers": _table(len(device.peers), limits.peers, node.peering.gave_way),
        "allowed_ips": _table(len(device.allowed_ips), limits.allowed_ips),
        "staged_packets": _table(
            max((len(peer.staged) for peer in device.peers.values()), default=0),  # of one peer
            limits.staged_packets,
            device.drops[DropReason.STAGED_FULL],
        ),
        "connections": _table(
            0 if firewall is None else len(firewall.flows),
            limits.connections,
            0 if firewall is None else firewall.flows.table.gave_way,
        ),
        "fragments": _table(
            0 if firewall is None else len(firewall.fragments),
            FRAGMENTS_MAX,
            0 if firewall is None else firewall.fragments.gave_way,
        ),
        "handshake_queue": _queue(responder.queue),
        "rate_sources": _table(len(responder.limiter), limits.rate_sources, responder.limiter.gave_way),
        "wireguard_events": _queue(events),
        "events": _queue(node.events),
        "records": _table(len(client.records), limits.records, client.records.gave_way),
        "feeds": _table(len(client.feeds), limits.feeds, client.feeds.gave_way),
        "asks": _table(len(questions), limits.asks, questions.refused_full),
        "negatives": _table(questions.negatives, limits.negatives, questions.negatives_gave_way),
        "tombstones": _table(len(client.records.tombstones), limits.tombstones, client.records.tombstones.gave_way),
        "unresolved_destinations": _table(
            len(node.resolver.unresolved), limits.unresolved_destinations, node.resolver.unresolved.gave_way
        ),
        "unresolved_packets": _table(  # of one destination
            node.resolver.unresolved.longest(), limits.unresolved_packets, client.drops[ControlDrop.UNRESOLVED_FULL]
        ),
        "publishes": _table(client.publishes, PUBLISHES_MAX, client.all_drops()[ControlDrop.PUBLISH_FULL]),
        "unknown_initiations": _table(
            len(node.resolver.strangers), limits.unknown_initiations, node.resolver.strangers.gave_way
        ),
        "relay_sessions": _table(len(node.relays.sessions.all), SESSIONS_MAX),
        **({} if node.routers is None else {"route_groups": _table(*node.routers.size())}),
    }


def _table(used: int, ceiling: int, gave_way: int | None = None) -> dict[str, int]:
    table = {"used": used, "ceiling": ceiling}
    return table if gave_way is None else {**table, "gave_way": gave_way}


def _queue(queue: BoundedQueue[Any]) -> dict[str, int]:
    return {"used": len(queue), "peak": queue.peak, "ceiling": queue.ceiling, "gave_way": queue.gave_way}


def _udp_text(address: bytes, port: int) -> str:
    host = ip_to_text(address)
    return f"{host}:{port}" if len(address) == 4 else f"[{host}]:{port}"
