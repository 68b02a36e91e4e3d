"""The relay's STUN answers: never longer than what asked, but for a few a second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint
from relay.core.relay import RelayCore
from relay.core.shared import Train
from relay.core.stun_server import SHORT_PER_S, SHORT_PER_SOURCE_BURST
from tests.relay import kit

LOCAL = (bytes((198, 51, 100, 1)), 2)
V4 = Endpoint(("192.0.2.7", 4_567), LOCAL)
V6 = Endpoint(("2001:db8::7", 4_567, 0, 0), (bytes(15) + b"\x01", 2))
TRANSACTION = bytes(range(12))


def ask(core: RelayCore, request: bytes, endpoint: Endpoint = V4, now: float = kit.NOW) -> list[Train]:
    core.handle_trains(now, [Train(endpoint, request, len(request))])
    return core.drain_trains()


def test_a_padded_request_gets_everything() -> None:
    for endpoint, address in ((V4, bytes((192, 0, 2, 7))), (V6, bytes.fromhex("20010db8" + "00" * 11 + "07"))):
        request = stun.write_request(TRANSACTION)
        (answer,) = ask(kit.make_core(), request, endpoint)
        binding = stun.read_binding(bytes(answer.data), TRANSACTION)
        assert binding.mapped == (address, 4_567)
        assert endpoint.local is not None
        assert binding.origin == (endpoint.local[0], 3_478) and binding.other == (endpoint.local[0], 3_479)
        assert len(answer.data) <= len(request) and not answer.from_second_port


def test_the_second_port_answers_and_is_answered_from() -> None:
    core = kit.make_core()
    (answer,) = ask(core, stun.write_request(TRANSACTION, change=stun.CHANGE_PORT))
    assert answer.from_second_port
    assert stun.read_binding(bytes(answer.data), TRANSACTION).origin == (LOCAL[0], 3_479)
    for change in (0, stun.CHANGE_PORT):
        request = stun.write_request(TRANSACTION, change=change)
        core.handle_stun(kit.NOW, Train(V4, request, len(request)))
        (answer,) = core.drain_trains()
        assert answer.from_second_port is not bool(change)


def test_what_cannot_be_done_is_refused_by_name() -> None:
    one_port = kit.make_core(ports=(3_478, None))
    for core, change in ((kit.make_core(), stun.CHANGE_ADDRESS), (one_port, stun.CHANGE_PORT)):
        request = stun.write_request(TRANSACTION, change=change)
        (answer,) = ask(core, request)
        message = stun.parse(bytes(answer.data))
        assert (message.kind, stun.read_error_code(message)) == (stun.BINDING_ERROR, 420)
        assert message.attributes[stun.UNKNOWN_ATTRIBUTES] == stun.CHANGE_REQUEST.to_bytes(2, "big")
        assert len(answer.data) <= len(request)


def test_short_requests_are_answered_a_few_at_a_time() -> None:
    core = kit.make_core()
    short = stun.write(stun.BINDING_REQUEST, TRANSACTION, [], fingerprint=False)
    assert len(short) == 20
    answered = sum(len(ask(core, short)) for _ in range(100))
    assert answered == SHORT_PER_SOURCE_BURST
    (answer,) = ask(core, short, now=kit.NOW + 1.01)
    assert stun.read_binding(bytes(answer.data), TRANSACTION).mapped == (bytes((192, 0, 2, 7)), 4_567)
    assert len(answer.data) == 32
    many = [Endpoint((f"10.{n >> 8}.{n & 255}.1", 9), LOCAL) for n in range(1_000)]
    core = kit.make_core()
    assert sum(len(ask(core, short, endpoint)) for endpoint in many) == SHORT_PER_S
    assert kit.drops(core) == {"stun-short": 1_000 - SHORT_PER_S}


@given(
    st.lists(st.tuples(st.sampled_from((3, 6, 0x26, 0x8022, 0x7FFF, 0xFFE0)), st.binary(max_size=40)), max_size=6),
    st.booleans(),
    st.sampled_from((stun.BINDING_REQUEST, stun.BINDING_SUCCESS, 0x0011, 0x0003)),
    st.sampled_from((V4, V6)),
)
def test_no_answer_is_longer_than_its_request(
    attributes: list[tuple[int, bytes]], fingerprint: bool, kind: int, endpoint: Endpoint
) -> None:
    core = kit.make_core()
    for n in range(int(SHORT_PER_SOURCE_BURST)):  # use up what short ones may have
        ask(core, stun.write(stun.BINDING_REQUEST, bytes((n,)) * 12, [], fingerprint=False), endpoint)
    request = stun.write(kind, TRANSACTION, attributes, fingerprint=fingerprint)
    for answer in ask(core, request, endpoint):
        assert kind == stun.BINDING_REQUEST
        assert len(answer.data) <= len(request)
