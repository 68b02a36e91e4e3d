"""Joining: the joiner against a small signed hub, and against one that lies."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import topics
from edgeagent.proto.envelope import read_join, write_down
from edgeagent.proto.join import REFUSALS_MAX, REFUSED_PAUSE_S, Joined, Joiner, JoinRefused, JoinWaiting
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.signed import sign_object
from edgeagent.proto.token import Token
from edgeagent.proto.walltime import WallFloor
from tests.control_kit import (
    CLAIM,
    CRYPTO,
    DEVICE,
    HUB_BOX_KEY,
    HUB_BOX_PRIVATE,
    MAP_BODY,
    NETWORK,
    NETWORK_KEY,
    NETWORK_SEED,
    OTHER,
    WALL_S,
    entropy_of,
)

CA = b"a certificate"
TOPIC = topics.admit(NETWORK, CLAIM, DEVICE.device_id)
TOKEN = Token(
    hosts=["hub.example:8883"],
    network_key=NETWORK_KEY,
    hub_box_key=HUB_BOX_KEY,
    ca_sha256=sha256(CA).digest(),
    claim=CLAIM,
    secret=bytes(16),
)


def joiner(now: float = 0.0) -> Joiner:
    return Joiner(
        now,
        crypto=CRYPTO,
        entropy=entropy_of(3),
        jitter=random.Random(3).random,
        token=TOKEN,
        identity=DEVICE,
        host="gate",
        boot=bytes(16),
        facts={"os": "linux"},
        wall=WallFloor(now, WALL_S - 1000),
    )


def map_object(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "kind": "map",
        "network": NETWORK,
        "subject": DEVICE.device_id,
        "epoch": 1,
        "seq": 1,
        "wall_s": WALL_S,
        "body": MAP_BODY,
    }
    return sign_object(CRYPTO, changes.pop("seed", NETWORK_SEED), **{**arguments, **changes})


def admit(body: dict[str, Any], seq: int = 1, **changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "kind": "admit",
        "network": NETWORK,
        "device": DEVICE.device_id,
        "epoch": 1,
        "seq": seq,
        "wall_s": WALL_S,
        "body": body,
    }
    seed = changes.pop("seed", NETWORK_SEED)
    return write_down(
        CRYPTO, entropy_of(seq), seed, changes.pop("reader", DEVICE.box_key), TOPIC, **{**arguments, **changes}
    )


def ok(**changes: Any) -> dict[str, Any]:
    return {"ok": True, "map": map_object(), "ca": CA, **changes}


def test_one_question_one_answer() -> None:
    machine = joiner()
    assert (machine.client_id, machine.username) == (DEVICE.device_id, CLAIM)
    assert machine.password == TOKEN.password(CRYPTO)
    assert machine.subscriptions == [TOPIC]
    assert machine.next_connect_at == 0.0
    machine.handle_connected(1.0)
    (publish,) = machine.drain_publishes()
    assert publish.topic == topics.join(NETWORK, CLAIM)
    assert (publish.qos, publish.retain) == (1, False)
    join = read_join(CRYPTO, HUB_BOX_PRIVATE, publish.topic, publish.payload, network=NETWORK, claim=CLAIM)
    assert join.subject == DEVICE.device_id
    assert join.body["host"] == "gate"
    assert join.body["pw"] == DEVICE.password
    machine.handle_message(2.0, TOPIC, admit(ok()))
    (event,) = machine.drain_events()
    assert isinstance(event, Joined)
    assert event.admission.ca_der == CA
    assert event.admission.open_map(CRYPTO, DEVICE.device_id).name == "gate"
    assert event.admission.hosts == ["hub.example:8883"]
    assert machine.done
    assert machine.poll_timeout() is None
    machine.handle_disconnected(3.0)
    assert machine.next_connect_at is None


def test_it_asks_again_with_growing_waits() -> None:
    machine = joiner()
    machine.handle_connected(0.0)
    waits, now = [], 0.0
    for _ in range(12):
        at = machine.poll_timeout()
        assert at is not None
        waits.append(at - now)
        now = at
        machine.handle_timeout(now)
    assert len(machine.drain_publishes()) == 13
    assert 5 <= waits[0] <= 15
    assert max(waits) == pytest.approx(60)
    machine.handle_disconnected(now)
    assert machine.poll_timeout() is None
    assert machine.next_connect_at is not None and now < machine.next_connect_at <= now + 3
    machine.handle_connected(now + 3)
    assert len(machine.drain_publishes()) == 1


def test_a_person_must_approve() -> None:
    machine = joiner()
    machine.handle_connected(0.0)
    machine.drain_publishes()
    machine.handle_message(1.0, TOPIC, admit({"wait": True}, seq=1))
    machine.handle_message(1.0, TOPIC, admit({"wait": True}, seq=2))
    assert [type(event) for event in machine.drain_events()] == [JoinWaiting]
    at = machine.poll_timeout()
    assert at == 301.0
    machine.handle_timeout(at)
    assert len(machine.drain_publishes()) == 1
    machine.handle_message(400.0, TOPIC, admit(ok(), seq=3))
    assert [type(event) for event in machine.drain_events()] == [Joined]


@pytest.mark.parametrize("reason", ["used-up", "expired", "revoked", "unknown", "denied", "name-taken", "bad-request"])
def test_a_no_is_the_end(reason: str) -> None:
    machine = joiner()
    machine.handle_connected(0.0)
    machine.handle_message(1.0, TOPIC, admit({"no": reason, "name": "gate"}))
    (event,) = machine.drain_events()
    assert isinstance(event, JoinRefused)
    assert (event.reason, event.name) == (reason, "gate")
    assert machine.done
    machine.handle_message(2.0, TOPIC, admit(ok(), seq=2))
    assert machine.drain_events() == []


def test_a_broker_that_refuses_is_asked_a_few_times_and_then_now_and_again() -> None:
    machine = joiner()
    for _ in range(REFUSALS_MAX - 1):
        machine.handle_refused(0.0)
        assert machine.next_connect_at is not None
    machine.handle_refused(0.0)
    (event,) = machine.drain_events()
    assert isinstance(event, JoinRefused) and event.reason == "credentials"
    for _ in range(3):
        assert machine.next_connect_at is not None and machine.next_connect_at >= REFUSED_PAUSE_S / 2
        machine.handle_refused(0.0)
    assert machine.drain_events() == [] and not machine.done
    machine.handle_connected(9.0)
    machine.handle_message(9.1, TOPIC, admit(ok()))
    assert isinstance(machine.drain_events()[0], Joined)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (admit(ok(), seed=OTHER.device_seed), ControlDrop.BAD_SIGNATURE),
        (admit(ok(), reader=OTHER.box_key), ControlDrop.BAD_BOX),
        (admit(ok(), device=OTHER.device_id), ControlDrop.WRONG_SUBJECT),
        (admit(ok(), network="a" * 16), ControlDrop.WRONG_NETWORK),
        (admit(ok(ca=b"another certificate")), ControlDrop.BAD_FIELD),
        (admit(ok(map=map_object(seed=OTHER.device_seed))), ControlDrop.BAD_SIGNATURE),
        (admit(ok(map=map_object(subject=OTHER.device_id))), ControlDrop.WRONG_SUBJECT),
        (admit(ok(map=map_object(body={**MAP_BODY, "id": OTHER.device_id}))), ControlDrop.WRONG_SUBJECT),
        (admit(ok(map=b"\xff")), ControlDrop.NOT_CBOR),
        (b"", ControlDrop.BAD_BOX),
        (bytes(70_000), ControlDrop.TOO_LONG),
    ],
)
def test_nothing_is_believed_before_it_is_verified(payload: bytes, reason: ControlDrop) -> None:
    machine = joiner()
    machine.handle_connected(0.0)
    machine.handle_message(1.0, TOPIC, payload)
    assert machine.drops == {reason: 1}
    assert machine.drain_events() == []
    machine.handle_message(2.0, TOPIC, admit(ok()))  # the genuine answer still counts
    assert [type(event) for event in machine.drain_events()] == [Joined]


def test_answers_do_not_go_back() -> None:
    machine = joiner()
    machine.handle_connected(0.0)
    machine.handle_message(1.0, TOPIC, admit({"wait": True}, seq=5))
    machine.handle_message(1.0, TOPIC, admit({"no": "denied", "name": ""}, seq=4))
    machine.handle_message(1.0, topics.admit(NETWORK, CLAIM, OTHER.device_id), admit(ok(), seq=6))
    assert machine.drops == {ControlDrop.REPLAYED: 1, ControlDrop.UNKNOWN_TOPIC: 1}
    assert [type(event) for event in machine.drain_events()] == [JoinWaiting]


GENUINE = admit(ok())


@given(st.integers(0, len(GENUINE) - 1), st.integers(1, 255), st.binary(max_size=99))
def test_no_mutation_is_believed(position: int, flip: int, noise: bytes) -> None:
    machine = joiner()
    machine.handle_connected(0.0)
    mutated = GENUINE[:position] + bytes((GENUINE[position] ^ flip,)) + GENUINE[position + 1 :]
    for payload in (mutated, GENUINE[:position], GENUINE + b"\0", noise):
        machine.handle_message(1.0, TOPIC, payload)
    assert sum(machine.drops.values()) == 4
    assert machine.drain_events() == []
