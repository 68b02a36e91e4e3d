"""Signed objects, sealed boxes, feeds and the table of bodies: what is taken, and why everything else is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto import envelope, topics
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import BODIES as TABLE
from edgeagent.proto.control import HAVE_MAX, check_body, print_table
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.schema import UINT_MAX
from edgeagent.proto.seal import open_box, seal_box
from edgeagent.proto.signed import SeqGuard, open_signed, peek_subject, sign_object, signing_input
from tests.control_kit import (
    BODIES,
    CLAIM,
    CRYPTO,
    DEVICE,
    FEED_BODY,
    HUB_BOX_KEY,
    HUB_BOX_PRIVATE,
    NETWORK,
    NETWORK_KEY,
    NETWORK_SEED,
    OTHER,
    WALL_S,
    dates_of,
    entropy_of,
)

ENTROPY = entropy_of(7)
EVERY_BODY = [(kind, body) for kind, bodies in BODIES.items() for body in bodies]
FEED_TOPIC = topics.feed(NETWORK, DEVICE.device_id)
FEED_KEY = bytes(range(32))


def signed(kind: str, body: dict[str, Any], **changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "kind": kind,
        "network": NETWORK,
        "subject": "hub" if kind == "hub" else DEVICE.device_id,
        "epoch": 1,
        "seq": 2,
        "wall_s": WALL_S,
        "body": body,
        **dates_of(kind),
    }
    return sign_object(CRYPTO, NETWORK_SEED, **{**arguments, **changes})


def opened(data: bytes, kind: str, **changes: Any) -> Any:
    subject = "hub" if kind == "hub" else DEVICE.device_id
    arguments: dict[str, Any] = {"kind": kind, "network": NETWORK, "subject": subject}
    return open_signed(CRYPTO, NETWORK_KEY, data, **{**arguments, **changes})


def refused(reason: ControlDrop, says: str, call: Callable[[], object]) -> None:
    with pytest.raises(ControlError) as caught:
        call()
    assert caught.value.reason is reason
    assert says in str(caught.value)


def forge(head: dict[str, Any], kind: str | None = None) -> bytes:
    """An object whose signature is right and whose content no builder of ours would write."""
    payload = encode(head)
    signature = CRYPTO.ed25519_sign(NETWORK_SEED, signing_input(kind or head["t"], payload))
    return encode([payload, signature])


HEAD: dict[str, Any] = {"t": "time", "n": NETWORK, "s": DEVICE.device_id, "e": 1, "q": 2, "w": WALL_S, "b": {}}


def test_every_kind_has_a_sample_and_a_line_in_the_table() -> None:
    assert set(BODIES) == set(TABLE)
    table = print_table()
    for kind in TABLE:
        assert f"\n{kind}:" in table


@pytest.mark.parametrize(("kind", "body"), EVERY_BODY)
def test_every_body_roundtrips(kind: str, body: dict[str, Any]) -> None:
    data = signed(kind, body)
    again = opened(data, kind)
    assert again.body == body
    assert again.raw == data
    assert again.stamp == (1, 2)
    assert again.wall_s == WALL_S
    assert peek_subject(data) == again.subject


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a body."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        found += places(item, (*path, key))
    return found


def replaced(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> Any:
    body = copy.deepcopy(body)
    place: Any = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return body


@pytest.mark.parametrize(("kind", "body"), EVERY_BODY)
def test_every_wrong_value_is_refused_by_name(kind: str, body: dict[str, Any]) -> None:
    wrong: list[Any] = [b"\0" * 70_000, "\x07", -1 << 40, [[[]]], {"\x07": None}, 1.5]
    for path in places(body)[1:]:
        field = kind + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
        for value in wrong:
            if kind == "cmd" and path[0] == "a" and (path != ("a",) or isinstance(value, dict)):
                continue  # any map is for its verb to judge: tests/test_commands.py
            with pytest.raises(ControlError) as caught:
                check_body(kind, replaced(body, path, value))
            assert caught.value.reason is ControlDrop.BAD_FIELD
            assert str(caught.value).startswith((field, kind + ":")), f"{field} ← {value!r}: {caught.value}"


@pytest.mark.parametrize(("kind", "body"), EVERY_BODY)
def test_every_missing_field_is_refused_by_name(kind: str, body: dict[str, Any]) -> None:
    for key in body:
        less = {name: item for name, item in body.items() if name != key}
        try:
            check_body(kind, less)
        except ControlError as error:
            assert error.reason is ControlDrop.BAD_FIELD
            assert f"{kind}.{key}: missing" == str(error) or str(error).startswith(f"{kind}: map with exactly one of")
        else:
            optional = [("time", "e"), ("rec", "id"), ("map", "rl"), ("map", "ps")]
            optional += [("map", "lk"), ("record", "lk"), ("report", "ls"), ("map", "up"), ("map", "ur"), ("map", "se")]
            assert (kind, key) in [*optional, *(("answer", name) for name in ("c", "tx", "no", "d", "n"))]


@pytest.mark.parametrize(("kind", "body"), EVERY_BODY)
def test_unknown_fields(kind: str, body: dict[str, Any]) -> None:
    more = {**body, "zz": 1}
    if kind in ("join", "state", "ask", "report"):
        refused(ControlDrop.BAD_FIELD, f"{kind}: unknown field zz", lambda: check_body(kind, more))
    else:
        assert check_body(kind, more) == body


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("record", {"addrs": [bytes(4), bytes(5)]}, "record.addrs[1]: 4 or 16 bytes, got 5 bytes"),
        ("record", {"addrs": []}, "record.addrs: array of 1 to 4"),
        (
            "record",
            {"routes": [[bytes((10, 0, 0, 1)), 24]]},
            "record.routes[0][0]: no bits set behind the prefix of 24",
        ),
        (
            "birth",
            {"ro": [[bytes((10, 0, 0, 1)), 8]]},
            "birth.ro[0][0]: no bits set behind the prefix of 8",
        ),
        (
            "birth",
            {"ro": [[bytes((10, n, 0, 0)), 16] for n in range(65)]},
            "birth.ro: array of 0 to 64 × [4 or 16 bytes, integer from 0 to 128], got an array of 65",
        ),
        ("birth", {"sn": 1}, "birth.sn: true or false, got an integer"),
        (
            "map",
            {"ro": [[bytes((10, n % 250, n // 250, 0)), 24] for n in range(257)]},
            "map.ro: array of 0 to 256 × [4 or 16 bytes, integer from 0 to 128], got an array of 257",
        ),
        ("map", {"cl": [[bytes(31), bytes(4), bytes(16)]]}, "map.cl[0][0]: 32 bytes, got 31 bytes"),
        ("record", {"cl": [bytes(5)]}, "record.cl[0]: 4 or 16 bytes, got 5 bytes"),
        ("record", {"routes": [[bytes(4), 33]]}, "record.routes[0][1]: integer from 0 to 32, got 33"),
        ("record", {"name": "Gate"}, "record.name: host name (one DNS label, lower case), got text of 4 characters"),
        ("record", {"nk": [[bytes(32)]]}, "record.nk[0]: [32 bytes, unsigned integer], got an array of 1"),
        ("map", {"v6": [bytes(4), 10]}, "map.v6[0]: 16 bytes, got 4 bytes"),
        ("map", {"set": {"x": True}}, "map.set.x: integer from"),
        ("feed", {"ep": [[bytes(4), 0]]}, "feed.ep[0][1]: integer from 1 to 65535, got 0"),
        ("feed", {"ep": [[bytes(4), 1]] * 9}, "feed.ep: array of 0 to 8"),
        ("feed", {"cap": "a/b"}, "feed.cap: capability, got text"),
        ("join", {"facts": {str(i): "" for i in range(17)}}, "join.facts: map of at most 16"),
        ("join", {"facts": {"a": "x" * 129}}, "join.facts.a: printable text of at most 128 bytes, got text of 129"),
        ("join", {"facts": {"a": "é" * 65}}, "join.facts.a: printable text of at most 128 bytes, got text of 65"),
        ("birth", {"map": [1]}, "birth.map: [unsigned integer, unsigned integer], got an array of 1"),
    ],
)
def test_errors_name_the_field(kind: str, body: dict[str, Any], says: str) -> None:
    refused(ControlDrop.BAD_FIELD, says, lambda: check_body(kind, {**BODIES[kind][0], **body}))


def test_secrets_are_not_in_errors() -> None:
    body = {**BODIES["join"][0], "secret": b"hunter2", "pw": "hunter2\n"}
    for field in ("secret", "pw"):
        with pytest.raises(ControlError) as caught:
            check_body("join", {**BODIES["join"][0], field: body[field]})
        assert "hunter2" not in str(caught.value)


def test_ask_is_exactly_one_question() -> None:
    refused(ControlDrop.BAD_FIELD, "ask: map with exactly one of", lambda: check_body("ask", {"id": 1}))
    both = {"id": 1, "h": "gate", "k": bytes(32)}
    refused(ControlDrop.BAD_FIELD, "ask: map with exactly one of", lambda: check_body("ask", both))


def test_reserved_kinds_have_no_body_yet() -> None:
    for kind in ("log", "nonsense"):
        refused(ControlDrop.WRONG_KIND, "no kind of this version", partial(check_body, kind, {}))


def test_who_may_sign_what_for_whom() -> None:
    data = signed("time", {})
    refused(ControlDrop.WRONG_SUBJECT, "time.s", lambda: opened(data, "time", subject=OTHER.device_id))
    refused(ControlDrop.WRONG_NETWORK, "time.n", lambda: opened(data, "time", network="a" * 16))
    refused(ControlDrop.BAD_SIGNATURE, "map: not signed", lambda: opened(data, "map"))
    refused(
        ControlDrop.BAD_SIGNATURE,
        "time: not signed",
        lambda: open_signed(CRYPTO, OTHER.device_key, data, kind="time", network=NETWORK, subject=DEVICE.device_id),
    )
    refused(
        ControlDrop.WRONG_KIND, "time.t: time expected", lambda: opened(forge({**HEAD, "t": "map"}, "time"), "time")
    )
    refused(ControlDrop.TOO_LONG, "at most 10 bytes", lambda: opened(data, "time", max_bytes=10))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": 1}, "time: unknown field x"),
        ({"nb": 1, "na": 2}, "time.nb: none in this kind"),
        ({"nb": 1}, "time.na: missing"),
        ({"e": -1}, "time.e: unsigned integer"),
        ({"q": 1 << 63}, "time.q: unsigned integer"),
        ({"w": None}, "time.w: unsigned integer, got null"),
        ({"n": "+"}, "time.n: network id"),
        ({"s": "#"}, "time.s: device id or hub"),
        ({"b": []}, "time.b: map, got an array of 0"),
    ],
)
def test_heads_are_strict(change: dict[str, Any], says: str) -> None:
    refused(ControlDrop.BAD_FIELD, says, lambda: opened(forge({**HEAD, **change}), "time"))


def test_dates() -> None:
    record = opened(signed("record", BODIES["record"][0], not_before=WALL_S, not_after=WALL_S + 5), "record")
    record.check_dates(WALL_S - 10_000_000)  # a device without a clock believes the writer's own time
    record.check_dates(WALL_S + 5)
    refused(ControlDrop.EXPIRED, "record.na", lambda: record.check_dates(WALL_S + 6))
    early = opened(signed("record", BODIES["record"][0], not_before=WALL_S + 301, not_after=WALL_S + 999), "record")
    refused(ControlDrop.NOT_YET, "record.nb", lambda: early.check_dates(WALL_S))
    without = forge({**HEAD, "t": "record", "b": BODIES["record"][0]})
    refused(ControlDrop.BAD_FIELD, "record.nb: missing", lambda: opened(without, "record"))


def test_our_own_bad_object_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match=r"cannot be signed: record\.name: missing"):
        signed("record", {})
    with pytest.raises(LocalProtocolError, match="e: unsigned integer"):
        signed("time", {}, epoch=-1)


def test_the_largest_messages_of_a_device_fit() -> None:
    up("ask", {"id": UINT_MAX, "have": [[DEVICE.device_id, UINT_MAX, UINT_MAX, UINT_MAX]] * HAVE_MAX})
    up("join", {**BODIES["join"][0], "facts": {f"{'k' * 21}{i:02}": "x" * 128 for i in range(16)}})
    with pytest.raises(LocalProtocolError, match="birth: at most 8192 bytes"):
        up("birth", {**BODIES["birth"][0], "zz": bytes(8192)})


def up(kind: str, body: dict[str, Any]) -> bytes:
    return envelope.write_up(
        CRYPTO,
        ENTROPY,
        DEVICE.device_seed,
        HUB_BOX_KEY,
        topics.up(NETWORK, DEVICE.device_id, kind),
        kind=kind,
        network=NETWORK,
        device=DEVICE.device_id,
        epoch=1,
        seq=1,
        wall_s=WALL_S,
        body=body,
    )


def read_up(kind: str, data: bytes, topic: str | None = None, device_key: bytes = DEVICE.device_key) -> Any:
    return envelope.read_up(
        CRYPTO,
        HUB_BOX_PRIVATE,
        device_key,
        topic or topics.up(NETWORK, DEVICE.device_id, kind),
        data,
        kind=kind,
        network=NETWORK,
        device=DEVICE.device_id,
    )


@pytest.mark.parametrize(("kind", "body"), [(k, b) for k, b in EVERY_BODY if k in topics.UP_VERBS])
def test_up(kind: str, body: dict[str, Any]) -> None:
    data = up(kind, body)
    assert read_up(kind, data).body == body
    other_topic = topics.up(NETWORK, OTHER.device_id, kind)
    refused(ControlDrop.BAD_BOX, "this topic", lambda: read_up(kind, data, other_topic))
    refused(ControlDrop.BAD_SIGNATURE, kind, lambda: read_up(kind, data, device_key=OTHER.device_key))


@pytest.mark.parametrize(("kind", "body"), [(k, b) for k, b in EVERY_BODY if k in ("map", "rec", "time", "admit")])
def test_down(kind: str, body: dict[str, Any]) -> None:
    topic = topics.down(NETWORK, DEVICE.device_id, kind)
    data = envelope.write_down(
        CRYPTO,
        ENTROPY,
        NETWORK_SEED,
        DEVICE.box_key,
        topic,
        kind=kind,
        network=NETWORK,
        device=DEVICE.device_id,
        epoch=1,
        seq=1,
        wall_s=WALL_S,
        body=body,
    )

    def read(private: bytes) -> Any:
        return envelope.read_down(
            CRYPTO, private, NETWORK_KEY, topic, data, kind=kind, network=NETWORK, device=DEVICE.device_id
        )

    assert read(DEVICE.box_private).body == body
    refused(ControlDrop.BAD_BOX, "box", lambda: read(OTHER.box_private))


def test_join_brings_its_own_key() -> None:
    topic = topics.join(NETWORK, CLAIM)

    def write(identity: Any, body: dict[str, Any]) -> bytes:
        return envelope.write_up(
            CRYPTO,
            ENTROPY,
            identity.device_seed,
            HUB_BOX_KEY,
            topic,
            kind="join",
            network=NETWORK,
            device=DEVICE.device_id,
            epoch=0,
            seq=1,
            wall_s=WALL_S,
            body=body,
        )

    def read(data: bytes, claim: str = CLAIM) -> Any:
        return envelope.read_join(CRYPTO, HUB_BOX_PRIVATE, topic, data, network=NETWORK, claim=claim)

    body = BODIES["join"][0]
    assert read(write(DEVICE, body)).body == body
    refused(ControlDrop.BAD_SIGNATURE, "join", lambda: read(write(OTHER, body)))
    stolen = {**body, "dk": OTHER.device_key}
    refused(ControlDrop.WRONG_SUBJECT, "join.s", lambda: read(write(OTHER, stolen)))
    refused(ControlDrop.WRONG_SUBJECT, "join.claim", lambda: read(write(DEVICE, body), "c-" + "z" * 16))


def test_hub_state() -> None:
    data = envelope.write_hub_state(
        CRYPTO, NETWORK_SEED, network=NETWORK, epoch=1, seq=5, wall_s=WALL_S, up=True, hub_box_key=HUB_BOX_KEY
    )
    assert envelope.read_hub_state(CRYPTO, NETWORK_KEY, data, network=NETWORK).body == {"up": True, "bx": HUB_BOX_KEY}
    refused(
        ControlDrop.BAD_SIGNATURE,
        "hub",
        lambda: envelope.read_hub_state(CRYPTO, OTHER.device_key, data, network=NETWORK),
    )


def feed(seed: bytes = DEVICE.device_seed, key: bytes = FEED_KEY) -> bytes:
    return envelope.write_feed(
        CRYPTO,
        ENTROPY,
        seed,
        key,
        FEED_TOPIC,
        network=NETWORK,
        device=DEVICE.device_id,
        epoch=1,
        seq=1,
        wall_s=WALL_S,
        body=FEED_BODY,
    )


def read_feed(data: bytes, key: bytes = FEED_KEY, topic: str = FEED_TOPIC) -> Any:
    return envelope.read_feed(CRYPTO, DEVICE.device_key, key, topic, data, network=NETWORK, device=DEVICE.device_id)


def test_feed() -> None:
    data = feed()
    assert read_feed(data).body == FEED_BODY
    refused(ControlDrop.FEED_KEY, "feed", lambda: read_feed(data, bytes(32)))
    refused(ControlDrop.FEED_KEY, "feed", lambda: read_feed(data, topic=topics.feed(NETWORK, OTHER.device_id)))
    refused(ControlDrop.BAD_SIGNATURE, "feed", lambda: read_feed(feed(seed=OTHER.device_seed)))
    short = b"x" * 39
    tiny = encode([short, CRYPTO.ed25519_sign(DEVICE.device_seed, signing_input("feed", short))])
    refused(ControlDrop.FEED_KEY, "feed", lambda: read_feed(tiny))


def test_box() -> None:
    box = seal_box(CRYPTO, ENTROPY, HUB_BOX_KEY, "topic", b"secret")
    assert open_box(CRYPTO, HUB_BOX_PRIVATE, "topic", box) == b"secret"
    assert seal_box(CRYPTO, ENTROPY, HUB_BOX_KEY, "topic", b"secret")[:32] != box[:32]
    refused(ControlDrop.BAD_BOX, "this topic", lambda: open_box(CRYPTO, HUB_BOX_PRIVATE, "other", box))
    refused(ControlDrop.BAD_BOX, "at least 48", lambda: open_box(CRYPTO, HUB_BOX_PRIVATE, "topic", box[:47]))
    low_order = bytes(32) + box[32:]
    refused(ControlDrop.BAD_BOX, "small order", lambda: open_box(CRYPTO, HUB_BOX_PRIVATE, "topic", low_order))
    with pytest.raises(LocalProtocolError, match="not a valid X25519 key"):
        seal_box(CRYPTO, ENTROPY, bytes(32), "topic", b"")


VALID_UP = up("ask", BODIES["ask"][0])
VALID_RECORD = signed("record", BODIES["record"][0])
VALID_FEED = feed()


def mutate(valid: bytes, data: st.DataObject) -> bytes:
    mutated = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, max(0, len(mutated) - 1)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "delete", "append"]))
        if kind == "flip" and mutated:
            mutated[position] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del mutated[position:]
        elif kind == "insert":
            mutated[position:position] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del mutated[position : position + 1]
        else:
            mutated += data.draw(st.binary(min_size=1, max_size=9))
    return bytes(mutated)


@given(st.data())
@settings(max_examples=200)
def test_no_mutation_gets_through(data: st.DataObject) -> None:
    readers: list[tuple[bytes, Callable[[bytes], object]]] = [
        (VALID_UP, partial(read_up, "ask")),
        (VALID_RECORD, lambda mutated: opened(mutated, "record")),
        (VALID_FEED, read_feed),
    ]
    for valid, read in readers:
        mutated = mutate(valid, data)
        if mutated != valid:
            with pytest.raises(ControlError):
                read(mutated)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_control_error(data: bytes) -> None:
    with pytest.raises(ControlError):
        read_up("ask", data)
    with pytest.raises(ControlError):
        opened(data, "record")
    with pytest.raises(ControlError):
        read_feed(data)
    with pytest.raises(ControlError):
        peek_subject(data)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 63) | st.binary(max_size=33) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(EVERY_BODY), st.data())
@settings(max_examples=300)
def test_any_replacement_is_refused_or_fits(sample: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    kind, body = sample
    path = data.draw(st.sampled_from(places(body)))
    mutated = replaced(body, path, data.draw(JSONISH)) if path else data.draw(JSONISH)
    try:
        checked = check_body(kind, mutated)
    except ControlError as error:
        assert error.reason is ControlDrop.BAD_FIELD
        assert str(error).startswith(kind)
    else:
        assert decode(encode(checked)) == checked


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 5)), max_size=40))
def test_seq_guard_against_its_twin(steps: list[tuple[str, int, int]]) -> None:
    guard = SeqGuard(3)
    twin: dict[str, tuple[int, int]] = {}
    for key, epoch, seq in steps:
        newer = (epoch, seq) > twin.get(key, (-1, -1))
        assert guard.accept(key, epoch, seq) is newer
        if newer:
            twin[key] = (epoch, seq)
        assert guard.last(key) == twin.get(key)
    again = SeqGuard(3)
    again.load(guard.export())
    assert again.export() == guard.export()


def test_seq_guard_is_bounded() -> None:
    guard = SeqGuard(2)
    for key in "abc":
        assert guard.accept(key, 1, 1)
    assert len(guard) == 2
    assert guard.last("a") is None
    assert guard.accept("a", 0, 0)
