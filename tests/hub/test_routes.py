"""Prefixes behind devices, and plain WireGuard clients, at the hub: who may, who is told, who is asked."""

from __future__ import annotations

import json
from base64 import b64encode
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeagent.proto import prefixes
from edgeagent.proto.control import CLIENTS_MAX, MAP_ROUTES_MAX
from edgeagent.proto.prefixes import EXIT, Prefix
from hub.core import actions, chores, clients, hostnames, policing, routes
from hub.core.model import NODE_KEY_LIFE_S, HubDrop, HubError, Route
from tests.hub.kit import DAY_S, WALL_S, Dev, Hub, admitted, row

SITE = prefixes.parse("192.168.7.0/24")
SITE_6 = prefixes.parse("fd00:7::/64")
WIDE = prefixes.parse("192.168.0.0/16")
HOST = bytes((192, 168, 7, 9))


def offer(hub: Hub, device: Dev, *offered: Prefix, snat: bool = True) -> None:
    hub.hear(device.birth(ro=[list(prefix) for prefix in offered], sn=snat))


def read_all(hub: Hub, *devices: Dev) -> None:
    rows = hub.sent()
    for device in devices:
        device.read(rows)


def approve(hub: Hub, device: Dev, *wanted: Prefix) -> list[Prefix]:
    with hub.store.write() as tx:
        return routes.approve(hub.scribe, tx, row(tx, device), list(wanted))


def unapprove(hub: Hub, device: Dev, *wanted: Prefix) -> list[Prefix]:
    with hub.store.write() as tx:
        return routes.unapprove(hub.scribe, tx, row(tx, device), list(wanted))


def states(hub: Hub) -> dict[tuple[str, str | None], str]:
    with hub.store.read() as tx:
        return {(each.prefix, each.device.name): each.state for each in routes.table(tx)}


def said(device: Dev) -> Any:
    assert device.map is not None
    return device.map.body


# what devices offer


def test_what_is_offered_waits_until_it_is_approved(hub: Hub) -> None:
    a, router = admitted(hub, 2)
    offer(hub, router, SITE, SITE_6, snat=False)
    assert set(states(hub).values()) == {"waits for approval"}
    read_all(hub, a, router)
    assert said(a)["ro"] == [] and "ra" not in said(router)
    assert approve(hub, router) == [SITE, SITE_6]
    read_all(hub, a, router)
    assert said(a)["ro"] == [list(SITE), list(SITE_6)]
    assert said(router)["ro"] == [] and said(router)["ra"] == [list(SITE), list(SITE_6)]
    with hub.store.read() as tx:
        assert [route.snat for route in tx.routes(router.id)] == [False, False]
    assert approve(hub, router, SITE) == []  # it was
    assert unapprove(hub, router, SITE) == [SITE]
    read_all(hub, a, router)
    assert said(a)["ro"] == [list(SITE_6)] == said(router)["ra"]


def test_an_approval_outlasts_an_offer_that_is_taken_back(hub: Hub) -> None:
    a, router = admitted(hub, 2)
    offer(hub, router, SITE)
    approve(hub, router)
    offer(hub, router)
    read_all(hub, a)
    assert states(hub) == {("192.168.7.0/24", "n1"): "approved, not offered"}
    assert said(a)["ro"] == []
    offer(hub, router, SITE)
    read_all(hub, a)
    assert said(a)["ro"] == [list(SITE)]
    offer(hub, router)
    assert unapprove(hub, router) == [SITE]
    assert states(hub) == {}


def test_an_agent_that_knows_of_no_routes_offers_none(hub: Hub) -> None:
    _, router = admitted(hub, 2)
    offer(hub, router, SITE)
    hub.hear(router.birth())
    assert states(hub) == {}
    assert hub.coordinator.drops == {}


@pytest.mark.parametrize(
    "text",
    [
        *("100.64.0.0/10", "100.64.7.0/24", "100.0.0.0/8", "127.0.0.0/8", "169.254.1.0/24", "224.0.0.0/4", "0.0.0.0/1"),
        *("128.0.0.0/1", "10.0.0.0/7", "::1/128", "fe80::/64", "ff00::/16", "2000::/3", "own"),
        *("fd2e:966:3c02::/48", "fd2e:966:3c02::7:7f00:0/104", "fd2e:966:3c02::c0a8:100/120", "64:ff9b::/96"),
    ],
)
def test_what_nobody_may_route_is_refused_and_counted(hub: Hub, text: str) -> None:
    (router,) = admitted(hub, 1)
    bad = (said(router)["v6"][0], 64) if text == "own" else prefixes.parse(text)
    offer(hub, router, SITE, bad)
    assert list(states(hub)) == [("192.168.7.0/24", "n0")]
    assert hub.coordinator.drops == {HubDrop.ROUTE_REFUSED: 1}


def test_an_ipv4_prefix_of_a_site_is_an_ipv6_one_that_is_shown_as_both(hub: Hub) -> None:
    a, router = admitted(hub, 2)
    shown = prefixes.parse("fd2e:966:3c02::7:c0a8:100/120")
    offer(hub, router, shown, SITE_6)
    assert routes.read_prefixes(["192.168.1.0/24@7", "192.168.1.0/24 via 7"]) == [shown, shown]
    assert approve(hub, router, *routes.read_prefixes(["192.168.1.0/24@7"])) == [shown]
    with hub.store.read() as tx:
        assert [(each.prefix, each.via, each.state) for each in routes.table(tx)] == [
            ("fd00:7::/64", "", "waits for approval"),
            ("fd2e:966:3c02::7:c0a8:100/120", "192.168.1.0/24 via 7", "in use"),
        ]
    read_all(hub, a)
    assert said(a)["ro"] == [list(shown)]
    with pytest.raises(HubError, match="want an IPv4 prefix and a site"):
        routes.read_prefixes(["192.168.1.0/24@70000"])


def test_no_device_has_a_name_that_devices_compute(hub: Hub) -> None:
    (device,) = admitted(hub, 1)
    with hub.store.write() as tx, pytest.raises(HubError, match="192-168-1-20-via-7"):
        actions.rename_device(hub.scribe, tx, row(tx, device), "10-0-0-1-via-3")
    assert hostnames.choose_name("10-0-0-1-via-3", lambda name: False, lambda wish: 1) == "10-0-0-1-via-3-1"


def test_a_restless_router_causes_one_round_at_a_time(hub: Hub) -> None:
    devices = admitted(hub, 3)
    router = devices[0]
    offer(hub, router, SITE)
    approve(hub, router)
    hub.sent()
    for _ in range(5):
        hub.hear(router.birth(), router.birth(ro=[list(SITE)], sn=True))
    rows = [each for each in hub.sent() if each.target.endswith("d/map")]
    assert len(rows) <= 2 * len(devices)


def approving(hub: Hub, site: str) -> None:
    """A policy under which routers need nobody's word for what is in `site`, nor to be an exit node."""
    text = f"""{{"tagOwners": {{"tag:router": []}}, "acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*"]}}],
        "autoApprovers": {{"routes": {{"{site}": ["tag:router"]}}, "exitNode": ["tag:router"]}}}}"""
    with hub.store.write() as tx:
        policing.set_policy(tx, WALL_S, text, "tests")
    hub.work()


def test_the_policy_may_approve_by_itself(hub: Hub) -> None:
    a, router, other = admitted(hub, 3)
    with hub.store.write() as tx:
        actions.tag_device(hub.scribe, tx, row(tx, router), ("tag:router",))
    approving(hub, "192.168.7.0/24")
    offer(hub, router, SITE, WIDE, *EXIT)
    offer(hub, other, SITE)
    read_all(hub, a)
    assert states(hub)["192.168.7.0/24", "n1"] == "in use" and states(hub)["192.168.0.0/16", "n1"] != "in use"
    assert states(hub)["0.0.0.0/0", "n1"] == states(hub)["::/0", "n1"] == "in use"
    assert states(hub)["192.168.7.0/24", "n2"] == "waits for approval"
    assert said(a)["ro"] == [list(SITE)]
    unapprove(hub, router, SITE)
    offer(hub, router, SITE, WIDE)  # an operator's word is not taken back by a birth
    assert states(hub)["192.168.7.0/24", "n1"] == "waits for approval"
    approving(hub, "192.168.0.0/16")  # another policy
    assert states(hub)["192.168.0.0/16", "n1"] == "in use"
    assert states(hub)["192.168.7.0/24", "n2"] == "waits for approval"


def test_a_router_is_told_of_rules_about_what_it_routes(hub: Hub) -> None:
    a, router = admitted(hub, 2)
    text = """{"acls": [{"action": "accept", "src": ["*"], "dst": ["192.168.7.0/24:443"]}]}"""
    with hub.store.write() as tx:
        policing.set_policy(tx, WALL_S, text, "tests")
    offer(hub, router, SITE)
    read_all(hub, router)
    assert said(router)["po"]["in"] == []
    approve(hub, router)
    read_all(hub, router, a)
    assert said(router)["po"]["in"] == [[["*"], [list(SITE)], [[0, 443, 443]]]]
    assert said(a)["po"]["in"] == [] and said(a)["po"]["out"] != []


# operators


def test_mistakes_of_an_operator_are_told(hub: Hub) -> None:
    (router,) = admitted(hub, 1)
    with pytest.raises(HubError, match=r"n0: it offers no routes\. On the device: edgeagent routes set"):
        approve(hub, router)
    offer(hub, router, SITE)
    with pytest.raises(HubError, match=r"it does not offer 192.168.0.0/16. It offers: 192.168.7.0/24"):
        approve(hub, router, WIDE)
    with pytest.raises(HubError, match="is not approved"):
        unapprove(hub, router, SITE)
    with pytest.raises(HubError, match=r"bits are set behind the prefix\. Write 192\.168\.7\.0/24"):
        routes.read_prefixes(["192.168.7.1/24"])
    assert routes.read_prefixes(["exit", "10.0.0.0/8"]) == [*EXIT, prefixes.parse("10.0.0.0/8")]


def test_maps_hold_so_many_prefixes_and_no_more(hub: Hub) -> None:
    devices = admitted(hub, 5)
    for number, device in enumerate(devices):
        offer(hub, device, *((bytes((10, number, n, 0)), 24) for n in range(64)))
    for device in devices[:4]:
        assert len(approve(hub, device)) == 64
    with pytest.raises(HubError, match=f"{MAP_ROUTES_MAX} prefixes are in use"):
        approve(hub, devices[4])
    read_all(hub, *devices)
    assert len(said(devices[4])["ro"]) == MAP_ROUTES_MAX and len(said(devices[0])["ro"]) == MAP_ROUTES_MAX - 64
    offer(hub, devices[4], (bytes((10, 0, 0, 0)), 24), *EXIT)
    assert len(approve(hub, devices[4])) == 3  # one that is in use already, and those that are in no map


# who is asked


def test_a_question_behind_routers_is_answered_with_all_of_them(hub: Hub) -> None:
    a, *routers = admitted(hub, 7)
    for device in routers[:5]:
        offer(hub, device, SITE)
        approve(hub, device)
    offer(hub, routers[5], WIDE)
    approve(hub, routers[5])
    with hub.store.write() as tx:  # the first by its id is not there
        last = min(routers[:5], key=lambda device: device.id)
        found = row(tx, last)
        found.online = False
        tx.save_device(found)
    hub.sent()
    hub.hear(a.ask(a=HOST))
    rows = hub.sent()
    (answer, *others) = [body for kind, body in a.read(rows) if kind == "rec"]
    assert len(answer["via"]) == 4 and len(others) == 3
    assert last.id not in answer["via"]
    assert answer["via"][0] == sorted(device.id for device in routers[:5] if device is not last)[0]
    assert {*a.recs} == {*answer["via"]}
    assert all(a.recs[each]["record"].body["routes"] == [list(SITE)] for each in answer["via"])
    for device in routers:
        assert (a.id in device.recs) is False
        device.read(rows)
        assert (a.id in device.recs) is (device.id in answer["via"])
    hub.hear(a.ask(a=bytes((192, 168, 8, 9))))
    (answer,) = [body for kind, body in a.read(hub.sent()) if kind == "rec"]
    assert answer["via"] == [routers[5].id]


def test_nobody_is_sent_to_an_exit_node_by_a_question(hub: Hub) -> None:
    a, leaves = admitted(hub, 2)
    offer(hub, leaves, *EXIT)
    assert approve(hub, leaves, *EXIT) == [*EXIT]
    read_all(hub, a)
    assert said(a)["ro"] == []
    hub.hear(a.ask(a=bytes((9, 9, 9, 9))), a.ask(h="n1"))
    unknown, record = [body for kind, body in a.read(hub.sent()) if kind == "rec"]
    assert unknown["no"] == "unknown" and "via" not in record
    assert a.recs[leaves.id]["record"].body["routes"] == [list(prefix) for prefix in EXIT]


def test_routes_end_with_their_device(hub: Hub) -> None:
    a, router, other = admitted(hub, 3)
    for device in (router, other):
        offer(hub, device, SITE)
        approve(hub, device)
    with hub.store.write() as tx:
        actions.expire_device(hub.scribe, tx, row(tx, router), WALL_S, WALL_S)
    hub.hear(a.ask(a=HOST))
    (answer,) = [body for kind, body in a.read(hub.sent()) if kind == "rec"]
    assert answer["via"] == [other.id]
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, other), WALL_S)
        chores.look_at_dates(hub.scribe, tx, WALL_S)
    read_all(hub, a)
    assert said(a)["ro"] == []
    assert states(hub) == {("192.168.7.0/24", "n1"): "in use"}
    hub.later(60)
    hub.hear(a.ask(a=HOST))
    (answer,) = [body for kind, body in a.read(hub.sent()) if kind == "rec"]
    assert answer["no"] == "unknown"


# rows


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from((4, 16)), st.integers(0, 255), st.integers(0, 32)), max_size=12),
    st.binary(min_size=4, max_size=4),
)
def test_an_address_is_found_in_every_prefix_that_holds_it(
    hub: Hub, made: list[tuple[int, int, int]], address: bytes
) -> None:
    (device,) = admitted(hub, 1)
    with hub.store.write() as tx:
        for old in tx.routes(device.id):
            tx.drop_route(device.id, *old.prefix)
        for size, first, length in made:
            network = prefixes.mask((bytes((first,)) + address[1:]).ljust(size, b"\1"), length)
            tx.save_route(Route(device.id, network, length, advertised=True, approved=True, snat=True))
        kept = tx.routes(device.id)
        for size in (4, 16):
            wanted = address.ljust(size, b"\1")
            held = [route.prefix for route in kept if prefixes.holds(route.prefix, wanted)]
            assert [route.prefix for route in tx.routes_holding(wanted)] == held


# plain clients


def add(hub: Hub, gateway: Dev, name: str, **more: Any) -> clients.Added:
    with hub.store.write() as tx:
        return clients.add(hub.scribe, tx, hub.wall_s, name=name, gateway=row(tx, gateway), **more)


def test_a_client_has_an_address_and_its_gateway_its_key(hub: Hub) -> None:
    a, gateway = admitted(hub, 2)
    made = add(hub, gateway, "phone")
    assert made.private is not None and hub.crypto.x25519_base(made.private) == made.client.key
    with hub.store.read() as tx:
        text = clients.config(tx, made, endpoint="vpn.example:51820")
        known = tx.clients()
        for wrong in ("vpn.example", "x y:1", "vpn.example:0"):
            with pytest.raises(HubError, match="want HOST:PORT"):
                clients.config(tx, made, endpoint=wrong)
    assert known == [made.client] and made.private not in repr(known).encode()
    v4, v6 = clients.addresses(made.client)
    assert f"Address = {v4}/32, {v6}/128" in text and "Endpoint = vpn.example:51820" in text
    assert f"PublicKey = {b64encode(gateway.identity.node_key).decode()}" in text
    assert f"PrivateKey = {b64encode(made.private).decode()}" in text
    read_all(hub, a, gateway)
    packed = [made.client.v4.to_bytes(4, "big"), made.client.v6]
    assert said(gateway)["cl"] == [[made.client.key, *packed]]
    hub.hear(a.ask(a=packed[0]))
    a.read(hub.sent())
    assert a.recs[gateway.id]["record"].body["cl"] == packed
    with hub.store.write() as tx:
        clients.remove(hub.scribe, tx, "phone")
        with pytest.raises(HubError, match="client phone: there is none of this name"):
            clients.remove(hub.scribe, tx, "phone")
    read_all(hub, a, gateway)
    assert "cl" not in said(gateway) and "cl" not in a.recs[gateway.id]["record"].body


def test_a_client_that_makes_its_own_keys(hub: Hub) -> None:
    (gateway,) = admitted(hub, 1)
    key = hub.crypto.x25519_base(bytes([9]) * 32)
    made = add(hub, gateway, "printer", public_key=clients.read_key(b64encode(key).decode()))
    assert made.private is None
    with hub.store.read() as tx:
        assert "PrivateKey = (" in clients.config(tx, made, endpoint="192.0.2.1:51820")
    for text in ("", "x", b64encode(bytes(31)).decode(), "ä"):
        with pytest.raises(HubError, match="want what `wg pubkey` prints"):
            clients.read_key(text)
    for wrong, why in ((key, "has it already"), (gateway.identity.node_key, "has it already"), (bytes(32), "not one")):
        with pytest.raises(HubError, match=why):
            add(hub, gateway, "other", public_key=wrong)
    for name, why in (("printer", "has it"), ("n0", "has it"), ("No", "one DNS label")):
        with pytest.raises(HubError, match=why):
            add(hub, gateway, name)


def test_a_gateway_has_so_many_clients_and_no_more(hub: Hub) -> None:
    gateway, other = admitted(hub, 2)
    for number in range(CLIENTS_MAX):
        add(hub, gateway, f"c{number}")
    with pytest.raises(HubError, match=f"{CLIENTS_MAX} clients are all"):
        add(hub, gateway, "more")
    add(hub, other, "more")
    offer(hub, gateway, *((bytes((10, 0, n, 0)), 24) for n in range(64)))
    approve(hub, gateway)
    read_all(hub, gateway, other)  # its record and its map hold all that at once
    assert len(said(gateway)["cl"]) == CLIENTS_MAX and len(said(gateway)["ra"]) == 64
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, gateway), WALL_S)
        assert [client.name for client in tx.clients()] == ["more"]


def test_no_device_gets_the_address_of_a_client(hub: Hub) -> None:
    (gateway,) = admitted(hub, 1)
    device = Dev(hub, 77, hub.token(), name="late")
    made = add(hub, gateway, "phone")
    from hub.core import ipam  # where the device would be put by its id

    wanted = ipam.choose_v4(device.id, lambda _: False)
    with hub.store.write() as tx:
        tx.drop_client(made.client.key)
        moved = type(made.client)(
            **{name: getattr(made.client, name) for name in ("key", "name", "gateway", "v6", "created_s")}, v4=wanted
        )
        tx.add_client(moved)
    hub.hear(device.join())
    device.read(hub.sent())
    assert device.map is not None and device.map.body["addrs"][0] != wanted.to_bytes(4, "big")


def test_a_gateway_with_clients_keeps_its_key(hub: Hub) -> None:
    gateway, other = admitted(hub, 2)
    add(hub, gateway, "phone")
    hub.later(NODE_KEY_LIFE_S / 2 + DAY_S)
    with hub.store.write() as tx:
        chores.look_at_dates(hub.scribe, tx, hub.wall_s)
        ends = [tx.node_keys(device.id)[0].not_after for device in (gateway, other)]
    assert ends == [hub.wall_s + NODE_KEY_LIFE_S, WALL_S + NODE_KEY_LIFE_S]
    read_all(hub, gateway)
    assert said(gateway)["nk"] == [[gateway.identity.node_key, ends[0]]]


def test_policy_of_a_gateway_speaks_of_its_clients(hub: Hub) -> None:
    """Their addresses as targets in what comes in, as sources in what goes out; and of nobody's else."""
    gateway, other = admitted(hub, 2)
    made = add(hub, gateway, "phone")
    phone = str(IPv4Address(made.client.v4))
    text = json.dumps(
        {
            "hosts": {"phone": phone, "elsewhere": "100.127.1.1"},
            "acls": [
                {"action": "accept", "src": ["tag:ops"], "dst": ["phone:22", "elsewhere:23"]},
                {"action": "accept", "src": ["phone"], "dst": ["tag:server:443"]},
            ],
            "tagOwners": {"tag:ops": [], "tag:server": []},
        }
    )
    with hub.store.write() as tx:
        policing.set_policy(tx, hub.wall_s, text, "test")
        rows = [tx.device(each.id) for each in (gateway, other)]
        slices = [hub.scribe.policing.slice_of(tx, row) for row in rows if row is not None]
        assert rows[1] is not None and rows[0] is not None
        rows[1].tags = ("tag:server",)
        assert hub.scribe.policing.may_meet(tx, rows[0], rows[1])
        tx.drop_client(made.client.key)
        assert not hub.scribe.policing.may_meet(tx, rows[0], rows[1])
    address = made.client.v4.to_bytes(4, "big")
    assert slices[0] is not None and slices[1] is not None
    assert [(sources, targets) for sources, targets, _ in slices[0]["in"]] == [(["tag:ops"], [[address, 32]])]
    assert [targets for targets, _ in slices[0]["out"]] == [["tag:server"]]
    assert slices[1]["in"] == slices[1]["out"] == []
