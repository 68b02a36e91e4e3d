"""The data path between two namespaces: our engines and other userspace implementations, by turns.

One run has several rounds, and in each everybody has a turn at each gauge: what is compared was measured within few
minutes. WIREGUARD_GO=/path/to/another stands in for wireguard-go's newest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from tests.netlab import Host, Lab, LabError
from tools.bench import peers
from tools.bench.blast import Probe, Range
from tools.bench.figures import Figure, Note, Options, Row, Say, bench_by_options, machine
from tools.bench.peers import Contender, Missing
from tools.bench.rounds import Rounds
from tools.bench.tunnel import MTU, TX_QUEUE_PACKETS, Gauges, Tunnel, segment_before_wire

ROUNDS = 3
SECONDS = 4
PROBE_S_MAX = 1.0
LARGE, SMALL = 1_400, 64  # bytes of an IPv4 packet, inside
START_PPS = {LARGE: 60_000.0, SMALL: 60_000.0}
MEGA = 1e6


class Gauge(NamedTuple):
    key: str
    title: str
    unit: str
    better: str


GAUGES = (
    Gauge("tcp", "TCP, 1 stream", "Mbit/s", "more"),
    Gauge("tcp-back", "TCP, 1 stream, other way", "Mbit/s", "more"),
    Gauge("tcp-4", "TCP, 4 streams", "Mbit/s", "more"),
    Gauge("tcp-nic", "TCP, 1 stream, plain NIC", "Mbit/s", "more"),
    Gauge("udp-large", f"UDP, {LARGE:,} B, < 1 % lost", "Mbit/s", "more"),
    Gauge("udp-small", f"UDP, {SMALL} B, < 1 % lost", "kpps", "more"),
    Gauge("ping", "ping, idle, median", "ms", "less"),
    Gauge("ping-99", "ping, idle, p99", "ms", "less"),
    Gauge("ping-load", "ping, TCP load, median", "ms", "less"),
    Gauge("ping-load-99", "ping, TCP load, p99", "ms", "less"),
    Gauge("cpu", "CPU, both ends, TCP", "s/GB", "less"),
    Gauge("cpu-nic", "CPU, both ends, plain NIC", "s/GB", "less"),
    Gauge("cpu-small", f"CPU, both ends, {SMALL} B", "µs/packet", "less"),
    Gauge("rss", "RSS, idle", "MiB", "less"),
    Gauge("rss-peak", "RSS, peak under load", "MiB", "less"),
)


@bench_by_options
def datapath(say: Say, options: Options) -> Iterator[Row]:
    """Throughput, packet rate, round trips, CPU and memory of our engines, beside wireguard-go and others."""
    contenders, missing = peers.find(options.only, options.build_all)
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    load = os.getloadavg()[0]
    with Lab() as lab:
        net = lab.net("198.51.100.0/24")
        hosts = (lab.host("left", net), lab.host("right", net))
        segment_before_wire(hosts, not options.nic_gso)
        tunnels, absent = set_up(contenders, hosts, say)
        missing += absent
        if not tunnels:
            raise LabError("nobody to measure: " + "; ".join(f"{each.key}: {each.why}" for each in missing))
        results = Rounds()
        idle = {tunnel.contender.key: tunnel.rss_mib() for tunnel in tunnels}
        starts = {(tunnel.contender.key, size): pps for tunnel in tunnels for size, pps in START_PPS.items()}
        for number in range(rounds):
            for tunnel in tunnels:
                key = tunnel.contender.key
                said = f"{tunnel.contender.name}, round {number + 1} of {rounds}"
                try:
                    results.add(number, key, {"rss": idle[key], **_round(tunnel, seconds, starts, options, say, said)})
                except LabError as error:
                    missing.append(Missing(key, f"round {number + 1}: {str(error).splitlines()[0]}"))
        say("the wire alone")
        bare = _bare(hosts, min(seconds, PROBE_S_MAX))
    yield from figures(results, [tunnel.contender for tunnel in tunnels])
    how = f"{rounds} rounds of {seconds} s, MTU {MTU}, txqueuelen {TX_QUEUE_PACKETS:,}"
    wire = "a veth pair that takes UDP trains whole" if options.nic_gso else "a veth pair without UDP segmentation"
    yield Note("how", f"{how}; {wire}, in `plain NIC` without; × is the median of each round's ratio")
    yield from context(tunnels, missing, load)
    yield Note("the wire alone", f"{bare[LARGE] / 1e3:,.0f} kpps of {LARGE:,} B, {bare[SMALL] / 1e3:,.0f} of {SMALL} B")


def set_up(contenders: list[Contender], hosts: tuple[Host, Host], say: Say) -> tuple[list[Tunnel], list[Missing]]:
    """Their tunnels; one of ours that does not run the engine it was asked for is stopped, and missing."""
    tunnels: list[Tunnel] = []
    missing: list[Missing] = []
    for number, contender in enumerate(contenders, 1):
        say(f"{contender.name} starts")
        try:
            tunnel = Tunnel(contender, number, hosts)
        except LabError as error:
            missing.append(Missing(contender.key, str(error).splitlines()[0]))
            continue
        if (engine := tunnel.engine()) in (None, contender.key):
            tunnels.append(tunnel)
        else:
            tunnel.stop()
            missing.append(Missing(contender.key, f"asked for {contender.key}, edge-wireguard runs {engine} here"))
    return tunnels, missing


def figures(results: Rounds, contenders: list[Contender]) -> Iterator[Figure]:
    """One per gauge: the best of ours beside the reference, and all others as further peers."""
    first = next((each for each in contenders if each.key in peers.OURS), contenders[0])
    basis = peers.reference([each for each in contenders if each is not first])
    for gauge in GAUGES:
        value = results.median(gauge.key, first.key)
        its = None if basis is None else results.median(gauge.key, basis.key)
        if value is None:
            continue
        rest = []
        for each in contenders:
            if each not in (first, basis) and (median := results.median(gauge.key, each.key)) is not None:
                by = None if basis is None else results.ratio(gauge.key, each.key, basis.key)
                rest.append((each.name, median, by))
        yield Figure(
            f"{gauge.title}: {first.key if first.key in peers.OURS else first.name}",
            value,
            gauge.unit,
            peer="nobody else took part" if basis is None or its is None else (basis.name, its),
            ratio=None if basis is None else results.ratio(gauge.key, first.key, basis.key),
            others=rest,
            better=gauge.better,
        )


def context(tunnels: list[Tunnel], missing: list[Missing], load: float) -> Iterator[Note]:
    """What was measured on and with, and who is not there and why. `load`: what others made of it (1 min)."""
    what = machine()
    yield Note("on", f"{what['cpu']}, {what['cores']} cores, Linux {what['kernel']}; load before it {load:.1f}")
    for tunnel in tunnels:
        contender = tunnel.contender
        engine = f", {contender.key} engine by its memory map" if contender.key in peers.OURS else ""
        yield Note(contender.name, f"{contender.version}{engine}")
    for absent in missing:
        yield Note(f"{absent.key}: not measured", absent.why)


def _round(
    tunnel: Tunnel, seconds: int, starts: dict[tuple[str, int], float], options: Options, say: Say, said: str
) -> Gauges:
    """Everything of one tunnel, once. `starts` remembers from where to search."""
    tunnel.forget_peak()
    say(f"{said}: ping")
    found: Gauges = dict(zip(("ping", "ping-99"), tunnel.round_trips(seconds, loaded=False), strict=True))
    say(f"{said}: TCP")
    found["tcp"], found["cpu"] = tunnel.tcp(seconds)
    found["tcp-back"], _ = tunnel.tcp(seconds, reverse=True)
    found["tcp-4"], _ = tunnel.tcp(seconds, 4)
    if options.nic_gso:
        segment_before_wire(tunnel.hosts, True)
        try:
            found["tcp-nic"], found["cpu-nic"] = tunnel.tcp(seconds)
        finally:
            segment_before_wire(tunnel.hosts, False)
    say(f"{said}: ping under TCP")
    found["ping-load"], found["ping-load-99"] = tunnel.round_trips(seconds, loaded=True)
    best: dict[int, Probe] = {}
    for size in (LARGE, SMALL):
        say(f"{said}: UDP, {size:,} B")
        probe = tunnel.udp(size, starts[tunnel.contender.key, size], min(seconds, PROBE_S_MAX))
        if probe is not None:
            best[size] = probe
            starts[tunnel.contender.key, size] = probe.pps
    if LARGE in best:
        found["udp-large"] = best[LARGE].pps * LARGE * 8 / MEGA
    if SMALL in best:
        found["udp-small"] = best[SMALL].pps / 1e3
        found["cpu-small"] = best[SMALL].cpu_s / best[SMALL].received * MEGA
    found["rss-peak"] = tunnel.peak_rss_mib()
    return found


def _bare(hosts: tuple[Host, Host], seconds: float) -> dict[int, float]:
    """Packets per second that arrive without a tunnel: what the measuring itself can."""
    wire = Range(*hosts, hosts[1].address)
    try:
        return {size: wire.probe(size, 0, seconds).pps for size in (LARGE, SMALL)}
    finally:
        wire.close()
