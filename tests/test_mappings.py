"""Where servers see us: rounds of questions, and answers in any order, in part, late, wrong, or none."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.mappings import (
    FRESH_S,
    PATIENCE_S,
    ROUND_S,
    SPACING_S,
    SURVEY_MAX,
    TARGETS_MAX,
    TRIES_MAX,
    Mappings,
)
from edgeagent.proto.punch import EDM, EIM, mapping_behaviour
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.stun import StunDrop
from edgeagent.proto.stun_exchange import UNDER_WAY_MAX

NOW = 1_000.0
HERE = bytes((203, 0, 113, 7))
HERE_6 = bytes((0x20, 1)) + bytes(13) + b"\x07"
Server = tuple[str, list[Endpoint], int]


def server(name: str, *hosts: str, second_port: int = 0) -> Server:
    return name, [Endpoint((host, 3478, 0, 0) if ":" in host else (host, 3478)) for host in hosts], second_port


A = server("a", "192.0.2.1", second_port=3479)
B = server("b", "192.0.2.2", second_port=3479)
C = server("c", "192.0.2.3")
DUAL = server("dual", "2001:db8::1", "192.0.2.9", second_port=3479)


class Asked:
    """One request as it went out."""

    def __init__(self, transmit: Transmit) -> None:
        (datagram,) = transmit.datagrams
        self.endpoint = transmit.endpoint
        self.transaction = stun.parse(datagram).transaction

    @property
    def to(self) -> tuple[str, int]:
        return self.endpoint.addr[:2]

    def answer(self, mapped: UdpAddress) -> bytes:
        attribute = stun.xor_mapped_address(self.transaction, mapped)
        return stun.write(stun.BINDING_SUCCESS, self.transaction, [attribute], fingerprint=True)


class Client:
    def __init__(self, *servers: Server) -> None:
        self.servers = list(servers)
        self.mappings = Mappings(random.Random(3).randbytes, lambda: self.servers)
        self.now = NOW

    def asked(self) -> list[Asked]:
        return [Asked(transmit) for transmit in self.mappings.drain_transmits()]

    def answer(self, asked: Asked, port: int = 5_000, address: bytes = HERE) -> None:
        self.mappings.handle_datagram(self.now, asked.answer((address, port)), asked.endpoint)

    def after(self, seconds: float) -> list[Asked]:
        """Time passes, and is said at each moment that was asked for: what was sent meanwhile."""
        end, asked = self.now + seconds, self.asked()
        for _ in range(1_000):
            due = self.mappings.poll_timeout()
            if due is None or due > end:
                self.now = end
                return asked
            self.now = max(self.now, due)
            self.mappings.handle_timeout(self.now)
            asked += self.asked()
        raise AssertionError("it wants to be called again and again")

    def round(self, port: int = 5_000) -> None:
        """All answer."""
        self.mappings.doubt(self.now)
        for asked in self.after(SPACING_S):
            self.answer(asked, port)
        assert self.mappings.poll_timeout() is None


def test_three_destinations_are_asked_each_once() -> None:
    client = Client(A, B, C)
    client.mappings.doubt(NOW)
    assert [asked.to for asked in client.asked()] == [("192.0.2.1", 3478), ("192.0.2.1", 3479), ("192.0.2.2", 3478)]


def test_both_families_are_asked() -> None:
    client = Client(DUAL, A)
    client.mappings.doubt(NOW)
    asked = client.asked()
    hosts = [
        ("192.0.2.9", 3478),
        ("192.0.2.9", 3479),
        ("192.0.2.1", 3478),
        ("2001:db8::1", 3478),
        ("2001:db8::1", 3479),
    ]
    assert [each.to for each in asked] == hosts
    for each in reversed(asked):
        six = ":" in each.to[0]
        client.answer(each, 6_000 if six else 5_000, HERE_6 if six else HERE)
    assert client.mappings.take_news() == [(HERE, 5_000)] * 3 + [(HERE_6, 6_000)] * 2


def test_the_uplink_is_pinned() -> None:
    client = Client(A)
    client.mappings.via = 7
    client.mappings.doubt(NOW)
    assert [asked.endpoint.uplink for asked in client.asked()] == [7, 7]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_mappings_are_in_the_order_of_asking_whoever_answers_first(order: tuple[int, ...]) -> None:
    client = Client(A, B)
    client.mappings.doubt(NOW)
    asked = client.asked()
    for place in order:
        client.answer(asked[place], 5_000 + place)
    assert client.mappings.take_news() == [(HERE, 5_000), (HERE, 5_001), (HERE, 5_002)]
    assert client.mappings.take_news() is None, "news are news once"
    assert client.mappings.poll_timeout() is None, "and the round is over"


def test_one_relay_alone_tells_a_mapping_that_depends_on_the_destination() -> None:
    client = Client(A)
    client.mappings.doubt(NOW)
    for number, asked in enumerate(client.asked()):
        client.answer(asked, 5_000 + number)
    assert mapping_behaviour(client.mappings.mapped) == EDM
    client.now += SPACING_S
    client.round()
    assert mapping_behaviour(client.mappings.mapped) == EIM


def test_requests_are_sent_again_and_given_up() -> None:
    client = Client(C)
    client.mappings.doubt(NOW)
    asked = client.after(60.0)
    assert len(asked) == TRIES_MAX and len({each.transaction for each in asked}) == 1
    assert client.mappings.mapped == [] and client.mappings.take_news() is None
    assert client.mappings.poll_timeout() is None, "nobody answers, nobody is asked"


def test_an_answer_to_what_was_sent_twice_is_an_answer_but_no_measurement() -> None:
    client = Client(C)
    client.mappings.doubt(NOW)
    asked = client.after(0.5)
    assert len(asked) == 2
    client.answer(asked[0])
    assert client.mappings.take_news() == [(HERE, 5_000)] and client.mappings.drain_measured() == []


def test_the_last_ones_are_waited_for_but_not_long() -> None:
    client = Client(A, B)
    client.mappings.doubt(NOW)
    asked = client.asked()
    client.now += 0.05
    client.answer(asked[2])
    client.after(PATIENCE_S - 0.01)
    assert client.mappings.take_news() is None
    client.after(0.02)
    assert client.mappings.take_news() == [(HERE, 5_000)]
    assert client.after(10.0) == [], "those that are not waited for are not asked again"
    client.answer(asked[0], 6_666)
    assert client.mappings.take_news() is None and client.mappings.drops == {StunDrop.TRANSACTION: 1}


def test_an_answer_that_got_lost_is_no_news() -> None:
    client = Client(A, B)
    client.round()
    assert client.mappings.take_news() == [(HERE, 5_000)] * 3
    client.now += SPACING_S
    client.mappings.doubt(client.now)
    client.answer(client.asked()[1])
    client.after(ROUND_S)
    assert client.mappings.take_news() is None and client.mappings.mapped == [(HERE, 5_000)] * 3


def test_one_answer_that_is_another_replaces_all() -> None:
    client = Client(A, B)
    client.round()
    client.mappings.take_news()
    client.now += SPACING_S
    client.mappings.doubt(client.now)
    client.answer(client.asked()[1], 7_000)
    client.after(ROUND_S)
    assert client.mappings.take_news() == [(HERE, 7_000)]


def test_silence_takes_nothing_back() -> None:
    client = Client(A)
    client.round()
    client.mappings.take_news()
    client.now += SPACING_S
    client.mappings.doubt(client.now)
    client.after(30.0)
    assert client.mappings.take_news() is None and client.mappings.mapped == [(HERE, 5_000)] * 2


def test_another_network_takes_everything_back() -> None:
    client = Client(A)
    client.round()
    client.mappings.take_news()
    client.mappings.doubt(client.now + SPACING_S)
    old = client.asked()
    client.mappings.forget(client.now)
    assert client.mappings.take_news() == [] and client.mappings.mapped == []
    client.mappings.forget(client.now)
    assert client.mappings.take_news() is None
    for asked in old:
        client.answer(asked)
    assert client.mappings.take_news() is None and client.mappings.mapped == []
    client.mappings.doubt(client.now)
    assert len(client.asked()) == 2, "and one may ask at once"


def test_wanting_is_content_with_what_is_fresh() -> None:
    client = Client(A)
    client.mappings.want(NOW)
    for asked in client.asked():
        client.answer(asked)
    client.mappings.want(NOW + FRESH_S - 0.1)
    assert client.asked() == []
    client.mappings.want(NOW + FRESH_S)
    assert len(client.asked()) == 2


def test_however_much_is_doubted_it_is_asked_once_a_second() -> None:
    client = Client(A)
    rounds = 0
    for _ in range(300):
        client.mappings.doubt(client.now)
        for asked in client.after(0.01):
            client.answer(asked)
            rounds += asked.to[1] == 3478
    assert rounds == 3
    client.after(60.0)
    assert client.asked() == [] and client.mappings.poll_timeout() is None


def test_a_doubt_during_a_round_is_another_round() -> None:
    client = Client(A)
    client.mappings.doubt(NOW)
    asked = client.asked()
    client.mappings.doubt(NOW)
    client.answer(asked[0])
    client.answer(asked[1])
    assert len(client.after(SPACING_S)) == 2


def test_without_servers_nothing_happens_until_there_are_some() -> None:
    client = Client()
    client.mappings.doubt(NOW, survey=True)
    assert client.asked() == [] and client.mappings.poll_timeout() is None
    client.servers = [A, B, C]
    client.mappings.doubt(NOW)
    assert {asked.to for asked in client.asked()} == {(f"192.0.2.{n}", 3478) for n in (1, 2, 3)} | {("192.0.2.1", 3479)}


# Measuring


def test_a_survey_measures_every_relay_once() -> None:
    servers = [server(f"r{n}", f"192.0.2.{n}", second_port=3479) for n in range(1, 30)]
    client = Client(*servers)
    client.mappings.doubt(NOW, survey=True)
    asked = client.asked()
    assert len(asked) == SURVEY_MAX + 1
    client.now += 0.1
    for each in asked:
        client.answer(each)
    measured = client.mappings.drain_measured()
    assert sorted(each.relay for each in measured) == sorted(f"r{n}" for n in range(1, SURVEY_MAX + 1))
    assert all(each.round_trip_s == pytest.approx(0.1) for each in measured)
    assert all(each.endpoint.addr[1] == 3478 for each in measured), "the second port is the same relay"
    assert client.mappings.drain_measured() == []


def test_far_relays_of_a_survey_are_waited_for_without_holding_up_the_round() -> None:
    client = Client(A, B, C)
    client.mappings.doubt(NOW, survey=True)
    asked = client.asked()
    for each in asked[:3]:
        client.answer(each)
    assert client.mappings.take_news() == [(HERE, 5_000)] * 3
    client.now += 0.25
    client.answer(asked[3], 9_999)
    assert [each.relay for each in client.mappings.drain_measured()] == ["a", "b", "c"]
    assert client.mappings.take_news() is None, "it measures, and that is all"


# Servers that lie, and others in their name


def test_forged_answers_are_counted_and_change_nothing() -> None:
    client = Client(C)
    client.mappings.doubt(NOW)
    (asked,) = client.asked()
    forged = stun.write(
        stun.BINDING_SUCCESS, bytes(12), [stun.xor_mapped_address(bytes(12), (HERE, 1))], fingerprint=True
    )
    client.mappings.handle_datagram(NOW, forged, asked.endpoint)
    for source in (
        Endpoint(("192.0.2.66", 3478)),
        Endpoint(("192.0.2.3", 3479)),
        Endpoint(("2001:db8::1", 3478, 0, 0)),
    ):
        client.mappings.handle_datagram(NOW, asked.answer((HERE, 1)), source)
    client.mappings.handle_datagram(NOW, asked.answer((HERE, 1))[:-1], asked.endpoint)
    client.mappings.handle_datagram(NOW, stun.write_request(asked.transaction), asked.endpoint)
    assert client.mappings.mapped == [] and client.mappings.take_news() is None
    assert client.mappings.drops == {
        StunDrop.TRANSACTION: 1,
        StunDrop.SOURCE: 3,
        StunDrop.MALFORMED: 1,
        StunDrop.UNEXPECTED: 1,
    }
    client.answer(asked)
    assert client.mappings.take_news() == [(HERE, 5_000)]


def test_a_thousand_answers_are_one() -> None:
    client = Client(C)
    client.mappings.doubt(NOW)
    (asked,) = client.asked()
    for number in range(1_000):
        client.answer(asked, 1 + number)
    assert client.mappings.take_news() == [(HERE, 1)] and client.mappings.mapped == [(HERE, 1)]
    assert len(client.mappings.drain_measured()) == 1
    assert client.mappings.drops == {StunDrop.TRANSACTION: 999}


def test_a_server_that_refuses_ends_its_part() -> None:
    client = Client(C)
    client.mappings.doubt(NOW)
    (asked,) = client.asked()
    refusal = stun.write(
        stun.BINDING_ERROR, asked.transaction, [(stun.ERROR_CODE, bytes((0, 0, 4, 0)))], fingerprint=True
    )
    client.mappings.handle_datagram(NOW, refusal, asked.endpoint)
    assert client.after(30.0) == [] and client.mappings.mapped == []


def test_an_answer_of_the_other_family_is_no_error() -> None:
    """Behind a NAT64 it is what the server sees."""
    client = Client(server("six", "2001:db8::1"), A)
    client.mappings.doubt(NOW)
    for asked in client.asked():
        client.answer(asked, 5_000)
    assert client.mappings.take_news() == [(HERE, 5_000)] * 3


def test_a_network_that_comes_and_goes_leaves_nothing_under_way() -> None:
    """Each time all that was asked before is let go of: nobody hits the ceiling on requests under way."""
    servers = [server(f"r{n}", f"192.0.2.{n}", f"2001:db8::{n}", second_port=3479) for n in range(1, 17)]
    client = Client(*servers)
    for _ in range(60):
        client.mappings.forget(client.now)
        client.mappings.doubt(client.now, survey=True)
        client.after(0.05)
        assert len(client.mappings._exchange) <= 2 * TARGETS_MAX + SURVEY_MAX < UNDER_WAY_MAX
    client.after(30.0)
    assert len(client.mappings._exchange) == 0 and client.mappings._asked == {}


def test_a_clock_that_jumps_ends_the_round_and_no_more() -> None:
    client = Client(A, B, C)
    client.mappings.doubt(NOW, survey=True)
    client.asked()
    client.now += 7_200.0
    client.mappings.handle_timeout(client.now)
    assert len(client.after(60.0)) <= 4 * TRIES_MAX
    assert client.mappings.poll_timeout() is None
    client.round()
    assert client.mappings.take_news() == [(HERE, 5_000)] * 3


ACTIONS = st.lists(
    st.tuples(st.sampled_from(("want", "doubt", "survey", "forget", "answer", "wait", "servers")), st.integers(0, 40)),
    max_size=60,
)


@settings(deadline=None)
@given(actions=ACTIONS)
def test_any_order_of_events(actions: list[tuple[str, int]]) -> None:
    servers = [A, B, C, DUAL]
    client, waiting = Client(*servers), []
    for action, number in actions:
        if action == "want":
            client.mappings.want(client.now)
        elif action in ("doubt", "survey"):
            client.mappings.doubt(client.now, survey=action == "survey")
        elif action == "forget":
            client.mappings.forget(client.now)
        elif action == "servers":
            client.servers = servers[number % 5 :]
        elif action == "wait":
            waiting += client.after(number / 20)
        elif waiting:
            asked = waiting.pop(number % len(waiting))
            client.answer(asked, 5_000 + number, HERE if number % 7 else HERE_6)
        waiting += client.asked()
        assert len(client.mappings.mapped) <= 2 * TARGETS_MAX
        assert len(client.mappings._exchange) <= 2 * TARGETS_MAX + SURVEY_MAX
        assert all(ip_address(address) for address, _ in client.mappings.mapped)
    client.after(60.0)
    assert client.mappings.poll_timeout() is None and len(client.mappings._exchange) == 0
