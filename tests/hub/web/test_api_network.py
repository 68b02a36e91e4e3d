"""The API's routes, clients, names and lock: what they do, who may, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from hub.core.lock_signer import Signer, key_text
from hub.core.model import Device, Route
from hub.core.roles import PERMISSIONS, Access
from hub.io.locklines import answer_line, read_requests
from tests.hub.kit import load_crypto
from tests.hub.web.kit import Site

OFFERED = (bytes([192, 168, 7, 0]), 24)
BAD_NAMES = ["", "a b", "..", "../x", "ü", "a" * 64, 'a"b', "a'b", "a\nb", "a\0b", "-a", "<b>", "a/b"]


@pytest.fixture
def program(site: Site) -> TestClient:
    """May everything."""
    return site.program(site.token("olga", *PERMISSIONS))


@pytest.fixture
def gateway(site: Site) -> Device:
    device = site.add_device(1, name="gw-1")
    with site.write() as tx:
        tx.save_route(Route(device.id, *OFFERED, advertised=True, approved=False, snat=True))
    return device


def verbs(site: Site) -> list[str]:
    prefixes = ("routes.", "client.", "names.", "lock.")
    return [entry.verb for entry in site.audit() if entry.verb.startswith(prefixes)]


def test_routes_are_approved_and_no_longer(site: Site, program: TestClient, gateway: Device) -> None:
    [waits] = program.get("/api/v1/routes", params={"waiting": True}).json()
    assert (waits["prefix"], waits["device"], waits["state"]) == ("192.168.7.0/24", "gw-1", "waits for approval")
    path = "/api/v1/devices/gw-1/routes"
    assert program.post(f"{path}/approve", json={}).json() == {"changed": ["192.168.7.0/24"]}
    assert program.post(f"{path}/approve", json={}).json() == {"changed": []}
    assert program.get("/api/v1/routes", params={"waiting": True}).json() == []
    assert program.get("/api/v1/routes", params={"device": gateway.id}).json()[0]["state"] == "in use"
    body = {"prefixes": ["192.168.7.0/24"]}
    assert program.post(f"{path}/unapprove", json=body).json() == {"changed": ["192.168.7.0/24"]}
    assert verbs(site) == ["routes.approve", "routes.unapprove"]
    last = site.audit("routes.unapprove")[0]
    assert last.object == f"device:{gateway.id}" and "192.168.7.0/24" in last.detail


def test_an_ipv4_prefix_of_a_site_is_named_as_such(site: Site, program: TestClient, gateway: Device) -> None:
    shown = bytes.fromhex("fd2e09663c02000000000007c0a80100")
    with site.write() as tx:
        tx.save_route(Route(gateway.id, shown, 120, advertised=True, approved=False, snat=True))
    found = {row["prefix"]: row["via"] for row in program.get("/api/v1/routes").json()}
    assert found == {"192.168.7.0/24": None, "fd2e:966:3c02::7:c0a8:100/120": "192.168.1.0/24 via 7"}
    answer = program.post("/api/v1/devices/gw-1/routes/approve", json={"prefixes": ["192.168.1.0/24@7"]})
    assert answer.json() == {"changed": ["fd2e:966:3c02::7:c0a8:100/120"]}


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("10.0.0.0/8", "does not offer"),
        ("192.168.7.0/33", "prefix"),
        ("192.168.7.1/24", "prefix"),
        ('"; drop table route; --', "prefix"),
        ("192.168.7.0/24\n; x", "prefix"),
        ("ü", "prefix"),
    ],
)
def test_prefixes_that_are_refused(site: Site, program: TestClient, gateway: Device, prefix: str, said: str) -> None:
    answer = program.post("/api/v1/devices/gw-1/routes/approve", json={"prefixes": [prefix]})
    assert answer.status_code == 400 and said in answer.json()["detail"], answer.text
    assert program.get("/api/v1/routes").json()[0]["approved"] is False and verbs(site) == []


def test_clients_come_and_go(site: Site, program: TestClient, gateway: Device) -> None:
    body = {"name": "phone", "gateway": "gw-1", "endpoint": "vpn.example.org:51820"}
    made = program.post("/api/v1/clients", json=body)
    assert made.status_code == 201, made.text
    assert made.headers["cache-control"] == "no-store" and "PrivateKey = " in made.json()["config"]
    private = made.json()["config"].partition("PrivateKey = ")[2].split("\n")[0]
    [listed] = program.get("/api/v1/clients").json()
    assert (listed["name"], listed["gateway"], listed["addresses"]) == ("phone", "gw-1", made.json()["addresses"])
    assert "config" not in listed
    assert program.post("/api/v1/clients", json=body).status_code == 400  # the name is taken
    assert program.delete("/api/v1/clients/phone").status_code == 204
    assert program.delete("/api/v1/clients/phone").status_code == 404
    assert program.get("/api/v1/clients").json() == []
    assert verbs(site) == ["client.add", "client.remove"]
    assert all(private not in entry.detail for entry in site.audit())


@pytest.mark.parametrize("name", BAD_NAMES)
def test_clients_of_bad_names(site: Site, program: TestClient, gateway: Device, name: str) -> None:
    body = {"name": name, "gateway": "gw-1", "endpoint": "vpn.example.org:51820"}
    assert program.post("/api/v1/clients", json=body).status_code in (400, 422)
    assert program.get("/api/v1/clients").json() == [] and verbs(site) == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"gateway": "nobody"}, 404),
        ({"endpoint": "no port"}, 400),
        ({"endpoint": "a:1\nPostUp = sh"}, 400),
        ({"public_key": "AAAA"}, 400),
        ({"public_key": "A" * 43 + "="}, 400),
        ({"more": 1}, 422),
    ],
)
def test_clients_that_are_refused(
    site: Site, program: TestClient, gateway: Device, change: dict[str, Any], status: int
) -> None:
    body = {"name": "phone", "gateway": "gw-1", "endpoint": "vpn.example.org:51820", **change}
    assert program.post("/api/v1/clients", json=body).status_code == status
    assert program.get("/api/v1/clients").json() == [] and verbs(site) == []


def test_names_are_set(site: Site, program: TestClient) -> None:
    before = program.get("/api/v1/dns")
    assert before.json() == {
        "domain": "mesh.test",
        "search": ["mesh.test"],
        "split": {},
        "resolvers": [],
        "records": [],
    }
    seen = {"If-Match": before.headers["etag"]}
    assert program.put("/api/v1/dns/search", json={"domains": ["corp.test"]}, headers=seen).status_code == 200
    stale = program.put("/api/v1/dns/resolvers", json={"resolvers": ["9.9.9.9"]}, headers=seen)
    assert (stale.status_code, stale.json()["code"]) == (412, "changed")
    program.put("/api/v1/dns/resolvers", json={"resolvers": ["9.9.9.9"]})
    program.put("/api/v1/dns/split/corp.test", json={"resolvers": ["10.0.0.53", "[fd00::53]:5353"]})
    added = program.post("/api/v1/dns/records", json={"name": "printer", "type": "a", "value": "192.168.7.20"})
    assert added.status_code == 201
    assert program.get("/api/v1/dns").json() == {
        "domain": "mesh.test",
        "search": ["corp.test"],
        "split": {"corp.test": ["10.0.0.53", "[fd00::53]:5353"]},
        "resolvers": ["9.9.9.9"],
        "records": [{"name": "printer.mesh.test", "type": "A", "value": "192.168.7.20"}],
    }
    assert program.delete("/api/v1/dns/records", params={"name": "printer"}).json()["records"] == []
    assert program.delete("/api/v1/dns/split/corp.test").json()["split"] == {}
    assert program.put("/api/v1/dns/search", json={"domains": None}).json()["search"] == ["mesh.test"]
    assert verbs(site) == [
        "names.search",
        "names.resolvers",
        "names.split",
        "names.record.add",
        "names.record.remove",
        "names.unsplit",
        "names.search",
    ]


@pytest.mark.parametrize("name", [each for each in BAD_NAMES if each != "@"])
def test_records_of_bad_names(site: Site, program: TestClient, name: str) -> None:
    body = {"name": name, "type": "A", "value": "192.0.2.1"}
    assert program.post("/api/v1/dns/records", json=body).status_code == 400
    assert program.put("/api/v1/dns/search", json={"domains": [name]}).status_code == 400
    assert program.get("/api/v1/dns").json()["records"] == [] and verbs(site) == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "records", {"name": "a", "type": "A", "value": "::1"}),
        ("POST", "records", {"name": "a", "type": "MX", "value": "b"}),
        ("POST", "records", {"name": "a", "type": "TXT", "value": "ü"}),
        ("DELETE", "records?name=a", None),
        ("PUT", "resolvers", {"resolvers": ["dns.example"]}),
        ("PUT", "resolvers", {"resolvers": ["224.0.0.1"]}),
        ("PUT", "split/mesh.test", {"resolvers": ["9.9.9.9"]}),
        ("PUT", "split/corp.test", {"resolvers": []}),
        ("DELETE", "split/corp.test", None),
    ],
)
def test_names_that_are_refused(site: Site, program: TestClient, method: str, path: str, body: Any) -> None:
    answer = program.request(method, f"/api/v1/dns/{path}", json=body)
    assert answer.status_code == 400 and answer.json()["detail"]
    assert verbs(site) == []


class Locked:
    """A key of a lock, as somebody has it away from the hub."""

    def __init__(self, program: TestClient) -> None:
        self.signer = Signer(load_crypto(), bytes(range(32)))
        self._program = program

    def sign(self, wanted: dict[str, Any]) -> list[str]:
        asked = self._program.post("/api/v1/lock/requests", json=wanted)
        assert asked.status_code == 200, asked.text
        return [answer_line(self.signer.sign(each, 1_700_000_000)) for each in read_requests(asked.json()["lines"])]

    def bring(self, lines: list[str], **more: Any) -> Any:
        return self._program.post("/api/v1/lock/signatures", json={"lines": lines, **more})


@pytest.fixture
def locked(site: Site, program: TestClient) -> Locked:
    """The network has a lock, which the API cannot begin: its first statement is made by command."""
    from hub.core import lock
    from hub.core.scribe import Scribe

    made = Locked(program)
    with site.write() as tx:
        scribe = Scribe(load_crypto(), lambda size: bytes(size), tx.network())
        draft = lock.first_draft(scribe.lock, tx, [made.signer.public])
        lock.take_statement(scribe.lock, load_crypto(), tx, made.signer.statement(draft, 1_700_000_000))
    return made


def test_signatures_made_elsewhere_are_taken(site: Site, program: TestClient, locked: Locked) -> None:
    device = site.add_device(1)
    state = program.get("/api/v1/lock").json()
    assert (state["state"], state["keys"]) == ("off", [key_text(locked.signer.public)])
    assert [each["id"] for each in state["pending"]] == [device.id] and not state["pending"][0]["signature"]
    assert locked.bring(locked.sign({"devices": ["box-1"]})).json() == {"statements": 0, "devices": 1}
    assert program.get("/api/v1/lock").json()["pending"][0]["signature"]
    refused = program.post("/api/v1/lock/requests", json={"on": True})
    assert refused.status_code == 400 and "would be in nobody's reach" in refused.json()["detail"]
    lines = locked.sign({"on": True, "force": True})
    assert locked.bring(lines).status_code == 400  # the hub asks again when it is brought
    assert program.get("/api/v1/lock").json()["state"] == "off"
    assert locked.bring(lines, force=True).json() == {"statements": 1, "devices": 0}
    assert program.get("/api/v1/lock").json()["state"] == "on"
    assert verbs(site) == ["lock.import", "lock.import"]


def test_signatures_of_another_key_are_refused(site: Site, program: TestClient, locked: Locked) -> None:
    site.add_device(1)
    good = locked.sign({"devices": ["box-1"]})
    other = {**json.loads(good[0]), "by": key_text(bytes(32))}
    wrong = {**json.loads(good[0]), "not_after": 5}
    for lines in ([json.dumps(other)], [*good, json.dumps(wrong)], ["{}"], ["["], ["\0"], [" "], ["ü" * 100]):
        assert locked.bring(lines).status_code == 400, lines
    assert locked.bring([]).status_code == 422
    assert not program.get("/api/v1/lock").json()["pending"][0]["signature"] and verbs(site) == []


def test_requests_of_nobody_and_of_two_things(site: Site, program: TestClient, locked: Locked) -> None:
    assert program.post("/api/v1/lock/requests", json={"devices": ["nobody"]}).status_code == 404
    assert program.post("/api/v1/lock/requests", json={"on": True, "revoke": "x"}).status_code == 422
    assert program.post("/api/v1/lock/requests", json={"add_key": "short"}).status_code == 400


def test_a_network_without_a_lock(program: TestClient) -> None:
    assert program.get("/api/v1/lock").json()["state"] == "none"
    answer = program.post("/api/v1/lock/requests", json={})
    assert answer.status_code == 400 and "has no lock" in answer.json()["detail"]


WRITES: dict[str, list[tuple[str, str, Any]]] = {
    "routes:write": [
        ("POST", "devices/gw-1/routes/approve", {}),
        ("POST", "devices/gw-1/routes/unapprove", {}),
    ],
    "clients:write": [
        ("POST", "clients", {"name": "p", "gateway": "gw-1", "endpoint": "h.test:1"}),
        ("DELETE", "clients/p", None),
    ],
    "names:write": [
        ("PUT", "dns/search", {"domains": []}),
        ("PUT", "dns/resolvers", {"resolvers": []}),
        ("PUT", "dns/split/a.test", {"resolvers": ["9.9.9.9"]}),
        ("DELETE", "dns/split/a.test", None),
        ("POST", "dns/records", {"name": "a", "type": "A", "value": "192.0.2.1"}),
        ("DELETE", "dns/records?name=a", None),
    ],
    "lock:write": [("POST", "lock/signatures", {"lines": ["{}"]})],
}


@pytest.mark.parametrize("scope", list(WRITES))
def test_scopes_and_roles(site: Site, gateway: Device, scope: str) -> None:
    """A token without the scope; a viewer who owns the device; and the reads, which are scopes of their own."""
    without = site.program(site.token("olga", *(set(PERMISSIONS) - {scope})))
    site.add_person("vic", Access.VIEWER)
    with site.write() as tx:
        device = tx.device(gateway.id)
        assert device is not None
        device.user = "vic"
        tx.save_device(device)
    viewer = site.browser()
    viewer.sign_in("vic")
    for method, path, body in WRITES[scope]:
        answer = without.request(method, f"/api/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope-missing"), path
        assert viewer.send(method, f"/api/v1/{path}", **(body or {})).status_code == 403, path
    assert verbs(site) == []


@pytest.mark.parametrize(
    ("path", "scope"),
    [("routes", "routes:read"), ("clients", "clients:read"), ("dns", "names:read"), ("lock", "lock:read")],
)
def test_reads_need_their_scope(site: Site, path: str, scope: str) -> None:
    assert site.program(site.token("olga", scope)).get(f"/api/v1/{path}").status_code == 200
    assert site.program(site.token("olga", *(set(PERMISSIONS) - {scope}))).get(f"/api/v1/{path}").status_code == 403
