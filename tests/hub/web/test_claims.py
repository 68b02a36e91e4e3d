"""Devices that come in by a link: the device's real code against the real application, and what strangers can do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn

from edgeagent import approval
from edgeagent.approval import ApprovalError, ask
from edgeagent.proto.token import Token as JoinToken
from hub.core import claims as rules
from hub.core.claims import ALPHABET, LIFE_S, clean_facts, make_code, tidy_code
from hub.core.roles import Access
from hub.store.schema import claim
from hub.store.websettings import WebSettings
from hub.web import claims, throttle
from tests.hub.kit import load_crypto, seeded
from tests.hub.rig import free_port
from tests.hub.web.kit import Browser, Site
from tests.hub.web.test_process import wait_until

FACTS = {"arch": "mips", "os": "OpenWrt 23.05"}


@pytest.fixture
def port(tmp_path: Path) -> int:
    return free_port()


@pytest.fixture
def site(tmp_path: Path, port: int) -> Iterator[Site]:
    """Behind its real server."""
    site = Site(tmp_path / "hub", WebSettings(listen=f"127.0.0.1:{port}"))
    server = uvicorn.Server(uvicorn.Config(site.app, port=port, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the server")
    yield site
    server.should_exit = True
    thread.join()


@pytest.fixture
def olga(site: Site, port: int) -> Browser:
    browser = Browser(site, f"http://127.0.0.1:{port}")
    assert browser.sign_in().status_code == 303
    return browser


class Asking(threading.Thread):
    """A device that asks, beside the test."""

    def __init__(self, port: int, host: str = "Gate-7.lan", **facts: str) -> None:
        super().__init__()
        self._arguments = (f"http://127.0.0.1:{port}", None, host, facts or FACTS, self._show)
        self.shown = ""
        self.token = ""
        self.error: ApprovalError | None = None
        self.start()

    def _show(self, text: str) -> None:
        self.shown += text

    def run(self) -> None:
        try:
            self.token = ask(*self._arguments)
        except ApprovalError as error:
            self.error = error

    @property
    def code(self) -> str:
        wait_until(lambda: bool(self.shown), "the link")
        return self.shown.partition("/add/")[2].partition("\n")[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval, "INTERVAL_MAX_S", 0.05)
    monkeypatch.setattr(approval, "INTERVAL_MIN_S", 0.05)
    monkeypatch.setattr(claims, "POLL_PER_S", 1_000)


def test_a_device_comes_in_by_its_link(olga: Browser, port: int) -> None:
    device = Asking(port)
    code = device.code
    assert f"compare the code: {code}" in device.shown and "▄" in device.shown
    page = olga.client.get(f"/add/{code}")
    assert page.status_code == 200
    assert "gate-7" in page.text and "OpenWrt 23.05" in page.text and "127.0.0.1" in page.text
    [listed] = olga.client.get("/api/v1/claims").json()
    assert (listed["code"], listed["host"], listed["facts"]) == (code, "gate-7", FACTS)
    assert olga.send("POST", f"/api/v1/claims/{code.lower()}/approve", tags=["tag:cam"], user="ada").status_code == 204
    device.join()
    token = JoinToken.decode(load_crypto(), device.token)
    assert (token.uses, token.tags) == (1, ["tag:cam"])
    [joined] = olga.client.get("/api/v1/tokens").json()["tokens"]
    assert (joined["id"], joined["uses"], joined["user"]) == (token.claim, 1, "ada")
    verbs = [entry.verb for entry in olga.site.audit()]
    assert verbs[-2:] == ["token.create", "claim.approve"]
    with olga.site.write() as tx:
        [row] = tx.connection.execute(claim.select()).all()
        assert (row.state, row.token) == ("fetched", "")
    assert device.token not in " ".join(entry.detail for entry in olga.site.audit())
    assert olga.client.get(f"/add/{code}").status_code == 404  # once


def test_somebody_says_no(olga: Browser, port: int) -> None:
    device = Asking(port)
    assert olga.send("POST", f"/api/v1/claims/{device.code}/deny").status_code == 204
    device.join()
    assert device.error is not None and device.error.refused
    assert olga.client.get("/api/v1/tokens").json()["tokens"] == []


def test_nobody_says_anything(olga: Browser, port: int) -> None:
    device = Asking(port)
    code = device.code
    with olga.site.write() as tx:
        tx.connection.execute(claim.update().values(created_s=claim.c.created_s - LIFE_S))
    device.join()
    assert device.error is not None and "in time" in str(device.error)
    assert olga.send("POST", f"/api/v1/claims/{code}/approve").status_code == 404


def test_who_may_not_decide(olga: Browser, port: int) -> None:
    code = httpx2.post(f"http://127.0.0.1:{port}/join/begin", json={"host": "x"}).json()["code"]
    olga.site.add_person("vic", Access.VIEWER)
    vic = Browser(olga.site, f"http://127.0.0.1:{port}")
    vic.sign_in("vic")
    assert vic.client.get(f"/add/{code}").status_code == 403
    for what in ("approve", "deny"):
        assert vic.send("POST", f"/api/v1/claims/{code}/{what}").status_code == 403
    stranger = Browser(olga.site, f"http://127.0.0.1:{port}")
    answer = stranger.client.get(f"/add/{code}")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/login?next=/add/{code}")


def test_what_a_stranger_says_is_bounded_and_does_not_run(olga: Browser, port: int) -> None:
    facts = {"os": "<script>alert(1)</script>\x1b[2J", "n" * 64: "v" * 512}
    answer = httpx2.post(f"http://127.0.0.1:{port}/join/begin", json={"host": "../../x", "facts": facts})
    page = olga.client.get(f"/add/{answer.json()['code']}").text
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "\x1b" not in page and "../" not in page
    for body in ({"facts": {"a": "v" * 513}}, {"facts": {str(n): "" for n in range(33)}}, {"host": "h" * 64}, {"x": 1}):
        assert httpx2.post(f"http://127.0.0.1:{port}/join/begin", json=body).status_code == 422


def test_strangers_are_counted(olga: Browser, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = f"http://127.0.0.1:{port}/join/begin"
    statuses = [httpx2.post(begin, json={}).status_code for _ in range(claims.BEGIN_BURST + 2)]
    assert statuses == [201] * claims.BEGIN_BURST + [429] * 2
    monkeypatch.setattr(claims, "WAITING_MAX", claims.BEGIN_BURST)
    olga.site.app.state.claim_begins = throttle.LockedBuckets(1.0, 100)
    assert httpx2.post(begin, json={}).status_code == 503
    poll = f"http://127.0.0.1:{port}/join/poll"
    olga.site.app.state.claim_polls = throttle.LockedBuckets(0.001, claims.POLL_BURST)
    polls = [httpx2.post(poll, json={"secret": "guess"}).status_code for _ in range(claims.POLL_BURST + 5)]
    assert polls[0] == 200 and polls[-1] == 429
    assert httpx2.post(poll, json={"secret": "another guess"}).json() == {"state": "over"}


def test_a_token_is_fetched_once(olga: Browser, port: int) -> None:
    begun = httpx2.post(f"http://127.0.0.1:{port}/join/begin", json={}).json()
    poll = f"http://127.0.0.1:{port}/join/poll"
    assert httpx2.post(poll, json={"secret": begun["secret"]}).json() == {"state": "waiting"}
    olga.send("POST", f"/api/v1/claims/{begun['code']}/approve")
    assert httpx2.post(poll, json={"secret": begun["secret"]}).json()["token"].startswith("em1.")
    assert httpx2.post(poll, json={"secret": begun["secret"]}).json() == {"state": "over"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://hub.example.org", "Use https"),
        ("https://", "not an address"),
        ("https://hub.example.org/path", "not an address"),
        ("ftp://hub.example.org", "not an address"),
        ("http://127.0.0.1:1", "does not answer"),
    ],
)
def test_addresses_that_are_none(url: str, said: str) -> None:
    with pytest.raises(ApprovalError, match=said):
        ask(url, None, "x", {}, print)


def test_a_hub_cannot_steer_the_terminal() -> None:
    evil = {"code": "A\x1b[2J", "url": "https://x/\x07\n", "qr": "\x1b]0;x\x07"}
    shown = approval._invitation(evil)
    assert not set(shown) & {"\x1b", "\x07"}


def test_codes() -> None:
    codes = {make_code(seeded(seed)) for seed in range(1_000)}
    assert len(codes) == 1_000
    for code in codes:
        assert tidy_code(code) == code == tidy_code(code.lower().replace("-", " "))
        assert set(code) <= set(ALPHABET) | {"-"}
    for text in ("", "AAAA-BBBB", "BCDF-GHJ", "BCDFGHJKL", "x" * 1_000, "BCDF/GHJK"):
        assert tidy_code(text) == ""
    assert len(clean_facts({str(number): "x" * 1_000 for number in range(99)})) == rules.FACTS_MAX


@pytest.mark.parametrize("user", ["..", 'a"b', "a\nb", "Ü", "a" * 64, "ada@"])
def test_whose_it_is_must_be_a_login(olga: Browser, port: int, user: str) -> None:
    device = Asking(port)
    assert olga.send("POST", f"/api/v1/claims/{device.code}/approve", user=user).status_code == 400
    assert olga.client.get("/api/v1/claims").json()[0]["code"] == device.code  # it still waits
    assert olga.client.get("/api/v1/tokens").json()["tokens"] == []
    assert olga.send("POST", f"/api/v1/claims/{device.code}/deny").status_code == 204
    device.join()
    assert device.error is not None and device.error.refused
