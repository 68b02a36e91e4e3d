"""Who gets in, and who does not: by name, counted, and with nothing left behind."""

from __future__ import annotations

import random
from typing import Any

import pytest

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.names import network_id
from edgeagent.proto.relay_events import Carrier, PassRefused, RelayDown, RelayUp
from edgeagent.proto.relay_frames import (
    CHALLENGE_SIZE,
    CHALLENGED,
    DENIED,
    DRAINING,
    LOGGING_IN,
    LOGIN,
    REFUSED,
    WELCOMED,
    FrameSplitter,
    Refusal,
    RelayError,
    frame,
)
from edgeagent.proto.relay_login import Role, write_login
from edgeagent.proto.relay_pass import Pass, open_pass
from edgeagent.proto.signed import sign_object
from relay.core import admission, lobby
from relay.core.limits import Rate, RelayLimits
from relay.core.members import COUNTER_LAST, COUNTER_MAX
from relay.core.relay import SWEEP_S, RelayCore
from relay.core.shared import Train
from tests.relay import kit
from tests.relay.kit import World

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM

BAD_PASSES: list[tuple[Refusal, dict[str, Any]]] = [
    (Refusal.WRONG_RELAY, {"relays": ["fra-2"]}),
    (Refusal.WRONG_RELAY, {"relays": [], "regions": ["ams"]}),
    (Refusal.WRONG_RELAY, {"relays": [], "regions": []}),
    (Refusal.WRONG_KEY, {"node_key": kit.public_key(2)}),
    (Refusal.EXPIRED, {"begins": -100, "ends": -1}),
    (Refusal.NOT_YET, {"begins": 1_000, "issued": 0}),
    (Refusal.BAD_PASS, {"seed": kit.OTHER_SEED}),  # signed by another network than it names
    (Refusal.BAD_PASS, {"seed": bytes(32)}),
]


@pytest.mark.parametrize("carrier", [UDP, TLS])
@pytest.mark.parametrize(("refusal", "options"), BAD_PASSES)
def test_a_bad_pass_is_refused_by_name(carrier: Carrier, refusal: Refusal, options: dict[str, Any]) -> None:
    world = World()
    host = world.add(1, carriers=(carrier,), pass_object=kit.make_pass(1, **options))
    world.settle()
    assert host.client.carrier is None
    assert [event.refusal for event in host.told(PassRefused) if isinstance(event, PassRefused)] == [refusal]
    assert kit.refusals(world.core) == {refusal.word: 1}
    assert len(world.core.shared.roster) == 0
    world.advance(60)
    assert kit.refusals(world.core) == {refusal.word: 1}  # it is not tried again every second
    host.client.set_pass(world.now, kit.make_pass(1, seq=2))
    world.settle()
    assert host.client.alive


def test_a_pass_of_a_network_that_is_not_served() -> None:
    seed = bytes(31) + b"\x09"
    network = network_id(kit.CRYPTO, kit.CRYPTO.ed25519_public(seed))
    world = World()
    world.add(1, pass_object=kit.make_pass(1, seed=seed, network=network))
    world.settle()
    assert kit.refusals(world.core) == {"wrong-network": 1}


def test_a_pass_for_the_region_holds() -> None:
    world = World()
    host = world.add(1, pass_object=kit.make_pass(1, relays=[], regions=["fra"]))
    world.settle()
    assert host.client.alive


@pytest.mark.parametrize("data", [b"", b"\x80", b"pass", bytes(2_000)])
def test_a_pass_that_is_none(data: bytes) -> None:
    with pytest.raises(RelayError) as caught:
        opened(data)
    assert caught.value.reason is Refusal.BAD_PASS


def test_every_bit_of_a_pass_counts() -> None:
    good = kit.make_pass(1)
    assert opened(good).device == kit.device(1)
    for at in range(len(good)):
        with pytest.raises(RelayError):
            opened(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :])


def test_an_older_pass_does_not_come_back() -> None:
    world = World()
    world.join(1, TLS, pass_object=kit.make_pass(1, seq=5)).client.stop(world.now)
    world.settle()
    world.hosts.clear()
    host = world.add(1, carriers=(TLS,), pass_object=kit.make_pass(1, seq=4))
    world.settle()
    assert kit.refusals(world.core) == {"replayed": 1} and host.told(PassRefused)
    host.client.set_pass(world.now, kit.make_pass(1, seq=5))
    world.advance(10)
    assert host.client.alive


def test_a_pass_ends_while_its_member_is_there() -> None:
    world = World()
    host = world.join(1, UDP, pass_object=kit.make_pass(1, ends=50))
    world.advance(45)
    assert host.client.alive
    world.advance(10)
    assert host.told(PassRefused) and host.told(RelayDown)
    assert kit.refusals(world.core)["expired"] >= 1
    host.client.set_pass(world.now, kit.make_pass(1, seq=2))
    world.settle()
    assert host.client.alive and len(host.told(RelayUp)) == 2


def test_a_removed_device_is_put_out_and_stays_out() -> None:
    world = World()
    hosts = [world.join(1, UDP), world.join(2, TLS), world.join(3, TLS)]
    for number in (1, 2):
        world.core.revoke(gone(number, wall_s=kit.WALL_S + 5))
    world.advance(0.1)
    assert [host.client.alive for host in hosts] == [False, False, True]
    assert kit.refusals(world.core)["revoked"] >= 2
    hosts[0].client.set_pass(world.now, kit.make_pass(1, seq=2, issued=5))
    world.settle()
    assert [host.client.alive for host in hosts] == [False, False, True]
    hosts[0].client.set_pass(world.now, kit.make_pass(1, seq=3, issued=6))  # admitted anew
    world.settle()
    assert [host.client.alive for host in hosts] == [True, False, True]
    for bad in (gone(3, seed=kit.OTHER_SEED), b"nonsense", gone(3, network="a" * 16)):
        with pytest.raises(RelayError):
            world.core.revoke(bad)


def test_a_forged_proof_and_a_login_for_another_relay() -> None:
    """Somebody has a member's pass, but not its node key; or seals for a relay with another name."""
    for options in ({"private": kit.private_key(2)}, {"relay": "fra-9"}, {"relay_key": kit.public_key(5)}):
        core = kit.make_core()
        challenge = hello(core)
        deny = login(core, challenge, kit.make_pass(1), **options)
        assert deny[0] == DENIED
        expected = Refusal.WRONG_KEY if "private" in options else Refusal.BAD_LOGIN
        assert Refusal(deny[-1]) is expected
        assert len(core.shared.roster) == 0


def test_a_challenge_serves_its_address_for_a_while_and_once() -> None:
    core = kit.make_core()
    challenge = hello(core)
    other = Endpoint(("203.0.113.9", 1))
    assert login(core, challenge, kit.make_pass(1), endpoint=other)[0] == CHALLENGED
    assert login(core, challenge, kit.make_pass(1), now=kit.NOW + 11)[0] == CHALLENGED
    assert login(core, bytes(CHALLENGE_SIZE), kit.make_pass(1))[0] == CHALLENGED
    assert kit.drops(core) == {"stale-challenge": 3}
    assert login(core, challenge, kit.make_pass(1))[0] == WELCOMED
    again = login(core, challenge, kit.make_pass(1), seed=2)  # another login with the challenge that was used
    assert again[0] == DENIED and Refusal(again[-1]) is Refusal.REPLAYED


def test_the_same_login_twice_is_welcomed_twice_and_seated_once() -> None:
    core = kit.make_core()
    challenge = hello(core)
    assert login(core, challenge, kit.make_pass(1))[0] == WELCOMED
    session = next(iter(core.shared.roster.by_session))
    assert login(core, challenge, kit.make_pass(1))[0] == WELCOMED
    assert list(core.shared.roster.by_session) == [session]
    # Much later it is just an old login
    assert login(core, challenge, kit.make_pass(1), now=kit.NOW + 20)[0] == CHALLENGED


def test_a_login_on_a_stream_cannot_be_used_on_another() -> None:
    core = kit.make_core()
    challenges = []
    for conn in (1, 2):
        core.stream_opened(kit.NOW, conn, bytes(4))
        (_, data) = core.drain_writes()[0]
        challenges.append(FrameSplitter().feed(data)[0][1])
    assert challenges[0] != challenges[1]
    sealed = sealed_login(challenges[0], kit.make_pass(1))
    core.stream_received(kit.NOW, 2, frame(LOGIN, sealed))
    assert core.drain_writes() == [(2, frame(REFUSED, bytes((Refusal.BAD_LOGIN.value,))))]
    assert core.drain_closes() == [2]
    core.stream_received(kit.NOW, 1, frame(LOGIN, sealed))
    assert len(core.shared.roster) == 1
    core.stream_received(kit.NOW, 1, frame(LOGIN, sealed))  # a second one is no input of a member
    assert core.drain_closes() == [1] and len(core.shared.roster) == 0


def test_logins_from_one_address_are_limited() -> None:
    core = kit.make_core(logins_per_source_per_s=2)
    challenge = hello(core)
    kinds = [login(core, challenge, b"", seed=n)[-1] for n in range(20)]
    assert kinds.count(Refusal.TOO_OFTEN.value) == 16
    assert kit.drops(core) == {"login-rate": 16}


def test_full_is_full_but_who_is_in_may_come_again() -> None:
    world = World(kit.make_core(members=2))
    a = world.join(1, TLS)
    world.join(2, UDP)
    late = world.add(3)
    world.settle()
    assert late.client.carrier is None and kit.refusals(world.core) == {"full": 1}
    a.client.stop(world.now)
    world.advance(30)
    assert late.client.alive


def test_removals_of_one_network_do_not_make_those_of_another_forgotten() -> None:
    world = World(kit.make_core(logins_remembered=10))
    world.core.revoke(gone(1))
    for number in range(20):
        world.core.revoke(gone(number, seed=kit.OTHER_SEED, network=kit.OTHER_NETWORK))
    host = world.add(1)
    world.settle()
    assert not host.client.alive and set(kit.refusals(world.core)) == {"revoked"}


def test_a_removal_that_is_known_costs_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.core.revoke(gone(1, wall_s=kit.WALL_S + 5))
    monkeypatch.setattr(admission, "open_signed", None)
    for wall_s in (kit.WALL_S, kit.WALL_S + 5):
        world.core.revoke(gone(1, wall_s=wall_s))
    monkeypatch.undo()
    world.core.revoke(gone(1, wall_s=kit.WALL_S + 6))
    assert world.core.shared.admission._revoked_at(kit.NETWORK, kit.device(1)) == kit.WALL_S + 6


@pytest.mark.parametrize("carrier", [UDP, TLS])
def test_a_removal_finds_its_device_and_not_the_whole_roster(carrier: Carrier) -> None:
    world = World()
    host = world.join(1, carrier)
    roster = world.core.shared.roster
    assert [member.key for member in roster.of_device(kit.NETWORK, kit.device(1))] == [host.key]
    assert roster.of_device(kit.OTHER_NETWORK, kit.device(1)) == []
    host.client.stop(world.now)
    world.settle()
    assert roster.of_device(kit.NETWORK, kit.device(1)) == [] and not roster._by_device


def test_a_session_whose_counter_runs_out_is_ended_and_comes_again() -> None:
    world = World()
    host = world.join(1, UDP)
    (member,) = world.core.shared.roster
    assert member.session is not None
    member.session.down_counter = COUNTER_MAX
    world.core.shared.send_control(member, DRAINING, bytes(2))
    assert world.core.drain_trains() == []
    member.session.down_counter = COUNTER_LAST
    world.advance(SWEEP_S)
    assert kit.refusals(world.core) == {"no-session": 1}
    world.advance(60)
    assert host.client.alive
    (member,) = world.core.shared.roster
    assert member.session is not None and member.session.down_counter < 100


@pytest.mark.parametrize("carrier", [UDP, TLS])
def test_who_is_in_may_come_again_by_another_connection_though_all_is_full(carrier: Carrier) -> None:
    """Its old one may have died without a word, and would be there for an hour."""
    world = World(kit.make_core(members=2, members_per_network=2))
    world.join(1, TLS)
    world.join(2, UDP)
    world.hosts.clear()
    for _ in range(3):
        again = world.add(1, carriers=(carrier,))
        world.settle()
        assert again.client.alive
        world.hosts.clear()
    assert "full" not in kit.refusals(world.core)
    world.add(3)
    world.settle()
    assert kit.refusals(world.core)["full"] == 1


def test_logins_that_were_replaced_have_a_bound_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lobby, "REPLACED_MAX", 2)
    world = World()
    for number in (1, 2, 3):
        world.join(number, TLS)
    world.hosts.clear()
    for number in (1, 2, 3):
        world.join(number, UDP)
    roster = world.core.shared.roster
    assert roster.replaced == 2 and roster.older(kit.public_key(1)) is None and len(roster) == 5


def test_one_network_does_not_fill_a_relay() -> None:
    limits = RelayLimits()
    assert limits.members_per_network < limits.members


@pytest.mark.parametrize(("how", "carrier"), [("leaves", UDP), ("leaves", TLS), ("is replaced", TLS)])
def test_a_new_login_is_no_new_burst(how: str, carrier: Carrier, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(kit.make_core(rates={0: Rate(100_000, 1_000)}))
    sink = world.join(9, UDP)
    for _ in range(10):
        host = world.join(1, carrier)
        world.send(host, sink, *(bytes(1_000) for _ in range(100)))
        if how == "leaves":
            host.client.stop(world.now)
            world.settle()
        world.hosts.remove(host)
        world.now += 0.002  # challenges of one millisecond are the same
    assert len(sink.packets) <= 27  # a quarter of a second's worth
    monkeypatch.setattr(lobby, "BUCKETS_KEPT_MAX", 2)
    for number in (2, 3, 4):
        world.join(number, carrier).client.stop(world.now)
        world.settle()
    assert len(world.core.streams._lobby._buckets) <= 2 or how == "is replaced"


def opened(data: bytes) -> Pass:
    networks = {kit.NETWORK: kit.NETWORK_KEY}
    return open_pass(kit.CRYPTO, networks, kit.RELAY, kit.REGION, kit.public_key(1), kit.WALL_S, data)


def hello(core: RelayCore, endpoint: Endpoint | None = None) -> bytes:
    endpoint = endpoint or ENDPOINT
    core.handle_trains(kit.NOW, [Train(endpoint, b"\xe0" + bytes(39), 40)])
    (answer,) = core.drain_trains()
    assert answer.data[0] == CHALLENGED
    return bytes(answer.data[-CHALLENGE_SIZE:])


ENDPOINT = Endpoint(("192.0.2.200", 999))


def sealed_login(challenge: bytes, pass_object: bytes, *, seed: int = 1, **options: Any) -> bytes:
    who: dict[str, Any] = {"relay": kit.RELAY, "relay_key": kit.RELAY_KEY, "private": kit.private_key(1), **options}
    who |= {"role": Role.MEMBER, "interval_s": 25, "pass_object": pass_object}
    return write_login(kit.CRYPTO, random.Random(seed).randbytes, challenge=challenge, **who)[0]


def login(
    core: RelayCore,
    challenge: bytes,
    pass_object: bytes,
    *,
    endpoint: Endpoint = ENDPOINT,
    now: float = kit.NOW,
    seed: int = 1,
    **options: Any,
) -> bytes:
    """The answer to a login."""
    datagram = bytes((LOGGING_IN,)) + bytes(7) + challenge + sealed_login(challenge, pass_object, seed=seed, **options)
    core.handle_trains(now, [Train(endpoint, datagram, len(datagram))])
    (answer,) = core.drain_trains()
    assert len(answer.data) < len(datagram)
    return bytes(answer.data)


def gone(number: int, *, seed: bytes = kit.SEED, network: str = kit.NETWORK, wall_s: int = kit.WALL_S) -> bytes:
    who: dict[str, Any] = {"network": network, "subject": kit.device(number)}
    return sign_object(kit.CRYPTO, seed, kind="gone", epoch=1, seq=9, wall_s=wall_s, body={}, **who)
