"""The hub's machine against devices that speak the real protocol, on both stores."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeagent.proto import topics
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.signed import WILL_SEQ
from hub.core import actions, chores
from hub.core.memory import MemoryStore
from hub.core.model import (
    CLAIM_GRACE_S,
    NODE_KEY_LIFE_S,
    NODE_KEY_UNUSED_S,
    RECORD_RENEW_S,
    DeviceState,
    HubDrop,
    HubError,
    JobKind,
    Op,
    Role,
)
from tests.hub.kit import DAY_S, WALL_S, Dev, Hub, admitted, load_crypto, make_network, relays_of, row, seeded


def drops(hub: Hub) -> dict[HubDrop | ControlDrop, int]:
    return dict(hub.coordinator.drops)


# joining


def test_a_join_gets_an_account_then_the_answer_then_the_map(hub: Hub) -> None:
    device = Dev(hub, 1, hub.token(tags=("tag:cam",)), name="cam")
    hub.sent()
    hub.hear(device.join())
    rows = hub.sent()
    assert [(r.op, r.target) for r in rows] == [
        (Op.ADMIT, device.id),
        (Op.PUBLISH, topics.down(hub.network.id, device.id, "map")),
        (Op.PUBLISH, topics.admit(hub.network.id, device.token.claim if device.token else "", device.id)),
    ]
    assert rows[0].payload.decode() == device.identity.password
    assert rows[0].role is Role.DEVICE
    assert rows[1].retain and not rows[2].retain
    device.read(rows)
    assert device.answers[0]["ca"] == hub.network.ca_der
    assert device.map is not None
    body = device.map.body
    assert (body["name"], body["tags"], body["domain"]) == ("cam", ["tag:cam"], "mesh.internal")
    assert body["v4"] == [bytes((100, 64, 0, 0)), 10]
    assert body["v6"][0][:6] == body["addrs"][1][:6]
    assert body["nk"][0][0] == device.identity.node_key
    assert drops(hub) == {}


def test_a_token_for_one_device_admits_one(hub: Hub) -> None:
    token = hub.token(uses=1)
    devices = [Dev(hub, seed, token) for seed in range(10)]
    hub.hear(*(device.join() for device in devices))
    rows = hub.sent()
    for device in devices:
        device.read(rows)
    assert [("ok" in d.answers[0], d.answers[0].get("no")) for d in devices] == [(True, None)] + 9 * [
        (False, "used-up")
    ]


def test_the_same_device_joins_again_and_uses_nothing_up(hub: Hub) -> None:
    token = hub.token(uses=1)
    device = Dev(hub, 1, token)
    for _ in range(3):
        hub.hear(device.join())
        device.read(hub.sent())
    assert [set(answer) for answer in device.answers] == 3 * [{"ok", "map", "ca"}]
    with hub.store.read() as tx:
        found = tx.token(token.claim)
        assert found is not None and found.used == 1
    other = Dev(hub, 2, token)
    hub.hear(other.join())
    other.read(hub.sent())
    assert other.answers == [{"no": "used-up", "name": "box"}]


def test_a_second_join_brings_its_new_password_to_the_broker(hub: Hub) -> None:
    token = hub.token(uses=1)
    device = Dev(hub, 1, token)
    hub.hear(device.join())
    hub.sent()
    hub.hear(device.join(pw="another password of this device"))
    assert [(r.op, r.payload) for r in hub.sent() if r.op is not Op.PUBLISH] == [
        (Op.REPASS, b"another password of this device")
    ]


def test_a_replayed_join_is_answered_and_changes_nothing(hub: Hub) -> None:
    token = hub.token(uses=1)
    device = Dev(hub, 1, token)
    first = device.join()
    hub.hear(first, device.join(pw="another password of this device"))
    hub.sent()
    hub.hear(first)
    rows = hub.sent()
    assert [r.op for r in rows] == [Op.PUBLISH, Op.PUBLISH]
    device.read(rows)
    assert device.answers[-1]["ok"]


@pytest.mark.parametrize("why", ["expired", "revoked", "unknown", "denied", "bad-request"])
def test_refusals_are_told_apart(hub: Hub, why: str) -> None:
    token = hub.token(uses=0, not_after=WALL_S + DAY_S)
    device = Dev(hub, 1, token)
    if why == "expired":
        hub.later(DAY_S)
    if why == "revoked":
        with hub.store.write() as tx:
            actions.revoke_token(tx, token.claim, hub.wall_s)
    if why == "unknown":
        token.secret = bytes(16)
    if why == "denied":  # it was removed after this token was made
        hub.hear(device.join())
        with hub.store.write() as tx:
            actions.remove_device(hub.scribe, tx, row(tx, device), hub.wall_s)
    hub.sent()
    if why == "bad-request":
        other = Dev(hub, 2, token)
        hub.hear(other.join())
        hub.hear(device.join(nk=other.identity.node_key))
    else:
        hub.hear(device.join())
    device.read(hub.sent())
    assert device.answers == [{"no": why, "name": "box"}]


def test_a_removed_device_returns_with_a_new_token(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    assert device.map is not None
    before = device.map.body
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, device), hub.wall_s)
    hub.sent()
    hub.hear(device.join(hub.token()))
    device.read(hub.sent())
    assert device.map.body["addrs"] == before["addrs"]
    assert device.map.body["fg"] > before["fg"]


def test_an_unknown_claim_a_small_key_and_a_short_password(hub: Hub) -> None:
    device = Dev(hub, 1, hub.token(uses=0))
    stranger = hub.token()
    stranger.claim = "c-" + 16 * "a"
    hub.hear(device.join(stranger), device.join(bk=bytes(32)), device.join(nk=bytes(32)), device.join(pw="short"))
    assert drops(hub) == {HubDrop.UNKNOWN_CLAIM: 1, HubDrop.WEAK_KEY: 2, HubDrop.WEAK_PASSWORD: 1}
    device.read(hub.sent())
    assert device.answers == [{"no": "bad-request", "name": "box"}, {"no": "bad-request", "name": "box"}]


def test_a_join_flood_under_one_claim_is_held_back(hub: Hub) -> None:
    token = hub.token(uses=0)
    device = Dev(hub, 1, token)
    hub.hear(*(device.join() for _ in range(250)))
    assert drops(hub) == {HubDrop.RATE_LIMITED: 50}
    hub.later(1.0)
    hub.hear(*(device.join() for _ in range(21)))
    assert drops(hub) == {HubDrop.RATE_LIMITED: 51}


# approval


def test_approval(hub: Hub) -> None:
    token = hub.token(needs_approval=True)
    device, late = Dev(hub, 1, token), Dev(hub, 2, token)
    hub.hear(device.join(), late.join())
    rows = hub.sent()
    device.read(rows)
    late.read(rows)
    assert device.answers == [{"wait": True}]
    assert late.answers == [{"no": "used-up", "name": "box"}]
    assert all(r.op is not Op.ADMIT or r.role is Role.CLAIM for r in rows)
    hub.hear(device.birth())
    assert drops(hub) == {HubDrop.NOT_ADMITTED: 1}
    with hub.store.write() as tx:
        assert tx.state_count(DeviceState.PENDING) == 1
        assert dict(tx.accounts()).keys() == {token.claim}
        actions.approve_device(hub.scribe, tx, actions.find_device(tx, "box"), hub.wall_s)
        assert row(tx, device).pending_password == ""
    rows = hub.sent()
    assert (rows[0].op, rows[0].payload.decode()) == (Op.ADMIT, device.identity.password)
    device.read(rows)
    assert device.answers[1]["ok"]
    with hub.store.write() as tx, pytest.raises(HubError, match="not waiting"):
        actions.approve_device(hub.scribe, tx, row(tx, device), hub.wall_s)


def test_denial(hub: Hub) -> None:
    device = Dev(hub, 1, hub.token(needs_approval=True))
    hub.hear(device.join())
    hub.sent()
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, device), hub.wall_s)
    device.read(hub.sent())
    assert device.answers == [{"no": "denied", "name": "box"}]


# names and addresses


def test_host_names_do_not_clash(hub: Hub) -> None:
    token = hub.token(uses=0)
    devices = [Dev(hub, seed, token, name="x") for seed in range(4)]
    devices.append(Dev(hub, 4, token, name="hub"))
    devices.append(Dev(hub, 5, token, name="x" * 63))
    devices.append(Dev(hub, 6, token, name="x" * 63))
    hub.hear(*(device.join() for device in devices))
    rows = hub.sent()
    names = []
    for device in devices:
        device.read(rows)
        assert device.map is not None
        names.append(device.map.body["name"])
    assert names == ["x", "x-1", "x-2", "x-3", "hub-1", "x" * 63, "x" * 61 + "-1"]


def test_renaming_tells_those_who_know_it(hub: Hub) -> None:
    a, b, c = admitted(hub, 3)
    hub.hear(a.ask(h="n1"))
    rows = hub.sent()
    for device in (a, b, c):
        device.read(rows)
    assert set(a.recs) == {b.id} and set(b.recs) == {a.id} and not c.recs
    with hub.store.write() as tx:
        actions.rename_device(hub.scribe, tx, row(tx, b), "door")
        with pytest.raises(HubError, match="has it"):
            actions.rename_device(hub.scribe, tx, row(tx, b), "n0")
        with pytest.raises(HubError, match="none of"):
            actions.rename_device(hub.scribe, tx, row(tx, b), "hub")
    rows = hub.sent()
    assert a.read(rows)[0][1]["rec"] and b.read(rows)[0][0] == "map" and c.read(rows) == []
    assert a.recs[b.id]["record"].body["name"] == "door"
    assert b.map is not None and b.map.body["name"] == "door"


# questions


def test_one_question_tells_both_sides(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    assert b.map is not None
    questions = [{"a": b.map.body["addrs"][0]}, {"a": b.map.body["addrs"][1]}, {"h": "n1"}, {"k": b.identity.node_key}]
    for question in questions:
        asked = a.ask(**question)
        hub.hear(asked)
        rows = hub.sent()
        [(_, to_a)], [(_, to_b)] = a.read(rows), b.read(rows)
        assert to_a["id"] == a.seq and "id" not in to_b
        assert to_a["fk"] == b.map.body["fk"]
        assert b.recs[a.id]["record"].body["nk"][0][0] == a.identity.node_key
    record = a.recs[b.id]["record"]
    assert record.not_before is not None and record.not_before < WALL_S < (record.not_after or 0)


def test_unknown_and_forbidden(hub: Hub) -> None:
    a, b, _ = admitted(hub, 3)
    with hub.store.write() as tx:
        actions.expire_device(hub.scribe, tx, row(tx, b), hub.wall_s, hub.wall_s)
    hub.hear(a.ask(h="nobody"), a.ask(h="n0"), a.ask(a=bytes(4)), a.ask(h="n1"), b.ask(h="n2"))
    rows = hub.sent()
    assert [body.get("no") for _, body in a.read(rows)] == ["unknown"] * 4
    assert [body.get("no") for kind, body in b.read(rows) if kind == "rec"] == ["forbidden"]


def test_have_is_answered_for_what_changed_or_went(hub: Hub) -> None:
    a, b, c, d = admitted(hub, 4)
    hub.hear(a.ask(h="n1"), a.ask(h="n2"), a.ask(h="n3"))
    a.read(hub.sent())

    def have() -> list[list[object]]:
        return [[i, *rec["record"].stamp, rec["fg"]] for i, rec in sorted(a.recs.items())]

    held = have()
    hub.hear(a.ask(have=held))
    assert a.read(hub.sent()) == []
    with hub.store.write() as tx:
        actions.rename_device(hub.scribe, tx, row(tx, b), "door")
        actions.remove_device(hub.scribe, tx, row(tx, c), hub.wall_s)
    hub.sent()
    hub.hear(a.ask(have=[*held, [24 * "a", 1, 1, 1]]))
    a.read(hub.sent())
    assert a.recs[b.id]["record"].body["name"] == "door"
    assert sorted(a.gone) == sorted([c.id, 24 * "a"])
    assert set(a.recs) == {b.id, d.id}


def test_questions_are_limited_a_device(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(*(a.ask(h="n1") for _ in range(140)))
    assert drops(hub) == {HubDrop.RATE_LIMITED: 12}
    hub.hear(b.ask(h="n0"))
    assert drops(hub) == {HubDrop.RATE_LIMITED: 12}
    rows = hub.sent()
    assert len(b.read(rows)) == 2  # pushes of the same record take each other's place


# sessions


def test_a_birth_gets_the_time_and_a_map_only_when_it_has_not_the_newest(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    hub.hear(device.birth())
    assert device.read(hub.sent()) == [("time", {})]
    hub.hear(device.birth(map=[0, 0]))
    assert [kind for kind, _ in device.read(hub.sent())] == ["time", "map"]


def test_a_device_that_lost_its_epoch_is_told_it(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    device.epoch = 40
    hub.hear(device.birth())
    hub.sent()
    device.epoch = 1
    hub.hear(device.birth(), device.ask(h="n0"))
    assert device.read(hub.sent()) == [("time", {"e": 40}), ("rec", {"id": device.seq, "no": "unknown", "ttl": 30})]
    assert drops(hub) == {ControlDrop.REPLAYED: 1}


def test_a_late_will_does_not_mark_the_new_session_dead(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    will = device.write("state", {"up": False}, stamp=(1, WILL_SEQ))
    hub.hear(device.birth(), device.write("state", {"up": True}))
    device.epoch = 2
    hub.hear(device.birth(), will)
    with hub.store.read() as tx:
        assert row(tx, device).online and tx.online_count() == 1
    hub.hear(device.write("state", {"up": False}, stamp=(2, WILL_SEQ)))
    with hub.store.read() as tx:
        assert not row(tx, device).online and tx.online_count() == 0


def test_two_boards_with_one_identity_are_seen(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    ours, theirs = device.boot, bytes(16)
    for epoch, boot in enumerate((ours, theirs, ours), start=1):
        device.epoch = epoch
        with hub.store.read() as tx:
            assert row(tx, device).cloned_s == 0
        hub.hear(device.birth(boot=boot))
    with hub.store.read() as tx:
        assert row(tx, device).cloned_s == hub.wall_s


def test_a_state_that_the_broker_repeats_is_no_replay(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    state, will = device.write("state", {"up": True}), device.write("state", {"up": False}, stamp=(1, WILL_SEQ))
    hub.hear(state, state, will, will)
    assert drops(hub) == {}
    hub.hear(state)
    assert drops(hub) == {ControlDrop.REPLAYED: 1}
    hub.hear((state[0], b""))  # what the hub itself clears
    assert drops(hub) == {ControlDrop.REPLAYED: 1}


# node keys


def test_a_new_node_key_stands_beside_the_old_one(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(b.ask(h="n0"))
    b.read(hub.sent())
    old = a.identity.node_key
    a.identity.make_next(a.entropy)
    new = a.identity.next_key
    hub.hear(a.write("report", {"nk": new}))
    rows = hub.sent()
    a.read(rows)
    b.read(rows)
    assert a.map is not None
    assert [key for key, _ in a.map.body["nk"]] == [old, new]
    assert [key for key, _ in b.recs[a.id]["record"].body["nk"]] == [old, new]
    assert [end for _, end in a.map.body["nk"]] == 2 * [WALL_S + NODE_KEY_LIFE_S]
    hub.hear(b.ask(k=new), b.ask(k=old))
    assert ["rec" in body for _, body in b.read(hub.sent())] == [True, True]
    a.identity.switch()
    hub.hear(a.birth())  # says which one is in use
    rows = hub.sent()
    a.read(rows)
    b.read(rows)
    assert [key for key, _ in a.map.body["nk"]] == [new]
    assert [key for key, _ in b.recs[a.id]["record"].body["nk"]] == [new]
    hub.hear(b.ask(k=old))
    assert [body["no"] for _, body in b.read(hub.sent())] == ["unknown"]


def test_a_key_that_is_never_used_ends_and_the_one_in_use_stays(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    keys = [load_crypto().x25519_base(bytes([number]) * 32) for number in (1, 2)]
    for key in keys:
        hub.later(700)
        hub.hear(a.write("report", {"nk": key}))
    hub.later(NODE_KEY_UNUSED_S)
    with hub.store.write() as tx:
        chores.look_at_dates(hub.scribe, tx, hub.wall_s)
    a.read(hub.sent())
    assert a.map is not None
    assert [key for key, _ in a.map.body["nk"]] == [a.identity.node_key, keys[1]]
    hub.later(2 * NODE_KEY_LIFE_S)
    with hub.store.write() as tx:
        chores.look_at_dates(hub.scribe, tx, hub.wall_s)
    a.read(hub.sent())
    assert [key for key, _ in a.map.body["nk"]] == [a.identity.node_key]  # it can still report a new one


def test_node_keys_of_others_and_small_ones_are_refused(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(a.write("report", {"nk": b.identity.node_key}), a.write("report", {"nk": bytes(32)}))
    assert drops(hub) == {HubDrop.NODE_KEY_TAKEN: 1, HubDrop.WEAK_KEY: 1}
    hub.hear(a.birth(nk=b.identity.node_key))
    assert drops(hub)[HubDrop.UNKNOWN_NODE_KEY] == 1


def test_a_device_holds_four_node_keys_at_most(hub: Hub) -> None:
    [a] = admitted(hub, 1)
    for number in range(6):
        hub.later(700)
        hub.hear(a.write("report", {"nk": load_crypto().x25519_base(bytes([number]) * 32)}))
    a.read(hub.sent())
    assert a.map is not None
    assert len(a.map.body["nk"]) == 4
    assert a.map.body["nk"][0][0] == a.identity.node_key


# removal


def test_removal_reaches_everybody_and_changes_their_feed_keys(hub: Hub) -> None:
    a, b, c, d = admitted(hub, 4)
    hub.hear(a.ask(h="n1"), a.ask(h="n2"), b.ask(h="n3"))
    rows = hub.sent()
    for device in (a, b, c, d):
        device.read(rows)
        hub.hear(device.birth())
    hub.sent()
    old = {device.id: device.map.body["fk"] for device in (a, b, c, d) if device.map}
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, a), hub.wall_s)
    rows = hub.sent()
    assert (rows[0].op, rows[0].target) == (Op.REVOKE, a.id)
    net = hub.network.id
    assert [(r.target, r.payload, r.retain) for r in rows[1:4]] == [
        (topics.down(net, a.id, "map"), b"", True),
        (topics.up(net, a.id, "state"), b"", True),
        (topics.feed(net, a.id), b"", True),
    ]
    assert a.read(rows) == []
    for device in (b, c, d):
        device.read(rows)
    assert b.gone == [a.id] and c.gone == [a.id] and d.gone == []
    assert b.map and c.map and d.map
    assert b.map.body["fk"] != old[b.id] and c.map.body["fk"] != old[c.id]
    assert d.map.body["fk"] == old[d.id]  # it never knew the removed one
    assert d.recs[b.id]["fk"] == b.map.body["fk"] and d.recs[b.id]["fg"] == b.map.body["fg"]
    with hub.store.read() as tx:
        assert a.id not in dict(tx.accounts())
        assert tx.acquaintances(b.id) == [d.id]
        assert tx.device_by_name("n0") is None
    hub.hear(a.ask(h="n1"))
    assert drops(hub) == {HubDrop.NOT_ADMITTED: 1}
    with hub.store.write() as tx, pytest.raises(HubError, match="removed"):
        actions.remove_device(hub.scribe, tx, row(tx, a), hub.wall_s)


def test_expiry_and_renewal(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(a.ask(h="n1"))
    a.read(hub.sent())
    with hub.store.write() as tx:
        actions.expire_device(hub.scribe, tx, row(tx, b), hub.wall_s + DAY_S, hub.wall_s)
    rows = hub.sent()
    a.read(rows)
    b.read(rows)
    assert a.recs[b.id]["record"].not_after == hub.wall_s + DAY_S
    assert b.map is not None and b.map.body["na"] == hub.wall_s + DAY_S
    hub.later(DAY_S)
    with hub.store.write() as tx:
        chores.look_at_dates(hub.scribe, tx, hub.wall_s)
        assert row(tx, b).state is DeviceState.EXPIRED
        actions.expire_device(hub.scribe, tx, row(tx, b), 0, hub.wall_s)
        assert row(tx, b).state is DeviceState.ACTIVE
    a.read(hub.sent())
    assert a.recs[b.id]["record"].not_after > hub.wall_s + DAY_S


def test_an_expired_device_joins_again_with_a_token(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(a.ask(h="n1"))
    a.read(hub.sent())
    with hub.store.write() as tx:
        actions.expire_device(hub.scribe, tx, row(tx, b), hub.wall_s, hub.wall_s)
    hub.sent()
    hub.hear(b.join(hub.token()))
    rows = hub.sent()
    assert [r.op for r in rows if r.target == b.id] == [Op.REPASS]
    b.read(rows)
    a.read(rows)
    assert b.answers[-1]["ok"] and b.map is not None and b.map.body["name"] == "n1"
    assert a.recs[b.id]["record"].not_after > hub.wall_s


# dates


def test_records_are_signed_again_in_time(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(a.ask(h="n1"))
    a.read(hub.sent())
    first = a.recs[b.id]["record"]
    hub.later(RECORD_RENEW_S)
    with hub.store.write() as tx:
        chores.look_at_dates(hub.scribe, tx, hub.wall_s)
    a.read(hub.sent())
    second = a.recs[b.id]["record"]
    assert second.stamp > first.stamp and second.not_after == first.not_after + RECORD_RENEW_S


def test_a_finished_token_keeps_its_account_for_a_while(hub: Hub) -> None:
    token = hub.token(not_after=hub.wall_s + 60)
    hub.sent()
    for wait, expected in ((60, []), (CLAIM_GRACE_S, []), (1, [(Op.REVOKE, token.claim)])):
        hub.later(wait)
        with hub.store.write() as tx:
            chores.look_at_dates(hub.scribe, tx, hub.wall_s)
        assert [(r.op, r.target) for r in hub.sent()] == expected
    with hub.store.read() as tx:
        assert tx.accounts() == []


# the rest


def test_tokens_refuse_bad_tags(hub: Hub) -> None:
    for tag in ("cam", "tag:Cam", "tag:", "tag:a b"):
        with pytest.raises(HubError, match="Write for example"):
            hub.token(tags=(tag,))


def test_hub_states_only_go_up(hub: Hub) -> None:
    from edgeagent.proto.envelope import read_hub_state

    stamps = []
    for _ in range(2):
        with hub.store.write() as tx:
            for data in hub.scribe.hub_states(tx, hub.wall_s):
                state = read_hub_state(hub.crypto, hub.network.key, data, network=hub.network.id)
                stamps.append((state.stamp, state.body["up"]))
    assert stamps == sorted(stamps) and len({stamp for stamp, _ in stamps}) == 4
    assert [up for _, up in stamps] == [True, False, True, False]


def test_after_a_restore_everything_is_made_anew(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(a.ask(h="n1"))
    a.read(hub.sent())
    assert b.map is not None
    generation = b.map.body["fg"]
    with hub.store.write() as tx:
        actions.start_again(tx, hub.wall_s)
    rows = hub.sent()
    a.read(rows)
    b.read(rows)
    assert b.map.body["fg"] > generation and a.recs[b.id]["fg"] == b.map.body["fg"]
    assert a.recs[b.id]["fk"] == b.map.body["fk"]


def test_jobs_that_lost_their_point_are_dropped(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    with hub.store.write() as tx:
        for kind in JobKind:
            tx.add_job(kind, a.id, 24 * "a")
            tx.add_job(kind, a.id, b.id)
            tx.add_job(kind, a.id, b.id)
        assert tx.job_count() == 2 * len(JobKind)
        actions.remove_device(hub.scribe, tx, row(tx, b), hub.wall_s)
    hub.sent()
    with hub.store.read() as tx:
        assert tx.job_count() == 0


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("em1/x/y", ControlDrop.UNKNOWN_TOPIC),
        ("em1/{net}/{dev}/d/map", ControlDrop.UNKNOWN_TOPIC),
        ("em1/{net}/{dev}/u/nonsense", ControlDrop.UNKNOWN_TOPIC),
        ("em1/" + 16 * "a" + "/{dev}/u/ask", ControlDrop.UNKNOWN_TOPIC),
        ("em1/{net}/{dev}/u/log", HubDrop.RESERVED_KIND),
        ("em1/{net}/" + 24 * "a" + "/u/ask", HubDrop.UNKNOWN_DEVICE),
        ("em1/{net}/{dev}/u/ask", ControlDrop.BAD_BOX),
    ],
)
def test_what_cannot_be_is_counted(hub: Hub, topic: str, reason: HubDrop | ControlDrop) -> None:
    [device] = admitted(hub, 1)
    hub.hear((topic.format(net=hub.network.id, dev=device.id), b"x"))
    assert drops(hub) == {reason: 1}
    hub.hear((topics.up(hub.network.id, device.id, "ask"), bytes(9000)))
    assert drops(hub)[ControlDrop.TOO_LONG] == 1


_FUZZ_CRYPTO = load_crypto()
_FUZZ_HUB = Hub(MemoryStore(make_network(_FUZZ_CRYPTO, seeded(0))), _FUZZ_CRYPTO, make_network(_FUZZ_CRYPTO, seeded(0)))
_FUZZ_DEVICES = admitted(_FUZZ_HUB, 2)
[_FUZZ_RELAY] = relays_of(_FUZZ_HUB, "r1")


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["join", "birth", "state", "ask", "report", "relay"]), st.integers(0, 10_000), st.integers(0, 255)
)
def test_a_flipped_byte_never_raises_and_never_counts(kind: str, position: int, flip: int) -> None:
    a, _ = _FUZZ_DEVICES
    messages = {
        "join": a.join(),
        "birth": a.birth(),
        "state": a.write("state", {"up": True}),
        "ask": a.ask(h="n1"),
        "report": a.write("report", {"nk": a.identity.node_key}),
        "relay": _FUZZ_RELAY.say(),
    }
    topic, payload = messages[kind]
    broken = bytearray(payload)
    broken[position % len(broken)] ^= flip
    _FUZZ_HUB.later(1000)
    before = sum(_FUZZ_HUB.coordinator.drops.values())
    _FUZZ_HUB.hear((topic, bytes(broken)))
    _FUZZ_HUB.sent()
    assert sum(_FUZZ_HUB.coordinator.drops.values()) == before + (flip != 0)
