"""A relay that has forgotten everything, at a hub: which passes it takes of devices that were cut off and came back."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.proto.relay_frames import Refusal, RelayError
from edgeagent.proto.relay_login import Login, Role
from edgeagent.proto.relay_pass import Pass, peek_node_key
from hub.core import actions
from hub.core.model import PASS_LIFE_S, DeviceState
from relay.core.admission import Admission
from relay.core.limits import RelayLimits
from tests.hub.kit import Dev, Hub, RelayDev, admitted, relays_of, row, seeded
from tests.hub.test_relays import look_at_dates, map_of


class Gate:
    """The admission of a relay with an empty disk."""

    def __init__(self, hub: Hub, relay: RelayDev) -> None:
        self.hub = hub
        self.relay = relay
        self.told: dict[str, int] = {}  # device → up to when its passes are void
        self.own: Admission = Admission(
            crypto=hub.crypto,
            entropy=hub.entropy,
            relay=relay.name,
            region=relay.fields["rg"],
            private=seeded(5)(32),
            networks=[hub.network.key],
            siblings={},
            limits=RelayLimits(),
        )

    def begin(self) -> None:
        """Connect, and hear what the hub has to say."""
        self.relay.epoch += 1
        self.hub.hear(self.relay.birth())
        self.hear()

    def hear(self, *others: Dev) -> None:
        rows = self.hub.sent()
        for other in others:
            other.read(rows)
        for kind, body in self.relay.read(rows):
            if kind == "rec":
                found = self.own.revoke(body["gone"])
                if found is not None:
                    self.told[found[1]] = found[2]

    def use(self, data: bytes) -> Pass:
        """Raises RelayError."""
        key = peek_node_key(data)
        assert key is not None
        keys: Any = None
        guest = self.own.admit(self.hub.wall_s, Login(Role.MEMBER, 25, b"", key, keys, data))
        assert guest.pass_ is not None
        return guest.pass_

    def refuses(self, data: bytes) -> None:
        with pytest.raises(RelayError) as caught:
            self.use(data)
        assert caught.value.reason is Refusal.REVOKED


def passes(hub: Hub, *devices: Dev) -> list[bytes]:
    rows = hub.sent()
    for device in devices:
        device.read(rows)
    return [map_of(device).passes[0] for device in devices]


def remove(hub: Hub, *devices: Dev) -> None:
    with hub.store.write() as tx:
        for device in devices:
            actions.remove_device(hub.scribe, tx, row(tx, device), hub.wall_s)


def expire(hub: Hub, device: Dev, not_after: int) -> None:
    with hub.store.write() as tx:
        actions.expire_device(hub.scribe, tx, row(tx, device), not_after, hub.wall_s)


def return_of(hub: Hub, device: Dev, how: str) -> None:
    if how == "renewed":
        expire(hub, device, 0)
        return
    hub.hear(device.join(hub.token(needs_approval=how == "approved")))
    if how == "approved":
        with hub.store.write() as tx:
            assert row(tx, device).state is DeviceState.PENDING
            actions.approve_device(hub.scribe, tx, row(tx, device), hub.wall_s)


@pytest.fixture
def relay(hub: Hub) -> RelayDev:
    [made] = relays_of(hub, "fra-1")
    hub.hear(made.say())
    return made


@pytest.mark.parametrize(
    ("cut", "back"),
    [
        ("removed", "joined"),
        ("removed", "approved"),
        ("expired", "joined"),
        ("expired", "approved"),
        ("expired", "renewed"),
    ],
)
def test_what_a_device_had_before_it_was_cut_off_is_void_at_a_relay_that_knows_nothing(
    hub: Hub, relay: RelayDev, cut: str, back: str
) -> None:
    a, b = admitted(hub, 2)
    before, never = passes(hub, a, b)
    hub.later(100)
    remove(hub, a) if cut == "removed" else expire(hub, a, hub.wall_s)
    hub.sent()
    hub.later(100)
    return_of(hub, a, back)
    [after] = passes(hub, a)
    gate = Gate(hub, relay)
    gate.begin()
    assert gate.told == {a.id: hub.wall_s - 100}
    gate.refuses(before)
    assert gate.use(after).device == a.id
    assert gate.use(never).device == b.id


def test_one_who_waits_for_approval_again_is_told_of(hub: Hub, relay: RelayDev) -> None:
    [a] = admitted(hub, 1)
    [before] = passes(hub, a)
    hub.later(100)
    remove(hub, a)
    hub.sent()
    hub.hear(a.join(hub.token(needs_approval=True)))
    gate = Gate(hub, relay)
    gate.begin()
    gate.refuses(before)


def test_a_removal_is_told_though_its_device_is_back_before_the_turn_of_that(hub: Hub, relay: RelayDev) -> None:
    [a] = admitted(hub, 1)
    [before] = passes(hub, a)
    gate = Gate(hub, relay)
    gate.begin()
    assert gate.use(before).device == a.id
    hub.later(100)
    remove(hub, a)
    hub.hear(a.join(hub.token()))
    gate.hear(a)
    gate.refuses(before)
    [after] = passes(hub, a)
    assert gate.use(after).device == a.id


def test_who_is_cut_off_and_back_within_a_second_has_a_later_pass_each_time(hub: Hub, relay: RelayDev) -> None:
    [a] = admitted(hub, 1)
    gate = Gate(hub, relay)
    gate.begin()
    had = passes(hub, a)
    for _ in range(3):
        expire(hub, a, hub.wall_s)
        gate.hear()
        gate.refuses(had[-1])
        expire(hub, a, 0)
        had += passes(hub, a)
        assert gate.use(had[-1]).device == a.id
    fresh = Gate(hub, relay)
    fresh.begin()
    for old in had[:-1]:
        fresh.refuses(old)
    assert fresh.use(had[-1]).device == a.id


@pytest.mark.parametrize("how", ["removed", "expired", "by date"])
def test_a_pass_of_before_the_clock_was_set_back_is_void_too(hub: Hub, relay: RelayDev, how: str) -> None:
    [a] = admitted(hub, 1)
    hub.later(100)
    expire(hub, a, 0)  # whatever has its map written again
    [given] = passes(hub, a)
    hub.wall_s -= 50
    if how == "removed":
        remove(hub, a)
    else:
        expire(hub, a, hub.wall_s + 10 * (how == "by date"))
    hub.later(10)
    look_at_dates(hub)
    gate = Gate(hub, relay)
    gate.begin()
    gate.refuses(given)


def test_no_more_is_told_once_all_that_it_had_has_ended(hub: Hub, relay: RelayDev) -> None:
    devices = admitted(hub, 80)
    remove(hub, *devices)
    hub.hear(*(device.join(hub.token()) for device in devices))
    hub.sent()
    first = Gate(hub, relay)
    first.begin()
    assert sorted(first.told) == sorted(device.id for device in devices)
    hub.later(PASS_LIFE_S)
    last = Gate(hub, relay)
    last.begin()
    assert last.told == {}
    with hub.store.read() as tx:
        assert tx.job_count() == 0


def test_a_relay_that_was_put_out_and_came_back_is_not_told_that_it_is_out(hub: Hub, relay: RelayDev) -> None:
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, relay), hub.wall_s)
    relay.read(hub.sent())
    with hub.store.write() as tx:
        token = actions.invite_relay(hub.scribe, tx, hub.wall_s, region="fra")
    hub.hear(relay.join(token))
    relay.read(hub.sent())
    [other] = relays_of(hub, "fra-2")
    for each in (relay, other):
        each.gone.clear()
        each.epoch += 1
        hub.hear(each.birth())
        each.read(hub.sent())
        assert each.gone == []
