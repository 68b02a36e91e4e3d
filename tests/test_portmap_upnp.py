"""The plan for UPnP on a virtual clock, and its jobs with a miniupnpc of the test's own."""

from __future__ import annotations

import sys
from itertools import pairwise
from socket import inet_ntoa
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.io import upnpjob
from edgeagent.io.upnp import UpnpWorker, read_outcome
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.portmap_upnp import (
    CLOSINGS_MAX,
    LEASE_S,
    PORT_TRIES_MAX,
    WAIT_MIN_S,
    Done,
    Job,
    Outcome,
    Target,
    UpnpFailure,
    UpnpPlan,
    Want,
)

GATEWAY, OWN, OUTSIDE = bytes((192, 168, 1, 1)), bytes((192, 168, 1, 7)), bytes((203, 0, 113, 9))
PORT = 41_641
ETH0: Target = ("eth0", GATEWAY, OWN, PORT)
WLAN0: Target = ("wlan0", bytes((10, 0, 0, 1)), bytes((10, 0, 0, 9)), PORT)
JOB_TIMEOUT_S = 20.0


def take(plan: UpnpPlan, now: float) -> tuple[Want, str, int]:
    job = plan.next_job(now)
    assert job is not None
    return job.want, job.uplink, job.outside_port


def opened(plan: UpnpPlan, now: float, *targets: Target) -> None:
    plan.want(now, list(targets))
    for target in targets:
        assert take(plan, now) == (Want.OPEN, target[0], PORT)
        plan.finished(now, Done(OUTSIDE))


def test_a_port_is_opened_renewed_and_closed() -> None:
    plan = UpnpPlan(lambda: 0.0)
    assert plan.poll_timeout() is None and plan.next_job(0.0) is None
    opened(plan, 100.0, ETH0)
    assert plan.mappings() == [("eth0", (OUTSIDE, PORT))]
    renew_at = plan.poll_timeout()
    assert renew_at == 100.0 + LEASE_S / 2
    assert plan.next_job(renew_at - 1) is None
    assert take(plan, renew_at) == (Want.OPEN, "eth0", PORT)
    assert plan.poll_timeout() == 100.0 + LEASE_S  # only the end of the lease, while the job runs
    plan.finished(renew_at, Done(OUTSIDE))
    plan.want(renew_at + 1, [ETH0])
    assert plan.next_job(renew_at + 1) is None
    plan.close(renew_at + 2)
    assert plan.mappings() == [] and take(plan, renew_at + 2) == (Want.CLOSE, "eth0", PORT)
    plan.finished(renew_at + 2, Done(OUTSIDE))
    assert plan.next_job(1e9) is None and plan.poll_timeout() is None


def test_one_job_at_a_time() -> None:
    plan = UpnpPlan(lambda: 0.0)
    plan.want(0.0, [ETH0, WLAN0])
    assert take(plan, 0.0)[1] == "eth0"
    assert plan.next_job(0.0) is None
    plan.finished(1.0, UpnpFailure.NO_ROUTER)
    failures = [plan.failure]
    assert take(plan, 1.0)[1] == "wlan0"
    plan.finished(2.0, Done(OUTSIDE))
    assert [*failures, plan.failure] == [UpnpFailure.NO_ROUTER, None]
    assert plan.mappings() == [("wlan0", (OUTSIDE, PORT))]
    with pytest.raises(LocalProtocolError):
        plan.finished(2.0, Done(OUTSIDE))


def test_a_router_that_is_not_there_is_asked_less_and_less() -> None:
    plan = UpnpPlan(lambda: 0.5)
    plan.want(0.0, [ETH0])
    asked: list[float] = []
    while len(asked) < 6:
        now = plan.poll_timeout()
        assert now is not None
        asked.append(now)
        take(plan, now)
        assert plan.poll_timeout() is None
        plan.finished(now, UpnpFailure.NO_ROUTER)
    waits = [b - a for a, b in pairwise(asked)]
    assert waits[0] >= WAIT_MIN_S and waits == sorted(waits)


def test_a_port_that_is_taken_gives_way_to_others_for_a_while() -> None:
    plan = UpnpPlan(lambda: 0.25)
    plan.want(0.0, [ETH0])
    ports = []
    for _ in range(PORT_TRIES_MAX):
        ports.append(take(plan, 0.0)[2])
        plan.finished(0.0, UpnpFailure.PORT_TAKEN)
    assert ports[0] == PORT and all(port >= 49_152 for port in ports[1:])
    assert plan.next_job(0.0) is None
    again = plan.poll_timeout()
    assert again is not None
    take(plan, again)
    plan.finished(again, Done(OUTSIDE))
    assert plan.mappings() == [("eth0", (OUTSIDE, ports[-1]))]


def test_a_lease_that_cannot_be_renewed_ends() -> None:
    plan = UpnpPlan(lambda: 0.0)
    opened(plan, 0.0, ETH0)
    now = 0.0
    while plan.mappings():
        at = plan.poll_timeout()
        assert at is not None and at >= now
        now = at
        plan.handle_timeout(now)
        if plan.next_job(now) is not None:
            plan.finished(now, UpnpFailure.REFUSED)
    assert now == LEASE_S


def test_an_address_of_no_use_is_no_mapping() -> None:
    for address in (bytes(4), bytes((127, 0, 0, 1)), bytes((224, 0, 0, 1))):
        plan = UpnpPlan(lambda: 0.0)
        plan.want(0.0, [ETH0])
        take(plan, 0.0)
        plan.finished(0.0, Done(address))
        assert plan.mappings() == [] and plan.next_job(WAIT_MIN_S - 1) is None


def test_what_changes_while_a_job_runs_is_closed_and_opened_anew() -> None:
    plan = UpnpPlan(lambda: 0.0)
    plan.want(0.0, [ETH0])
    take(plan, 0.0)
    moved: Target = ("eth0", GATEWAY, bytes((192, 168, 1, 8)), PORT)
    plan.want(0.1, [moved])
    plan.finished(0.2, Done(OUTSIDE))
    assert plan.mappings() == []
    job = plan.next_job(0.2)
    assert job is not None and (job.want, job.own) == (Want.CLOSE, OWN)
    plan.finished(0.3, Done(OUTSIDE))
    job = plan.next_job(0.3)
    assert job is not None and (job.want, job.own) == (Want.OPEN, moved[2])


def test_without_the_package_nothing_is_asked_again() -> None:
    plan = UpnpPlan(lambda: 0.0)
    plan.want(0.0, [ETH0, WLAN0])
    take(plan, 0.0)
    plan.finished(0.0, UpnpFailure.NOT_INSTALLED)
    assert not plan.available and plan.poll_timeout() is None
    assert plan.next_job(1e9) is None


steps = st.lists(
    st.tuples(
        st.sampled_from(["want", "none", "both", "other", "run", "wait"]),
        st.sampled_from([Done(OUTSIDE), Done(bytes(4)), *UpnpFailure]),
        st.floats(0, 5_000),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_is_open_is_closed_in_the_end(steps: list[tuple[str, Outcome, float]]) -> None:
    plan, now = UpnpPlan(lambda: 0.5), 0.0
    open_ports: dict[tuple[str, bytes, int], float] = {}  # what the router has, and until when
    job: Job | None = None

    def finish(outcome: Outcome) -> None:
        nonlocal job
        assert job is not None
        key = (job.uplink, job.own, job.outside_port)
        if isinstance(outcome, Done) and outcome.address == OUTSIDE:
            if job.want is Want.OPEN:
                open_ports[key] = now + LEASE_S
            else:
                open_ports.pop(key, None)
        plan.finished(now, outcome)
        job = None

    for what, outcome, seconds in steps:
        wishes = {"want": [ETH0], "none": [], "both": [ETH0, WLAN0], "other": [("eth0", GATEWAY, OWN, PORT + 1)]}
        if what in wishes:
            plan.want(now, wishes[what])
        elif what == "wait":
            now += seconds
        elif job is not None:
            finish(outcome)
        job = job or plan.next_job(now)
        plan.handle_timeout(now)
        for uplink, where in plan.mappings():
            assert any(key[0] == uplink and key[2] == where[1] for key in open_ports)
    plan.close(now)
    for _ in range(CLOSINGS_MAX + 2):
        if job is not None:
            finish(Done(OUTSIDE))
        job = plan.next_job(now)
    assert job is None and plan.poll_timeout() is None


class Router:
    """What the fake miniupnpc speaks to."""

    def __init__(self) -> None:
        self.discoveries = 0
        self.there = True
        self.control = "http://192.168.1.1:5000/ctl/IPConn"
        self.address = "203.0.113.9"
        self.errors: list[str] = []  # of the next requests for a port
        self.calls: list[tuple[Any, ...]] = []

    def module(self) -> ModuleType:
        router = self

        class UPnP:
            def __init__(self, *options: Any) -> None:
                router.calls.append(options)

            def discover(self) -> int:
                router.discoveries += 1
                if not router.there:
                    raise Exception("Success")
                return 1

            def selectigd(self) -> str:
                return router.control

            def externalipaddress(self) -> str:
                if not router.there:
                    raise Exception("Miniupnpc HTTP error")
                return router.address

            def addportmapping(self, *wish: Any) -> bool:
                router.calls.append(wish)
                if router.errors:
                    raise Exception(router.errors.pop(0))
                return True

            def deleteportmapping(self, *what: Any) -> bool:
                router.calls.append(what)
                return True

        module = ModuleType("miniupnpc")
        module.UPnP = UPnP  # type: ignore[attr-defined]
        return module


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    router = Router()
    monkeypatch.setitem(sys.modules, "miniupnpc", router.module())
    monkeypatch.setattr(upnpjob, "confine", lambda: None)  # it is this process here
    return router


def do(want: Want = Want.OPEN, port: int = PORT) -> Outcome:
    """One job, without the process around it."""
    _, gateway, own, inside = ETH0
    said = upnpjob.run(want.value, inet_ntoa(gateway), inet_ntoa(own), inside, port, LEASE_S)
    return read_outcome(said.encode())


def test_the_job_opens_and_closes(router: Router) -> None:
    for want in (Want.LOOK, Want.OPEN, Want.CLOSE):
        outcome = do(want)
        assert isinstance(outcome, Done) and outcome.address == OUTSIDE
    assert [call for call in router.calls if call != ("192.168.1.7", None, 1_000, 0)] == [
        (PORT, "UDP", "192.168.1.7", PORT, "edgeagent", "", LEASE_S),
        (PORT, "UDP"),
    ]


def test_the_job_knows_the_errors_that_matter(router: Router) -> None:
    router.errors = ["OnlyPermanentLeasesSupported"]
    assert isinstance(do(), Done) and router.calls[-1][-1] == 0
    for text, failure in (
        ("ConflictInMappingEntry", UpnpFailure.PORT_TAKEN),
        ("ConflictWithOtherMechanisms", UpnpFailure.PORT_TAKEN),
        ("Action Failed", UpnpFailure.REFUSED),
    ):
        router.errors = [text]
        assert do() is failure
    assert isinstance(do(), Done)
    router.address = "nonsense"
    assert do() is UpnpFailure.REFUSED


def test_the_job_believes_the_gateway_only(router: Router) -> None:
    for control in ("http://192.168.1.66:5000/ctl", "http://192.168.1.11/ctl", "nonsense", ""):
        router.control = control
        assert do() is UpnpFailure.NOT_THE_GATEWAY
    router.there = False
    assert do() is UpnpFailure.NO_ROUTER


def test_the_job_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "miniupnpc", None)
    assert do() is UpnpFailure.NOT_INSTALLED


def test_a_worker_closed_under_way_ends_quietly() -> None:
    worker = UpnpWorker()
    worker._command = [sys.executable, "-I", "-S", "-c", ""]
    worker.start(Job(Want.OPEN, ETH0, PORT))
    worker.close()
    assert worker.wait(JOB_TIMEOUT_S)
