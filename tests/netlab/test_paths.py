"""Real agents behind real routers: direct wherever the oracle of tests.sim.nat says so, else by a relay.

The pairs of the table beyond the main ones are marked `matrix`. What takes how long is a figure of `./dev bench paths`.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.netlab import Lab, rights, until
from tests.netlab.flow import Flow
from tests.netlab.homes import Homes, Member, RelayHost, Way, is_direct, way
from tests.netlab.nat import Kind
from tests.sim import nat

pytestmark = pytest.mark.long

DIRECT_AT_WORST_S = 10.0
RELAYED_FOR_S = 5.0  # a second search has begun by then
RECOVERY_S = 60.0  # a deadline, no figure
STEADY = 20  # answers to as many requests in a row
WARM = 5

SIMULATED = {
    Kind.FULL: nat.FULL,
    Kind.ADDRESS: nat.ADDRESS,
    Kind.PORT: nat.PORT,
    Kind.SYMMETRIC: nat.SYMMETRIC,
    Kind.UDP_BLOCKED: nat.BLOCKED,
    Kind.TCP_443: nat.BLOCKED,
}
TABLE = (Kind.FULL, Kind.ADDRESS, Kind.PORT, Kind.SYMMETRIC, Kind.UDP_BLOCKED)


def possible(a: Kind, b: Kind) -> bool:
    return nat.direct_is_possible(SIMULATED[a], SIMULATED[b])


def by_luck(*kinds: Kind) -> bool:
    """Where guessing among 64,512 ports may succeed."""
    return set(kinds) == {Kind.PORT, Kind.SYMMETRIC}


class Outcome:
    """What came of one pair, seen from both sides."""

    def __init__(self, there: Way | None, back: Way | None, steady: bool) -> None:
        self.there = there
        self.back = back
        self.steady = steady

    def __repr__(self) -> str:
        return f"there {self.there}, back {self.back}, {'steady' if self.steady else 'with losses'}"

    @property
    def direct(self) -> bool:
        return all(each is not None and each.path == "direct" for each in (self.there, self.back))

    @property
    def relayed(self) -> bool:
        return all(each is not None and each.path == "relay" for each in (self.there, self.back))


def meet(pairs: list[tuple[Member, Member, bool]]) -> dict[tuple[str, str], Outcome]:
    """Pairs that have not spoken yet, and whether a direct path is expected of them: all talk at once."""
    outcomes = {}
    homes_apart = [(a, b) for a, b, _ in pairs]
    with ExitStack() as stack:
        flows = {}
        for a, b in homes_apart:
            assert a.host.ping(b.address, 10) is not None, f"{a.name} does not reach {b.name}"
            flows[a, b] = stack.enter_context(Flow(a.host, b.address))
        for a, b, direct in pairs:
            if direct:
                until(lambda a=a, b=b: is_direct(a, b) and is_direct(b, a), DIRECT_AT_WORST_S, f"{a.name} – {b.name}")  # type: ignore[misc]
        for flow in flows.values():
            flow.until_answers(RECOVERY_S, int(RELAYED_FOR_S / flow.interval_s))
        for (a, b), flow in flows.items():
            outcomes[a.name, b.name] = Outcome(way(a, b), way(b, a), is_steady(flow))
    return outcomes


def is_steady(flow: Flow) -> bool:
    """Whether the newest requests were all answered."""
    newest = [number for _, number, _ in flow.answers()][-STEADY:]
    return newest == list(range(newest[0], newest[0] + STEADY))


def make(lab: Lab) -> Homes:
    homes = Homes(lab)
    homes.start("fra-1", "fra-2")
    return homes


def join(homes: Homes, members: list[Member]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(homes.up, members))


# The table, in full


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[Kind, Kind], Outcome]]:
    """Two homes of each kind: every pair of kinds has a pair of devices that spoke to nobody else of that kind."""
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        homes = make(lab)
        left = {kind: homes.member(f"{kind.value.replace('_', '-')}-a", homes.home(kind)) for kind in TABLE}
        right = {kind: homes.member(f"{kind.value.replace('_', '-')}-b", homes.home(kind)) for kind in TABLE}
        join(homes, [*left.values(), *right.values()])
        pairs = {(a, b): (left[a], right[b], possible(a, b)) for a, b in itertools.product(TABLE, TABLE)}
        outcomes = meet(list(pairs.values()))
        yield {kinds: outcomes[a.name, b.name] for kinds, (a, b, _) in pairs.items()}


@pytest.mark.matrix
@pytest.mark.parametrize(("a", "b"), list(itertools.product(TABLE, TABLE)), ids=lambda kind: kind.value)
def test_every_pair_of_kinds(table: dict[tuple[Kind, Kind], Outcome], a: Kind, b: Kind) -> None:
    outcome = table[a, b]
    assert outcome.steady, outcome
    if possible(a, b):
        assert outcome.direct, outcome
    else:
        assert outcome.relayed or by_luck(a, b), outcome


# The main kinds, and what happens to them later


class Site:
    """The internet and its homes for all tests below; each leaves it in order."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.homes = homes = make(lab)
        turning, plain = homes.carrier(Kind.HAIRPIN), homes.carrier(Kind.PORT, "100.64.1.0/24")
        shared = homes.home(Kind.PORT)
        where = {
            "full": homes.home(Kind.FULL),
            "port": homes.home(Kind.PORT),
            "port-too": homes.home(Kind.PORT),
            "symmetric": homes.home(Kind.SYMMETRIC),
            "symmetric-too": homes.home(Kind.SYMMETRIC),
            "blocked": homes.home(Kind.UDP_BLOCKED),
            "office": homes.home(Kind.TCP_443),
            "turned": homes.home(Kind.FULL, turning.inside),
            "turned-too": homes.home(Kind.FULL, turning.inside),
            "carried": homes.home(Kind.FULL, plain.inside),
            "carried-too": homes.home(Kind.FULL, plain.inside),
            "phone": shared,
            "printer": shared,
        }
        self.members = {name: homes.member(name, router) for name, router in where.items()}
        self.members["clerk"] = homes.clerk("clerk", homes.office())
        join(homes, list(self.members.values()))
        self.outcomes = meet([(self.members[a], self.members[b], direct) for a, b, direct in MAIN])

    def relay_between(self, a: Member, b: Member) -> RelayHost:
        """By which both send at present."""
        found = way(a, b)
        return next(relay for relay in self.homes.relays if found is not None and relay.name == found.relay)


MAIN = [
    ("full", "symmetric", True),
    ("port", "port-too", True),
    ("full", "port", True),
    ("turned", "turned-too", True),  # two homes of a carrier whose router turns packets back (RFC 4787, REQ-9)
    ("carried", "carried-too", False),  # and of one that does not
    ("phone", "printer", True),
    ("port", "symmetric-too", False),
    ("symmetric", "symmetric-too", False),
    ("blocked", "port", False),
    ("port", "office", False),
    ("office", "blocked", False),
    ("clerk", "full", False),
]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


@pytest.mark.parametrize(("a", "b", "direct"), MAIN)
def test_the_main_kinds(site: Site, a: str, b: str, direct: bool) -> None:
    outcome = site.outcomes[a, b]
    assert outcome.steady, outcome
    if direct:
        assert outcome.direct, outcome
    else:
        kinds = [router.kind for name in (a, b) if (router := site.members[name].router) is not None]
        assert outcome.relayed or by_luck(*kinds), outcome


def test_two_devices_in_one_home_meet_at_home(site: Site) -> None:
    there = site.outcomes["phone", "printer"].there
    assert there is not None and (there.kind, there.endpoint) == ("lan", "192.168.1.3:51820")


def test_wg_shows_peers_by_relay_too(site: Site) -> None:
    office, blocked = site.members["office"], site.members["blocked"]
    shown = office.host.run("wg", "show", "edge0").stdout
    assert "latest handshake" in shown and way(office, blocked) is not None


@pytest.mark.parametrize("name", ["blocked", "office", "clerk"])
def test_without_udp_the_relay_is_reached_by_tls(site: Site, name: str) -> None:
    relays = site.members[name].request("status")["relays"]
    assert [relay["carrier"] for relay in relays if relay["home"]] == ["tls"]


@pytest.mark.parametrize(("a", "b"), [("symmetric", "symmetric-too"), ("office", "blocked")], ids=["udp", "tls"])
def test_a_relay_is_killed(site: Site, a: str, b: str) -> None:
    first, second = site.members[a], site.members[b]
    killed = site.relay_between(first, second)
    with Flow(first.host, second.address) as flow:
        flow.until_answered(RECOVERY_S, WARM)
        killed.kill()
        until(lambda: relays_used(first, second).isdisjoint({killed.name, None}), RECOVERY_S, "both at the other relay")
        flow.until_answered(RECOVERY_S, STEADY)
        assert is_steady(flow)
    killed.start()
    site.homes.until_online(killed)


@pytest.mark.parametrize(("a", "b"), [("symmetric", "symmetric-too"), ("office", "blocked")], ids=["udp", "tls"])
def test_a_relay_takes_everything_and_forwards_nothing(site: Site, a: str, b: str) -> None:
    first, second = site.members[a], site.members[b]
    blind = site.relay_between(first, second)
    with Flow(first.host, second.address) as flow:
        flow.until_answered(RECOVERY_S, WARM)
        with blind.frozen():
            until(lambda: relays_used(first, second).isdisjoint({blind.name, None}), RECOVERY_S, "the other relay")
            flow.until_answered(RECOVERY_S, STEADY)
            assert is_steady(flow)
    site.homes.until_online(blind)


@pytest.mark.parametrize(
    "happens",
    [lambda router: router.rebind(), lambda router: router.change_address()],
    ids=["ports", "address"],
)
def test_the_router_of_a_device_begins_anew_mid_flow(site: Site, happens: Callable[[object], None]) -> None:
    a, b = site.members["port"], site.members["port-too"]
    assert a.router is not None
    with Flow(a.host, b.address) as flow:
        until(lambda: is_direct(a, b) and is_direct(b, a), RECOVERY_S, "a direct path")
        flow.until_answered(RECOVERY_S, WARM)
        before = way(b, a)
        happens(a.router)
        flow.until_answered(RECOVERY_S, WARM)
        until(lambda: is_direct(a, b) and is_direct(b, a), RECOVERY_S, "a direct path again")
        flow.until_answered(RECOVERY_S, STEADY)
        after = way(b, a)
        assert is_steady(flow)
    assert before is not None and after is not None and before.endpoint != after.endpoint


@pytest.mark.parametrize(
    ("a", "b", "end"),
    [
        ("full", "symmetric", "killed"),
        ("full", "symmetric", "stopped"),  # it has saved all that it knows
        ("office", "port", "killed"),
        pytest.param("office", "port", "stopped", marks=pytest.mark.matrix),
    ],
)
def test_an_agent_ends_and_comes_back(site: Site, a: str, b: str, end: str) -> None:
    first, second = site.members[a], site.members[b]
    with Flow(second.host, first.address) as flow:
        flow.until_answered(RECOVERY_S)
        if end == "killed":
            os.kill(first.pid(), signal.SIGKILL)
        else:
            first.host.run("edgeagent", "down")
        until(lambda: first.request("version") is None, RECOVERY_S, "the end of it")
        first.up()
        flow.until_answered(RECOVERY_S, WARM)
        if possible(first.router.kind, second.router.kind):  # type: ignore[union-attr]
            until(lambda: is_direct(first, second) and is_direct(second, first), RECOVERY_S, "a direct path again")
        flow.until_answered(RECOVERY_S, STEADY)
        assert is_steady(flow)


def relays_used(a: Member, b: Member) -> set[str | None]:
    """By which relays the two send; None for a side that has no relayed path."""
    found = (way(a, b), way(b, a))
    return {None if each is None else each.relay for each in found}
