"""The port mapper against a gateway of the test's own, one virtual clock between them."""

from __future__ import annotations

from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.errors import LimitReached, LocalProtocolError
from edgeagent.proto.natpmp import PortMapDrop
from edgeagent.proto.portmap import GATEWAYS_MAX, MappingGained, PortMapper
from edgeagent.proto.portmap_gateway import ANNOUNCED_SPACING_S

GATEWAY, OWN, OUTSIDE = bytes((192, 168, 1, 1)), bytes((192, 168, 1, 7)), bytes((203, 0, 113, 9))
GATEWAY6, OWN6 = bytes.fromhex("fe800000000000000000000000000001"), bytes.fromhex("20010db8000000000000000000000007")
PORT = 41_641
DAY_S = 86_400.0


class Router:
    """Speaks `versions` (0 NAT-PMP, 2 PCP); written without a look at our codecs. Answers at once, or not at all."""

    def __init__(self, *versions: int) -> None:
        self.versions = versions
        self.started_at = 0.0
        self.address = OUTSIDE
        self.shift = 0  # of the external port against the one wished for
        self.lifetime_s = 7_200
        self.refuses = 0
        self.ends_at: dict[int, float] = {}  # external port → end
        self.heard: list[bytes] = []

    def answer(self, now: float, asked: bytes) -> bytes | None:
        self.heard.append(asked)
        epoch = int(now - self.started_at)
        if not self.versions:
            return None
        if asked[0] not in self.versions:
            if self.versions == (0,):
                return pack(">BBHI", 0, 128 + asked[1], 1, epoch)
            return pack(">BBBBII12x", 2, 128 + asked[1], 0, 1, 0, epoch)
        return self.natpmp(now, asked, epoch) if asked[0] == 0 else self.pcp(now, asked, epoch)

    def natpmp(self, now: float, asked: bytes, epoch: int) -> bytes:
        if asked[1] == 0:
            return pack(">BBHI4s", 0, 128, 0, epoch, self.address)
        _, _, _, inside, wish, lifetime = unpack(">BBHHHI", asked)
        outside, lifetime = self.grant(now, wish or inside, lifetime)
        return pack(">BBHIHHI", 0, 129, self.refuses, epoch, inside, outside, lifetime)

    def pcp(self, now: float, asked: bytes, epoch: int) -> bytes:
        if asked[1] == 0:
            return pack(">BBBBII12x", 2, 128, 0, 0, 0, epoch)
        nonce, inside, wish = asked[24:36], *unpack(">HH", asked[40:44])
        outside, lifetime = self.grant(now, wish or inside, unpack(">I", asked[4:8])[0])
        if self.refuses:
            lifetime = 1_000
        head = pack(">BBBBII12x", 2, 129, 0, self.refuses, lifetime, epoch)
        address = self.address if len(self.address) == 16 else bytes(10) + b"\xff\xff" + self.address
        return head + nonce + pack(">B3xHH", 17, inside, outside) + address

    def grant(self, now: float, wish: int, lifetime: int) -> tuple[int, int]:
        if self.refuses:
            return 0, 0
        if lifetime == 0:
            self.ends_at.pop(wish, None)
            return 0, 0
        outside = wish if wish in self.ends_at else wish + self.shift
        lifetime = min(lifetime, self.lifetime_s)
        self.ends_at[outside] = now + lifetime
        return outside, lifetime

    def restart(self, now: float) -> None:
        self.started_at = now
        self.ends_at.clear()


class World:
    """A mapper and its routers by gateway address; all that is asked is answered in the same instant."""

    def __init__(self, routers: dict[bytes, Router] | None = None, *, jitter: float = 0.5) -> None:
        self.now = 1_000.0
        self.router = Router(2)
        self.routers = {GATEWAY: self.router} if routers is None else routers
        self.mapper = PortMapper(lambda size: b"\x07" * size, lambda: jitter)
        self.events: list[tuple[str, tuple[bytes, int]]] = []
        self.sent: list[float] = []

    def set_gateway(self, uplink: str = "eth0", port: int = PORT) -> None:
        self.mapper.set_gateway(self.now, uplink, GATEWAY, OWN, port)
        self.settle()

    def settle(self) -> None:
        while asks := self.mapper.drain_asks():
            for ask in asks:
                self.sent.append(self.now)
                answer = self.routers[ask.gateway].answer(self.now, ask.datagram)
                if answer is not None:
                    self.mapper.handle_datagram(self.now, ask.uplink, (ask.gateway, 5351), answer)
        for event in self.mapper.drain_events():
            kind = "gained" if isinstance(event, MappingGained) else "lost"
            self.events.append((kind, (event.address, event.port)))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while (at := self.mapper.poll_timeout()) is not None and at <= until:
            assert at >= self.now
            self.now = at
            self.mapper.handle_timeout(self.now)
            self.settle()
        self.now = until

    def announce(self, datagram: bytes) -> None:
        self.mapper.handle_datagram(self.now, "eth0", (GATEWAY, 5351), datagram)
        self.settle()


@pytest.mark.parametrize(("versions", "asks"), [((2,), 1), ((0, 2), 1), ((0,), 3)])
def test_a_port_is_open_after_one_exchange_and_stays_open(versions: tuple[int, ...], asks: int) -> None:
    world = World()
    world.router.versions = versions
    world.set_gateway()
    assert world.events == [("gained", (OUTSIDE, PORT))]
    assert len(world.sent) == asks
    protocol = "pcp" if 2 in versions else "nat-pmp"
    assert [mapping.protocol for _, mapping in world.mapper.mappings()] == [protocol]
    for _ in range(24):
        world.run(3_600.0)
        assert world.router.ends_at[PORT] > world.now
    assert len(world.events) == 1
    # renewed at half life, PCP a little later, and with nothing but what is needed
    assert len(world.sent) - asks <= 24 * (1 if protocol == "pcp" else 2)


def test_a_gateway_that_ignores_pcp_is_asked_by_natpmp() -> None:
    world = World()
    world.router.versions = (0,)
    world.router.answer = (  # type: ignore[method-assign]
        lambda now, asked: None if asked[0] == 2 else Router.answer(world.router, now, asked)
    )
    world.set_gateway()
    world.run(3.7)
    assert world.events == []
    world.run(0.1)
    assert world.events == [("gained", (OUTSIDE, PORT))]


def test_two_refusals_of_pcp_are_one() -> None:
    world = World({GATEWAY: Router()})
    world.set_gateway()
    world.run(0.3)  # asked twice by now
    refusal = pack(">BBHI", 0, 129, 1, 7)
    world.routers[GATEWAY].versions = (0,)
    world.announce(refusal)
    world.announce(refusal)
    assert world.events == [("gained", (OUTSIDE, PORT))]
    assert world.mapper.drops == {PortMapDrop.UNEXPECTED: 1}


def test_a_gateway_that_says_nothing_costs_little() -> None:
    world = World({GATEWAY: Router()})
    world.set_gateway()
    world.run(DAY_S)
    assert world.events == []
    assert sum(map(len, world.routers[GATEWAY].heard)) < 4_096
    begun = [a for a, b in zip(world.sent[1:], world.sent, strict=False) if a - b > 60]
    assert begun and begun[-1] - begun[-2] > begun[1] - begun[0]


def test_only_pcp_opens_ipv6() -> None:
    routers = {GATEWAY6: Router(2)}
    routers[GATEWAY6].address = OWN6
    world = World(routers)
    world.mapper.set_gateway(world.now, "eth0", GATEWAY6, OWN6, PORT)
    world.settle()
    assert world.events == [("gained", (OWN6, PORT))]
    silent = World({GATEWAY6: Router(0)})
    silent.mapper.set_gateway(silent.now, "eth0", GATEWAY6, OWN6, PORT)
    silent.settle()
    silent.run(600.0)
    assert silent.events == [] and all(asked[0] == 2 for asked in silent.routers[GATEWAY6].heard)


@pytest.mark.parametrize(
    "forged",
    [pack(">BBHI", 0, 129, 3, 5), pack(">BBHI4s", 0, 128, 0, 5, OUTSIDE), pack(">BBHI", 0, 129, 1, 5)],
    ids=["refusal", "address", "version"],
)
def test_a_router_that_answers_nothing_is_silent_whatever_somebody_forges(forged: bytes) -> None:
    world = World()
    world.router.versions = ()
    world.set_gateway()
    world.run(10.0)
    assert world.mapper.silent()
    world.announce(forged)
    assert world.mapper.silent()
    world.run(7 * 86_400.0)
    assert world.mapper.silent()


def test_one_that_was_answered_in_the_routers_name_is_found_silent_the_next_time() -> None:
    world = World()
    world.router.versions = ()
    world.set_gateway()
    world.run(4.0)  # PCP is over, NAT-PMP asked for
    world.announce(pack(">BBHI", 0, 129, 3, 5))
    assert not world.mapper.silent()
    world.run(3_600.0)
    assert world.mapper.silent()


def test_a_mapping_that_cannot_be_renewed_is_tried_to_its_end_then_lost() -> None:
    world = World()
    world.set_gateway()
    world.router.versions = ()
    world.run(7_199.0)
    assert len(world.events) == 1
    assert len(world.sent) > 4 * 4
    world.run(2.0)
    assert world.events[1:] == [("lost", (OUTSIDE, PORT))]
    world.router.versions = (2,)
    world.run(DAY_S)
    assert world.events[2:] == [("gained", (OUTSIDE, PORT))]


@pytest.mark.parametrize("version", [0, 2])
def test_a_gateway_that_starts_anew_and_says_so_is_asked_anew(version: int) -> None:
    world = World()
    world.router.versions = (version,)
    world.set_gateway()
    world.run(600.0)
    world.router.restart(world.now)
    world.router.shift = 5  # somebody else has the port now
    announcement = pack(">BBHI4s", 0, 128, 0, 1, OUTSIDE) if version == 0 else pack(">BBBBII12x", 2, 128, 0, 0, 0, 1)
    world.announce(announcement)
    world.run(5.0)
    assert world.events[1:] == [("lost", (OUTSIDE, PORT)), ("gained", (OUTSIDE, PORT + 5))]
    sent = len(world.sent)
    for _ in range(100):  # forged ones
        world.announce(announcement[:4] + b"\0\0\0\0" + announcement[8:])
    world.run(ANNOUNCED_SPACING_S - 6)
    assert len(world.sent) == sent


@pytest.mark.parametrize("version", [0, 2])
def test_a_check_finds_a_restart_that_nobody_announced(version: int) -> None:
    world = World()
    world.router.versions = (version,)
    world.set_gateway()
    world.run(600.0)
    world.mapper.check(world.now, "eth0")
    world.settle()
    world.run(10.0)
    assert world.router.ends_at[PORT] == 8_200.0
    world.router.restart(world.now)
    world.mapper.check(world.now, "eth0")
    world.settle()
    world.run(5.0)
    assert world.router.ends_at[PORT] > 8_200.0
    assert len(world.events) == 1


def test_a_new_outside_address_replaces_the_old() -> None:
    world = World()
    world.router.versions = (0,)
    world.set_gateway()
    world.run(60.0)
    world.router.address = bytes((203, 0, 113, 77))
    world.announce(pack(">BBHI4s", 0, 128, 0, 1_060, world.router.address))
    world.run(5.0)
    assert world.events[1:] == [("lost", (OUTSIDE, PORT)), ("gained", (world.router.address, PORT))]


@pytest.mark.parametrize("version", [0, 2])
def test_refused(version: int) -> None:
    world = World()
    world.router.versions = (version,)
    world.router.refuses = 2
    world.set_gateway()
    asked = len(world.sent)
    world.run(119.0)
    assert len(world.sent) == asked and world.events == []
    world.router.refuses = 0
    world.run(1_100.0)
    assert world.events == [("gained", (OUTSIDE, PORT))]


def test_a_grant_that_nobody_can_use_is_dropped() -> None:
    for address, lifetime_s in ((bytes(4), 7_200), (b"\x7f\0\0\1", 7_200), (b"\xe0\0\0\1", 7_200), (OUTSIDE, 59)):
        world = World()
        world.router.address, world.router.lifetime_s = address, lifetime_s
        world.set_gateway()
        assert world.events == []
        assert world.mapper.drops == {PortMapDrop.USELESS: 1}
        asked = len(world.sent)
        world.run(100.0)
        assert len(world.sent) == asked


def test_who_is_not_the_gateway_is_not_heard() -> None:
    world = World({GATEWAY: Router()})
    world.set_gateway()
    good = Router(2).answer(world.now, world.routers[GATEWAY].heard[0])
    assert good is not None
    for uplink, source in (
        ("eth0", (bytes((192, 168, 1, 2)), 5351)),
        ("eth0", (GATEWAY, 5352)),
        ("eth0", (GATEWAY6, 5351)),
        ("eth1", (GATEWAY, 5351)),
    ):
        world.mapper.handle_datagram(world.now, uplink, source, good)
    assert world.mapper.drops == {PortMapDrop.STRANGER: 4}
    world.announce(good[:24] + bytes(12) + good[36:])
    world.announce(good[:24])
    assert world.mapper.drops == {PortMapDrop.STRANGER: 4, PortMapDrop.UNEXPECTED: 1, PortMapDrop.MALFORMED: 1}
    assert world.events == []
    world.announce(good)
    world.announce(good)  # the network said it twice
    assert world.events == [("gained", (OUTSIDE, PORT))]
    assert world.mapper.drops[PortMapDrop.UNEXPECTED] == 2


def test_each_uplink_has_its_gateway() -> None:
    other = bytes((10, 0, 0, 1))
    world = World({GATEWAY: Router(2), other: Router(0)})
    world.routers[other].address = bytes((198, 51, 100, 4))
    world.set_gateway()
    world.mapper.set_gateway(world.now, "wwan0", other, bytes((10, 0, 0, 9)), PORT)
    world.settle()
    assert [where for _, where in world.events] == [(OUTSIDE, PORT), (world.routers[other].address, PORT)]
    world.mapper.remove_uplink(world.now, "wwan0")
    world.settle()
    assert world.events[2:] == [("lost", (world.routers[other].address, PORT))]
    assert world.routers[other].ends_at == {}
    assert [uplink for uplink, _ in world.mapper.mappings()] == ["eth0"]


def test_the_same_gateway_again_changes_nothing_another_port_starts_anew() -> None:
    world = World()
    world.set_gateway()
    world.set_gateway()
    assert len(world.sent) == 1
    world.set_gateway(port=PORT + 1)
    assert world.events[1:] == [("lost", (OUTSIDE, PORT)), ("gained", (OUTSIDE, PORT + 1))]
    assert list(world.router.ends_at) == [PORT + 1]


def test_the_end_gives_everything_back() -> None:
    world = World()
    world.set_gateway()
    world.mapper.close(world.now)
    world.settle()
    assert world.events[1:] == [("lost", (OUTSIDE, PORT))]
    assert world.router.ends_at == {}
    assert world.mapper.poll_timeout() is None


def test_misuse_is_refused() -> None:
    mapper = PortMapper(bytes, lambda: 0.0)
    for gateway, own, port, uplink in (
        (GATEWAY6, OWN, PORT, "a"),
        (b"", b"", PORT, "a"),
        (GATEWAY, OWN, 0, "a"),
        (GATEWAY, OWN, PORT, ""),
        (GATEWAY, OWN, PORT, "a" * 65),
    ):
        with pytest.raises(LocalProtocolError):
            mapper.set_gateway(0.0, uplink, gateway, own, port)
    for number in range(GATEWAYS_MAX):
        mapper.set_gateway(0.0, f"eth{number}", GATEWAY, OWN, PORT)
    with pytest.raises(LimitReached):
        mapper.set_gateway(0.0, "one-more", GATEWAY, OWN, PORT)


steps = st.lists(
    st.tuples(
        st.sampled_from(["run", "restart", "mute", "pcp", "natpmp", "both", "refuse", "move", "noise"]),
        st.floats(0, 9_000),
    ),
    max_size=12,
)


@given(steps, st.floats(0, 1, exclude_max=True), st.binary(max_size=80))
def test_events_and_mappings_agree_whatever_a_gateway_does(
    steps: list[tuple[str, float]], jitter: float, noise: bytes
) -> None:
    world = World(jitter=jitter)
    world.set_gateway()
    for what, seconds in steps:
        router = world.router
        router.refuses = 0
        if what == "restart":
            router.restart(world.now)
        elif what in ("mute", "pcp", "natpmp", "both"):
            router.versions = {"mute": (), "pcp": (2,), "natpmp": (0,), "both": (0, 2)}[what]
        elif what == "refuse":
            router.refuses = 3
        elif what == "move":
            router.shift += 1
        elif what == "noise":
            world.announce(noise)
        before = len(world.sent)
        world.run(seconds)
        assert len(world.sent) - before <= 16 + seconds  # at most one datagram a second, and a few tries
        held: list[tuple[bytes, int]] = []
        for kind, where in world.events:
            if kind == "gained":
                held.append(where)
            else:
                held.remove(where)
        assert held == [mapping.where for _, mapping in world.mapper.mappings()]
        assert all(mapping.ends_at > world.now for _, mapping in world.mapper.mappings())
