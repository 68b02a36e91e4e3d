"""Requests under way: retransmissions on a virtual clock, and answers of every kind from everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import LimitReached, LocalProtocolError
from edgeagent.proto.stun import CHANGE_ADDRESS, CHANGE_PORT, StunDrop
from edgeagent.proto.stun_exchange import UNDER_WAY_MAX, Answer, Failure, StunExchange

SERVER = Endpoint(("192.0.2.1", 3478), (bytes((10, 0, 0, 2)), 7))
SERVER6 = Endpoint(("2001:db8::1", 3478, 0, 0))
MAPPED = (bytes((203, 0, 113, 9)), 41_641)


def counting() -> Iterator[bytes]:
    number = 0
    while True:
        number += 1
        yield number.to_bytes(12, "big")


def exchange(**options: float) -> StunExchange:
    numbers = counting()
    return StunExchange(lambda size: next(numbers)[:size], **options)  # type: ignore[arg-type]


def success(transaction: bytes) -> bytes:
    mapped = stun.xor_mapped_address(transaction, MAPPED)
    return stun.write(stun.BINDING_SUCCESS, transaction, [mapped], fingerprint=True)


def refusal(transaction: bytes) -> bytes:
    return stun.write(stun.BINDING_ERROR, transaction, stun.unknown_attributes_error([3]), fingerprint=True)


def sent(machine: StunExchange) -> list[bytes]:
    """What has to be sent, one datagram a Transmit, all to SERVER."""
    transmits = machine.drain_transmits()
    assert all(transmit.endpoint == SERVER and len(transmit.datagrams) == 1 for transmit in transmits)
    return [transmit.datagrams[0] for transmit in transmits]


def run(machine: StunExchange, until: float) -> list[tuple[float, bytes]]:
    """(when, what) of everything sent from now on up to then."""
    sent(machine)
    log: list[tuple[float, bytes]] = []
    while (due := machine.poll_timeout()) is not None and due <= until:
        machine.handle_timeout(due - 0.001)
        assert sent(machine) == []
        machine.handle_timeout(due)
        log += [(due, datagram) for datagram in sent(machine)]
    return log


def test_the_rhythm_of_rfc_8489() -> None:
    machine = exchange()
    transaction = machine.begin(100.0, SERVER)
    [first] = sent(machine)
    assert first == stun.write_request(transaction)
    log = run(machine, 139.4)
    assert [round(when - 100.0, 3) for when, _ in log] == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert {datagram for _, datagram in log} == {first}
    assert machine.drain_failures() == [] and len(machine) == 1
    assert machine.poll_timeout() == 139.5
    assert run(machine, 200.0) == []
    [failure] = machine.drain_failures()
    assert (failure.transaction, failure.endpoint, failure.refused, failure.code) == (transaction, SERVER, False, 0)
    assert len(machine) == 0 and machine.poll_timeout() is None


def test_a_rhythm_of_ones_own() -> None:
    machine = exchange(rto_s=0.2, requests_max=2, last_wait_rtos=3)
    machine.begin(0.0, SERVER)
    assert [round(when, 3) for when, _ in run(machine, 10.0)] == [0.2]
    assert len(machine.drain_failures()) == 1


def test_a_rhythm_for_one_server() -> None:
    machine = exchange(requests_max=3, last_wait_rtos=1)
    machine.begin(0.0, SERVER, rto_s=2.0)
    assert [when for when, _ in run(machine, 7.9)] == [2.0, 6.0]
    assert machine.poll_timeout() == 8.0


def test_a_clock_that_jumps_does_not_make_a_burst() -> None:
    machine = exchange()
    machine.begin(0.0, SERVER)
    sent(machine)
    machine.handle_timeout(1_000.0)
    assert len(sent(machine)) == 1
    assert machine.poll_timeout() == 1_001.0


def test_an_answer_ends_its_request_and_no_other() -> None:
    machine = exchange()
    first, second = machine.begin(0.0, SERVER), machine.begin(0.25, SERVER, change=CHANGE_PORT)
    assert first != second
    assert machine.handle(0.3, success(second), SERVER) is None
    assert machine.drops == {StunDrop.SOURCE: 1}
    answer = machine.handle(0.31, success(first), Endpoint(("192.0.2.1", 3478), (bytes((10, 0, 0, 3)), 8)))
    assert answer is not None
    assert (answer.transaction, answer.endpoint, answer.change) == (first, SERVER, 0)
    assert answer.binding.mapped == MAPPED and answer.rtt_s == pytest.approx(0.31)
    assert len(machine) == 1 and machine.poll_timeout() == 0.75
    assert machine.handle(0.4, success(first), SERVER) is None
    assert machine.drops == {StunDrop.SOURCE: 1, StunDrop.TRANSACTION: 1}
    machine.handle_timeout(0.75)
    late = machine.handle(0.8, success(second), Endpoint(("192.0.2.1", 3479)))
    assert late is not None and late.rtt_s is None and late.change == CHANGE_PORT
    assert machine.poll_timeout() is None and machine.drain_failures() == []


@pytest.mark.parametrize("change", [0, CHANGE_PORT, CHANGE_ADDRESS, CHANGE_PORT | CHANGE_ADDRESS])
def test_an_answer_must_come_from_where_it_was_asked_for(change: int) -> None:
    for host, port, shown in (
        ("192.0.2.1", 3478, 0),
        ("192.0.2.1", 3479, CHANGE_PORT),
        ("192.0.2.2", 3478, CHANGE_ADDRESS),
        ("192.0.2.2", 3479, CHANGE_PORT | CHANGE_ADDRESS),
    ):
        machine = exchange()
        transaction = machine.begin(0.0, SERVER, change=change)
        answer = machine.handle(0.1, success(transaction), Endpoint((host, port)))
        assert (answer is not None) == (change == shown)
        assert machine.drops == ({} if change == shown else {StunDrop.SOURCE: 1})
        assert len(machine) == (change != shown)


def test_ipv6_is_compared_by_address() -> None:
    machine = exchange()
    transaction = machine.begin(0.0, SERVER6)
    assert machine.handle(0.1, success(transaction), Endpoint(("2001:db8::2", 3478, 0, 0))) is None
    assert machine.handle(0.1, success(transaction), Endpoint(("2001:db8:0::1", 3478, 0, 3))) is not None


def test_a_refusal_ends_it_with_its_code() -> None:
    machine = exchange()
    transaction = machine.begin(0.0, SERVER, change=CHANGE_ADDRESS)
    assert machine.handle(0.1, refusal(transaction), Endpoint(("192.0.2.9", 3478))) is None
    assert machine.handle(0.1, refusal(transaction), SERVER) is None
    [failure] = machine.drain_failures()
    assert (failure.refused, failure.code, failure.change) == (True, 420, CHANGE_ADDRESS)
    assert machine.drops == {StunDrop.SOURCE: 1, StunDrop.REFUSED: 1}
    assert machine.poll_timeout() is None


def test_an_answer_that_asks_for_too_much_is_a_refusal_without_a_code() -> None:
    machine = exchange()
    transaction = machine.begin(0.0, SERVER)
    attributes = [stun.xor_mapped_address(transaction, MAPPED), (0x7FFE, b"")]
    assert (
        machine.handle(0.1, stun.write(stun.BINDING_SUCCESS, transaction, attributes, fingerprint=True), SERVER) is None
    )
    [failure] = machine.drain_failures()
    assert failure.refused and failure.code == 0


def test_what_is_no_answer_leaves_the_request_under_way() -> None:
    machine = exchange()
    transaction = machine.begin(0.0, SERVER)
    own = sent(machine)[0]
    bad = bytearray(success(transaction))
    bad[-1] ^= 1
    for datagram, reason in (
        (own, StunDrop.UNEXPECTED),
        (b"", StunDrop.MALFORMED),
        (stun.write(stun.BINDING_SUCCESS, transaction, [], fingerprint=True), StunDrop.MALFORMED),
        (bytes(bad), StunDrop.FINGERPRINT),
        (success(bytes(12)), StunDrop.TRANSACTION),
    ):
        before = machine.drops.get(reason, 0)
        assert machine.handle(0.1, datagram, SERVER) is None
        assert machine.drops[reason] == before + 1
    assert machine.handle(0.2, success(transaction), SERVER) is not None


def test_cancelled_is_forgotten() -> None:
    machine = exchange()
    transaction = machine.begin(0.0, SERVER)
    machine.cancel(transaction)
    machine.cancel(transaction)
    assert machine.poll_timeout() is None
    assert machine.handle(0.1, success(transaction), SERVER) is None
    assert machine.drops == {StunDrop.TRANSACTION: 1}


def test_sizes_and_changes_reach_the_request() -> None:
    machine = exchange()
    machine.begin(0.0, SERVER, change=CHANGE_PORT, size=1_472)
    [datagram] = sent(machine)
    assert len(datagram) == 1_472 and stun.read_change(stun.parse(datagram)) == CHANGE_PORT


def test_bounds_and_misuse() -> None:
    machine = exchange()
    for _ in range(UNDER_WAY_MAX):
        machine.begin(0.0, SERVER)
    with pytest.raises(LimitReached):
        machine.begin(0.0, SERVER)
    for options in ({"rto_s": 0.0}, {"requests_max": 0}, {"last_wait_rtos": 0}):
        with pytest.raises(LocalProtocolError):
            exchange(**options)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.sampled_from((0, CHANGE_PORT))),
        st.tuples(st.just("wait"), st.floats(0, 50)),
        st.tuples(st.just("answer"), st.integers(0, 80)),
        st.tuples(st.just("refuse"), st.integers(0, 80)),
        st.tuples(st.just("cancel"), st.integers(0, 80)),
        st.tuples(st.just("noise"), st.binary(max_size=64)),
    ),
    max_size=60,
)


@given(steps)
def test_every_request_ends_once(steps: list[tuple[str, object]]) -> None:
    machine, now = exchange(), 0.0
    begun: dict[bytes, int] = {}
    ended: list[bytes] = []
    for what, value in steps:
        if what == "begin" and len(machine) < UNDER_WAY_MAX:
            assert isinstance(value, int)
            begun[machine.begin(now, SERVER, change=value)] = value
        elif what == "wait":
            assert isinstance(value, float)
            now += value
            while (due := machine.poll_timeout()) is not None and due <= now:
                machine.handle_timeout(now)
        elif what == "noise":
            assert isinstance(value, bytes)
            assert machine.handle(now, value, SERVER) is None
        elif begun and isinstance(value, int):
            transaction = list(begun)[value % len(begun)]
            if what == "cancel":
                if transaction not in ended and len(machine):
                    machine.cancel(transaction)
                    ended.append(transaction)
            elif what == "refuse":
                machine.handle(now, refusal(transaction), SERVER)
            else:
                port = 3479 if begun[transaction] else 3478
                answer = machine.handle(now, success(transaction), Endpoint(("192.0.2.1", port)))
                ended += [answer.transaction] if isinstance(answer, Answer) else []
        ended += [failure.transaction for failure in machine.drain_failures() if isinstance(failure, Failure)]
        assert len(ended) == len(set(ended))
        assert len(machine) == len(begun) - len(ended)
        assert (machine.poll_timeout() is None) == (len(machine) == 0)
