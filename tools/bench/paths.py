"""Between any two networks: the first answer, the direct path, gaps when something breaks, and what a relay costs.

Lines are some milliseconds long, as in life, by tests/netlab/cable.py. The table is that of tests/sim/nat.py.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator

from tests.netlab import Lab, LabError, until
from tests.netlab.flow import Flow
from tests.netlab.homes import SECOND_HOME, Homes, Member, RelayHost, way
from tests.netlab.nat import Kind
from tests.relay import bench_relay
from tests.sim import nat
from tools.bench import nebula, turn
from tools.bench.figures import Figure, bench

SIMULATED = {
    Kind.FULL: nat.FULL,
    Kind.ADDRESS: nat.ADDRESS,
    Kind.PORT: nat.PORT,
    Kind.SYMMETRIC: nat.SYMMETRIC,
    Kind.TCP_443: nat.BLOCKED,
}
LINES_MS = {Kind.FULL: 8.0, Kind.ADDRESS: 12.0, Kind.PORT: 5.0, Kind.SYMMETRIC: 20.0, Kind.TCP_443: 6.0}
RELAYS_MS = {"fra-1": 6.0, "fra-2": 8.0}
FIRST_ANSWER_S_MAX = 1.5
DIRECT_S_MAX, DIRECT_AT_WORST_S_MAX = 3.0, 10.0
UPLINK_CUT_S_MAX, REBOUND_S_MAX, KILLED_S_MAX, BLACKHOLED_S_MAX = 1.0, 5.0, 3.0, 15.0
ROUNDS = 3
FLOW_EVERY_S = 0.02
STEADY_S = 2.0  # before something breaks, and after it is mended
FORGOTTEN_S = 10.0  # a relay that failed and is back: until devices have tried it again
RECOVERY_S = 60.0
SIZES = {"1,360 B": 1_360, "100 B": 100}  # as tests/relay/bench_relay.py names them
NO_PEER = "no other with relays that fail over"


@bench
def paths(say: Callable[[str], None]) -> Iterator[Figure]:
    """The table of NAT kinds, failover, and the relay, each beside its peer where there is one."""
    say("nebula, all pairs")
    theirs = _nebula() if nebula.PROGRAM is not None else None
    with Lab() as lab:
        say("hub, relays, ten homes")
        homes = Homes(lab)
        homes.start()
        for name, delay_ms in RELAYS_MS.items():
            homes.add_relay(name, delay_ms=delay_ms)
        homes.until_online(*homes.relays)
        left, right = (
            {kind: homes.member(_name(kind, side), homes.home(kind, delay_ms=LINES_MS[kind])) for kind in SIMULATED}
            for side in "ab"
        )
        double = homes.member("double", homes.home(Kind.PORT, delay_ms=LINES_MS[Kind.PORT]))
        second = homes.home(Kind.PORT, delay_ms=LINES_MS[Kind.SYMMETRIC], prefix=SECOND_HOME)
        homes.add_uplink(double, second)
        homes.up(*left.values(), *right.values(), double)
        time.sleep(STEADY_S)
        yield from _table(homes, left, right, theirs, say)
        yield from _uplinks(homes, double, right[Kind.FULL], say)
        yield from _failover(homes, left, right, say)
    yield from _relay(say)


# All pairs


def _table(
    homes: Homes,
    left: dict[Kind, Member],
    right: dict[Kind, Member],
    theirs: list[float] | None,
    say: Callable[[str], None],
) -> Iterator[Figure]:
    answers, direct, possible = [], [], 0
    for a, b in itertools.product(SIMULATED, SIMULATED):
        say(f"{left[a].name} meets {right[b].name}")
        began = time.monotonic()
        try:
            answers.append(homes.first_answer_s(left[a], right[b]))
        except LabError:
            continue
        if nat.direct_is_possible(SIMULATED[a], SIMULATED[b]):
            possible += 1
            if homes.until_direct_s(left[a], right[b], DIRECT_AT_WORST_S_MAX) is not None:
                direct.append(time.monotonic() - began)
    pairs = len(SIMULATED) ** 2
    missing = "nebula is not installed: apt-get install nebula"
    yield Figure(
        "pairs of NAT kinds connected",
        100 * len(answers) / pairs,
        "%",
        peer=missing if theirs is None else ("nebula 1.6", 100 * len(theirs) / pairs),
        at_least=100.0,
    )
    for name, pick in (("median", statistics.median), ("worst", max)):
        yield Figure(
            f"first answer, {name} of {pairs} pairs",
            pick(answers),
            "s",
            peer=missing if theirs is None else (f"nebula 1.6, of its {len(theirs)} pairs", pick(theirs)),
            at_most=FIRST_ANSWER_S_MAX,
        )
    late = "nebula does not say which way it takes"
    yield Figure("possible pairs direct", 100 * len(direct) / possible, "%", peer=late, at_least=100.0)
    for name, pick, most in (
        ("median", statistics.median, DIRECT_S_MAX),
        ("worst", max, DIRECT_AT_WORST_S_MAX),
    ):
        yield Figure(f"first packet → direct, {name} of {possible} pairs", pick(direct), "s", peer=late, at_most=most)


def _nebula() -> list[float]:
    """First answers of all pairs that got one."""
    with Lab() as lab:
        mesh = nebula.Nebula(lab)
        left, right = (
            {kind: mesh.join(_name(kind, side), kind, LINES_MS[kind]) for kind in SIMULATED} for side in "ab"
        )
        time.sleep(nebula.SETTLE_S)
        found = [mesh.first_answer_s(left[a], right[b]) for a, b in itertools.product(SIMULATED, SIMULATED)]
    return [each for each in found if each is not None]


def _name(kind: Kind, side: str) -> str:
    return f"{kind.value.replace('_', '-')}-{side}"


# Gaps


def _failover(
    homes: Homes, left: dict[Kind, Member], right: dict[Kind, Member], say: Callable[[str], None]
) -> Iterator[Figure]:
    relayed = {
        "UDP": (left[Kind.SYMMETRIC], right[Kind.SYMMETRIC]),
        "TLS": (left[Kind.TCP_443], right[Kind.TCP_443]),
    }
    for carrier, pair in relayed.items():
        gaps = []
        for number in range(ROUNDS):
            say(f"a relay is killed, {carrier}, {number + 1} of {ROUNDS}")
            relay = _relay_between(homes, *pair)
            gaps.append(_gap_s(*pair, relay.kill))
            relay.start()
            homes.until_online(relay)
            time.sleep(FORGOTTEN_S)
        yield Figure(
            f"relay killed, {carrier}, worst gap of {ROUNDS}", max(gaps), "s", peer=NO_PEER, at_most=KILLED_S_MAX
        )
        gaps = []
        for number in range(ROUNDS):
            say(f"a relay forwards nothing, {carrier}, {number + 1} of {ROUNDS}")
            relay = _relay_between(homes, *pair)
            gaps.append(_gap_s(*pair, relay.freeze, relay.thaw))
            homes.until_online(*homes.relays)
            time.sleep(FORGOTTEN_S)
        yield Figure(
            f"relay blackholed, {carrier}, worst gap of {ROUNDS}",
            max(gaps),
            "s",
            peer=NO_PEER,
            at_most=BLACKHOLED_S_MAX,
        )
    a, b = left[Kind.PORT], right[Kind.PORT]
    assert a.router is not None
    for name, happens in (("ports", a.router.rebind), ("address", a.router.change_address)):
        gaps = []
        for number in range(ROUNDS):
            say(f"a NAT begins anew with other {name}, {number + 1} of {ROUNDS}")
            if homes.until_direct_s(a, b, RECOVERY_S) is None:
                raise LabError(f"{a.name} – {b.name}: no direct path")
            gaps.append(_gap_s(a, b, happens))
        yield Figure(
            f"NAT rebinding, other {name}, worst gap of {ROUNDS}", max(gaps), "s", peer=NO_PEER, at_most=REBOUND_S_MAX
        )


def _uplinks(homes: Homes, a: Member, b: Member, say: Callable[[str], None]) -> Iterator[Figure]:
    """`a` has two; the first is cut at its socket, then behind it, where only silence tells."""
    first, router = a.host.ports[0], a.router
    assert router is not None
    cuts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "cable pulled": (first.pull, first.plug_in),
        "router drops everything": (lambda: router.impair(loss_percent=100), router.impair),
    }
    for what, (breaks, mends) in cuts.items():
        gaps = []
        for number in range(ROUNDS):
            say(f"uplink, {what}, {number + 1} of {ROUNDS}")
            with Flow(a.host, b.address):
                until(lambda: _goes_by(a, b, first.ifname), RECOVERY_S, f"{a.name} – {b.name} by {first.ifname}")
            gaps.append(_gap_s(a, b, breaks, mends))
        name = f"uplink: {what}, worst gap of {ROUNDS}"
        yield Figure(name, max(gaps), "s", peer=NO_PEER, at_most=UPLINK_CUT_S_MAX)


def _goes_by(a: Member, b: Member, ifname: str) -> bool:
    found = way(a, b)
    status = a.request("status")
    standing_by = {uplink["state"] for uplink in status["uplinks"]} == {"alive"}
    return found is not None and (found.path, found.uplink) == ("direct", ifname) and standing_by


def _gap_s(a: Member, b: Member, breaks: Callable[[], object], mends: Callable[[], object] | None = None) -> float:
    """The longest time without an answer, fifty packets a second going, from the moment when something breaks."""
    with Flow(a.host, b.address, FLOW_EVERY_S) as flow:
        flow.until_answered(RECOVERY_S, int(STEADY_S / FLOW_EVERY_S))
        began = time.time()
        breaks()
        try:
            flow.until_answered(RECOVERY_S, int(STEADY_S / FLOW_EVERY_S))
            return flow.longest_gap_s(began)
        finally:
            if mends is not None:
                mends()


def _relay_between(homes: Homes, a: Member, b: Member) -> RelayHost:
    def found() -> RelayHost | None:
        there = way(a, b)
        return next((relay for relay in homes.relays if there is not None and relay.name == there.relay), None)

    with Flow(a.host, b.address):
        relay = until(found, RECOVERY_S, f"{a.name} – {b.name} by a relay")
    assert relay is not None
    return relay


# The relay itself


def _relay(say: Callable[[str], None]) -> Iterator[Figure]:
    say("edgerelay: throughput, idle members, latency")
    rows = {str(row["what"]): row for row in bench_relay.measure()}
    missing, one_sided = (
        "coturn is not installed: apt-get install coturn",
        "TURN is TLS on one side only",
    )
    there: dict[str, float] = {}
    if turn.PROGRAM is not None:
        for packet in SIZES:
            say(f"coturn: throughput, {packet}")
            there[packet] = turn.throughput(SIZES[packet])
        say("coturn: idle clients, latency")
        there["idle"] = turn.idle_mib()
        there["latency"] = turn.one_way_us() - bench_relay.direct_latency_s() * 1e6

    def beside(what: str, key: str, factor: float = 1.0) -> tuple[str, float] | str:
        if "tls" in what.lower():
            return one_sided
        return ("coturn 4.6", factor * there[key]) if key in there else missing

    for what, row in rows.items():
        name = f"relay, {what}"
        if "kpps per core" in row:
            packet = next(packet for packet in SIZES if f" {packet}" in what)
            peer = beside(what, packet)
            yield Figure(name, float(row["kpps per core"]), "kpps/core", peer=peer)
            peer = beside(what, packet, SIZES[packet] * 8 / 1e6)
            yield Figure(name, float(row["Gbit/s per core"]), "Gbit/s/core", peer=peer)
        elif "MiB per 1,000" in row:
            yield Figure(name, float(row["MiB per 1,000"]), "MiB", peer=beside(what, "idle"))
        else:
            yield Figure(f"{name}: added", float(row["added median µs"]), "µs", peer=beside(what, "latency"))
