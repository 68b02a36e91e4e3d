"""The network lock on the hub: it passes on what is signed, refuses the operator's slips, and cannot sign itself."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.lock import NODE_SIGNATURE_LIFE_S, Lock, node_input, open_statement
from edgeagent.proto.records import Record
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.signed import Signed
from hub.core import actions, lock
from hub.core.lock_signer import (
    DeviceRequest,
    Request,
    SignedStatement,
    Signer,
    parse_key,
)
from hub.core.memory import MemoryStore
from hub.core.model import HubDrop, HubError, LockSignature
from hub.io.locklines import answer_line, read_answers, read_requests, request_line
from hub.store.meta import save_network
from hub.store.postgres import PostgresStore
from hub.store.sqlite import SqliteStore
from tests.hub.kit import WALL_S, Dev, Hub, admitted, load_crypto, make_network, seeded

FIRST = 7  # the epoch of the hub here
ANA, BEN, EVE = (Signer(load_crypto(), bytes([number]) * 32) for number in (1, 2, 3))


def state(hub: Hub, signer: Signer, *, anew: bool = False, **what: Any) -> None:
    """The statement in force with a change, or the first."""
    with hub.store.write() as tx:
        if "keys" in what:
            draft = lock.first_draft(hub.scribe.lock, tx, what["keys"], anew=anew)
        else:
            draft = lock.next_draft(hub.scribe.lock, tx, **what)
        lock.take_statement(hub.scribe.lock, hub.crypto, tx, signer.statement(draft, hub.wall_s), anew=anew)


def request(hub: Hub, device: Dev, **changes: Any) -> DeviceRequest:
    return DeviceRequest(hub.network.id, device.id, device.name, device.identity.device_key, **changes)


def sign(hub: Hub, signer: Signer, *devices: Dev, **changes: Any) -> None:
    for device in devices:
        take(hub, signer.device(request(hub, device, **changes), hub.wall_s))


def take(hub: Hub, signature: LockSignature) -> None:
    with hub.store.write() as tx:
        hub.scribe.push(tx, lock.take_signature(hub.scribe.lock, hub.crypto, tx, signature))


def report(hub: Hub, device: Dev, key: bytes | None = None, **changes: Any) -> tuple[str, bytes]:
    """A device's signature of its node key."""
    key, end = key or device.identity.node_key, int(hub.wall_s) + NODE_SIGNATURE_LIFE_S
    network = changes.pop("network", hub.network.id)
    text = node_input(network, device.id, key, end)
    row = [key, end, hub.crypto.ed25519_sign(changes.pop("seed", device.identity.device_seed), text)]
    return device.write("report", {"nk": key, "ls": [row]})


def pending(hub: Hub) -> dict[str, tuple[bool, bool]]:
    """Device name → (signed by a lock key, node key signed) of those that are not in."""
    with hub.store.read() as tx:
        found = lock.standings(hub.scribe.lock, tx, hub.wall_s)
    return {each.device.name or "": (bool(each.by), each.node_key) for each in found if each.is_pending}


def reads(hub: Hub, *devices: Dev) -> None:
    rows = hub.sent()
    for device in devices:
        device.read(rows)


def map_of(device: Dev) -> dict[str, Any]:
    assert device.map is not None
    return device.map.body


def lets_in(hub: Hub, reader: Dev, about: Dev) -> bool:
    """Whether `reader` accepts the record that it was told, under the lock that its map names."""
    held = Lock(hub.crypto, hub.network.id)
    held.follow(map_of(reader)["lk"]["s"])
    signed: Signed = reader.recs[about.id]["record"]
    try:
        held.admit(Record(signed), hub.wall_s)
    except ControlError:
        return False
    return True


def refused(says: str, call: Any) -> None:
    with pytest.raises(HubError, match=says):
        call()


def test_without_a_lock_nothing_is_said_of_one(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(a.ask(h="n1"))
    reads(hub, a, b)
    assert "lk" not in map_of(a)
    assert "lk" not in a.recs[b.id]["record"].body
    assert hub.token().lock_keys == []
    refused("no lock", lambda: state(hub, ANA, on=True))
    hub.hear(report(hub, a))  # it may be signed for all that
    assert pending(hub) == {}


def test_a_lock_is_named_by_all_maps_and_by_tokens(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    state(hub, ANA, keys=[ANA.public, BEN.public])
    reads(hub, a, b)
    for device in (a, b):
        (raw,) = map_of(device)["lk"]["s"]
        statement = open_statement(hub.crypto, hub.network.id, raw)
        assert (statement.sequence, statement.on, statement.keys) == (FIRST, False, [ANA.public, BEN.public])
    assert hub.token().lock_keys == [ANA.public, BEN.public]
    assert pending(hub) == {"n0": (False, False), "n1": (False, False)}
    c = Dev(hub, 9, hub.token(), name="late")
    hub.hear(c.join())
    reads(hub, c)
    assert map_of(c)["lk"]["s"] == map_of(a)["lk"]["s"]


def test_what_is_signed_goes_to_those_who_know_the_device(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    hub.hear(a.ask(h="n1"))
    reads(hub, a, b)
    state(hub, ANA, keys=[ANA.public])
    reads(hub, a, b)
    sign(hub, ANA, b)
    reads(hub, a, b)
    assert len(a.recs[b.id]["record"].body["lk"]["c"]) == 1
    assert pending(hub) == {"n0": (False, False), "n1": (True, False)}
    hub.hear(report(hub, b))
    reads(hub, a, b)
    assert pending(hub) == {"n0": (False, False)}
    assert map_of(b)["lk"]["k"][0][0] == b.identity.node_key
    state(hub, ANA, on=True)
    reads(hub, a, b)
    assert lets_in(hub, a, b)
    assert not lets_in(hub, b, a)


def test_a_node_key_is_renewed_without_the_operator(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    state(hub, ANA, keys=[ANA.public])
    sign(hub, ANA, a, b)
    hub.hear(report(hub, a), report(hub, b), a.ask(h="n1"))
    state(hub, ANA, on=True)
    reads(hub, a, b)
    b.identity.make_next(b.entropy)
    coming = b.identity.next_key
    assert coming is not None
    hub.hear(report(hub, b, coming))
    reads(hub, a, b)
    assert {row[0] for row in map_of(b)["lk"]["k"]} == {b.identity.node_key, coming}
    assert {row[0] for row in a.recs[b.id]["record"].body["lk"]["k"]} == {b.identity.node_key, coming}
    b.identity.switch()
    hub.hear(b.birth(nk=coming))
    reads(hub, a, b)
    assert [row[0] for row in a.recs[b.id]["record"].body["lk"]["k"]] == [coming]
    assert lets_in(hub, a, b)
    assert pending(hub) == {}


def test_a_signature_again_is_no_news_and_a_wrong_one_is_counted(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    state(hub, ANA, keys=[ANA.public])
    hub.hear(report(hub, a), a.ask(h="n1"))
    reads(hub, a, b)
    stamp = b.recs[a.id]["record"].stamp
    hub.hear(report(hub, a))
    reads(hub, a, b)
    assert b.recs[a.id]["record"].stamp == stamp
    for lie in ({"seed": b.identity.device_seed}, {"network": "a" * 16}):
        hub.later(1_000)
        hub.hear(report(hub, a, **lie))
    assert hub.coordinator.drops[HubDrop.BAD_NODE_SIGNATURE] == 2
    hub.later(3 * 86_400)
    hub.hear(report(hub, a))  # it holds for longer
    reads(hub, a, b)
    assert b.recs[a.id]["record"].stamp > stamp


def test_only_a_key_of_the_lock_says_anything_and_in_order(hub: Hub) -> None:
    (a,) = admitted(hub, 1)
    state(hub, ANA, keys=[ANA.public])
    refused("has a lock already", lambda: state(hub, EVE, keys=[EVE.public]))
    refused("who signs stays", lambda: state(hub, EVE, on=True))
    with hub.store.write() as tx:
        draft = lock.next_draft(hub.scribe.lock, tx, on=True)
        first = tx.lock_statements()[0]
    by_eve = EVE.statement(lock.Draft(draft.network, FIRST + 1, True, (EVE.public,), ()), hub.wall_s)
    late = ANA.statement(lock.Draft(draft.network, FIRST + 2, True, draft.keys, ()), hub.wall_s)
    foreign = ANA.statement(lock.Draft("a" * 16, FIRST + 1, True, draft.keys, ()), hub.wall_s)
    for raw, says in (
        (by_eve, "no device would follow"),
        (late, "number 8 is next"),
        (first, "number 8 is next"),
        (foreign, "another network"),
        (b"x", "damaged"),
    ):
        with hub.store.write() as tx, pytest.raises(HubError, match=says):
            lock.take_statement(hub.scribe.lock, hub.crypto, tx, raw)
    refused("by a key that is none of the lock's", lambda: sign(hub, EVE, a))
    wrong = ANA.device(request(hub, a), hub.wall_s)
    refused("it is wrong", lambda: take(hub, LockSignature(a.id, ANA.public, 5, wrong.sequence, wrong.signature)))
    refused("no such device", lambda: take(hub, LockSignature("z" * 24, ANA.public, 0, 1, wrong.signature)))
    assert pending(hub) == {"n0": (False, False)}


def test_keys_come_and_go_and_devices_find_the_way(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    state(hub, ANA, keys=[ANA.public])
    reads(hub, a, b)
    asleep = Lock(hub.crypto, hub.network.id)
    asleep.follow(map_of(a)["lk"]["s"])
    refused("only key", lambda: state(hub, ANA, remove=ANA.public))
    refused("already", lambda: state(hub, ANA, add=ANA.public))
    refused("no key of the lock", lambda: state(hub, ANA, remove=EVE.public))
    sign(hub, ANA, a, b)
    state(hub, ANA, add=BEN.public)
    sign(hub, BEN, a)
    state(hub, BEN, remove=ANA.public)
    state(hub, BEN, on=True)
    reads(hub, a, b)
    assert asleep.follow(map_of(a)["lk"]["s"])
    assert (asleep.sequence, asleep.keys, asleep.on) == (FIRST + 3, [BEN.public], True)
    by_token = Lock(hub.crypto, hub.network.id, [ANA.public])
    by_token.follow(map_of(b)["lk"]["s"])
    assert by_token.sequence == FIRST + 3
    assert {name for name, (signed, _) in pending(hub).items() if not signed} == {"n1"}
    sign(hub, BEN, b)
    reads(hub, a, b)
    assert len(map_of(b)["lk"]["c"]) == 1  # what a key signed that is void is not kept


def test_a_new_lock_after_all_keys_were_lost(hub: Hub) -> None:
    (a,) = admitted(hub, 1)
    state(hub, ANA, keys=[ANA.public])
    state(hub, EVE, keys=[EVE.public], anew=True)
    reads(hub, a)
    assert Lock(hub.crypto, hub.network.id, [EVE.public]).follow(map_of(a)["lk"]["s"])
    with pytest.raises(ControlError):
        Lock(hub.crypto, hub.network.id, [BEN.public]).follow(map_of(a)["lk"]["s"])


def test_whoever_sleeps_through_four_changes_of_all_keys_is_told_by_hand(hub: Hub) -> None:
    (a,) = admitted(hub, 1)
    owners = [Signer(hub.crypto, bytes([60 + number]) * 32) for number in range(7)]
    state(hub, owners[0], keys=[owners[0].public])
    for before, after in pairwise(owners):
        state(hub, before, add=after.public)
        state(hub, after, remove=before.public)
        reads(hub, a)
        assert len(map_of(a)["lk"]["s"]) <= 4
    with hub.store.read() as tx:
        statements = hub.scribe.lock.statements(tx)
    for held, followed in ((owners[6], True), (owners[4], True), (owners[0], False)):
        device = Lock(hub.crypto, hub.network.id, [held.public])
        with suppress(ControlError):
            device.follow(map_of(a)["lk"]["s"])
        assert (device.sequence == statements[-1].sequence) is followed


def test_a_restored_hub_goes_on_above_what_devices_hold(hub: Hub) -> None:
    (a,) = admitted(hub, 1)
    state(hub, ANA, keys=[ANA.public])
    reads(hub, a)
    device = Lock(hub.crypto, hub.network.id)
    device.follow(map_of(a)["lk"]["s"])
    lost = ANA.statement(lock.Draft(hub.network.id, FIRST + 1, True, (ANA.public, BEN.public), ()), hub.wall_s)
    device.follow([lost])  # the backup was made before this one
    restored = replace(hub.network, epoch=900)
    if isinstance(hub.store, MemoryStore):
        hub.store._network = restored
    else:
        assert isinstance(hub.store, SqliteStore | PostgresStore)
        with hub.store.write() as tx:
            save_network(tx.connection, restored)
    state(hub, ANA, on=True)
    reads(hub, a)
    assert device.follow(map_of(a)["lk"]["s"])
    assert (device.sequence, device.keys, device.on) == (900, [ANA.public], True)


def test_a_removed_or_revoked_device_is_signed_anew(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    state(hub, ANA, keys=[ANA.public])
    sign(hub, ANA, a, b)
    hub.hear(report(hub, a), report(hub, b))
    assert pending(hub) == {}
    state(hub, ANA, revoke=(a.id, hub.wall_s))
    assert pending(hub) == {"n0": (False, True)}
    refused("before it was revoked", lambda: sign(hub, ANA, a))
    sign(hub, ANA, a, beyond=hub.wall_s)
    assert pending(hub) == {}
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, actions.find_device(tx, "n1"), hub.wall_s)
    again = hub.token()
    hub.hear(b.join(again))
    reads(hub, b)
    assert pending(hub) == {"n1": (False, False)}


def test_the_lock_is_not_turned_on_over_peoples_heads(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    state(hub, ANA, keys=[ANA.public, BEN.public])

    def check(*keys: bytes) -> None:
        with hub.store.read() as tx:
            lock.refuse_to_silence(lock.standings(hub.scribe.lock, tx, hub.wall_s), keys=keys)

    refused("2 of 2 devices", lambda: check(ANA.public))
    sign(hub, ANA, a, b)
    hub.hear(report(hub, a))
    refused("1 of 2 devices would be in nobody's reach: n1", lambda: check(ANA.public))
    hub.hear(report(hub, b))
    check(ANA.public)
    refused("2 of 2", lambda: check(BEN.public))
    hub.later(NODE_SIGNATURE_LIFE_S + 1)
    refused("2 of 2", lambda: check(ANA.public))


def test_a_signature_may_end(hub: Hub) -> None:
    (a,) = admitted(hub, 1)
    state(hub, ANA, keys=[ANA.public])
    sign(hub, ANA, a, not_after=WALL_S + 100)
    hub.hear(report(hub, a))
    assert pending(hub) == {}
    hub.later(101)
    assert pending(hub) == {"n0": (False, True)}


# Files of lines


def test_requests_and_signatures_travel_as_lines(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    with hub.store.read() as tx:
        draft = lock.first_draft(hub.scribe.lock, tx, [ANA.public])
    requests: list[Request] = [draft, request(hub, a, not_after=WALL_S + 5, beyond=7), request(hub, b)]
    lines = [request_line(each) for each in requests]
    assert read_requests([*lines, ""]) == requests
    answers = [ANA.sign(each, hub.wall_s) for each in read_requests(lines)]
    assert read_answers([answer_line(each) for each in answers]) == answers
    for answer in answers:
        if isinstance(answer, SignedStatement):
            with hub.store.write() as tx:
                lock.take_statement(hub.scribe.lock, hub.crypto, tx, answer.raw)
        else:
            assert answer[0] == hub.network.id
            take(hub, answer[1])
    assert pending(hub) == {"n0": (True, False), "n1": (True, False)}


def test_a_request_whose_key_is_not_behind_its_id_is_not_signed(hub: Hub) -> None:
    a, b = admitted(hub, 2)
    lie = DeviceRequest(hub.network.id, a.id, "n0", b.identity.device_key)
    refused("not the one behind the id", lambda: ANA.sign(lie, hub.wall_s))


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "[]",
        "[" * 5_000,
        "{}",
        '{"sign":"device"}',
        '{"sign":"device","network":"x","device":"y","name":"z","key":"AA=="}',
        '{"sign":"statement","network":"aaaaaaaaaaaaaaaa","sequence":1,"on":1,"keys":[],"revoked":{}}',
        '{"sign":"statement","network":"aaaaaaaaaaaaaaaa","sequence":-1,"on":true,"keys":[],"revoked":{}}',
        '{"sign":"statement","network":"aaaaaaaaaaaaaaaa","sequence":1,"on":true,"keys":["AA=="],"revoked":{}}',
        '{"signed":"device","network":"aaaaaaaaaaaaaaaa","device":"y"}',
        '{"signed":"statement","network":"aaaaaaaaaaaaaaaa","object":"*"}',
    ],
)
def test_a_line_that_is_none_is_refused_by_its_number(line: str) -> None:
    for read in (read_requests, read_answers):
        with pytest.raises(HubError, match="line 2: "):
            read(["", line])


def test_a_key_is_read_as_it_is_printed() -> None:
    assert parse_key("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") == bytes(range(32))
    for wrong in ("", "AA==", "ä" * 44, "A" * 44):
        refused("44 characters", lambda wrong=wrong: parse_key(wrong))


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "on"]), st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_from_every_statement_the_way_in_the_map_leads_to_the_last(changes: list[tuple[str, int, int]]) -> None:
    """Or the map is full of statements, after four changes of all keys."""
    crypto = load_crypto()
    network = make_network(crypto, seeded(0))
    hub = Hub(MemoryStore(network), crypto, network)
    signers = {signer.public: signer for signer in (Signer(crypto, bytes([90 + number]) * 32) for number in range(8))}
    everyone = list(signers)
    state(hub, signers[everyone[0]], keys=[everyone[0]])
    for verb, by, whom in changes:
        with hub.store.read() as tx:
            held = lock.require(hub.scribe.lock, tx).keys
        signer, other = signers[held[by % len(held)]], everyone[whom]
        if verb == "on":
            state(hub, signer, on=whom % 2 == 0)
        elif verb == "add" and other not in held:
            state(hub, signer, add=other)
        elif verb == "remove" and other in held and other != signer.public:
            state(hub, signer, remove=other)
    with hub.store.read() as tx:
        statements = hub.scribe.lock.statements(tx)
    way = lock.way_to_last(statements)
    assert len(way) <= 4
    assert sum(len(each.raw) for each in way[:-1]) <= lock.WAY_BYTES_MAX
    for each in statements:
        device = Lock(crypto, network.id, each.keys)
        device.follow([each.raw])
        with suppress(ControlError):
            device.follow([step.raw for step in way])
        assert device.sequence == statements[-1].sequence or len(way) == 4
