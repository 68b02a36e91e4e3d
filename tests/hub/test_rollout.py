"""The rollout engine alone: what each state leads to, groups, windows, retries, and what must hold whatever happens."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto.updatestate import UpdateState
from hub.core import rollout as engine
from hub.core import windows
from hub.core.model import HubError
from hub.core.rollout import (
    STATES,
    TRIAL_S,
    Counts,
    Event,
    Group,
    Plan,
    Progress,
    Rollout,
    RolloutDevice,
    RolloutKind,
    RolloutState,
    decode_plan,
    read_groups,
)
from tests.hub.kit import DAY_S, WALL_S


def make(total: int = 100, *, approved: bool = True, **plan: object) -> Rollout:
    made = Rollout(1, RolloutKind.VERSION, "", Plan(version="2", **plan), "cli:x", WALL_S, total)  # type: ignore[arg-type]
    engine.move(made, Event.SUBMIT, WALL_S)
    if approved:
        engine.approve(made, WALL_S, "user:ada")
    return made


# States


def test_every_state_has_a_way_out_but_the_last_two() -> None:
    left = {state for state, _ in STATES}
    assert {state for state in RolloutState if state not in left} == {RolloutState.DONE, RolloutState.ABORTED}
    assert all((state, Event.ABORT) in STATES for state in RolloutState if state.is_open)
    assert len(engine.print_table().splitlines()) == len(STATES)


def test_what_makes_no_sense_says_what_would() -> None:
    rollout = make(approved=False)
    with pytest.raises(
        HubError, match=r"it is awaiting-approval, and resume makes no sense then\. What can be done: app"
    ):
        engine.resume(rollout, Counts(), WALL_S)
    engine.move(rollout, Event.ABORT, WALL_S)
    with pytest.raises(HubError, match=r"it is aborted, and pause makes no sense then\. Make a new one"):
        engine.move(rollout, Event.PAUSE, WALL_S)


def test_a_canary_then_soak_then_a_tenth() -> None:
    rollout = make(soak_s=600)
    assert engine.step(rollout, Counts(pending=100, candidates=80), WALL_S) == 1
    assert engine.step(rollout, Counts(pending=99, under_way=1, under_way_online=1, candidates=79), WALL_S) == 0
    after = Counts(pending=99, done=1, candidates=79)
    assert engine.step(rollout, after, WALL_S + 60) == 0 and rollout.state is RolloutState.SOAKING
    assert engine.step(rollout, after, WALL_S + 659) == 0 and rollout.state is RolloutState.SOAKING
    assert engine.step(rollout, after, WALL_S + 660) == 9 and rollout.group == 1


def test_one_failed_canary_pauses_it_and_a_person_may_resume_over_that() -> None:
    rollout = make(soak_s=0)
    failed = Counts(pending=99, failed=1, candidates=9)
    assert engine.step(rollout, failed, WALL_S) == 0
    assert rollout.state is RolloutState.PAUSED and rollout.why == "1 of 1 failed; 10 % pause it"
    engine.resume(rollout, failed, WALL_S)
    assert engine.step(rollout, failed, WALL_S) == 9 and rollout.group == 1
    assert engine.step(rollout, replace(failed, pending=98, failed=2), WALL_S) == 0
    assert rollout.why == "2 of 2 failed; 10 % pause it"


def test_a_number_of_failures_pauses_it_whatever_the_share() -> None:
    rollout = make(fail_count=3, fail_percent=0)
    assert engine.too_many(rollout, Counts(pending=50, done=40, failed=2)) == ""
    assert engine.too_many(rollout, Counts(pending=50, done=40, failed=3)) == "3 of 43 failed; 3 pause it"


def test_each_group_may_need_approval() -> None:
    rollout = make(soak_s=0, each=True)
    assert engine.step(rollout, Counts(pending=99, done=1, candidates=9), WALL_S) == 0
    assert rollout.state is RolloutState.AWAITING and rollout.why == "group 2 of 4"
    engine.approve(rollout, WALL_S, "user:ada")
    assert engine.step(rollout, Counts(pending=99, done=1, candidates=9), WALL_S) == 9


def test_those_who_are_offline_hold_nobody_up_but_are_waited_for() -> None:
    rollout = make(soak_s=0, groups=(Group(count=4), Group(percent=100)), wait_s=3_600, patience_s=DAY_S)
    two_of_four = Counts(pending=98, done=2)
    assert engine.step(rollout, two_of_four, WALL_S + 60) == 0 and rollout.group == 0
    assert rollout.why == "2 more are to be begun, but not online"
    assert engine.step(rollout, two_of_four, WALL_S + 3_600) == 0 and rollout.group == 1
    assert engine.step(rollout, replace(two_of_four, candidates=1), WALL_S + 3_600) == 1 and rollout.is_last
    late = Counts(pending=90, done=10)
    assert engine.step(rollout, late, WALL_S + 3_600 + DAY_S - 1) == 0 and rollout.state is RolloutState.RUNNING
    assert engine.step(rollout, late, WALL_S + 3_600 + DAY_S) == 0 and rollout.state is RolloutState.DONE
    assert rollout.why == "10 done, 0 failed, 90 never came to an end"


def test_nothing_begins_outside_of_its_window() -> None:
    rollout = make(windows=windows.read("mon 02:00-03:00", "UTC"))
    monday = int(datetime(2027, 1, 18, 1, 59, tzinfo=UTC).timestamp())
    assert engine.step(rollout, Counts(pending=100, candidates=9), monday) == 0
    assert rollout.why == "waits for its window: mon 02:00-03:00 (UTC)"
    assert engine.step(rollout, Counts(pending=100, candidates=9), monday + 60) == 1


# Windows


@pytest.mark.parametrize(
    ("text", "zone", "at", "is_open"),
    [
        ("mon-fri 01:00-05:00", "Europe/Berlin", "2026-07-06 00:00", True),  # 02:00 in summer, a Monday
        ("mon-fri 01:00-05:00", "Europe/Berlin", "2026-01-05 00:00", True),  # 01:00 in winter
        ("mon-fri 01:00-05:00", "Europe/Berlin", "2026-01-04 00:30", False),  # a Sunday
        ("sun 22:00-06:00", "UTC", "2026-01-05 05:59", True),  # over midnight and the end of the week
        ("sun 22:00-06:00", "UTC", "2026-01-05 06:00", False),
        ("fri-mon 10:00-11:00", "UTC", "2026-01-04 10:30", True),
        ("fri-mon 10:00-11:00", "UTC", "2026-01-06 10:30", False),
        ("00:00-24:00", "UTC", "2026-01-06 23:59", True),
        ("sun 02:00-03:00", "Europe/Berlin", "2026-03-29 01:30", False),  # 03:30: the day without a 02:30
        ("sun 02:00-03:00", "Europe/Berlin", "2026-10-25 00:30", True),  # 02:30, and an hour later again
        ("sun 02:00-03:00", "Europe/Berlin", "2026-10-25 01:30", True),
    ],
)
def test_windows(text: str, zone: str, at: str, is_open: bool) -> None:
    moment = datetime.fromisoformat(at).replace(tzinfo=UTC)
    assert windows.read(text, zone).is_open(int(moment.timestamp())) is is_open


@pytest.mark.parametrize(
    ("text", "zone", "said"),
    [
        ("monday 1-5", "UTC", "cannot be read"),
        ("mon-xyz 01:00-02:00", "UTC", "'xyz' is no day"),
        ("01:00-25:00", "UTC", "no span of a day"),
        ("01:61-02:00", "UTC", "no span of a day"),
        ("01:00-01:00", "UTC", "no span of a day"),
        ("01:00-02:00", "Mars/Olympus", "none of this name"),
        ("01:00-02:00", "../../etc/passwd", "none of this name"),
        (",".join(["01:00-02:00"] * 15), "UTC", "15 of them"),
    ],
)
def test_a_window_that_cannot_be_read_says_why(text: str, zone: str, said: str) -> None:
    with pytest.raises(HubError, match=said):
        windows.read(text, zone)


# What people write


@pytest.mark.parametrize(
    "text", ["", "1", "10%", "0,100%", "10%,1,100%", "10%,10%,100%", "5,3,100%", "1,x,100%", "101%"]
)
def test_groups_that_make_no_sense(text: str) -> None:
    with pytest.raises(HubError, match="groups: "):
        read_groups(text)


def test_a_plan_survives_being_stored() -> None:
    plan = Plan(
        "2", {"any": "x"}, groups=read_groups("1, 10%, 100%"), windows=windows.read("sat 1:00-2:00", "Asia/Tokyo")
    )
    assert decode_plan(plan.encode()) == plan


@pytest.mark.parametrize("change", [{"tries": 0}, {"fail_percent": 101}, {"confirm_s": 5}, {"patience_s": 1}])
def test_numbers_that_make_no_sense(change: dict[str, int]) -> None:
    with pytest.raises(HubError, match="expected"):
        engine.check_plan(Plan(**change))  # type: ignore[arg-type]


# One device


def test_a_device_that_returned_is_tried_again_later_and_then_no_more() -> None:
    row = RolloutDevice(1, "d", 5)
    for number in (1, 2):
        engine.begin(row, 0, 9, WALL_S)
        assert engine.hear(row, UpdateState.RETURNED, "1", "no handshake", WALL_S, tries=2, jitter=0.5)
        assert row.state is (Progress.RETRY if number == 1 else Progress.FAILED)
        assert row.due_s == (WALL_S + 600 if number == 1 else 0)
    assert not engine.hear(row, UpdateState.TRIAL, "2", "", WALL_S, tries=2, jitter=0)
    assert engine.hear(row, UpdateState.COMMITTED, "2", "", WALL_S, tries=2, jitter=0) and row.state is Progress.DONE


def test_what_a_device_refuses_is_not_tried_again() -> None:
    row = RolloutDevice(1, "d", 5)
    engine.begin(row, 0, 9, WALL_S)
    engine.hear(row, UpdateState.REFUSED, "1", "older than installed", WALL_S, tries=5, jitter=0)
    assert row.state is Progress.FAILED and row.why == "older than installed"


def test_silence_in_a_trial_is_failure_and_silence_of_one_that_is_offline_is_not() -> None:
    row = RolloutDevice(1, "d", 5)
    engine.begin(row, 0, 9, WALL_S)
    assert not engine.overdue(row, row.due_s, online=False, tries=1, jitter=0) and row.state is Progress.WANTED
    engine.hear(row, UpdateState.TRIAL, "2", "", WALL_S, tries=1, jitter=0)
    assert row.due_s == WALL_S + TRIAL_S
    assert engine.overdue(row, row.due_s, online=False, tries=1, jitter=0) and row.state is Progress.FAILED


@given(st.integers(1, 40), st.floats(0, 1))
def test_retries_wait_from_ten_minutes_to_twelve_hours_a_quarter_more_or_less(tries: int, jitter: float) -> None:
    assert 450 <= engine.retry_after_s(tries, jitter) <= 12 * 3_600 * 1.25
    assert engine.retry_after_s(tries, 1.0) <= 2.0 * engine.retry_after_s(max(1, tries - 1), 1.0) + 1


@given(st.integers(1, 9), st.lists(st.text(max_size=8), unique=True))
def test_the_order_is_the_same_each_time_and_another_in_each_rollout(number: int, devices: list[str]) -> None:
    ranks = [engine.rank(number, device) for device in devices]
    assert ranks == [engine.rank(number, device) for device in devices]
    assert all(0 <= each < 1 << 63 for each in ranks) and len(set(ranks)) == len(ranks)
    assert not set(ranks) & {engine.rank(number + 1, device) for device in devices}


# Whatever the numbers are


numbers = st.integers(0, 60)


@settings(max_examples=400)
@given(
    st.builds(Counts, pending=numbers, under_way=numbers, done=numbers, failed=numbers, candidates=st.integers(0, 90)),
    st.integers(0, 60),
    st.integers(0, 3),
    st.integers(0, 4),
    st.sampled_from([RolloutState.RUNNING, RolloutState.SOAKING, RolloutState.PAUSED, RolloutState.AWAITING]),
    st.integers(0, 20 * DAY_S),
)
def test_no_step_begins_more_than_its_group_may(
    counts: Counts, online: int, group: int, approved: int, state: RolloutState, later_s: int
) -> None:
    counts = replace(
        counts, candidates=min(counts.candidates, counts.pending), under_way_online=min(online, counts.under_way)
    )
    rollout = make(counts.total)
    rollout.state, rollout.group, rollout.approved = (
        state,
        min(group, 2 if state is RolloutState.SOAKING else 3),
        approved,
    )
    number = engine.step(rollout, counts, WALL_S + later_s)
    assert 0 <= number <= counts.candidates
    if number:
        assert state in (RolloutState.RUNNING, RolloutState.SOAKING) and rollout.state is RolloutState.RUNNING
        assert rollout.group < rollout.approved
        assert counts.begun + number <= rollout.plan.groups[rollout.group].up_to(counts.total)
    if state in (RolloutState.PAUSED, RolloutState.AWAITING):
        assert rollout.state is state and not number
