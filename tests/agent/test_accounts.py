"""The ledger at work in an agent: what is kept, when, what a damaged file costs, and what a budget brings about."""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeagent import config, crypto
from edgeagent.accounts import DAYLESS_S, SAMPLE_S, SAVE_SLACK_S, SAVE_SOONEST_S, Accounts
from edgeagent.context import Context
from edgeagent.io import logring
from edgeagent.io.keystore import Keystore, StateFile
from edgeagent.io.logring import LogRing
from edgeagent.proto.budget import POLICIES, UNMETERED, Level
from edgeagent.proto.ledger import SAVE_AFTER_S, Cause
from edgeagent.status import show_ledger
from edgeagent.version import BUILD_TIME_S

PROVIDER = crypto.load()
DAY_S = 86_400.0
MIDNIGHT = (BUILD_TIME_S // 86_400 + 40) * DAY_S


class Agents:
    """Starts on one state directory, each at now = 0."""

    def __init__(self, directory: Path) -> None:
        self.keystore = Keystore(str(directory))
        self.keystore.open()
        self.selector = selectors.DefaultSelector()
        self.ring = LogRing(100, None)
        logring.install(self.ring, logging.DEBUG)

    def __call__(self, **settings: str) -> Accounts:
        given = {"state-dir": self.keystore.directory, **settings}
        context = Context(
            0.0,
            settings=config.load(given, {}, "/dev/null"),
            crypto=PROVIDER,
            keystore=self.keystore,
            selector=self.selector,
            ring=self.ring,
        )
        self.context = context
        return context.accounts

    def tell_time(self, now: float, wall_s: float) -> None:
        self.context.wall.raise_to(now, wall_s)

    @property
    def path(self) -> Path:
        return Path(self.keystore.path(StateFile.LEDGER))


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    agents = Agents(tmp_path / "state")
    yield agents
    agents.context.accounts.names.close()
    agents.keystore.close()
    agents.selector.close()


class Connections:
    """As MqttLink has them."""

    def __init__(self) -> None:
        self.on_closing: Callable[[socket.socket], None] | None = None
        self.ours, self.theirs = None, None
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.ours = socket.create_connection(server.getsockname())
            self.theirs, _ = server.accept()

    def sockets(self) -> list[socket.socket]:
        return [self.ours] if self.ours is not None else []

    def send(self, size: int) -> None:
        assert self.ours is not None and self.theirs is not None
        self.ours.sendall(bytes(size))
        while size:
            size -= len(self.theirs.recv(size))

    def close(self) -> None:
        assert self.ours is not None and self.theirs is not None and self.on_closing is not None
        self.on_closing(self.ours)
        self.ours.close()
        self.theirs.close()
        self.ours = None


@pytest.fixture
def connections() -> Iterator[Connections]:
    connections = Connections()
    yield connections
    if connections.ours is not None:
        connections.close()


def live(accounts: Accounts, until: float, every_s: float, each: Callable[[float], None], since: float = 0.0) -> int:
    """Wake up `every_s`, and when the accounts want it; returns how often they did."""
    own, now, next_at = 0, since, since + every_s
    while now < until:
        due = accounts.poll_timeout()
        if due is not None and due < next_at:
            assert due > now
            now = due
            own += 1
        else:
            now = next_at
            next_at += every_s
            each(now)
        accounts.on_wake(now)
    return own


# What is kept


def test_the_next_start_goes_on_counting(agents: Agents) -> None:
    accounts = agents()
    agents.tell_time(0.0, MIDNIGHT + 3_600)
    accounts.on_wake(SAMPLE_S)
    accounts.ledger.book(10.0, "wwan0", Cause.PAYLOAD, sent=1_000)
    accounts.close(20.0)
    accounts = agents()
    accounts.ledger.book(10.0, "wwan0", Cause.PAYLOAD, sent=500)
    assert accounts.ledger.used(11.0, "wwan0") == (1_500, 1_500)
    [line] = accounts.ledger.lines(11.0)
    assert line.since_start == (500, 0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_ledger_costs_nothing_but_itself(agents: Agents, damage: str) -> None:
    accounts = agents()
    identity = agents.context.identity.device_id
    accounts.ledger.book(10.0, "wwan0", Cause.PAYLOAD, sent=1_000)
    accounts.close(20.0)
    data = agents.path.read_bytes()
    if damage == "foreign":  # whole, and no ledger
        agents.keystore.save(StateFile.LEDGER, b"\xa1\x61v\x07")
    else:
        agents.path.write_bytes({"cut": data[:-5], "flipped": data[:-1] + b"\xff", "empty": b""}[damage])
    accounts = agents()
    assert agents.context.damaged_files == 1 and agents.context.identity.device_id == identity
    assert accounts.ledger.lines(1.0) == []
    accounts.ledger.book(10.0, "wwan0", Cause.PAYLOAD, sent=7)
    accounts.close(20.0)
    assert agents().ledger.used(1.0, "wwan0") == (7, 7) and agents.context.damaged_files == 0


def test_an_idle_day_costs_few_writes_and_no_wake_ups(agents: Agents) -> None:
    accounts = agents()
    agents.tell_time(0.0, MIDNIGHT + 3_601)
    before = agents.keystore.flash_writes
    own = live(accounts, DAY_S, 150.0, lambda now: accounts.ledger.book(now, "wwan0", Cause.CONTROL, sent=76))
    assert own == 1  # midnight
    assert agents.keystore.flash_writes - before <= DAY_S / (SAVE_AFTER_S - SAVE_SLACK_S)


def test_nothing_booked_nothing_saved(agents: Agents) -> None:
    accounts = agents()
    before = agents.keystore.flash_writes
    assert live(accounts, DAY_S, 2 * DAY_S, lambda now: None) == DAY_S / DAYLESS_S  # it does not know the date
    assert agents.keystore.flash_writes == before


def test_a_device_that_sleeps_saves_when_it_has_to(agents: Agents) -> None:
    accounts = agents()
    accounts.ledger.book(10.0, "eth0", Cause.CONTROL, sent=76)
    assert not agents.path.exists()
    live(accounts, 10.0 + SAVE_AFTER_S, 2 * DAY_S, lambda now: None)
    assert agents.path.exists()


def test_much_of_a_budget_is_saved_sooner(agents: Agents) -> None:
    accounts = agents(budget="wwan0=1MB/day")
    agents.tell_time(0.0, MIDNIGHT)
    before = agents.keystore.flash_writes
    live(accounts, 3_590.0, 10.0, lambda now: accounts.ledger.book(now, "wwan0", Cause.PAYLOAD, sent=1_000))
    saved = agents.keystore.flash_writes - before
    assert saved == 5  # 360 kB, 5 % each, but not more often than SAVE_SOONEST_S
    assert saved <= 3_590 / SAVE_SOONEST_S
    assert agents().ledger.used(0.0, "wwan0")[0] >= 300_000


def test_a_disk_that_refuses_is_said_and_lived_with(agents: Agents) -> None:
    accounts = agents()
    accounts.ledger.book(1.0, "eth0", Cause.CONTROL, sent=1)
    agents.path.mkdir()
    accounts.save(2.0)
    assert agents.context.failed_writes == 1


# Connections


def test_connections_are_looked_at_when_the_device_is_awake(agents: Agents, connections: Connections) -> None:
    accounts = agents()
    accounts.watch(connections, Cause.CONTROL)
    connections.send(1_000)
    accounts.on_wake(SAMPLE_S - 1)
    assert accounts.ledger.lines(SAMPLE_S - 1) == []
    accounts.on_wake(SAMPLE_S)
    [line] = accounts.ledger.lines(SAMPLE_S)
    assert line.cause is Cause.CONTROL and line.uplink == "lo" and line.since_start[0] > 1_000
    connections.send(500)
    assert accounts.describe(6.0)["uplinks"][0]["causes"][0]["since_start"]["sent"] > line.since_start[0] + 500
    connections.send(400)
    connections.close()
    assert accounts.ledger.lines(7.0)[0].since_start[0] > line.since_start[0] + 900
    accounts.unwatch(connections)
    accounts.on_wake(100.0)


# Budgets


def test_levels_are_said_shown_and_reconnect_once(agents: Agents, connections: Connections) -> None:
    accounts = agents(budget="lo=1MB/day,9MB/month")
    accounts.watch(connections, Cause.CONTROL)
    agents.tell_time(0.0, MIDNIGHT)
    wanted = []

    def spend(now: float) -> None:
        accounts.ledger.book(now, "lo", Cause.PAYLOAD, sent=1_000)
        if accounts.reconnect_wanted:
            wanted.append(now)
            accounts.reconnect_wanted = False

    live(accounts, 9_400.0, 10.0, spend)
    said = [line for line in agents.ring.lines(100) if "lo:" in line]
    assert [line.partition("lo: ")[2] for line in said] == [
        "thrifty, was normal: 60 % of the day's budget and 7 % of the month's budget used",
        "emergency, was thrifty: 90 % of the day's budget and 10 % of the month's budget used",
    ]
    assert len(wanted) == 1 and accounts.level_changes == 2
    assert accounts.policies.level("lo") is Level.EMERGENCY
    assert accounts.control_policy(["127.0.0.1:8883"]) is POLICIES[Level.EMERGENCY]
    assert accounts.control_policy([]).keepalive_factor == 1
    assert accounts.policy is UNMETERED  # that is for where the default route leads
    accounts.names._default = "lo"
    assert accounts.policy is POLICIES[Level.EMERGENCY]
    [shown] = accounts.describe_metered(9_400.0)
    assert (shown["uplink"], shown["level"], shown["on_demand"]) == ("lo", "emergency", True)
    assert (shown["telemetry_factor"], shown["defer_bulk"]) == (24, True)
    text = show_ledger(accounts.describe(9_400.0))
    assert "payload" in text and "metered: lo: emergency, 94" in text and "bulk is to wait" in text and "TODAY" in text


def test_the_hub_s_settings_give_a_budget(agents: Agents) -> None:
    class Map:
        def __init__(self, **settings: int) -> None:
            self.settings = settings

        def setting(self, name: str, default: int, low: int, high: int) -> int:
            return min(max(self.settings.get(name, default), low), high)

    accounts = agents(metered="wwan*")
    accounts.ledger.book(1.0, "wwan0", Cause.PAYLOAD, sent=95 * 1_024)
    accounts.set_hub_budget(2.0, Map(metered_daily_kib=100, metered_monthly_kib=-5))  # type: ignore[arg-type]
    budget = accounts.policies.budget("wwan0")
    assert (budget.daily_bytes, budget.monthly_bytes) == (102_400, 0)
    assert accounts.policies.level("wwan0") is Level.EMERGENCY
    accounts.set_hub_budget(2.0, Map())  # type: ignore[arg-type]
    assert accounts.policies.level("wwan0") is Level.NORMAL


# Jobs that can wait


def test_a_deferred_job_goes_with_a_wake_up(agents: Agents) -> None:
    accounts = agents()
    done: list[float] = []
    accounts.defer("job", done.append, 100.0, 40.0)
    accounts.on_wake(50.0)
    accounts.on_wake(70.0)
    accounts.on_wake(90.0)
    assert done == [70.0]
    accounts.defer("job", done.append, 200.0, 0.0)
    assert accounts.poll_timeout() == 200.0
    accounts.on_wake(201.0)
    assert done == [70.0, 201.0]


def test_a_job_that_nobody_wants_any_more_is_not_done(agents: Agents) -> None:
    accounts, done = agents(), list[float]()
    accounts.defer("job", done.append, 10_000.0, 9_000.0)
    accounts.undefer("job")
    accounts.undefer("never")
    live(accounts, 20_000.0, 60.0, lambda now: None)
    assert not done


def test_before_anything_was_sent_the_table_says_so(agents: Agents) -> None:
    assert "nothing was sent" in show_ledger(agents().describe(1.0))
    agents.context.accounts.ledger.book(1.0, "eth0", Cause.PROBE, received=3)
    text = show_ledger(agents.context.accounts.describe(2.0))
    assert "has not told the time" in text and "LAST DAY" in text
