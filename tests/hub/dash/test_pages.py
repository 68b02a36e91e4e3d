"""Pages without a browser: who may, what is escaped, how lists page, what files weigh, a hub without assets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hub.core.model import DeviceState
from hub.core.roles import Access
from hub.web import assets as assets_module
from hub.web.assets import FOREVER, Assets
from tests.hub.web.kit import HERE, PASSWORD, Browser, Site

FIRST_LOAD_MAX = 400 << 10
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


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


def post(browser: Browser, path: str, **fields: object) -> object:
    return browser.client.post(path, data={"csrf": browser.csrf, **fields})


def test_what_a_device_says_never_becomes_markup(site: Site, owner: Browser) -> None:
    device = site.add_device(1, facts={"model": HOSTILE, "os": HOSTILE, "lat": "47.1", "lon": "15.4"}, version=HOSTILE)
    for path in ("/", "/devices", f"/devices/{device.id}", "/map", "/topology", f"/devices?q={HOSTILE}"):
        page = owner.client.get(path)
        assert page.status_code == 200, path
        assert "<script>alert" not in page.text and "<img src=x" not in page.text, path
    assert "&lt;script&gt;" in owner.client.get(f"/devices/{device.id}").text


def test_roles_see_and_do_what_is_theirs(site: Site) -> None:
    device = site.add_device(1)
    site.add_person("vera", Access.VIEWER)
    viewer = site.browser()
    viewer.sign_in("vera", PASSWORD)
    page = viewer.client.get("/devices").text
    assert "box-1" in page and 'name="id"' not in page and 'href="/users"' not in page and 'href="/add"' not in page
    for path in ("/add", "/tokens", "/policy", "/users", "/audit", "/settings"):
        assert viewer.client.get(path).status_code == 403, path
    forms = {
        f"/devices/{device.id}/remove": {},
        f"/devices/{device.id}/rename": {"name": "mine"},
        f"/devices/{device.id}/commands": {"verb": "rekey"},
        f"/devices/{device.id}/watch": {"on": "yes"},
        "/devices/bulk": {"id": device.id, "do": "remove"},
        "/add": {"many": "one"},
        "/policy": {"text": "{}", "base": "0"},
        "/relays/invite": {"region": "fra"},
        "/users": {"login": "x", "role": "owner"},
    }
    for path, fields in forms.items():
        assert post(viewer, path, **fields).status_code == 403, path  # type: ignore[attr-defined]
    assert len(site.audit("refused")) >= len(forms)
    with site.write() as tx:
        still = tx.device(device.id)
    assert still is not None and still.state is DeviceState.ACTIVE and still.name == "box-1"


def test_forms_without_their_token_do_nothing(site: Site, owner: Browser) -> None:
    device = site.add_device(1)
    for path in (f"/devices/{device.id}/remove", "/devices/bulk", "/add", "/policy", "/logout", "/account/password"):
        assert owner.client.post(path, data={"csrf": "wrong"}).status_code == 403, path
    with site.write() as tx:
        assert tx.device(device.id) is not None


def test_lists_come_page_by_page(site: Site, owner: Browser) -> None:
    for number in range(120):
        site.add_device(number)
    seen: list[str] = []
    path = "/devices?sort=name"
    for count in (50, 50, 20):
        page = owner.client.get(path).text
        rows = re.findall(r'<tr data-device="([^"]+)"', page)
        assert len(rows) == count
        seen += rows
        found = re.search(r'href="(/devices\?[^"]*)" rel="next"', page)
        path = found[1].replace("&amp;", "&") if found else ""
    assert path == "" and len(set(seen)) == 120
    assert "101–120 of 120 devices" in page


def test_a_filter_that_is_wrong_says_so(site: Site, owner: Browser) -> None:
    site.add_device(1)
    page = owner.client.get("/devices?q=stat:x")
    assert page.status_code == 200
    assert "is no field" in page.text
    part = owner.client.get("/devices?q=name:box-1", headers={"HX-Request": "true"}).text
    assert part.lstrip().startswith("<form") and "box-1" in part and "<html" not in part


def test_many_devices_at_once(site: Site, owner: Browser) -> None:
    ids = [site.add_device(number).id for number in range(3)]
    answer = post(owner, "/devices/bulk", id=ids, do="tag", tag="site-graz", back="/devices?q=name~box&sort=-seen")
    assert answer.status_code == 303  # type: ignore[attr-defined]
    assert answer.headers["location"] == "/devices?q=name~box&sort=-seen&n=3&said=tagged"  # type: ignore[attr-defined]
    with site.write() as tx:
        assert {tx.device(device_id).tags for device_id in ids} == {("tag:site-graz",)}  # type: ignore[union-attr]
    assert len(site.audit("device.tag")) == 3
    refused = post(owner, "/devices/bulk", id=[ids[0], "nobody"], do="untag", tag="site-graz")
    assert refused.status_code == 400  # type: ignore[attr-defined]
    with site.write() as tx:
        kept = tx.device(ids[0])
    assert kept is not None and kept.tags == ("tag:site-graz",)  # all or nothing


def test_a_policy_that_is_wrong_changes_nothing(site: Site, owner: Browser) -> None:
    good = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}'
    assert post(owner, "/policy", text=good, base=0).status_code == 303  # type: ignore[attr-defined]
    bad = post(
        owner, "/policy", text='{"acls": [\r\n{"action": "accept", "src": ["group:x"], "dst": ["*:22"]}]}', base=1
    )
    assert bad.status_code == 422  # type: ignore[attr-defined]
    assert "line 2, column" in bad.text and 'data-lines="2"' in bad.text  # type: ignore[attr-defined]
    late = post(owner, "/policy", text=good, base=0)
    assert late.status_code == 422 and "somebody set version 1" in late.text  # type: ignore[attr-defined]
    with site.write() as tx:
        assert tx.policy_version() == 1
    assert [entry.object for entry in site.audit("policy.set")] == ["policy:1"]


def test_commands_go_out_with_a_row_each(site: Site, owner: Browser) -> None:
    device = site.add_device(1)
    path = f"/devices/{device.id}/commands"
    for fields in ({"verb": "netcheck"}, {"verb": "run", "script": "clean-cache", "arguments": "--older 7d"}):
        assert post(owner, path, **fields).status_code == 303  # type: ignore[attr-defined]
    assert post(owner, path, verb="format-disk").status_code == 400  # type: ignore[attr-defined]
    assert post(owner, path, verb="run", script="../evil").status_code == 400  # type: ignore[attr-defined]
    with site.write() as tx:
        given = {command.verb: command.args for command in tx.commands(device.id)}
    assert given == {"netcheck": {"t": 6}, "run": {"s": "clean-cache", "a": ["--older", "7d"], "t": 60}}
    assert [entry.verb for entry in site.audit("command.netcheck") + site.audit("command.run")] == [
        "command.netcheck",
        "command.run",
    ]
    page = owner.client.get(f"/devices/{device.id}").text
    assert "run clean-cache --older 7d" in page and "queued" in page


def test_ones_own_password_ends_all_sessions(site: Site, owner: Browser) -> None:
    again = "another horse, another staple"
    assert post(owner, "/account/password", old="wrong", new=again).status_code == 403  # type: ignore[attr-defined]
    assert post(owner, "/account/password", old=PASSWORD, new=again).status_code == 303  # type: ignore[attr-defined]
    assert owner.client.get("/").status_code == 403
    assert site.browser().sign_in(password=again).status_code == 303


def test_secrets_are_shown_once(site: Site, owner: Browser) -> None:
    made = post(owner, "/add", many="some", uses="3", life="1h", tags="camera")
    found = re.search(r"em1\.[A-Za-z0-9_-]+", made.text)  # type: ignore[attr-defined]
    assert found is not None and made.headers["cache-control"] == "no-store"  # type: ignore[attr-defined]
    again = "".join(owner.client.get(path).text for path in ("/tokens", "/audit", "/", "/devices"))
    assert found[0] not in again and "c-" in again


def test_a_device_that_asks_by_a_link_is_seen(site: Site, owner: Browser) -> None:
    asked = site.browser().client.post("/join/begin", json={"host": "gate", "facts": {"model": HOSTILE}})
    code = asked.json()["code"]
    assert "1 device asking to come in" in owner.client.get("/").text
    assert code in owner.client.get("/add").text
    assert code in owner.client.get("/claims", headers={"HX-Request": "true"}).text
    there = owner.client.get("/claim", params={"code": code}).headers["location"]
    page = owner.client.get(there).text
    assert code in page and "gate" in page and "<script>alert" not in page
    assert owner.client.get("/add/AAAA-AAAA").status_code == 404


def test_the_first_load_is_light() -> None:
    assets = Assets()
    assert assets.missing == ""
    page = (
        "vendor/tabler.css",
        "palette.css",
        "app.css",
        "theme.js",
        "vendor/htmx.js",
        "app.js",
        "vendor/inter.woff2",
        "logo.svg",
    )
    weight = sum(assets.weight(path) for path in page)
    heaviest = max(
        assets.weight("vendor/cytoscape.js"),
        assets.weight("vendor/leaflet.js") + assets.weight("vendor/countries.json"),
    )
    assert weight + heaviest + (64 << 10) <= FIRST_LOAD_MAX  # with the heaviest page's own, and a page of HTML


def test_files_are_kept_for_ever_and_squeezed(site: Site, owner: Browser) -> None:
    page = owner.client.get("/").text
    css = re.search(r'href="(/static/[0-9a-f]{16}/app\.css)"', page)
    assert css is not None
    answer = owner.client.get(css[1], headers={"Accept-Encoding": "gzip"})
    assert answer.headers["cache-control"] == FOREVER
    assert answer.headers["content-encoding"] == "gzip" and answer.headers["content-type"].startswith("text/css")
    old = owner.client.get("/static/0000000000000000/app.css", headers={"Accept-Encoding": "identity"})
    assert old.headers["cache-control"] == "no-store" and "content-encoding" not in old.headers
    for path in ("/static/x/%2e%2e/app.py", "/static/x/vendor.lock", "/static/x/nothing.js"):
        assert owner.client.get(path).status_code == 404


def test_no_template_has_inline_code() -> None:
    for path in (Path(__file__).parents[3] / "hub/web/templates").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"<style|\sstyle=|<script(?![^>]*src=)|\son[a-z]+=\"|javascript:|https?://(?!www\.w3)",
            _without_examples(text),
        ), path


def _without_examples(text: str) -> str:
    """Addresses that stand in a field as an example, and in what is typed on a device, load nothing."""
    return re.sub(r'placeholder="[^"]*"|<code>[^<]*</code>', "", text)


def test_without_assets_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "vendor.why").write_text("npm is not installed\n")
    monkeypatch.setattr(assets_module, "FOLDER", folder)
    site = Site(tmp_path / "hub")
    with TestClient(site.app, base_url=HERE) as client:
        page = client.get("/login")
        assert page.status_code == 503
        assert "npm is not installed" in page.text and "tools/vendor.py" in page.text
        assert client.get("/healthz").status_code == 200
        assert client.get("/api/v1/devices").status_code == 401
