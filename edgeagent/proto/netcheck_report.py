"""What a check of the network comes to: as data, and as advice."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from edgeagent.proto.candidates import private_block
from edgeagent.proto.netcheck_facts import Filtering, Mapping, NatFacts, PortmapFacts, RelayFacts, Way
from edgeagent.proto.relay_http import is_probe_answer

if TYPE_CHECKING:
    from edgeagent.proto.netcheck import Netcheck
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.relay_http import Response

TUNNEL_PACKET = {4: 1_340, 16: 1_360}  # what an inner packet of 1,280 bytes takes
_FAMILIES = {4: "ipv4", 16: "ipv6"}
_SYMMETRIC = (Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT, Mapping.DEPENDENT)
_LOOSE = (Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT, Filtering.NOT_BY_PORT)
_NETWORK_LOGIN_REQUIRED = 511  # RFC 6585, section 6
_HOST_OF_URL = re.compile(r"https?://\[?([0-9A-Za-z.:-]+?)\]?(?::[0-9]+)?(?:[/?#].*)?")


def report(check: Netcheck) -> dict[str, Any]:
    """Everything, as JSON can say it. None is what could not be told, or was not asked."""
    nearest = min(
        ((way.latency_s, relay.id) for relay in check.relays for way in relay.ways if way.latency_s is not None),
        default=None,
    )
    return {
        "reachable": any(relay.reached for relay in check.relays),
        "udp": {name: _udp(check.nat(size)) for size, name in _FAMILIES.items()},
        "nat": {name: _nat(check.nat(size)) for size, name in _FAMILIES.items()},
        "ipv6": _ipv6(check),
        "port_mapping": [_portmap(fact) for fact in check.portmaps()],
        "captive_portal": captive_portal(check),
        "tls_interception": tls_interception(check.relays),
        "nearest_relay": None if nearest is None else nearest[1],
        "relays": [_relay(relay) for relay in check.relays],
        "unfinished": check.under_way(),
        "advice": advice(check),
    }


def captive_portal(check: Netcheck) -> bool | None:
    """Whether somebody else answers where a relay would. None when nobody answers at all."""
    proven = any(way.by_tls for relay in check.relays for way in relay.ways)
    told: bool | None = False if proven else None
    for way, response in check.pages:
        if response is None:
            continue
        if is_probe_answer(response, way.nonce):
            told = False
        elif _is_portal(response, way) or not proven:
            return True  # what is not a portal may be a web server of the relay's host: then TLS would have got through
    return told


def tls_interception(relays: list[RelayFacts]) -> bool | None:
    """Whether a certificate is not the one that the hub named. None when there was none to compare."""
    told: bool | None = None
    for relay in relays:
        for way in relay.ways:
            if relay.pin and way.tls is not None and way.tls.certificate:
                if way.tls.certificate != relay.pin:
                    return True
                told = False
    return told


def advice(check: Netcheck) -> list[str]:
    """What it means for this device, a sentence or two each, the most important first."""
    lines = []
    if captive_portal(check):
        lines.append("Somebody else answers in the name of a relay: a captive portal. Log in to this network first.")
    if not any(relay.reached for relay in check.relays):
        lines.append(_why_unreachable(check.relays))
    elif not any(check.nat(size).passes for size in _FAMILIES):
        if any(check.nat(size).unanswered for size in _FAMILIES):
            lines.append("UDP is blocked: relays by TLS only, no direct paths.")
        else:
            lines.append("Whether UDP passes could not be told: nothing is known about direct paths.")
    else:
        lines += _about_paths(check)
    if tls_interception(check.relays):
        lines.append(
            "A relay's certificate is not the one that the hub knows: somebody opens TLS on the way, or it was renewed "
            "a moment ago. What relays carry is sealed all the same."
        )
    narrow = [
        (way.mtu, relay.id)
        for relay in check.relays
        for way in relay.ways
        if 0 < way.mtu < TUNNEL_PACKET[way.size] and way.mtu_exact
    ]
    if narrow:
        mtu, relay_id = min(narrow)
        lines.append(
            f"Packets of more than {mtu} bytes do not reach {relay_id}; the tunnel's, with 1280 bytes inside, have "
            f"{TUNNEL_PACKET[4]} over IPv4 and {TUNNEL_PACKET[16]} over IPv6."
        )
    return lines


def _why_unreachable(relays: list[RelayFacts]) -> str:
    if all(relay.errors and not relay.ways for relay in relays):
        return "No relay's name could be looked up: does the name server answer?"
    if not any(way.local is not None for relay in relays for way in relay.ways):
        return "No relay can be reached: this device has no route to any. Is it connected?"
    return "No relay can be reached, neither by UDP nor by TLS: is outgoing TCP to their ports allowed here?"


def _about_paths(check: Netcheck) -> list[str]:
    lines = []
    v4, v6 = check.nat(4), check.nat(16)
    nat = v4 if v4.passes else v6
    opened = [fact for fact in check.portmaps() if fact.address is not None]
    public = [fact for fact in opened if fact.address is not None and private_block(fact.address) is None]
    everywhere = "irect paths to all networks that let UDP through."
    if public and v4.passes and v4.mapped[0][0] in [fact.address for fact in public]:
        lines.append(f"The router opens ports by {public[0].protocol}: d{everywhere}")
    elif nat.mapping in _SYMMETRIC:
        lines.append(
            "A symmetric NAT: direct paths only to peers whose NAT does not filter by port; needs a relay with others."
        )
    elif nat.mapping is Mapping.UNKNOWN:
        lines.append("UDP passes; how the NAT maps could not be told: that takes two relays, or one with two ports.")
    elif nat.filtering in _LOOSE:
        lines.append(f"D{everywhere}")
    else:
        lines.append("Direct paths to most networks; needs a relay with peers behind a symmetric NAT.")
    if nat.mapping is Mapping.NOT_BY_PORT:
        lines.append(
            "Only one address was asked: a second relay would tell whether the NAT is a symmetric one after all."
        )
    if opened and not public:
        lines.append(
            "The router that opens ports has a private address itself: there is another NAT, perhaps the carrier's."
        )
    if v4.passes and v6.passes:
        lines.append("IPv6 passes too: direct to peers that have it, whatever NATs there are for IPv4.")
    return lines


def _is_portal(response: Response, way: Way) -> bool:
    if response.status == _NETWORK_LOGIN_REQUIRED:
        return True
    match = _HOST_OF_URL.fullmatch(response.headers.get("location", ""))
    own = (way.host.lower(), str(ip_address(way.address)))
    return 300 <= response.status < 400 and match is not None and match[1].lower() not in own


# As data


def _udp(nat: NatFacts) -> bool | None:
    return True if nat.passes else False if nat.unanswered else None


def _nat(nat: NatFacts) -> dict[str, Any] | None:
    if not nat.passes:
        return None
    return {
        "local": None if nat.local is None else _text(nat.local),
        "mapped": [_text(mapped) for mapped in nat.mapped],
        "mapping": nat.mapping.value,
        "filtering": nat.filtering.value,
        "hairpin": nat.hairpin,
        "port_kept": nat.port_kept,
    }


def _ipv6(check: Netcheck) -> dict[str, Any]:
    local = check.local(16)
    ways = [way for relay in check.relays for way in relay.ways if way.size == 16 and way.local is not None]
    return {
        "address": None if local is None else str(ip_address(local)),
        "relays": len([relay for relay in check.relays if any(way.size == 16 for way in relay.ways)]),
        "reached": any(way.by_udp or way.by_tls for way in ways) if ways else None,
    }


def _portmap(fact: PortmapFacts) -> dict[str, Any]:
    return {
        "protocol": fact.protocol,
        "interface": fact.interface,
        "gateway": str(ip_address(fact.gateway)),
        "address": None if fact.address is None else str(ip_address(fact.address)),
        "refused": fact.refused or None,
    }


def _relay(relay: RelayFacts) -> dict[str, Any]:
    return {
        "id": relay.id,
        "region": relay.region,
        "hosts": relay.hosts,
        "reached": relay.reached,
        "errors": relay.errors,
        "ways": [_way(relay, way) for way in relay.ways],
    }


def _way(relay: RelayFacts, way: Way) -> dict[str, Any]:
    tls = way.tls
    certificate = None
    if tls is not None and tls.certificate and relay.pin:
        certificate = "expected" if tls.certificate == relay.pin else "another"
    return {
        "address": str(ip_address(way.address)),
        "route": way.local is not None,
        "udp": None if not way.udp_port or way.local is None else way.by_udp,
        "udp_ms": _ms(way.latency_s),
        "mtu": way.mtu or None,
        "mtu_exact": way.mtu_exact if way.mtu else None,
        "tls": None if tls is None else way.by_tls,
        "tls_connect_ms": None if tls is None else _ms(tls.connect_s),
        "tls_handshake_ms": None if tls is None else _ms(tls.handshake_s),
        "tls_certificate": certificate,
        "tls_error": None if tls is None else tls.error or None,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _text(where: UdpAddress) -> str:
    address = str(ip_address(where[0]))
    return f"[{address}]:{where[1]}" if len(where[0]) == 16 else f"{address}:{where[1]}"
