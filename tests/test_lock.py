"""The network lock as a device holds it: what it follows, what it lets count, and each lie of a hub refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.codec import encode
from edgeagent.proto.lock import Lock, open_statement
from edgeagent.proto.records import Record, open_record
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.signed import sign_object, split_object
from tests.control_kit import CRYPTO, DEVICE, NETWORK, NETWORK_KEY, NETWORK_SEED, OTHER, RECORD_BODY, WALL_S
from tests.lock_kit import Owner, node_row

ANA, BEN, EVE = Owner(1), Owner(2), Owner(3)
ID, KEY = DEVICE.device_id, DEVICE.device_key
NODE = DEVICE.node_key
OTHER_NETWORK = "a" * 16


def record(lock: dict[str, Any] | None, **changes: Any) -> Record:
    """A record as a hub signs it: whatever it says, its own signature is right."""
    body = {**RECORD_BODY, **changes}
    if lock is not None:
        body["lk"] = lock
    data = sign_object(
        CRYPTO,
        NETWORK_SEED,
        kind="record",
        network=NETWORK,
        subject=ID,
        epoch=1,
        seq=1,
        wall_s=WALL_S,
        body=body,
        not_before=WALL_S - 5,
        not_after=WALL_S + 1_000,
    )
    return open_record(CRYPTO, NETWORK_KEY, data, network=NETWORK, wall_s=WALL_S)


def signed_by(*owners: Owner, **changes: Any) -> dict[str, Any]:
    return {"c": [owner.device(ID, KEY) for owner in owners], "k": [node_row(DEVICE.device_seed, ID, NODE)], **changes}


def held(*statements: bytes, keys: list[bytes] | None = None) -> Lock:
    lock = Lock(CRYPTO, NETWORK, keys)
    lock.follow(list(statements))
    return lock


def reason_of(lock: Lock, signed: Record, wall_s: float = WALL_S) -> ControlDrop | None:
    try:
        lock.admit(signed, wall_s)
    except ControlError as error:
        return error.reason
    return None


# What a record must have


def test_a_signed_device_with_a_signed_node_key_is_let_in() -> None:
    lock, signed = held(ANA.statement(1)), record(signed_by(ANA))
    assert reason_of(lock, signed) is None
    assert signed.node_keys == [(NODE, 0)]
    assert signed.not_after == WALL_S + 1_000


LIES: dict[str, tuple[ControlDrop, dict[str, Any] | None]] = {
    "nothing signed": (ControlDrop.LOCK_UNSIGNED, None),
    "empty lists": (ControlDrop.LOCK_UNSIGNED, {"c": [], "k": []}),
    "no lock key": (ControlDrop.LOCK_UNSIGNED, signed_by()),
    "no node key": (ControlDrop.LOCK_UNSIGNED, signed_by(ANA, k=[])),
    "another's lock key": (ControlDrop.LOCK_VOID, signed_by(EVE)),
    "a wrong signature by a lock key": (
        ControlDrop.LOCK_FORGED,
        signed_by(c=[[ANA.key, 0, WALL_S, EVE.device(ID, KEY)[3]]]),
    ),
    "a signature of another device": (
        ControlDrop.LOCK_FORGED,
        signed_by(c=[ANA.device(OTHER.device_id, OTHER.device_key)]),
    ),
    "a signature for another network": (
        ControlDrop.LOCK_FORGED,
        signed_by(c=[ANA.device(ID, KEY, network=OTHER_NETWORK)]),
    ),
    "a later end than was signed": (
        ControlDrop.LOCK_FORGED,
        signed_by(c=[[ANA.key, 0, *ANA.device(ID, KEY, not_after=WALL_S - 1)[2:]]]),
    ),
    "an end that has passed": (ControlDrop.LOCK_VOID, signed_by(c=[ANA.device(ID, KEY, not_after=WALL_S - 1)])),
    "a node key that the hub signed": (
        ControlDrop.LOCK_FORGED,
        signed_by(ANA, k=[node_row(NETWORK_SEED, ID, NODE)]),
    ),
    "a node key that another device signed": (
        ControlDrop.LOCK_FORGED,
        signed_by(ANA, k=[node_row(OTHER.device_seed, ID, NODE)]),
    ),
    "a node key of another network": (
        ControlDrop.LOCK_FORGED,
        signed_by(ANA, k=[node_row(DEVICE.device_seed, ID, NODE, network=OTHER_NETWORK)]),
    ),
    "a node key whose signature ended": (
        ControlDrop.LOCK_UNSIGNED,
        signed_by(ANA, k=[node_row(DEVICE.device_seed, ID, NODE, not_after=WALL_S - 1)]),
    ),
    "a signature of a node key that the record does not have": (
        ControlDrop.LOCK_UNSIGNED,
        signed_by(ANA, k=[node_row(DEVICE.device_seed, ID, bytes(32))]),
    ),
    "one right and one wrong": (
        ControlDrop.LOCK_FORGED,
        signed_by(c=[ANA.device(ID, KEY), [ANA.key, 0, 1, bytes(64)]]),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_refused_by_its_name(lie: str) -> None:
    reason, lock = LIES[lie]
    assert reason_of(held(ANA.statement(1)), record(lock)) is reason


@pytest.mark.parametrize("lie", LIES)
def test_a_lock_that_is_off_refuses_nothing(lie: str) -> None:
    assert reason_of(held(ANA.statement(1, on=False)), record(LIES[lie][1])) is None


def test_a_node_key_that_the_hub_slipped_in_is_taken_out() -> None:
    rogue = bytes(range(32))
    signed = record(signed_by(ANA), nk=[[rogue, 0], [NODE, 0]])
    assert reason_of(held(ANA.statement(1)), signed) is None
    assert signed.node_keys == [(NODE, 0)]
    assert not signed.answers(("k", rogue))


def test_a_record_holds_no_longer_than_the_signature_of_its_device() -> None:
    signed = record(signed_by(c=[ANA.device(ID, KEY, not_after=WALL_S + 7)]))
    assert reason_of(held(ANA.statement(1)), signed) is None
    assert signed.not_after == WALL_S + 7


def test_one_signature_that_counts_is_enough() -> None:
    lock = held(ANA.statement(1, ANA.key, BEN.key))
    assert reason_of(lock, record(signed_by(EVE, BEN))) is None
    assert reason_of(lock, record(signed_by(c=[ANA.device(ID, KEY, not_after=1), BEN.device(ID, KEY)]))) is None


def test_a_removed_key_and_a_revoked_device_do_not_count() -> None:
    lock = held(ANA.statement(1, ANA.key, BEN.key))
    lock.follow([ANA.statement(2)])
    assert reason_of(lock, record(signed_by(BEN))) is ControlDrop.LOCK_VOID
    assert reason_of(lock, record(signed_by(ANA))) is None
    lock.follow([ANA.statement(3, revoked={ID: WALL_S})])
    assert reason_of(lock, record(signed_by(ANA))) is ControlDrop.LOCK_VOID
    later = signed_by(c=[ANA.device(ID, KEY, sequence=WALL_S + 1)])
    assert reason_of(lock, record(later)) is None


def test_what_was_verified_is_not_verified_again_but_weighed_again() -> None:
    lock = held(ANA.statement(1))
    wrong = signed_by(c=[[ANA.key, 0, WALL_S, bytes(64)]])
    lock.admit(record(wrong), WALL_S, verified=True)
    with pytest.raises(ControlError, match="no signature that counts"):
        lock.admit(record(signed_by(EVE)), WALL_S, verified=True)


@given(st.data())
def test_a_flipped_bit_never_lets_anybody_in(data: st.DataObject) -> None:
    lock = held(ANA.statement(1))
    field = data.draw(st.sampled_from(["c", "k"]))
    rows = signed_by(ANA)
    row = rows[field][0]
    column = data.draw(st.integers(0, len(row) - 1))
    if isinstance(row[column], bytes):
        bit = data.draw(st.integers(0, 8 * len(row[column]) - 1))
        row[column] = bytes(byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(row[column]))
    else:
        row[column] ^= 1 << data.draw(st.integers(0, 40))
    assert reason_of(lock, record(rows)) is not None


# Which statements it follows


def test_the_first_that_is_named_is_trusted_and_no_other_after_it() -> None:
    lock = held(ANA.statement(1))
    for lie in (
        [EVE.statement(2)],
        [EVE.statement(2, EVE.key, ANA.key)],
        [ANA.statement(2, ANA.key, body={"by": EVE.key, "k": [EVE.key]}, seed=EVE.seed)],
        [ANA.statement(2, network=OTHER_NETWORK)],
        [],
    ):
        with pytest.raises(ControlError) as caught:
            lock.follow(lie)
        assert caught.value.reason is ControlDrop.LOCK_STATEMENT
        assert (lock.sequence, lock.keys, lock.on, lock.withheld) == (1, [ANA.key], True, True)
    assert lock.follow([ANA.statement(1)]) is False
    assert lock.withheld is False


def test_nothing_older_is_followed_whoever_signed_it() -> None:
    first, second, third = ANA.statement(1, on=False), ANA.statement(2), ANA.statement(3, ANA.key, BEN.key)
    lock = held(first, second, third)
    assert lock.sequence == 3
    for lie in ([first], [second], [first, second], [ANA.statement(3, on=False)], [third, second]):
        with pytest.raises(ControlError):
            lock.follow(lie)
        assert (lock.sequence, lock.on) == (3, True)


def test_a_removed_key_cannot_say_anything_more() -> None:
    lock = held(ANA.statement(1, ANA.key, BEN.key), BEN.statement(2, BEN.key))
    with pytest.raises(ControlError):
        lock.follow([ANA.statement(3, ANA.key, BEN.key)])
    assert lock.keys == [BEN.key]


def test_a_device_that_slept_through_changes_follows_the_way_that_leads_on() -> None:
    way = [ANA.statement(1), ANA.statement(2, ANA.key, BEN.key), BEN.statement(3, BEN.key), BEN.statement(9, on=False)]
    asleep = held(way[0])
    assert asleep.follow([way[1], way[3]]) is True  # whoever holds the signer needs none between
    assert (asleep.sequence, asleep.keys, asleep.on) == (9, [BEN.key], False)
    with pytest.raises(ControlError):
        held(way[0]).follow([way[2], way[3]])


def test_what_leads_on_is_taken_even_where_the_rest_does_not() -> None:
    lock = held(ANA.statement(1))
    assert lock.follow([ANA.statement(2, on=False), EVE.statement(3)]) is True
    assert (lock.sequence, lock.on, lock.withheld) == (2, False, True)


def test_keys_that_were_given_trust_no_first_comer_and_wait_locked() -> None:
    lock = Lock(CRYPTO, NETWORK, [ANA.key])
    with pytest.raises(ControlError):
        lock.follow([EVE.statement(1)])
    with pytest.raises(ControlError):
        lock.follow([])
    assert reason_of(lock, record(None)) is ControlDrop.LOCK_UNSIGNED
    assert reason_of(lock, record(signed_by(ANA))) is None
    assert lock.follow([ANA.statement(1, on=False)])
    assert reason_of(lock, record(None)) is None


def test_a_statement_without_its_own_signer_or_number_is_none() -> None:
    for wrong in (ANA.statement(1, BEN.key), ANA.statement(0)):
        with pytest.raises(ControlError) as caught:
            open_statement(CRYPTO, NETWORK, wrong)
        assert caught.value.reason is ControlDrop.LOCK_STATEMENT


@given(st.binary(max_size=300))
def test_garbage_is_refused_as_a_statement(data: bytes) -> None:
    with pytest.raises(ControlError):
        open_statement(CRYPTO, NETWORK, data)


@given(st.integers(0, 10_000))
def test_a_statement_with_a_flipped_bit_is_not_followed(at: int) -> None:
    payload, signature = split_object(ANA.statement(2, on=False), "lock", 4_096)
    both = bytearray(payload + signature)
    bit = at % (8 * len(both))
    both[bit // 8] ^= 1 << bit % 8
    lock = held(ANA.statement(1))
    with pytest.raises(ControlError):
        lock.follow([encode([bytes(both[: len(payload)]), bytes(both[len(payload) :])])])
    assert lock.on


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.booleans()), max_size=8))
def test_whatever_comes_the_number_never_falls_and_only_holders_are_heard(
    said: list[tuple[int, int, bool]],
) -> None:
    """Eve is never let in by Ana or Ben, so whatever order a hub says things in, her key is never held."""
    owners = {1: ANA, 2: BEN, 3: EVE}
    lock = held(ANA.statement(1, ANA.key, BEN.key))
    for sequence, who, is_on in said:
        owner, before = owners[who], lock.sequence
        keys = (ANA.key, BEN.key) if owner is not EVE else (EVE.key,)
        try:
            lock.follow([owner.statement(sequence, *keys, on=is_on)])
        except ControlError as error:
            assert error.reason is ControlDrop.LOCK_STATEMENT
        assert lock.sequence >= before
        assert EVE.key not in lock.keys


# What is kept


def test_what_is_kept_is_read_back_and_nothing_else() -> None:
    lock = Lock(CRYPTO, NETWORK, [ANA.key], given=True)
    again = Lock.decode(CRYPTO, lock.encode())
    assert (again.given, again.keys, again.sequence, again.on) == ([ANA.key], [ANA.key], 0, True)
    lock.follow([ANA.statement(4, ANA.key, BEN.key, on=False, revoked={ID: 9})])
    again = Lock.decode(CRYPTO, lock.encode())
    assert (again.given, again.keys, again.sequence, again.on) == ([ANA.key], [ANA.key, BEN.key], 4, False)
    assert again.revoked == {ID: 9}
    assert again.digest() == lock.digest() != Lock(CRYPTO, NETWORK, [ANA.key]).digest()
    with pytest.raises(ControlError):
        Lock.decode(CRYPTO, lock.encode()[:-1])
