"""The pages of routes, plain clients, names and the network lock, without a browser."""

from __future__ import annotations

import html
import re
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeagent import crypto as providers
from edgeagent.proto import prefixes, telemetry
from hub.core import lock as core_lock
from hub.core import naming
from hub.core.lock_signer import Signer, key_text
from hub.core.model import Device, NodeKey, Route
from hub.core.roles import Access
from hub.io.locklines import answer_line, read_requests
from hub.store import lock as lock_rows
from hub.web.views.routes import exits_of, groups_of
from tests.hub.dash.fleet import add_fleet, add_live
from tests.hub.dash.network import add_lock
from tests.hub.web.kit import PASSWORD, Browser, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "hub")
    with made.running():
        yield made


@pytest.fixture
def owner(site: Site) -> Browser:
    browser = site.browser()
    assert browser.sign_in().status_code == 303
    return browser


def post(browser: Browser, path: str, **fields: object) -> Any:
    return browser.client.post(path, data={"csrf": browser.csrf, **fields})


def text(browser: Browser, path: str) -> str:
    answer = browser.client.get(path)
    assert answer.status_code == 200, path
    return str(answer.text)


def fault_at(page: str) -> tuple[str, str]:
    """(id of the field, what it says)."""
    found = re.search(r'class="wrong" id="([\w-]+)-wrong" role="alert">.*?<span>(.*?)</span>', page, re.DOTALL)
    assert found is not None
    assert f'aria-errormessage="{found[1]}-wrong"' in page
    return found[1], html.unescape(found[2])


def offer(site: Site, device: Device, prefix: str, *, approved: bool = False) -> Route:
    route = Route(device.id, *prefixes.parse(prefix), advertised=True, approved=approved, snat=True)
    with site.write() as tx:
        tx.save_route(route)
    return route


# Routes


def test_routers_of_one_prefix_stand_together_the_primary_first(site: Site, owner: Browser) -> None:
    away, there = site.add_device(1, online=False), site.add_device(2, online=True)
    waiting = site.add_device(3, online=True)
    for device in (away, there):
        offer(site, device, "192.168.7.0/24", approved=True)
    offer(site, waiting, "192.168.7.0/24")
    page = text(owner, "/routes")
    rows = re.findall(r"<tr[ >].*?</tr>", page.partition('id="h-exits"')[0], re.DOTALL)[1:]
    names = [re.search(r'class="dev-name" href="/devices/\w+">([\w-]+)<', row) for row in rows]
    assert [name[1] for name in names if name] == ["box-2", "box-1", "box-3"]
    assert [">primary<" in row for row in rows] == [True, False, False]
    assert "approved, offline" in rows[1] and "waits for approval" in rows[2]


def test_an_ipv4_prefix_of_a_site_stands_beside_the_ipv6_one(site: Site, owner: Browser) -> None:
    device = site.add_device(1, online=True)
    offer(site, device, "fd2e:966:3c02::7:c0a8:100/120")
    for path in ("/routes", f"/devices/{device.id}"):
        page = text(owner, path)
        assert '<strong class="mono">fd2e:966:3c02::7:c0a8:100/120</strong>' in page
        assert '<span class="sub mono">192.168.1.0/24 via 7</span>' in page


def test_nobody_is_primary_before_something_is_approved(site: Site) -> None:
    device = site.add_device(1, online=True)
    offer(site, device, "10.1.0.0/16")
    with site.write() as tx:
        rows = core_routes(tx)
    assert [member.primary for member in groups_of(rows)[0].members] == [False]


def core_routes(tx: Any) -> list[Any]:
    from hub.core import routes

    return routes.table(tx)


def test_an_exit_node_that_waits_for_one_of_both_waits(site: Site) -> None:
    device = site.add_device(1, online=True)
    offer(site, device, "0.0.0.0/0", approved=True)
    offer(site, device, "::/0")
    with site.write() as tx:
        found = exits_of(core_routes(tx))
    assert [(member.device.id, member.state) for member in found.members] == [(device.id, "waits for approval")]


def test_routes_are_approved_and_unapproved_where_they_are_seen(site: Site, owner: Browser) -> None:
    device = site.add_device(1, online=True)
    offer(site, device, "192.168.7.0/24")
    offer(site, device, "0.0.0.0/0")
    page = text(owner, f"/devices/{device.id}")
    assert "192.168.7.0/24" in page and "exit node" in page and 'data-confirm="' in page
    answer = post(owner, "/routes/approve", device=device.id, prefix="192.168.7.0/24", to="device")
    assert answer.headers["location"] == f"/devices/{device.id}?said=route-approved"
    assert post(owner, "/routes/approve", device=device.id, prefix="exit").status_code == 303
    assert "waits for approval" not in text(owner, "/routes")
    answer = post(owner, "/routes/unapprove", device=device.id, prefix="192.168.7.0/24")
    assert answer.headers["location"] == "/routes?said=route-unapproved"
    assert [entry.verb for entry in site.audit("routes.approve") + site.audit("routes.unapprove")] == [
        "routes.approve",
        "routes.approve",
        "routes.unapprove",
    ]
    assert post(owner, "/routes/approve", device=device.id, prefix="10.9.0.0/16").status_code == 400


def test_who_may_only_look_sees_no_buttons_and_is_refused(site: Site) -> None:
    device = site.add_device(1, online=True)
    offer(site, device, "192.168.7.0/24")
    site.add_person("vera", Access.VIEWER)
    viewer = site.browser()
    viewer.sign_in("vera", PASSWORD)
    for path in ("/routes", "/names"):
        page = text(viewer, path).partition("<main")[2].partition("</main>")[0]
        assert "<form" not in page, path
    assert viewer.client.get("/lock").status_code == 403
    for path, fields in {
        "/routes/approve": {"device": device.id, "prefix": "192.168.7.0/24"},
        "/routes/clients": {"name": "phone", "gateway": "box-1", "endpoint": "a.example:1"},
        "/names/records": {"name": "printer", "kind": "A", "value": "192.168.7.9"},
        "/lock/statement": {"what": "on"},
    }.items():
        assert post(viewer, path, **fields).status_code == 403, path


# Plain clients


def test_a_clients_configuration_is_shown_once(site: Site, owner: Browser) -> None:
    site.add_device(1, online=True)
    page = post(owner, "/routes/clients", name="Phone-Anna", gateway="box-1", endpoint="vpn.example.org:51820").text
    found = re.search(r"PrivateKey = (\S{43}=)", html.unescape(page))
    assert found is not None and 'class="qr"' in page and "vpn.example.org:51820" in page
    for path in ("/routes", "/audit", "/"):
        assert found[1] not in html.unescape(text(owner, path))
    assert "phone-anna" in text(owner, "/routes")
    assert post(owner, "/routes/clients/remove", name="phone-anna").status_code == 303
    assert "phone-anna" not in text(owner, "/routes").partition('id="h-clients"')[2].partition('id="h-add"')[0]


def test_a_client_with_keys_of_its_own_is_shown_no_code(site: Site, owner: Browser) -> None:
    site.add_device(1, online=True)
    key = b64encode(providers.load().x25519_base(bytes(range(32)))).decode()
    page = post(owner, "/routes/clients", name="printer", gateway="box-1", endpoint="a.example:1", public_key=key).text
    assert 'class="qr"' not in page and "the one whose public key you gave" in page


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("name", {"name": "not a name"}),
        ("name", {"name": "box-1"}),
        ("gateway", {"gateway": "nobody"}),
        ("endpoint", {"endpoint": "vpn.example.org"}),
        ("public_key", {"public_key": "short"}),
    ],
)
def test_what_is_wrong_with_a_client_stands_at_its_field(
    site: Site, owner: Browser, field: str, changed: dict[str, str]
) -> None:
    site.add_device(1, online=True)
    form = {"name": "phone", "gateway": "box-1", "endpoint": "vpn.example.org:51820", **changed}
    answer = post(owner, "/routes/clients", **form)
    assert answer.status_code == 400
    assert fault_at(answer.text)[0] == field
    assert f'value="{form["endpoint"]}"' in answer.text  # nothing has to be typed again
    with site.write() as tx:
        assert tx.client_count() == 0


# Names


def test_the_page_of_names_shows_what_devices_of_this_network_see(site: Site, owner: Browser) -> None:
    assert "No device to show yet" in text(owner, "/names")
    site.add_device(1, online=True)
    page = text(owner, "/names")
    assert "box-1.mesh.test" in page and "100.64.0.1" in page and "search domain mesh.test" in page
    assert post(owner, "/names/search", how="none").status_code == 303
    page = text(owner, "/names")
    assert "box-1.mesh.test" in page and "search domain mesh.test" not in page


def test_names_are_set_and_unset(site: Site, owner: Browser) -> None:
    hostile = "<script>alert(1)</script>"
    for path, fields in (
        ("/names/records", {"name": "printer", "kind": "A", "value": "192.168.7.20"}),
        ("/names/records", {"name": "@", "kind": "TXT", "value": hostile}),
        ("/names/split", {"domain": "corp.example", "to": "10.20.0.53, [fd00:20::53]:5353"}),
        ("/names/search", {"how": "these", "domains": "mesh.test corp.example"}),
        ("/names/resolvers", {"resolvers": "9.9.9.9"}),
    ):
        assert post(owner, path, **fields).status_code == 303, path
    page = text(owner, "/names")
    assert "printer.mesh.test" in page and hostile not in page and html.escape(hostile) in page
    with site.write() as tx:
        assert naming.as_json(tx)["split"] == {"corp.example": ["10.20.0.53", "[fd00:20::53]:5353"]}
        assert naming.as_json(tx)["search"] == ["mesh.test", "corp.example"]
    assert post(owner, "/names/records/remove", name="@", kind="TXT", value=hostile).status_code == 303
    assert post(owner, "/names/split/remove", domain="corp.example").status_code == 303
    assert post(owner, "/names/search", how="default").status_code == 303
    assert post(owner, "/names/resolvers", resolvers="").status_code == 303
    with site.write() as tx:
        known = naming.as_json(tx)
    assert known["split"] == {} and known["search"] == ["mesh.test"] and known["resolvers"] == []
    assert [record["name"] for record in known["records"]] == ["printer.mesh.test"]


@pytest.mark.parametrize(
    ("path", "field", "form"),
    [
        ("records", "name", {"name": "a..b", "kind": "A", "value": "192.0.2.1"}),
        ("records", "name", {"name": "box-1", "kind": "A", "value": "192.0.2.1"}),
        ("records", "value", {"name": "printer", "kind": "A", "value": "2001:db8::1"}),
        ("records", "kind", {"name": "printer", "kind": "MX", "value": "mail"}),
        ("split", "domain", {"domain": "mesh.test", "to": "192.0.2.1"}),
        ("split", "to", {"domain": "corp.example", "to": "ns.corp.example"}),
        ("split", "to", {"domain": "corp.example", "to": " "}),
        ("search", "domains", {"how": "these", "domains": "a..b"}),
        ("search", "domains", {"how": "these", "domains": ""}),
        ("resolvers", "resolvers", {"resolvers": "127.0.0.1"}),
        ("resolvers", "resolvers", {"resolvers": " ".join(f"192.0.2.{number}" for number in range(1, 30))}),
    ],
)
def test_what_is_wrong_with_names_stands_at_its_field(
    site: Site, owner: Browser, path: str, field: str, form: dict[str, str]
) -> None:
    site.add_device(1, online=True)
    answer = post(owner, f"/names/{path}", **form)
    assert answer.status_code == 400
    assert fault_at(answer.text)[0] == field


# The network lock


@pytest.fixture
def signer() -> Signer:
    return Signer(providers.load(), bytes(range(32)))


def sign(signer: Signer, lines: str) -> str:
    """As `edgehub lock sign-requests` does on another machine."""
    requests = read_requests(lines.splitlines())
    return "".join(answer_line(signer.sign(request, int(time.time()))) + "\n" for request in requests)


def upload(browser: Browser, signed: str) -> Any:
    form = {"csrf": browser.csrf}
    return browser.client.post("/lock/signatures", data=form, files={"file": ("signed.txt", signed, "text/plain")})


def test_a_lock_is_put_on_by_files_alone(site: Site, owner: Browser, signer: Signer) -> None:
    device = site.add_device(1, online=True)
    assert "This network has no lock" in text(owner, "/lock")
    draft = post(owner, "/lock/statement", what="init", key=key_text(signer.public))
    assert draft.headers["content-disposition"] == 'attachment; filename="lock-init.txt"'
    assert upload(owner, sign(signer, draft.text)).status_code == 303
    page = text(owner, "/lock")
    assert "in preparation" in page and device.id in page and "a lock key’s signature" in page
    early = post(owner, "/lock/statement", what="on")
    assert early.status_code == 400 and "box-1" in early.text  # it would be cut off

    requests = owner.client.get("/lock/requests?life=90d")
    assert device.id in requests.text and requests.headers["content-type"].startswith("text/plain")
    assert upload(owner, sign(signer, requests.text)).status_code == 303
    assert owner.client.get("/lock/requests").text == ""
    with site.write() as tx:  # as the device does by itself once it is online
        tx.save_node_key(NodeKey(device.node_key, device.id, int(time.time()) + 9_000))
        tx.save_node_signature(device.node_key, device.id, int(time.time()) + 9_000, bytes(64))
    assert "All devices are signed" in text(owner, "/lock")
    on = post(owner, "/lock/statement", what="on")
    assert on.status_code == 200
    assert upload(owner, sign(signer, on.text)).status_code == 303
    assert "Devices refuse whoever is not signed" in text(owner, "/lock")
    assert [entry.actor for entry in site.audit("lock.import")] == ["user:olga"] * 3


def test_a_file_that_is_wrong_is_refused_whole(site: Site, owner: Browser, signer: Signer) -> None:
    site.add_device(1, online=True)
    draft = post(owner, "/lock/statement", what="init", key=key_text(signer.public)).text
    upload(owner, sign(signer, draft))
    signed = sign(signer, owner.client.get("/lock/requests").text)
    other = Signer(providers.load(), bytes(32))
    stranger = sign(other, owner.client.get("/lock/requests").text)
    for bad in ("", "not JSON\n", "\0\xff", signed + "{}\n", signed + stranger, signed[:-40]):
        answer = upload(owner, bad)
        assert answer.status_code == 400, bad
        assert fault_at(answer.text)[0] == "file"
    with site.write() as tx:
        device = tx.devices()[0]
        assert tx.lock_signatures([device.id]) == []


def test_what_is_wrong_with_a_key_stands_at_its_field(site: Site, owner: Browser, signer: Signer) -> None:
    answer = post(owner, "/lock/statement", what="init", key="nothing")
    assert answer.status_code == 400 and fault_at(answer.text)[0] == "key-init"
    upload(owner, sign(signer, post(owner, "/lock/statement", what="init", key=key_text(signer.public)).text))
    answer = post(owner, "/lock/statement", what="add", key=key_text(signer.public))
    assert answer.status_code == 400 and "one of the lock's already" in fault_at(answer.text)[1]
    assert post(owner, "/lock/statement", what="init", key=key_text(signer.public)).status_code == 400
    assert post(owner, "/lock/statement", what="burn", key="").status_code == 400


def test_counts_in_sql_are_those_of_the_core(site: Site) -> None:
    """Of a fleet in which signatures are missing, have ended, are void, or are of a key that is none any more."""
    now_s = int(time.time())
    with site.write() as tx:
        ids = add_fleet(tx, now_s, 40)
        signer = add_lock(tx, now_s, ids)
        for number, change in ((2, {"not_after": now_s - 5}), (3, {"not_after": now_s + 500}), (4, {"by": bytes(32)})):
            old = tx.lock_signatures([ids[number]])[0]
            tx.drop_lock_signature(old.device, old.by)
            tx.save_lock_signature(replace(old, **change))
        view = core_lock.LockView(providers.load(), tx.network().id)
        draft = core_lock.next_draft(view, tx, revoke=(ids[7], now_s + 1))
        core_lock.take_statement(view, providers.load(), tx, signer.statement(draft, now_s))
        statement = view.in_force(tx)
        assert statement is not None
        found = core_lock.standings(view, tx, now_s)
        waiting = {each.device.id for each in found if each.is_pending}
        assert {ids[2], ids[4], ids[7]} < waiting and ids[3] not in waiting
        assert lock_rows.counts(tx.connection, statement, now_s) == (len(found), len(waiting), 1)
        assert set(lock_rows.pending(tx.connection, statement, now_s, limit=100)) == waiting


# The overview, and a device that is watched


def test_the_overview_says_what_the_network_wants(site: Site, owner: Browser, signer: Signer) -> None:
    modem = "wwan0: LTE B20, -118 dBm, weak signal, home, Testnet"
    facts = {"memory": "31.0 of 32.0 MiB, dropped at the ceiling 7", "modem": modem}
    device = site.add_device(1, online=True, facts=facts)
    offer(site, device, "192.168.7.0/24")
    upload(owner, sign(signer, post(owner, "/lock/statement", what="init", key=key_text(signer.public)).text))
    page = text(owner, "/")
    alerts = ("offering routes that wait for approval", "not signed by a lock key", "at the memory’s ceiling")
    for said in (*alerts, "with a weak mobile signal"):
        assert f"1 device {said}" in page or f"1 device dropped input {said}" in page, said
    assert "Every device may reach every other one" in page and "Nobody looked within a day" in page
    link = re.search(r'href="(/devices\?q=fact[^"]*)"', page)
    assert link is not None and "box-1" in text(owner, html.unescape(link[1]))


def test_a_sample_with_all_parts_and_with_none(site: Site, owner: Browser) -> None:
    device, peer = site.add_device(1, online=True), site.add_device(2)
    with site.write() as tx:
        add_live(tx, int(time.time()), device.id, [peer.id])
    page = text(owner, f"/devices/{device.id}")
    for said in (
        "Peers and paths",
        "Uplinks",
        "by cause",
        "Fullest tables",
        "Policy at work",
        "212 let in",
        "Modem of wwan0",
        "2 of 4 bars",
        "roaming",
    ):
        assert said in page, said
    overview = text(owner, "/")
    assert "by a relay" in overview and "As one device said" in overview
    bare = {"t": 0, "up": 0, "m": [0, None, 0], "tb": [], "np": 0, "p": [], "l": [], "u": [], "d": []}
    with site.write() as tx:
        tx.save_telemetry(device.id, int(time.time()), telemetry.write(bare))
    page = text(owner, f"/devices/{device.id}/now")
    assert "It has no peers at the moment" in page and "Nothing was booked today" in page
    assert page.count("It tells of none") == 1 and "compares uplinks only while there are several" in page
    assert "Policy at work" not in page


def test_paths_of_every_kind_have_a_word(site: Site, owner: Browser) -> None:
    device = site.add_device(1, online=True)
    ways = ("direct", "relay", "none", "refused")
    peers = [[f"{way}-id", way, way, "", None, 0, 0, 0, 0] for way in ways]
    sample = {"t": 1, "up": 1, "m": [31_000, 32_768, 3], "tb": [["peers", 1, 0]], "np": 4, "p": peers}
    with site.write() as tx:
        data = telemetry.write({**sample, "l": [], "u": [["wwan0", "alive", True, True, "emergency", None]], "d": []})
        tx.save_telemetry(device.id, int(time.time()), data)
    page = text(owner, f"/devices/{device.id}/now")
    for word in ("direct", "relay", "no path now", "refused by the lock", "emergency", "3 dropped at the ceiling"):
        assert word in page, word
    assert "close to the memory’s ceiling" in text(owner, "/")
