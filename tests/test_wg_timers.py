"""The five timers, on a clock that only the test moves."""

from __future__ import annotations

from itertools import pairwise

from edgeagent.proto.constants import INITIATION_REPEATED_S, REKEY_TIMEOUT_S
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.events import HandshakeFailed
from edgeagent.proto.timers import Timer, Timers
from tests.wg_pair import INITIATION, RESPONSE, TRANSPORT, Pair, drops, established, kinds


def lost(_: bytes) -> bool:
    return False


def test_initiation_is_repeated_every_five_seconds_and_given_up_after_ninety() -> None:
    pair = Pair()
    pair.a_sends()
    begun = pair.now
    sent_at: list[float] = []

    def count(datagram: bytes) -> bool:
        assert datagram[0] == INITIATION
        sent_at.append(pair.now - begun)
        return False

    pair.deliver(count)
    pair.advance(200, keep=count)
    assert len(sent_at) == 19
    gaps = [later - earlier for earlier, later in pairwise(sent_at)]
    assert all(5.0 <= gap <= 5.334 for gap in gaps)
    assert len({round(gap, 3) for gap in gaps}) > 10, "jitter spreads the attempts"
    assert isinstance(pair.a.drain_events()[-1], HandshakeFailed)
    assert drops(pair.a) == {"staged-expired": 1}
    pair.a_sends()
    assert kinds(pair.collect()) == [INITIATION], "new data asks again"


def test_no_second_initiation_within_five_seconds() -> None:
    pair = Pair()
    for _ in range(10):
        pair.a_sends()
    assert kinds(pair.collect()) == [INITIATION]
    pair.now += 4.9
    assert pair.to_b.begin_handshake(pair.now) is False


NEW_PLACE = Endpoint(("198.51.100.9", 51821))


def test_another_way_to_a_peer_does_not_lose_the_answer_that_is_under_way() -> None:
    pair = Pair()
    pair.a_sends()
    (first,) = pair.collect()
    pair.now += 0.9
    pair.to_b.set_endpoint(NEW_PLACE)
    assert pair.to_b.begin_handshake(pair.now, anew=True)
    (again,) = pair.collect()
    assert again[:-32] == first[:-32]  # all but its MACs
    pair.deliver()
    assert pair.to_b.keypairs.current is not None, "the answer to the first one counts"
    assert drops(pair.b) == {"initiation-replayed": 1}
    pair.advance(REKEY_TIMEOUT_S + 1.0)
    assert drops(pair.a) == {}


def test_by_the_other_way_comes_what_was_lost_on_the_first() -> None:
    pair = Pair()
    pair.a_sends()
    pair.deliver(lost)
    pair.now += 0.05
    pair.to_b.set_endpoint(NEW_PLACE)
    pair.to_b.begin_handshake(pair.now, anew=True)
    pair.deliver()
    assert pair.to_b.keypairs.current is not None
    assert drops(pair.a) == drops(pair.b) == {}


def test_an_answer_that_was_lost_is_asked_for_by_the_other_way_after_a_second() -> None:
    pair = Pair()
    pair.a_sends()
    pair.deliver(lambda datagram: datagram[0] != RESPONSE)
    pair.now += 0.05
    pair.to_b.set_endpoint(NEW_PLACE)
    pair.to_b.begin_handshake(pair.now, anew=True)
    pair.a.touched(pair.to_b)
    pair.advance(INITIATION_REPEATED_S)
    assert pair.to_b.keypairs.current is not None


def test_repeated_initiations_are_spaced() -> None:
    pair = Pair()
    pair.a_sends()
    pair.collect()
    sent = [pair.to_b.begin_handshake(pair.now + 0.005 * n, anew=True) for n in range(20)]
    assert sum(sent) == 4


def test_passive_keepalive_after_ten_seconds_of_only_receiving() -> None:
    pair = established()
    pair.advance(60)
    pair.a_sends()
    pair.deliver()
    before = pair.to_a.tx_bytes
    pair.advance(9.9)
    assert pair.to_a.tx_bytes == before
    pair.advance(0.2)
    assert pair.to_a.tx_bytes == before + 32
    pair.advance(60)
    assert pair.to_a.tx_bytes == before + 32, "one keepalive answers for all that came, and is not answered itself"
    assert drops(pair.a) == drops(pair.b) == {}


def test_handshake_when_nothing_comes_back_for_fifteen_seconds() -> None:
    pair = established()
    pair.advance(30)
    pair.a_sends()
    pair.deliver(lost)
    kinds_sent: list[int] = []

    def note(datagram: bytes) -> bool:
        kinds_sent.append(datagram[0])
        return True

    pair.advance(14.9, keep=note)
    assert kinds_sent == []
    pair.advance(0.5, keep=note)
    assert kinds_sent == [INITIATION, RESPONSE, TRANSPORT]


def test_initiator_renews_after_120_s_and_responder_does_not() -> None:
    pair = established()
    first = pair.to_b.keypairs.current
    pair.advance(15)
    for _ in range(13):
        pair.advance(8)
        pair.b_sends()
        pair.deliver(keep=lambda datagram: datagram[0] != INITIATION)
    assert pair.now - first.created_at < 120  # type: ignore[union-attr]  # it was established
    pair.advance(4)
    pair.b_sends()
    assert kinds(pair.collect()) == [TRANSPORT], "at 120 s and more the responder just goes on"
    pair.deliver()
    assert pair.to_b.keypairs.current is first
    pair.a_sends()
    pair.deliver()
    second = pair.to_b.keypairs.current
    assert second is not first
    assert pair.to_b.keypairs.previous is first
    assert pair.to_a.keypairs.current is not None
    assert pair.to_a.keypairs.current.created_at == pair.now
    pair.a_sends(), pair.b_sends()
    pair.deliver()
    assert drops(pair.a) == drops(pair.b) == {}


def test_initiator_renews_in_the_last_minute_on_receiving() -> None:
    pair = established()
    pair.advance(164)
    pair.b_sends()
    pair.deliver()
    assert pair.to_b.keypairs.previous is None
    pair.advance(2)
    pair.b_sends()
    pair.deliver()
    assert pair.to_b.keypairs.previous is not None


def test_traffic_flows_through_every_rekey_of_an_hour() -> None:
    pair = established()
    received = 0
    for _ in range(3600):
        pair.a_sends(), pair.b_sends()
        pair.advance(1)
        pair.deliver()
        received += len(pair.a.drain_packets()) + len(pair.b.drain_packets())
    assert received == 7200
    assert drops(pair.a) == drops(pair.b) == {}
    assert pair.to_b.last_handshake_at is not None
    assert pair.now - pair.to_b.last_handshake_at <= 121


def test_key_is_dead_after_180_s() -> None:
    pair = established()
    pair.a_sends()
    (late,) = pair.collect()
    pair.wire.clear()
    pair.advance(180, keep=lost)
    pair.b.handle_datagrams(pair.now, [(late, pair.to_a.endpoint, 0)])  # type: ignore[list-item]  # it is known
    assert pair.b.drain_packets() == []
    assert drops(pair.b) == {"key-expired": 1}
    pair.a_sends()
    assert INITIATION in kinds(pair.collect())
    assert drops(pair.a) == {}


def test_keys_are_wiped_after_540_s() -> None:
    pair = established()
    keypair = pair.to_b.keypairs.current
    assert keypair is not None
    assert any(keypair.send_key)
    pair.advance(539)
    assert pair.to_b.keypairs.clear() == [keypair]
    pair.to_b.keypairs.add(keypair)
    pair.advance(2)
    assert pair.to_b.keypairs.clear() == []
    assert not any(keypair.send_key) and not any(keypair.receive_key), "the bytes themselves are overwritten"
    assert pair.a.poll_timeout() is None


def test_keys_are_wiped_on_removal() -> None:
    pair = established()
    keypair = pair.to_b.keypairs.current
    assert keypair is not None
    pair.a.remove_peer(pair.now, pair.b.public_key)
    assert not any(keypair.send_key) and not any(keypair.receive_key)


def test_persistent_keepalive_keeps_its_interval_and_traffic_pushes_it_back() -> None:
    pair = established()
    pair.advance(15)
    pair.to_b.set_persistent_keepalive(pair.now, 25)
    pair.a.touched(pair.to_b)
    pair.deliver()
    before = pair.to_b.tx_bytes
    pair.advance(24.9)
    assert pair.to_b.tx_bytes == before
    pair.advance(0.2)
    assert pair.to_b.tx_bytes == before + 32
    pair.advance(20)
    pair.b_sends()
    pair.deliver()
    mark = pair.to_b.tx_bytes
    pair.advance(9.5)
    assert pair.to_b.tx_bytes == mark


def test_switching_persistent_keepalive_on_connects_at_once() -> None:
    pair = Pair()
    pair.to_b.set_persistent_keepalive(pair.now, 25)
    pair.a.touched(pair.to_b)
    pair.deliver()
    assert pair.to_b.last_handshake_at == pair.now
    pair.advance(600)
    assert pair.now - (pair.to_b.last_handshake_at or 0) <= 130


def test_idle_tunnel_falls_silent() -> None:
    pair = established()
    pair.advance(15)
    mark = pair.to_b.tx_bytes + pair.to_a.tx_bytes
    pair.advance(3600)
    assert pair.to_b.tx_bytes + pair.to_a.tx_bytes == mark
    assert pair.a.poll_timeout() is None
    assert pair.b.poll_timeout() is None


def test_each_timer_is_due_once() -> None:
    timers = Timers()
    timers.initiated(0.0, 0.0)
    timers.data_sent(0.0, 0.0)
    timers.data_received(1.0)
    timers.set_persistent_keepalive(0.0, 7)
    timers.session_derived(0.0)
    assert timers.next_deadline() == 5.0
    assert timers.due(4.9) == []
    assert timers.due(1000.0) == [
        Timer.RETRANSMIT,
        Timer.KEEPALIVE,
        Timer.NEW_HANDSHAKE,
        Timer.PERSISTENT,
        Timer.ZERO_KEYS,
    ]
    assert timers.due(1000.0) == []
    assert timers.next_deadline() == 1007.0
    timers.stop()
    assert timers.next_deadline() is None
