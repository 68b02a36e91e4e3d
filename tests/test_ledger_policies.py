"""Which uplinks are metered, what they may take, and how the agent behaves as that is used up, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.budget import POLICIES, RULES_MAX, UNMETERED, Budget, BudgetRules, Level, read_budgets
from edgeagent.proto.ledger import UPLINKS_MAX, Cause, Ledger
from edgeagent.proto.policies import KNOWN_MAX, Policies

DAY_S = 86_400.0
FIRST_OF_MAY = 1_777_593_600.0


def sizes(budget: Budget) -> tuple[bool, int, int]:
    return budget.metered, budget.daily_bytes, budget.monthly_bytes


@pytest.mark.parametrize(
    ("metered", "names"),
    [
        ("auto", {"wwan0", "wwp0s20u4", "wwx001e101f0000", "ppp0", "ppp12", "usb0", "rmnet_data0", "3g-wan", "4g-lte"}),
        ("none", set()),
        ("eth1", {"eth1"}),
        ("eth1, wlan*", {"eth1", "wlan0", "wlan"}),
        ("*", {"wwan0", "eth0", "pppoe-wan", "x"}),
        ("*n0", {"wwan0", "xwwan0", "n0"}),
        ("auto,eth1", {"wwan0", "eth1"}),
    ],
)
def test_metered_uplinks(metered: str, names: set[str]) -> None:
    rules = BudgetRules(metered)
    for name in names:
        assert rules.of(name).metered, name
    if metered != "*":
        for name in {"eth2", "br-lan", "pppoe-wan", "usbhub", "wwan", "xwwan0", "eth10"} - names:
            assert not rules.of(name).metered, name


@pytest.mark.parametrize(
    ("text", "uplink", "daily", "monthly"),
    [
        ("wwan0=2MB/day,60MB/month", "wwan0", 2_000_000, 60_000_000),
        (" wwan0 = 1.5MiB/day ", "wwan0", 1_572_864, 0),
        ("eth0=1B/month", "eth0", 0, 1),
        ("wwan0=1kB/day,ppp*=2KiB/day,3GB/month", "ppp3", 2_048, 3_000_000_000),
        ("wwan0=1kB/day,wwan*=2kB/day", "wwan0", 1_000, 0),  # the first that fits
        ("wwan*=1kB/day,wwan0=2kB/day", "wwan0", 1_000, 0),
        ("*=999999GiB/day", "any", 999_999 << 30, 0),
    ],
)
def test_budgets(text: str, uplink: str, daily: int, monthly: int) -> None:
    assert sizes(BudgetRules("none", text).of(uplink)) == (True, daily, monthly)


@pytest.mark.parametrize(
    "text",
    [
        "2MB/day",
        "wwan0",
        "wwan0=",
        "wwan0=2MB",
        "wwan0=2MB/week",
        "wwan0=0MB/day",
        "wwan0=-1MB/day",
        "wwan0=1e3B/day",
        "wwan0=1234567B/day",
        "wwan0=2Mb/day",
        "wwan0=2 MB/day",
        "wwan0=0.0001B/day",
        "wwan0=2MB/day,2MB/day",
        "wwan0=2MB/day,wwan0=1MB/month",
        "=2MB/day",
        "a/b=2MB/day",
        "wwan0=2MB/day,",
        ",wwan0=2MB/day",
        ",".join(f"e{number}=1B/day" for number in range(RULES_MAX + 1)),
        "wwan0=٣MB/day",
    ],
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match="interface"):
        BudgetRules("auto", text)


@pytest.mark.parametrize("text", ["", "a b", "none,eth0", "eth0,,eth1", "x" * 16, "eth0;eth1", "(.*)", "a," * 16 + "a"])
def test_what_is_no_list_of_interfaces(text: str) -> None:
    with pytest.raises(ValueError, match="interface names"):
        BudgetRules(text)


@given(st.text(max_size=60) | st.text("wan0*=,.12MBkday/month ", max_size=60))
def test_any_text_is_a_budget_or_refused(text: str) -> None:
    try:
        rules = read_budgets(text)
    except ValueError as error:
        assert "interface" in str(error)
    else:
        assert all(budget.metered for _, budget in rules) and bool(rules) == bool(text)


def test_the_hub_s_budget_is_for_those_without_one() -> None:
    policies = Policies(Ledger(), BudgetRules("wwan*", "wwan1=5kB/day"))
    assert sizes(policies.budget("wwan0")) == (True, 0, 0)
    policies.set_defaults(0.0, 1_024, 4_096)
    assert sizes(policies.budget("wwan0")) == (True, 1_024, 4_096)
    assert sizes(policies.budget("wwan1")) == (True, 5_000, 0)
    assert sizes(policies.budget("eth0")) == (False, 0, 0)
    for number in range(2 * KNOWN_MAX):
        assert policies.budget(f"wwan{number + 2}").metered
    assert len(policies._budgets) <= KNOWN_MAX


def test_a_budget_that_is_used_up_changes_behaviour_and_midnight_changes_it_back() -> None:
    ledger = Ledger()
    ledger.set_wall(0.0, FIRST_OF_MAY)
    policies = Policies(ledger, BudgetRules("auto", "wwan0=2MB/day,60MB/month"))
    assert policies.of("eth0") is UNMETERED
    assert policies.of("wwan0") is POLICIES[Level.NORMAL]
    said = []
    for minute in range(26 * 60):
        now = 60.0 * minute
        if minute < 1_300:
            ledger.book(now, "wwan0", Cause.PAYLOAD, sent=800, received=700)
            ledger.book(now, "eth0", Cause.PAYLOAD, sent=10**9)
        policies.assess(now)
        for event in policies.drain_events():
            said.append((minute, event.uplink, event.before, event.level))
            assert policies.of("wwan0") is POLICIES[event.level]
            assert event.day is not None and event.month is not None
            assert event.day > event.month or event.level is Level.NORMAL
    assert said == [
        (799, "wwan0", Level.NORMAL, Level.THRIFTY),  # 1.2 MB
        (1_199, "wwan0", Level.THRIFTY, Level.EMERGENCY),  # 1.8 MB
        (1_440, "wwan0", Level.EMERGENCY, Level.NORMAL),
    ]


def test_an_uplink_that_gave_way_in_the_ledger_has_no_level() -> None:
    ledger = Ledger()
    policies = Policies(ledger, BudgetRules("auto", "wwan0=1kB/day"))
    ledger.book(0.0, "wwan0", Cause.PAYLOAD, sent=950)
    policies.assess(0.0)
    assert policies.level("wwan0") is Level.EMERGENCY
    for number in range(UPLINKS_MAX):
        ledger.book(1.0, f"eth{number}", Cause.PAYLOAD, sent=10_000)
    assert "wwan0" not in ledger.uplinks
    policies.assess(1.0)
    assert policies.level("wwan0") is Level.NORMAL


def test_parts_of_budgets() -> None:
    ledger = Ledger()
    policies = Policies(ledger, BudgetRules("auto", "wwan0=1kB/day,ppp0=2kB/month"))
    for uplink in ("wwan0", "ppp0", "usb0"):
        ledger.book(0.0, uplink, Cause.CONTROL, sent=300, received=200)
    assert [policies.used(1.0, uplink) for uplink in ("wwan0", "ppp0", "usb0", "none")] == [
        (0.5, None),
        (None, 0.25),
        (None, None),
        (None, None),
    ]
