"""Which relay is a device's home, where it is, and when it is met at all: with real relay cores at the other end."""

from __future__ import annotations

import pytest

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.keys import has_small_order
from edgeagent.proto.relay_addresses import ADDRESSES_MAX
from edgeagent.proto.relay_home import SHUN_S
from edgeagent.proto.relay_sessions import IDLE_S, SESSIONS_MAX
from edgeagent.proto.relaymap import RelayInfo
from edgeagent.proto.relays import AWAKE_S, DOWN_TOLD_AFTER_S, GIVE_UP_S
from tests.relay import kit
from tests.relay.site import MESH, UDP_PORT, Site, SiteMember

V4 = Endpoint(("198.51.100.1", UDP_PORT))
V6 = Endpoint(("2001:db8::1", UDP_PORT, 0, 0))
V6_ADDRESS = (bytes((0x20, 1, 0x0D, 0xB8)) + bytes(11) + b"\x01", UDP_PORT)


# Home


def test_without_measurements_the_maps_first_is_home() -> None:
    site = Site(3)
    member = site.add(1)
    site.advance(1.0)
    assert member.homes == [None, "r1"] and member.carriers() == {"r1": "udp"} and member.opened == []


def test_a_nearer_one_becomes_home_and_the_old_session_ends() -> None:
    site = Site(2)
    member = site.add(1)
    site.advance(1.0)
    member.relays.measured(site.now, "r1", V4, 0.100)
    member.relays.measured(site.now, "r2", Endpoint(("198.51.100.2", UDP_PORT)), 0.010)
    site.advance(1.0)
    assert member.homes[-1] == "r2" and set(member.carriers()) == {"r1", "r2"}
    site.advance(IDLE_S)
    assert set(member.carriers()) == {"r2"} and site.relays[0].members() == 0


def test_where_only_connections_pass_the_nearest_of_the_first_becomes_home() -> None:
    """Of the first of the map and three more: the fifth, which is nearer, is not tried."""
    site = Site(5)
    for relay, delay_s in zip(site.relays, (0.08, 0.02, 0.05, 0.04, 0.01), strict=True):
        relay.udp, relay.delay_s = False, delay_s
    member = site.add(1)
    site.advance(6.0)
    assert member.homes[-1] == "r2" and member.carriers()["r2"] == "tls"
    site.advance(2 * IDLE_S)
    assert set(member.carriers()) == {"r2"}


def test_the_one_relay_that_works_is_found_among_many_that_do_not() -> None:
    """Nothing tells but trying: UDP is blocked, and those that come first do not answer."""
    site = Site(8)
    for relay in site.relays:
        relay.udp = False
        relay.tls = relay.id == "r7"
    member = site.add(1)
    site.advance(8 * GIVE_UP_S)
    assert member.homes[-1] == "r7"
    assert len(member.relays.sessions.all) <= SESSIONS_MAX


@pytest.mark.parametrize("carrier", ["udp", "tls"])
def test_a_home_that_dies_is_left_and_not_returned_to_in_a_hurry(carrier: str) -> None:
    site = Site(2)
    for relay in site.relays:
        relay.udp = carrier == "udp"
    member = site.add(1)
    site.advance(3.0)
    for _ in range(20):
        member.send("r1", kit.public_key(9))
        site.advance(0.1)
    site.relays[0].kill()
    site.advance(0.5)
    site.relays[0].start()
    for _ in range(40):
        member.send("r1", kit.public_key(9))
        site.advance(0.1)
    home = member.homes[-1]
    assert home is not None
    site.advance(200.0)
    assert member.homes[-1] == home, "nothing says that the other one is nearer"


def test_a_relay_that_comes_and_goes_is_not_followed() -> None:
    site = Site(2)
    member = site.add(1)
    member.relays.measured(site.now, "r1", V4, 0.010)
    member.relays.measured(site.now, "r2", Endpoint(("198.51.100.2", UDP_PORT)), 0.100)
    site.advance(1.0)
    near = site.relays[0]
    began, homes = site.now, len(member.homes)
    while site.now < began + 3_600.0:
        near.udp = near.tls = not near.udp
        for _ in range(8):
            for relay in site.relays:
                member.send(relay, kit.public_key(9))
            site.advance(1.0)
    # Shunned for 30, 60, 120, 240, 480, 600 s …
    assert len(member.homes) - homes <= 2 * 12
    near.udp = near.tls = True
    site.advance(700.0)
    assert member.homes[-1] == "r1"


def test_a_relay_that_forwards_nothing_is_no_home() -> None:
    site = Site(2)
    site.relays[0].forwards = False
    member = site.add(1)
    site.advance(2 * GIVE_UP_S)
    assert member.homes == [None, "r2"]


def test_a_draining_relay_is_left_before_it_stops() -> None:
    site = Site(2)
    member = site.add(1)
    site.advance(1.0)
    core = site.relays[0].core
    assert core is not None
    core.begin_drain(site.now, 20)
    site.advance(1.0)
    assert member.homes[-1] == "r2"
    member.relays.measured(site.now, "r1", V4, 0.010)
    member.relays.measured(site.now, "r2", Endpoint(("198.51.100.2", UDP_PORT)), 0.100)
    site.advance(60.0)
    assert member.homes == [None, "r1", "r2"], "however near it is"


def test_no_home_is_said_to_be_there_when_none_is() -> None:
    site = Site(2)
    member = site.add(1)
    site.advance(1.0)
    for relay in site.relays:
        relay.udp = relay.tls = False
    site.advance(25.0 + 10.0 + DOWN_TOLD_AFTER_S + 1.0)
    assert member.homes[-1] is None
    site.relays[1].udp = True
    site.advance(60.0)
    assert member.homes[-1] == "r2"


def test_a_home_that_serves_stays_while_nobody_can_be_told_of_another() -> None:
    site = Site(2)
    member = site.add(1)
    site.advance(1.0)
    member.relays.broker_reachable = False
    member.relays.measured(site.now, "r1", V4, 0.100)
    member.relays.measured(site.now, "r2", Endpoint(("198.51.100.2", UDP_PORT)), 0.010)
    site.advance(300.0)
    assert member.homes[-1] == "r1" and set(member.carriers()) == {"r1"}
    member.relays.broker_reachable = True
    site.advance(30.0)
    assert member.homes[-1] == "r2"


def test_on_another_network_everything_is_tried_at_once() -> None:
    site = Site(2)
    for relay in site.relays:
        relay.udp = relay.tls = False
    member = site.add(1)
    site.advance(600.0)
    assert member.homes == [None]
    for relay in site.relays:
        relay.udp = relay.tls = True
    member.relays.network_changed(site.now)
    site.advance(0.2)
    assert member.homes[-1] is not None


def test_another_network_is_no_fault_of_the_relay() -> None:
    site = Site(2)
    for relay in site.relays:
        relay.udp = False
    member = site.add(1)
    site.advance(3.0)
    home = member.homes[-1]
    before = len(member.opened)
    member.relays.network_changed(site.now)
    site.crank()
    assert member.opened[before:] and member.opened[before][0] == home, "the connection is made anew, now"
    site.advance(30.0)
    assert member.homes[-1] == home and member.homes.count(home) == 1


def test_a_connection_that_leaves_as_before_goes_on_and_is_made_anew_when_it_is_dead_all_the_same() -> None:
    site = Site(1)
    (relay,) = site.relays
    relay.udp = False
    member = site.add(1)
    site.advance(60.0)
    (number,) = member.streams
    before = len(member.opened)
    member.relays.network_changed(site.now, [number])
    site.advance(60.0)
    assert len(member.opened) == before and member.carriers() == {"r1": "tls"} and member.homes[-1] == "r1"
    # Nothing comes back on it any more: that shows in seconds, and not when it is next to be heard of
    relay.conns.clear()
    member.streams[number] = (relay, -1)
    member.relays.network_changed(site.now, [number])
    site.advance(GIVE_UP_S)
    assert len(member.opened) == before + 1 and member.carriers() == {"r1": "tls"}


def test_by_another_uplink_a_connection_is_made_anew() -> None:
    site = Site(1)
    site.relays[0].udp = False
    member = site.add(1)
    site.advance(3.0)
    before = len(member.opened)
    member.relays.uplink_changed(site.now, 2, (4,))
    site.crank()
    assert len(member.opened) == before + 1


# The map


def test_a_relay_that_leaves_the_map_is_left() -> None:
    site = Site(2)
    member = site.add(1)
    site.advance(1.0)
    member.use(site.relays[1])
    site.advance(1.0)
    assert set(member.carriers()) == {"r2"} and member.homes[-1] == "r2" and site.relays[0].members() == 0
    member.relays.set_map(site.now, [], [])
    site.advance(1.0)
    assert member.relays.sessions.all == [] and member.relays.home is None and member.relays.poll_timeout() is None


def test_of_two_relays_with_one_name_the_first_counts() -> None:
    site = Site(2)
    member = SiteMember(site, 1)
    site.members.append(member)
    twin = site.relays[1].info.encode() | {"id": "r1"}
    passes = [kit.make_pass(1, relays=["r1", "r2"])]
    relays = [site.relays[0].info, RelayInfo(twin)]
    assert member.relays.set_map(site.now, relays, passes)
    assert not member.relays.set_map(site.now, relays, passes)
    site.advance(1.0)
    assert member.homes[-1] == "r1" and site.relays[0].members() == 1 and site.relays[1].members() == 0
    assert [name for name, _, _ in member.relays.udp_servers()] == ["r1"]


def test_a_relay_whose_key_is_none_is_not_used() -> None:
    """A login could not be sealed for it, and that is no reason to die."""
    site = Site(2)
    member = SiteMember(site, 1)
    site.members.append(member)
    for bad in (bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f", b"\xed" + b"\xff" * 30 + b"\xff"):
        assert has_small_order(bad) and kit.CRYPTO.x25519(kit.private_key(1), bad) == bytes(32)
        broken = RelayInfo(site.relays[0].info.encode() | {"k": bad})
        member.relays.set_map(site.now, [broken, site.relays[1].info], [kit.make_pass(1, relays=["r1", "r2"])])
        site.advance(2.0)
        assert member.homes[-1] == "r2" and member.carriers() == {"r2": "udp"}
        assert not member.send("r1", kit.public_key(9))


def test_without_a_pass_there_is_no_session() -> None:
    site = Site(1)
    member = SiteMember(site, 1)
    site.members.append(member)
    member.use(passes=[kit.make_pass(2), b"", b"\xa1\x01\x02", bytes(100)])
    site.advance(60.0)
    assert member.relays.sessions.all == [] and member.homes == [None]
    assert not member.send("r1", kit.public_key(9))
    assert member.drops() == {"relay-not-named": 1}


def test_a_pass_that_was_refused_is_replaced_in_the_same_moment() -> None:
    site = Site(1)
    site.relays[0].hosts = ["relay.example:443"]
    member = SiteMember(site, 1)
    site.members.append(member)
    member.use(passes=[kit.make_pass(1, relays=["r1"], ends=-10)])
    site.advance(5.0)
    assert member.homes == [None]
    member.use(passes=[kit.make_pass(1, relays=["r1"], ends=-10)])
    opened = len(member.opened)
    site.advance(30.0)
    assert len(member.opened) == opened, "the same again is no reason to ask again"
    member.use(passes=[kit.make_pass(1, relays=["r1"], seq=2)])
    site.crank()
    assert len(member.opened) == opened + 1
    site.advance(0.5)
    assert member.homes[-1] == "r1"


def test_a_pass_that_is_refused_sends_us_to_another_relay() -> None:
    site = Site(2)
    member = SiteMember(site, 1)
    site.members.append(member)
    member.use(passes=[kit.make_pass(1, relays=["r2"])])
    site.advance(2 * GIVE_UP_S)
    assert member.homes == [None, "r2"]


# Where a relay is


def test_names_are_looked_up_and_udp_is_taken_when_they_are_known() -> None:
    site = Site(1)
    site.relays[0].hosts = ["relay.example:443", "198.51.100.77:443", "other.example:8443"]
    member = site.add(1)
    relays = member.relays
    assert relays.names_to_resolve() == [("r1", "relay.example", UDP_PORT), ("r1", "other.example", UDP_PORT)]
    site.advance(10.0)
    assert member.carriers() == {"r1": "tls"}, "the address that is known does not answer"
    relays.set_addresses(site.now, "r1", [(bytes((198, 51, 100, 1)), UDP_PORT)])
    assert [str(each) for each in relays._addresses._endpoints["r1"]] == ["198.51.100.77:3478", "198.51.100.1:3478"]
    relays.measured(site.now, "r1", V4, 0.02)
    site.advance(5.0)
    assert member.carriers() == {"r1": "udp"} and len(relays.sessions._by_source) == 1
    assert site.relays[0].conns == {}


def test_a_session_that_began_without_an_address_gets_udp_later() -> None:
    site = Site(1)
    site.relays[0].hosts = ["relay.example:443"]
    member = site.add(1)
    site.advance(5.0)
    assert member.carriers() == {"r1": "tls"} and member.relays.udp_servers() == []
    member.relays.set_addresses(site.now, "r1", [(bytes((198, 51, 100, 1)), UDP_PORT)])
    site.advance(2.0)
    assert member.carriers() == {"r1": "udp"} and member.homes == [None, "r1"]


def test_a_relay_that_moved_is_followed_when_the_old_address_is_dead() -> None:
    site = Site(1)
    relay = site.relays[0]
    relay.hosts = ["relay.example:443"]
    member = site.add(1)
    member.relays.set_addresses(site.now, "r1", [(bytes((198, 51, 100, 1)), UDP_PORT)])
    site.advance(1.0)
    assert member.carriers() == {"r1": "udp"}
    member.relays.set_addresses(site.now, "r1", [(bytes((198, 51, 100, 99)), UDP_PORT)])
    site.advance(60.0)
    assert member.carriers() == {"r1": "udp"}, "what works is left as it is"
    relay.address = "198.51.100.99"
    for _ in range(300):
        member.send("r1", kit.public_key(9))
        site.advance(0.1)
    assert member.carriers() == {"r1": "udp"} and member.homes[-1] == "r1"
    assert [str(each.udp) for each in member.relays.sessions.all] == ["198.51.100.99:3478"]


def test_of_two_addresses_the_one_that_answers_is_used_and_kept() -> None:
    site = Site(1)
    site.relays[0].hosts = ["relay.example:443"]
    member = site.add(1, families=[4, 16])
    member.relays.set_addresses(site.now, "r1", [V6_ADDRESS, (bytes((198, 51, 100, 1)), UDP_PORT)])
    site.advance(5.0)
    assert member.carriers() == {"r1": "tls"}, "by IPv6 nothing comes back"
    member.relays.measured(site.now, "r1", V4, 0.02)
    site.advance(2.0)
    assert member.carriers() == {"r1": "udp"}
    # Both answer: that is no reason to take turns
    for _ in range(10):
        member.relays.measured(site.now, "r1", V6, 0.02)
        member.relays.measured(site.now, "r1", V4, 0.02)
    assert [each.udp for each in member.relays.sessions.all] == [V4]


def test_addresses_of_a_family_that_we_lack_are_not_tried() -> None:
    site = Site(1)
    site.relays[0].hosts = ["[2001:db8::1]:443", "198.51.100.1:443"]
    member = site.add(1, families=[4])
    site.advance(1.0)
    assert [each.udp for each in member.relays.sessions.all] == [V4]
    member.relays.set_families([16])
    assert member.relays.udp_servers() == [("r1", [V6], 3479)]


def test_by_an_uplink_without_ipv6_a_relay_is_met_at_its_ipv4_address() -> None:
    site = Site(1)
    site.relays[0].hosts = ["[2001:db8::1]:443", "198.51.100.1:443"]
    member = site.add(1, families=[4, 16])
    member.relays.uplink_changed(site.now, 1, (16,))
    assert [each.udp for each in member.relays.sessions.all] == [V6]
    member.relays.uplink_changed(site.now, 2, (4,))
    assert [each.udp for each in member.relays.sessions.all] == [V4]
    site.advance(2.0)
    assert member.carriers() == {"r1": "udp"}
    # IPv6 comes to that uplink: no reason to leave what works. IPv4 goes from it: that is one
    member.relays.uplink_changed(site.now, 2, (4, 16))
    assert [each.udp for each in member.relays.sessions.all] == [V4]
    member.relays.uplink_changed(site.now, 2, (16,))
    assert [each.udp for each in member.relays.sessions.all] == [V6]


@pytest.mark.parametrize("address", [MESH + b"\x01\x02", MESH + bytes(2)], ids=["in the mesh", "the mesh"])
def test_a_name_that_leads_into_the_mesh_leads_nowhere(address: bytes) -> None:
    site = Site(1)
    site.relays[0].hosts = ["relay.example:443", f"100.64.0.{address[3]}:443"]
    member = site.add(1)
    member.relays.set_addresses(site.now, "r1", [(address, UDP_PORT)])
    assert member.relays.udp_servers() == []
    member.relays.set_addresses(site.now, "gone", [(address, UDP_PORT)])
    site.advance(1.0)
    assert all(each.udp is None for each in member.relays.sessions.all)


def test_a_name_with_hundreds_of_addresses_is_cut_short() -> None:
    site = Site(1)
    site.relays[0].hosts = ["relay.example:443"]
    member = site.add(1)
    member.relays.set_addresses(site.now, "r1", [(bytes((198, 51, n >> 8, n & 255)), UDP_PORT) for n in range(500)])
    ((_, endpoints, _),) = member.relays.udp_servers()
    assert len(endpoints) == ADDRESSES_MAX


# Time


def test_an_idle_device_wakes_for_its_probes_and_nothing_else() -> None:
    site = Site(3)
    member = site.add(1)
    site.advance(200.0)
    member.wakes = 0
    site.advance(3_600.0)
    assert member.wakes <= 3_600 / 25 + 2


def test_a_device_without_any_relay_does_not_spin() -> None:
    site = Site(3)
    for relay in site.relays:
        relay.udp = relay.tls = False
    member = site.add(1)
    site.advance(200.0)
    member.wakes, opened = 0, len(member.opened)
    site.advance(3_600.0)
    # Each try of a relay is four datagrams, a connection and its end; between two there are seconds
    assert member.wakes <= 3_600
    assert len(member.opened) - opened <= 3 * 3_600 / 10
    assert len(member.relays.sessions.all) <= SESSIONS_MAX


def test_a_clock_that_jumps_forward_is_a_pause_and_no_end() -> None:
    site = Site(2)
    a, b = site.add(1), site.add(2)
    site.advance(5.0)
    for jump_s in (100.0, 7_200.0):
        site.now += jump_s
        site.advance(40.0)
        assert a.homes[-1] is not None and a.homes[-1] == b.homes[-1]
        b.packets.clear()
        assert a.send(b.homes[-1] or "", b, b"there again")
        site.advance(2.0)
        assert [packet for packet, _ in b.packets] == [b"there again"]


# A metered uplink


def test_on_demand_there_is_a_session_while_it_is_of_use() -> None:
    site = Site(1)
    a, b = site.add(1), site.add(2)
    b.relays.set_on_demand(site.now, True)
    site.advance(2 * AWAKE_S)
    assert b.relays.sessions.all == [] and b.homes[-1] == "r1" and b.relays.poll_timeout() is None
    b.wakes = 0
    site.advance(3_600.0)
    assert b.wakes == 0
    a.send("r1", b)
    site.advance(1.0)
    assert a.gone == [b.key]
    b.relays.wake(site.now)
    site.advance(1.0)
    for _ in range(100):
        a.send("r1", b, b"tick")
        site.advance(1.0)
    assert len(b.packets) == 100, "what comes keeps it awake"
    site.advance(AWAKE_S + IDLE_S)
    assert b.relays.sessions.all == [] and b.relays.poll_timeout() is None


def test_on_demand_sending_begins_a_session_at_home_as_well() -> None:
    site = Site(2)
    a, b = site.add(1), site.add(2, *reversed(site.relays))
    a.relays.set_on_demand(site.now, True)
    site.advance(3 * AWAKE_S)
    assert a.carriers() == {}
    a.send("r2", b, b"hello")
    site.advance(1.0)
    assert set(a.carriers()) == {"r1", "r2"} and [packet for packet, _ in b.packets] == [b"hello"]
    b.send("r1", a, b"hello yourself")
    site.advance(1.0)
    assert [packet for packet, _ in a.packets] == [b"hello yourself"]
    site.advance(3 * AWAKE_S)
    assert a.carriers() == {} and a.homes[-1] == "r1"


def test_on_demand_a_relay_that_is_dead_is_left_for_another() -> None:
    site = Site(2)
    a = site.add(1)
    a.relays.set_on_demand(site.now, True)
    site.advance(3 * AWAKE_S)
    site.relays[0].udp = site.relays[0].tls = False
    a.relays.wake(site.now)
    site.advance(GIVE_UP_S + 2.0)
    assert a.homes[-1] == "r2"
    site.advance(3 * AWAKE_S + SHUN_S)
    assert a.carriers() == {}
