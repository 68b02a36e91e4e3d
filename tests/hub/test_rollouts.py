"""Rollouts on all stores: fleets that answer, do not answer, come and go; and what must hold whatever they do."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent import settingstrial
from edgeagent.proto.updatestate import UpdateState
from hub.core import chores, rollouts
from hub.core.memory import MemoryStore
from hub.core.model import HubDrop, HubError
from hub.core.rollout import WANTING, Plan, Progress, Rollout, RolloutKind, RolloutState, read_groups
from tests.hub.kit import DAY_S, Dev, Hub, load_crypto, make_network, seeded

PLAN = Plan("0.2.0", {"any": "edgeagent-0.2.0-any.pyz"}, groups=read_groups("1,50%,100%"), soak_s=60)


class Fleet:
    """Devices that joined, and how to speak for each."""

    def __init__(self, hub: Hub, number: int) -> None:
        self.hub = hub
        token = hub.token(uses=number)
        self.devices = [Dev(hub, seed, token, f"box-{seed}") for seed in range(number)]
        for device in self.devices:
            hub.hear(device.join())
            device.read(hub.sent())
            hub.hear(device.birth())
        self.settle()

    def settle(self) -> None:
        sent = self.hub.sent()
        for device in self.devices:
            device.read(sent)

    def ids(self) -> list[str]:
        return [device.id for device in self.devices]

    def start(
        self, plan: Plan = PLAN, kind: RolloutKind = RolloutKind.VERSION, devices: list[str] | None = None
    ) -> int:
        with self.hub.store.write() as tx:
            made = rollouts.create(tx, kind, "", plan, devices or self.ids(), self.hub.wall_s, actor="cli:x")
            rollouts.submit(tx, made, self.hub.wall_s)
            rollouts.approve(self.hub.scribe, tx, made, self.hub.wall_s, "user:ada")
        self.settle()
        return made.id

    def later(self, seconds: float) -> None:
        self.hub.later(seconds)
        while True:
            with self.hub.store.write() as tx:
                if not chores.look_at_dates(self.hub.scribe, tx, self.hub.wall_s):
                    break
        self.settle()

    def wanted(self) -> list[Dev]:
        return [device for device in self.devices if self.body(device).keys() & {"up", "se"}]

    @staticmethod
    def body(device: Dev) -> dict[str, Any]:
        assert device.map is not None
        body: dict[str, Any] = device.map.body
        return body

    def say(self, device: Dev, state: UpdateState, why: str = "") -> None:
        body = self.body(device)
        if "up" in body:
            said: dict[str, Any] = {"up": {"r": body["up"]["r"], "s": int(state), "v": "0.2.0", "w": why}}
        else:
            said = {"se": {"g": body["se"]["g"], "s": int(state), "w": why}}
        self.hub.hear(device.write("report", said))
        self.settle()

    def rollout(self, number: int) -> Rollout:
        with self.hub.store.read() as tx:
            found = tx.rollouts.get(number)
        assert found is not None
        return found

    def progress(self, number: int) -> list[Progress]:
        with self.hub.store.read() as tx:
            return sorted((row.state for row in tx.rollouts.devices(number)), key=lambda state: state.value)


def test_a_version_comes_to_a_fleet_group_by_group(hub: Hub) -> None:
    fleet = Fleet(hub, 4)
    number = fleet.start()
    (canary,) = fleet.wanted()
    assert fleet.body(canary)["up"] == {"v": "0.2.0", "r": number * 16 + 1, "t": "edgeagent-0.2.0-any.pyz"}
    for state in (UpdateState.FETCHING, UpdateState.TRIAL, UpdateState.COMMITTED):
        fleet.say(canary, state)
    assert fleet.rollout(number).state is RolloutState.SOAKING
    fleet.later(59)
    assert fleet.wanted() == [canary], "its map is not written anew only to take back what is done"
    fleet.later(1)
    (second,) = [device for device in fleet.wanted() if device is not canary]
    fleet.say(second, UpdateState.COMMITTED)
    fleet.later(60)
    assert len(fleet.wanted()) == 4 and fleet.rollout(number).is_last
    for device in fleet.devices:
        if device not in (canary, second):
            fleet.say(device, UpdateState.COMMITTED)
    done = fleet.rollout(number)
    assert done.state is RolloutState.DONE and done.why == "4 done, 0 failed" and done.finished_s == hub.wall_s


def test_a_broken_version_pauses_after_the_canary_and_nobody_else_hears_of_it(hub: Hub) -> None:
    fleet = Fleet(hub, 4)
    number = fleet.start()
    (canary,) = fleet.wanted()
    fleet.say(canary, UpdateState.TRIAL)
    fleet.say(canary, UpdateState.RETURNED, "the hub was not reached")
    paused = fleet.rollout(number)
    assert paused.state is RolloutState.PAUSED and paused.why == "1 of 1 failed; 10 % pause it"
    with hub.store.read() as tx:
        row = tx.rollouts.device(number, canary.id)
    assert row is not None and row.state is Progress.RETRY and row.why == "the hub was not reached"
    fleet.later(3 * DAY_S)
    assert fleet.wanted() == []


def test_a_try_again_has_another_number_and_what_is_said_of_the_first_counts_no_more(hub: Hub) -> None:
    fleet = Fleet(hub, 1)
    number = fleet.start(replace(PLAN, fail_percent=0))
    (device,) = fleet.devices
    first = fleet.body(device)["up"]["r"]
    fleet.say(device, UpdateState.RETURNED, "no handshake")
    fleet.later(750)
    assert fleet.body(device)["up"]["r"] == first + 1
    hub.hear(device.write("report", {"up": {"r": first, "s": 5, "v": "0.1", "w": "no handshake"}}))
    assert fleet.progress(number) == [Progress.WANTED]
    fleet.say(device, UpdateState.COMMITTED)
    assert fleet.progress(number) == [Progress.DONE]


def test_pausing_takes_back_what_has_not_come_to_its_trial(hub: Hub) -> None:
    fleet = Fleet(hub, 3)
    number = fleet.start(Plan("0.2.0", {"any": "t"}, groups=read_groups("100%")))
    fetching, trying, _ = fleet.wanted()
    fleet.say(fetching, UpdateState.FETCHING)
    fleet.say(trying, UpdateState.TRIAL)
    with hub.store.write() as tx:
        rollout = tx.rollouts.get(number)
        assert rollout is not None
        rollouts.pause(tx, rollout, hub.wall_s, "somebody wanted it")
    fleet.settle()
    assert fleet.wanted() == [trying]
    fleet.say(trying, UpdateState.COMMITTED)
    assert fleet.progress(number) == [Progress.DONE, Progress.PENDING, Progress.PENDING]
    with hub.store.write() as tx:
        rollouts.resume(hub.scribe, tx, rollout, hub.wall_s)
    fleet.settle()
    assert len(fleet.wanted()) == 3


def test_settings_have_a_generation_of_their_own_at_each_try(hub: Hub) -> None:
    fleet = Fleet(hub, 1)
    (device,) = fleet.devices
    plan = Plan(settings={"log-level": "debug"}, groups=read_groups("100%"), confirm_s=90, fail_percent=0, tries=2)
    number = fleet.start(plan, RolloutKind.SETTINGS)
    first = fleet.body(device)["se"]
    assert (first["c"], first["k"]) == (90, {"log-level": "debug"})
    fleet.say(device, UpdateState.RETURNED, "the hub was not reached within 90 s")
    assert fleet.wanted() == []
    fleet.later(750)
    assert fleet.body(device)["se"]["g"] > first["g"]
    fleet.say(device, UpdateState.COMMITTED)
    assert fleet.rollout(number).state is RolloutState.DONE


def test_a_device_in_two_rollouts_is_wanted_by_one_at_a_time(hub: Hub) -> None:
    fleet = Fleet(hub, 2)
    plan = Plan("0.2.0", {"any": "t"}, groups=read_groups("100%"))
    first, second = fleet.start(plan), fleet.start(Plan("0.3.0", {"any": "u"}, groups=read_groups("100%")))
    assert [fleet.body(device)["up"]["r"] // 16 for device in fleet.devices] == [first, first]
    fleet.say(fleet.devices[0], UpdateState.COMMITTED)
    fleet.later(30)
    assert [fleet.body(device)["up"]["r"] // 16 for device in fleet.devices] == [second, first]


def test_one_that_is_offline_is_begun_when_it_comes_back(hub: Hub) -> None:
    fleet = Fleet(hub, 2)
    gone = fleet.devices[1]
    hub.hear(gone.write("state", {"up": False}))
    number = fleet.start(Plan("0.2.0", {"any": "t"}, groups=read_groups("100%"), patience_s=30 * DAY_S))
    fleet.say(fleet.devices[0], UpdateState.COMMITTED)
    fleet.later(9 * DAY_S)
    assert fleet.rollout(number).state is RolloutState.RUNNING and gone not in fleet.wanted()
    gone.epoch += 1
    hub.hear(gone.birth())
    fleet.later(30)
    assert gone in fleet.wanted()
    fleet.say(gone, UpdateState.COMMITTED)
    assert fleet.rollout(number).state is RolloutState.DONE


def test_what_is_not_there_for_a_device_is_skipped_and_what_it_runs_is_done(hub: Hub) -> None:
    fleet = Fleet(hub, 2)
    mips, other = fleet.devices
    mips.facts = {"abi": "linux-mipsel-sf"}
    hub.hear(mips.birth(), other.birth())
    plan = Plan("0.1.0", {"linux-arm64": "a", "linux-armhf": "b"}, groups=read_groups("100%"))
    with hub.store.write() as tx:
        device = tx.device(other.id)
        assert device is not None
        device.version = "0.1.0"
        tx.save_device(device)
    number = fleet.start(plan)
    fleet.later(30)
    assert fleet.progress(number) == [Progress.DONE, Progress.SKIPPED]
    with hub.store.read() as tx:
        assert "linux-mipsel-sf" in next(row.why for row in tx.rollouts.of_device(mips.id))
    assert fleet.rollout(number).state is RolloutState.DONE


def test_a_report_about_nothing_is_dropped(hub: Hub) -> None:
    fleet = Fleet(hub, 1)
    hub.hear(fleet.devices[0].write("report", {"up": {"r": 9, "s": 4, "v": "0.2.0", "w": ""}}))
    hub.hear(fleet.devices[0].write("report", {"se": {"g": 9, "s": 4, "w": ""}}))
    assert hub.coordinator.drops == {HubDrop.UNKNOWN_ROLLOUT: 2}


def test_a_removed_device_holds_nobody_up(hub: Hub) -> None:
    from hub.core import actions

    fleet = Fleet(hub, 2)
    number = fleet.start(Plan("0.2.0", {"any": "t"}, groups=read_groups("100%")))
    fleet.say(fleet.devices[0], UpdateState.COMMITTED)
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, actions.find_device(tx, fleet.devices[1].id), hub.wall_s)
    fleet.later(30)
    assert fleet.rollout(number).state is RolloutState.DONE


def test_what_cannot_be_made_says_why(hub: Hub) -> None:
    with hub.store.write() as tx:
        for kind, plan, devices, said in (
            (RolloutKind.VERSION, Plan("9"), ["x"], "version 9: it is not published"),
            (RolloutKind.VERSION, PLAN, [], "no device fits"),
            (RolloutKind.SETTINGS, Plan(), ["x"], "settings: 0 of them"),
            (RolloutKind.SETTINGS, Plan(settings={"budget": "x" * 256}), ["x"], "setting budget: printable text"),
            (RolloutKind.SETTINGS, Plan(settings={"state-dir": "/"}), ["x"], "setting state-dir: the hub may change"),
        ):
            with pytest.raises(HubError, match=said):
                rollouts.create(tx, kind, "", plan, devices, hub.wall_s, actor="cli:x")


def test_the_hub_knows_which_settings_devices_let_it_change() -> None:
    assert rollouts.SETTINGS == settingstrial.NAMES


def test_only_the_newest_of_those_that_are_over_are_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "KEPT_MAX", 2)
    fleet = Fleet(hub, 1)
    for _ in range(4):
        with hub.store.write() as tx:
            made = rollouts.create(tx, RolloutKind.VERSION, "", PLAN, fleet.ids(), hub.wall_s, actor="cli:x")
            rollouts.abort(tx, made, hub.wall_s, "no")
    with hub.store.read() as tx:
        assert [each.id for each in tx.rollouts.newest()] == [4, 3, 2]
        assert [row.rollout for row in tx.rollouts.of_device(fleet.ids()[0])] == [4, 3, 2]


# Whatever happens


happenings = st.lists(
    st.tuples(
        st.sampled_from(["say", "later", "offline", "online", "pause", "resume", "approve", "abort", "remove"]),
        st.integers(0, 9),
        st.integers(0, 6),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(happenings, st.booleans(), st.sampled_from(["1,50%,100%", "100%", "2,100%"]))
def test_whatever_a_fleet_does(what: list[tuple[str, int, int]], each: bool, groups: str) -> None:
    """No device is wanted by two; no more are begun than the group may; none begins while it is paused; and it ends
    as soon as people let it."""
    crypto = load_crypto()
    network = make_network(crypto, seeded(0))
    with closing(MemoryStore(network)) as store:
        hub = Hub(store, crypto, network)
        fleet = Fleet(hub, 5)
        plan = Plan("0.2.0", {"any": "t"}, groups=read_groups(groups), soak_s=60, each=each, fail_percent=60)
        numbers = [fleet.start(plan), fleet.start(plan)]
        for name, which, code in what:
            before = {number: (fleet.rollout(number), _wanted(hub, number)) for number in numbers}
            _do(fleet, numbers[which % 2], name, fleet.devices[which // 2], UpdateState(code))
            for number in numbers:
                _check(hub, fleet.rollout(number), before[number], name, said=(which // 2, code))
        _let_it_end(fleet, numbers)


def _wanted(hub: Hub, number: int) -> set[str]:
    with hub.store.read() as tx:
        return {row.device for row in tx.rollouts.devices(number) if row.state in WANTING}


def _do(fleet: Fleet, number: int, name: str, device: Dev, state: UpdateState) -> None:
    hub = fleet.hub
    if name == "say":
        if fleet.body(device).keys() & {"up"}:
            fleet.say(device, state)
        return
    if name == "later":
        fleet.later((30, 600, 3_600, 7 * 3_600, DAY_S, 5 * DAY_S, 20 * DAY_S)[state])
        return
    if name in ("offline", "online"):
        device.epoch += 1
        hub.hear(device.write("state", {"up": False}) if name == "offline" else device.birth())
        fleet.settle()
        return
    try:
        with hub.store.write() as tx:
            rollout = tx.rollouts.get(number)
            assert rollout is not None
            if name == "pause":
                rollouts.pause(tx, rollout, hub.wall_s, "")
            elif name == "resume":
                rollouts.resume(hub.scribe, tx, rollout, hub.wall_s)
            elif name == "approve":
                rollouts.approve(hub.scribe, tx, rollout, hub.wall_s, "user:ada")
            elif name == "abort" and state is UpdateState.REFUSED:
                rollouts.abort(tx, rollout, hub.wall_s, "")
    except HubError as error:
        assert "makes no sense then" in str(error)
    fleet.settle()


def _check(hub: Hub, rollout: Rollout, before: tuple[Rollout, set[str]], name: str, said: tuple[int, int]) -> None:
    with hub.store.read() as tx:
        rows = tx.rollouts.devices(rollout.id)
        counts = rollouts.counts(tx, rollout)
    wanted = {row.device for row in rows if row.state in WANTING}
    begun = [row for row in rows if row.state is not Progress.PENDING]
    assert len(begun) <= rollout.plan.groups[rollout.group].up_to(rollout.total) or name == "say"
    assert counts.total + counts.skipped == rollout.total
    if before[0].state in (RolloutState.PAUSED, RolloutState.ABORTED, RolloutState.DONE) and name != "resume":
        new = wanted - before[1]
        # a device that was told before may still have begun its trial: that it says so is all that is new
        assert not new or name == "say"
    if rollout.state in (RolloutState.PAUSED, RolloutState.ABORTED, RolloutState.DONE):
        assert all(row.state is Progress.TRIAL for row in rows if row.state in WANTING) or name == "say"


def _let_it_end(fleet: Fleet, numbers: list[int]) -> None:
    """People approve and resume, devices say nothing more: after patience everything is over."""
    for _ in range(40):
        for number in numbers:
            state = fleet.rollout(number).state
            if state in (RolloutState.AWAITING, RolloutState.PAUSED):
                _do(
                    fleet,
                    number,
                    "approve" if state is RolloutState.AWAITING else "resume",
                    fleet.devices[0],
                    UpdateState(0),
                )
        fleet.later(5 * DAY_S)
        if not any(fleet.rollout(number).state.is_open for number in numbers):
            return
    raise AssertionError([(fleet.rollout(number), fleet.progress(number)) for number in numbers])
