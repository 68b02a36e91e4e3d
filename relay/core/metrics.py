"""The relay's counters as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from relay.core.relay import RelayCore
from relay.core.shared import Traffic

Labels = dict[str, str]


# Network, the relay's name there, its region, in a word how it stands, what of the hub's messages was dropped
Registration = tuple[str, str, str, str, dict[str, int]]


def render(core: RelayCore, *, uptime_s: float, version: str, registrations: Sequence[Registration] = ()) -> str:
    """All metrics; every name begins with edgerelay_."""
    shared = core.shared
    members = list(shared.roster)
    on_stream = sum(member.stream is not None for member in members)
    carriers = {"tls": shared.by_stream, "udp": shared.by_datagram, "sibling": shared.by_sibling}
    networks = shared.roster.networks.values()
    admission = shared.admission
    lines: list[str] = []
    lines += _metric("info", "gauge", "Who this is.", [(_who(admission.relay, admission.region, version), 1)])
    lines += _metric("uptime_seconds", "gauge", "Since the start.", [({}, round(uptime_s, 1))])
    lines += _metric("draining", "gauge", "1 while nobody is admitted any more.", [({}, int(shared.draining))])
    lines += _metric(
        "members",
        "gauge",
        "Logged in, by carrier.",
        [({"carrier": "tls"}, on_stream), ({"carrier": "udp"}, len(members) - on_stream)],
    )
    lines += _metric(
        "network_members", "gauge", "Logged in, by network.", [({"network": n.id}, n.members) for n in networks]
    )
    lines += _metric(
        "registration",
        "gauge",
        "1 while the hub of the network is connected.",
        [
            ({"network": network, "relay": relay, "region": region, "state": state}, int(state == "registered"))
            for network, relay, region, state, _ in registrations
        ],
    )
    lines += _metric(
        "hub_drops_total",
        "counter",
        "Messages of hubs dropped, by reason.",
        [
            ({"network": network, "reason": reason}, count)
            for network, *_, drops in registrations
            for reason, count in drops.items()
        ],
    )
    lines += _metric("siblings", "gauge", "Relays of the region that are linked.", [({}, len(shared.links))])
    lines += _metric("sibling_members", "gauge", "Members on them.", [({}, shared.roster.away)])
    lines += _metric("queued_bytes", "gauge", "Waiting for members that read slowly.", [({}, shared.queued_bytes)])
    lines += _metric("packets_total", "counter", "Packets, by carrier and way.", _traffic(carriers, "packets"))
    lines += _metric("bytes_total", "counter", "Their bytes, without framing.", _traffic(carriers, "bytes"))
    lines += _metric(
        "network_packets_total", "counter", "Packets, by network.", [({"network": n.id}, n.packets) for n in networks]
    )
    lines += _metric("network_bytes_total", "counter", "Their bytes.", [({"network": n.id}, n.bytes) for n in networks])
    lines += _metric(
        "network_dropped_total", "counter", "Beyond a rate.", [({"network": n.id}, n.dropped) for n in networks]
    )
    lines += _metric("stun_answers_total", "counter", "STUN requests answered.", [({}, core.stun.answered)])
    lines += _metric(
        "refusals_total",
        "counter",
        "Logins refused and sessions ended, by reason.",
        [({"reason": reason.word}, count) for reason, count in shared.refusals.items()],
    )
    lines += _metric(
        "drops_total",
        "counter",
        "Packets, datagrams and connections dropped, by reason.",
        [({"reason": reason.value}, count) for reason, count in shared.drops.items()],
    )
    return "\n".join(lines) + "\n"


def _who(relay: str, region: str, version: str) -> Labels:
    return {"relay": relay, "region": region, "version": version}


def _traffic(carriers: dict[str, Traffic], what: str) -> Iterator[tuple[Labels, int]]:
    for carrier, traffic in carriers.items():
        for way in ("in", "out"):
            yield {"carrier": carrier, "way": way}, getattr(traffic, f"{what}_{way}")


def _metric(name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    """Label values are ids, reasons and versions: nothing in them needs escaping."""
    yield f"# HELP edgerelay_{name} {text}"
    yield f"# TYPE edgerelay_{name} {kind}"
    for labels, value in samples:
        inner = ",".join(f'{key}="{text}"' for key, text in labels.items())
        yield f"edgerelay_{name}{{{inner}}} {value}" if inner else f"edgerelay_{name} {value}"
