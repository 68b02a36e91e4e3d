"""Relays at the hub: how they come in, which of them maps name, the passes for them, and what they are told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from edgeagent.proto.codec import encode
from edgeagent.proto.control import RELAYS_MAX, check_body
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.relay_frames import Refusal, RelayError
from edgeagent.proto.relay_pass import Pass, open_pass, peek_node_key
from edgeagent.proto.signed import WILL_SEQ, open_signed
from hub.core import actions, chores, relays
from hub.core.model import (
    OUTBOX_MAX,
    PASS_LIFE_S,
    PASS_RENEW_S,
    RELAY_CHANGE_MAX_S,
    RELAY_CHANGE_S,
    RELAY_GRACE_S,
    RELAY_LIST_BYTES_MAX,
    RELAYS_KNOWN_MAX,
    Device,
    DeviceState,
    HubDrop,
    HubError,
    JobKind,
    Kind,
    Op,
)
from tests.hub.kit import DAY_S, WALL_S, Dev, Hub, RelayDev, admitted, relays_of, row


def drops(hub: Hub) -> dict[HubDrop | ControlDrop, int]:
    return dict(hub.coordinator.drops)


def read(hub: Hub, *members: Dev) -> list[list[str]]:
    """The kinds of what each of them was sent."""
    rows = hub.sent()
    return [[kind for kind, _ in member.read(rows)] for member in members]


def map_of(member: Dev) -> DeviceMap:
    assert member.map is not None
    return DeviceMap(member.map)


def look_at_dates(hub: Hub) -> None:
    with hub.store.write() as tx:
        chores.look_at_dates(hub.scribe, tx, hub.wall_s)


def use_pass(hub: Hub, relay: RelayDev, member: Dev, number: int = 0, wall_s: float | None = None) -> Pass:
    """As the relay reads it. Raises RelayError."""
    networks = {hub.network.id: hub.network.key}
    data = map_of(member).passes[number]
    key = peek_node_key(data)
    assert key is not None
    now_s = hub.wall_s if wall_s is None else wall_s
    return open_pass(hub.crypto, networks, relay.name, relay.fields["rg"], key, now_s, data)


def gone_of(hub: Hub, relay: Dev) -> dict[str, int]:
    """Device → since when, of what the relay is told."""
    told = {}
    for kind, body in relay.read(hub.sent()):
        if kind == "rec":
            gone = open_gone(hub, body["gone"], [device for device in relay.gone if device not in told])
            told[gone.subject] = gone.wall_s
    return told


def open_gone(hub: Hub, data: bytes, subjects: Sequence[str]) -> Any:
    for subject in subjects:
        try:
            return open_signed(hub.crypto, hub.network.key, data, kind="gone", network=hub.network.id, subject=subject)
        except Exception:  # noqa: BLE001, S110 - the next subject
            pass
    raise AssertionError("of nobody that was named")


# coming in


def test_a_relay_joins_like_a_device_and_its_word_reaches_every_map(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    assert map_of(a).relays == [] and "rl" not in (a.map.body if a.map else {})
    [relay] = relays_of(hub, "fra-1")
    assert read(hub, a, b, relay) == [[], [], []]
    hub.hear(relay.say())
    assert read(hub, a, b, relay) == [["map"], ["map"], ["map"]]
    for member in (a, b, relay):
        [info] = map_of(member).relays
        assert info.encode() == {"id": "fra-1", **relay.fields}
    assert map_of(relay).passes == []
    for member in (a, b):
        assert use_pass(hub, relay, member).node_key == member.identity.node_key
    assert drops(hub) == {}
    late = Dev(hub, 77, hub.token(), name="late")
    hub.hear(late.join())
    late.read(hub.sent())
    assert map_of(late).relays and use_pass(hub, relay, late).device == late.id


def test_members_are_no_news_and_addresses_are(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say())
    read(hub, a)
    hub.hear(relay.say(members=41))
    assert read(hub, a, relay) == [[], []]
    with hub.store.read() as tx:
        assert row(tx, relay).members == 41
    hub.hear(relay.say(h=["192.0.2.9:443"]))
    assert read(hub, a, relay) == [["map"], ["map"]]
    assert map_of(a).relays[0].hosts == ["192.0.2.9:443"]


def test_a_relay_is_no_device_to_anybody(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say())
    read(hub, a, relay)
    body = map_of(relay)
    hub.hear(a.ask(h="fra-1"), a.ask(a=body.addresses[0]), a.ask(a=body.addresses[1]), a.ask(k=relay.identity.node_key))
    hub.hear(a.ask(have=[[relay.id, 1, 1, 1]]))
    rows = hub.sent()
    assert [said.get("no", "gone") for _, said in a.read(rows)] == 4 * ["unknown"] + ["gone"]
    assert relay.read(rows) == []
    hub.hear(relay.ask(h="n0"), relay.write("report", {"nk": relay.entropy(32)}))
    assert drops(hub) == {HubDrop.NOT_A_DEVICE: 2}
    assert read(hub, a, relay) == [[], []]
    with hub.store.write() as tx:
        assert tx.device_counts() == {DeviceState.ACTIVE: 1} and tx.online_count() == 0
        assert tx.state_count(DeviceState.ACTIVE) == 2
        for text in ("fra-1", relay.id):
            with pytest.raises(HubError, match="this is a relay"):
                actions.find_device(tx, text)
            assert actions.find_relay(tx, text).id == relay.id
        with pytest.raises(HubError, match="edgehub relays list"):
            actions.find_relay(tx, "n0")


def test_what_a_relay_may_not_say(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    first, second = relays_of(hub, "fra-1", "fra-2")
    hub.hear(first.say())
    said = {**second.fields, "m": 0}
    hub.hear(
        a.write("relay", said),
        second.write("relay", {**said, "rg": "ams"}),
        second.write("relay", {**said, "k": bytes(32)}),
        second.write("relay", {**said, "k": first.fields["k"]}),
    )
    assert drops(hub) == {
        HubDrop.NOT_A_RELAY: 1,
        HubDrop.WRONG_REGION: 1,
        HubDrop.WEAK_KEY: 1,
        HubDrop.RELAY_KEY_TAKEN: 1,
    }
    read(hub, a)
    assert [relay.id for relay in map_of(a).relays] == ["fra-1"]
    hub.later(1_000)
    hub.hear(*(second.say(members=number) for number in range(10)))
    assert drops(hub)[HubDrop.RATE_LIMITED] == 2


def test_who_may_join_with_which_token(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    [relay] = relays_of(hub, "fra-1")
    with hub.store.write() as tx:
        with pytest.raises(HubError, match="one DNS label"):
            actions.invite_relay(hub.scribe, tx, hub.wall_s, region="Frankfurt am Main")
        token = actions.invite_relay(hub.scribe, tx, hub.wall_s, region="fra", uses=0)
        actions.expire_device(hub.scribe, tx, row(tx, a), hub.wall_s, hub.wall_s)
        actions.remove_device(hub.scribe, tx, row(tx, relay), hub.wall_s)
    hub.sent()
    # By mistake, and on purpose
    fresh, forged = Dev(hub, 20, token), Dev(hub, 21, hub.token())
    forged.facts = relay.facts
    hub.hear(a.join(token), relay.join(hub.token()), fresh.join(), forged.join())
    hub.hear(a.join(token, facts=relay.facts), relay.join(hub.token(), facts={}))
    rows = hub.sent()
    for member in (a, relay, fresh, forged):
        member.read(rows)
        assert member.answers[-1]["no"] == ("denied" if member in (a, relay) else "bad-request")
        assert member.answers[-2:][0]["no"] == "bad-request"
    with hub.store.write() as tx:
        for number in range(RELAYS_KNOWN_MAX):
            tx.add_device(a_relay(f"r{number}", "fra"))
    late = RelayDev(hub, 9, token, "late", "fra")
    hub.hear(late.join())
    late.read(hub.sent())
    assert late.answers[-1]["no"] == "denied"


# which relays maps name


def test_a_blip_renews_nothing_and_a_long_absence_does(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    first, second = relays_of(hub, "fra-1", "fra-2")
    hub.hear(first.say(), second.say())
    read(hub, a)
    hub.hear(first.write("state", {"up": False}, stamp=(first.epoch, WILL_SEQ)))
    look_at_dates(hub)
    assert read(hub, a) == [[]]
    hub.later(RELAY_GRACE_S - 10)
    first.epoch += 1
    hub.hear(first.birth(), first.write("state", {"up": True}))
    hub.hear(first.write("state", {"up": False}, stamp=(first.epoch, WILL_SEQ)))
    hub.later(RELAY_GRACE_S - 1)
    look_at_dates(hub)
    assert read(hub, a) == [[]]
    hub.later(1)
    look_at_dates(hub)
    assert read(hub, a) == [["map"]]
    assert [relay.id for relay in map_of(a).relays] == ["fra-2"]
    first.epoch += 1
    hub.hear(first.birth())
    assert read(hub, a) == [["map"]]
    assert [relay.id for relay in map_of(a).relays] == ["fra-1", "fra-2"]


def test_the_last_ones_stay_though_nobody_hears_them(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say(), relay.write("state", {"up": False}, stamp=(relay.epoch, WILL_SEQ)))
    read(hub, a)
    hub.later(10 * RELAY_GRACE_S)
    look_at_dates(hub)
    assert read(hub, a) == [[]] and [known.id for known in map_of(a).relays] == ["fra-1"]


def test_a_relay_that_changes_all_the_time_renews_maps_seldom(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    restless, calm = relays_of(hub, "fra-1", "fra-2")
    hub.hear(restless.say(), calm.say())
    read(hub, a)
    renewed = []
    for n in range(12 * 60):  # twelve hours, a change each minute
        hub.hear(restless.say(u=1_000 + n))
        if read(hub, a) == [["map"]]:
            renewed.append(60 * n)
        hub.later(60)
    gaps = [after - before for before, after in pairwise(renewed)]
    # The first change at once, and the next ones at ever longer distances
    assert renewed[0] == 0 and gaps[:3] == [RELAY_CHANGE_S, 2 * RELAY_CHANGE_S, 4 * RELAY_CHANGE_S]
    assert set(gaps[3:]) == {RELAY_CHANGE_MAX_S}
    assert drops(hub) == {HubDrop.RELAY_RESTLESS: 12 * 60 - len(renewed)}
    # Another's change is taken meanwhile, and a newcomer's word; what was held comes without being said again
    hub.hear(calm.say(u=7))
    [late] = relays_of(hub, "fra-3")
    hub.hear(late.say(u=8))
    read(hub, a)
    ports = {relay.id: relay.udp_port for relay in map_of(a).relays}
    assert (ports["fra-2"], ports["fra-3"]) == (7, 8) and ports["fra-1"] != restless.fields["u"]
    hub.later(RELAY_CHANGE_MAX_S)
    look_at_dates(hub)
    read(hub, a)
    assert {relay.id: relay.udp_port for relay in map_of(a).relays}["fra-1"] == restless.fields["u"]
    # After a long calm a change is taken at once again, and soon the next
    hub.later(2 * RELAY_CHANGE_MAX_S)
    for port in (5, 6):
        hub.hear(restless.say(u=port))
        assert read(hub, a) == [["map"]]
        hub.later(RELAY_CHANGE_S)


def test_a_removed_relay_leaves_at_once_and_hears_it(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    first, second = relays_of(hub, "fra-1", "fra-2")
    hub.hear(first.say(), second.say())
    read(hub, a)
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, first), hub.wall_s)
    rows = hub.sent()
    ops = [r.op for r in rows if first.id in r.target]
    assert ops.index(Op.PUBLISH) < ops.index(Op.REVOKE)
    first.read(rows)
    a.read(rows)
    assert first.gone == [first.id]
    assert [relay.id for relay in map_of(a).relays] == ["fra-2"]
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, second), hub.wall_s)
    read(hub, a)
    assert map_of(a).relays == [] and map_of(a).passes == []
    hub.hear(first.birth())
    assert drops(hub) == {HubDrop.NOT_ADMITTED: 1}


def a_relay(name: str, region: str, hosts: list[str] | None = None, *, online: bool = True) -> Device:
    fields = {"rg": region, "k": name.encode().ljust(32, b"-"), "h": hosts or [f"{name}:443"], "u": 1, "s": 2}
    return Device(
        id=f"{name:a<24}",
        state=DeviceState.ACTIVE,
        claim="c",
        device_key=b"",
        box_key=b"",
        node_key=b"",
        created_s=WALL_S,
        name=name,
        tags=(f"tag:{region}",),
        online=online,
        kind=Kind.RELAY,
        relay=encode({**fields, "pin": bytes(32)}),
    )


def test_of_too_many_the_regions_have_their_turn() -> None:
    many = [a_relay(f"a{n:02}", "ams") for n in range(30)] + [a_relay(f"f{n:02}", "fra") for n in range(3)]
    many += [a_relay("s00", "sin"), a_relay("s01", "sin", online=False)]
    chosen = relays.choose(many, {}, WALL_S)
    assert [(relay["rg"], relay["id"]) for relay in chosen] == sorted((r["rg"], r["id"]) for r in chosen)
    regions = [relay["rg"] for relay in chosen]
    assert (len(chosen), regions.count("ams"), regions.count("fra"), regions.count("sin")) == (RELAYS_MAX, 12, 3, 1)
    random.Random(1).shuffle(many)
    assert relays.choose(many, {}, WALL_S) == chosen
    # One that is listed stays though another comes before it
    [last] = [relay for relay in many if relay.name == "a29"]
    again = relays.choose(many, {"a29": {"id": "a29", **relays.fields_of(last)}}, WALL_S)
    assert "a29" in [relay["id"] for relay in again] and len(again) == RELAYS_MAX


def test_long_names_do_not_burst_a_map() -> None:
    hosts = 4 * [".".join(3 * ["x" * 63]) + ":443"]
    many = [a_relay(f"{n:02}" + "r" * 24, f"region-{n}" + "x" * 40, hosts) for n in range(16)]
    chosen = relays.choose(many, {}, WALL_S)
    assert 0 < len(chosen) < 16 and len(encode(chosen)) <= RELAY_LIST_BYTES_MAX
    check_body("map", {**_MAP, "rl": chosen})


_MAP: dict[str, Any] = {
    "id": 24 * "a",
    "name": "x",
    "addrs": [bytes(4), bytes(16)],
    "tags": [],
    "domain": "x",
    "v4": [bytes(4), 10],
    "v6": [bytes(16), 48],
    "fk": bytes(32),
    "fg": 1,
    "bx": bytes(32),
    "h": ["x:1"],
    "nk": [[bytes(32), 1]],
    "na": 0,
    "set": {},
}


# rounds


def test_maps_are_renewed_in_small_steps_one_round_at_a_time(hub: Hub) -> None:
    devices = admitted(hub, 100)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say())
    with hub.store.write() as tx:
        assert tx.job_count() == 1
        chores.work(hub.scribe, tx, hub.wall_s, 1)
        assert tx.job_count() == relays.ROUND_STEP + 1 and tx.has_round(JobKind.MAPS, "")
    hub.hear(relay.say(u=999))
    hub.later(RELAY_CHANGE_S)
    hub.hear(relay.say(u=1_000))
    with hub.store.read() as tx:
        assert tx.job_count() == relays.ROUND_STEP + 2
        assert tx.outgoing_depth() < OUTBOX_MAX
    rows = hub.sent()
    for device in devices:
        device.read(rows)
        assert map_of(device).relays[0].udp_port == 1_000
    with hub.store.read() as tx:
        assert tx.job_count() == 0


# passes


def test_a_pass_for_each_node_key_within_the_admission(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say())
    read(hub, a)
    [only] = map_of(a).passes
    assert use_pass(hub, relay, a).not_after == hub.wall_s + PASS_LIFE_S
    new = hub.crypto.x25519_base(a.entropy(32))
    hub.hear(a.write("report", {"nk": new}))
    read(hub, a)
    assert [peek_node_key(data) for data in map_of(a).passes] == [a.identity.node_key, new]
    assert only not in map_of(a).passes
    assert use_pass(hub, relay, a).stamp < use_pass(hub, relay, a, 1).stamp
    with hub.store.write() as tx:
        actions.expire_device(hub.scribe, tx, row(tx, a), hub.wall_s + DAY_S, hub.wall_s)
    read(hub, a)
    assert use_pass(hub, relay, a).not_after == hub.wall_s + DAY_S
    with pytest.raises(RelayError) as refused:
        use_pass(hub, relay, a, wall_s=hub.wall_s + DAY_S + 1)
    assert refused.value.reason is Refusal.EXPIRED
    other = RelayDev(hub, 5, hub.token(), "sin-1", "sin")
    with pytest.raises(RelayError) as refused:
        use_pass(hub, other, a)
    assert refused.value.reason is Refusal.WRONG_RELAY


def test_passes_are_renewed_in_time_by_a_new_map(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say())
    read(hub, a)
    before = use_pass(hub, relay, a)
    hub.later(PASS_RENEW_S - 1)
    look_at_dates(hub)
    assert read(hub, a, relay) == [[], []]
    hub.later(1)
    look_at_dates(hub)
    assert read(hub, a, relay) == [["map"], []]
    after = use_pass(hub, relay, a)
    assert after.stamp > before.stamp and after.not_after == before.not_after + PASS_RENEW_S
    look_at_dates(hub)
    assert read(hub, a) == [[]]


def test_passes_hold_for_all_that_a_map_names_in_many_regions(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    found = [relays_of(hub, f"r{number:02}", region=f"region-{number:02}")[0] for number in range(16)]
    hub.hear(*(relay.say() for relay in found))
    read(hub, a)
    assert len(map_of(a).relays) == 16
    for relay in found:
        assert use_pass(hub, relay, a).device == a.id


# who was cut off


@pytest.mark.parametrize("how", ["removed", "expired", "by date"])
def test_relays_are_told_who_was_cut_off(hub: Hub, how: str) -> None:
    a, b = admitted(hub, 2)
    first, second = relays_of(hub, "fra-1", "fra-2")
    hub.hear(first.say(), second.say())
    read(hub, a, b, first, second)
    issued = use_pass(hub, first, a).wall_s
    hub.later(100)
    with hub.store.write() as tx:
        if how == "removed":
            actions.remove_device(hub.scribe, tx, row(tx, a), hub.wall_s)
        else:
            actions.expire_device(hub.scribe, tx, row(tx, a), hub.wall_s + 50 * (how == "by date"), hub.wall_s)
    if how == "by date":
        read(hub, a, first)
        hub.later(50)
        look_at_dates(hub)
    ended = hub.wall_s
    rows = hub.sent()
    for relay in (first, second):
        [(kind, body)] = relay.read(rows)
        gone = open_gone(hub, body["gone"], [a.id])
        assert kind == "rec" and issued < gone.wall_s == ended
    a.read(rows)
    if how == "expired":
        assert map_of(a).passes == [] and map_of(a).relays == []
    # Let in again within the same second: the new pass is later than what voids the old ones
    if how == "removed":
        hub.hear(a.join(hub.token()))
    else:
        with hub.store.write() as tx:
            actions.expire_device(hub.scribe, tx, row(tx, a), 0, hub.wall_s)
    assert read(hub, first) == [[]]
    a.read(hub.sent())
    with hub.store.read() as tx:
        assert tx.cut_off(0) == [a.id], "what it had before is void though it is back"


def test_a_pass_after_a_removal_is_later_than_it(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say())
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, a), hub.wall_s)
    told = gone_of(hub, relay)
    hub.hear(a.join(hub.token()))
    a.read(hub.sent())
    assert use_pass(hub, relay, a).wall_s > told[a.id]


def test_a_relay_that_begins_anew_hears_all_recent_removals_again(hub: Hub) -> None:
    devices = admitted(hub, 80)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say())
    hub.sent()
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, devices[0]), hub.wall_s)
    hub.later(PASS_LIFE_S / 2)
    with hub.store.write() as tx:
        for device in devices[1:70]:
            actions.remove_device(hub.scribe, tx, row(tx, device), hub.wall_s)
        actions.expire_device(hub.scribe, tx, row(tx, devices[70]), hub.wall_s, hub.wall_s)
    hub.sent()
    relay.gone.clear()
    hub.later(PASS_LIFE_S / 2)
    relay.epoch += 1
    hub.hear(relay.birth(), relay.birth())
    relay.read(hub.sent())
    assert sorted(relay.gone) == sorted(device.id for device in devices[1:71])
    with hub.store.read() as tx:
        assert tx.job_count() == 0


def test_a_restored_hub_gives_relays_time_to_come_back(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    [relay] = relays_of(hub, "fra-1")
    hub.hear(relay.say())
    read(hub, a)
    hub.later(50 * DAY_S)
    with hub.store.write() as tx:
        actions.start_again(tx, hub.wall_s)
    look_at_dates(hub)
    read(hub, a)
    assert [known.id for known in map_of(a).relays] == ["fra-1"]
