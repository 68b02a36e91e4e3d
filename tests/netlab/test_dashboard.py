"""What an operator does on a day, with nothing replaced: browser, hub, broker, dashboard, and real agents in the lab.

The pictures are in build/screens, as those of tests/hub/dash.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.hub.dash.browsing import SCREENS, chromium, needs_browser, window
from tests.netlab import Lab, echo, rights, until
from tests.netlab.mesh import Device, Mesh
from tests.netlab.process import Process

PORT = 7000
CUT_WITHIN_S = 10.0  # the figure
POLICY = """{
  // The server may reach all others, and nothing else may reach anything.
  "tagOwners": {"tag:server": [], "tag:pump": [], "tag:camera": [], "tag:front": []},
  "acls": [{"action": "accept", "src": ["tag:server"], "dst": ["tag:camera:7000", "tag:pump:7000"]}],
  "tests": [{"src": "tag:server", "accept": ["tag:camera:7000"]}],
}
"""
WITHOUT_PUMPS = POLICY.replace(', "tag:pump:7000"', "").replace("all others", "cameras")


class Site:
    """A hub whose dashboard answers outside of the lab, a server and a pump that have joined."""

    def __init__(self, lab: Lab, listening: socket.socket) -> None:
        host, port = listening.getsockname()
        self.url = f"http://{host}:{port}"
        self.net = lab.net("198.51.100.0/24", "2001:db8::/64")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub(listening)
        until(self.web_runs, 20, "the dashboard")
        self.server, self.pump = (
            self.join(name, self.mesh.token("--tag", f"tag:{name}")) for name in ("server", "pump")
        )
        echo.serve(self.pump.host, self.pump.address, PORT)

    def web_runs(self) -> bool:
        return bool(self.mesh.status()["process"].get("web_pid"))

    def join(self, name: str, token: str) -> Device:
        device = self.mesh.device(name, self.net)
        device.up(token)
        return device

    def flow(self, device: Device) -> Process:
        """TCP from the server to it, seen to be alive."""
        found = echo.client(self.server.host, device.address, PORT)
        until(partial(echo.is_alive, found), 15, f"a flow to {device.name}")
        return found

    def curl(self, path: str, *words: str, token: str = "") -> tuple[int, Any]:
        """Status and body, of the real program, outside; it reads the token from a file, as a user's would."""
        command = ["curl", "-sS", "--max-time", "10", "-w", "\n%{http_code}", *words, f"{self.url}{path}"]
        given = f'header = "Authorization: Bearer {token}"\n' if token else ""
        done = subprocess.run([*command, "-K", "-"], input=given, capture_output=True, text=True, check=True)
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body) if body.startswith(("{", "[")) else body

    def api_token(self, *scopes: str) -> str:
        words = [word for scope in scopes for word in ("--scope", scope)]
        return self.mesh.hub.run("edgehub", "users", "token", "admin", "--name", "curl", *words).stdout.strip()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening, Lab() as lab:
        yield Site(lab, listening)


def keep(page: Page, name: str) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    # To hide the caret Playwright would add a style of its own, which the page's policy complains of
    page.screenshot(path=Path(SCREENS, f"e2e-{name}.png"), full_page=True, caret="initial")


def set_policy(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.get_by_role("button", name="Save").click()
    page.locator("#confirm").get_by_role("button", name="Put into force").click()
    page.get_by_text("The policy is in force").wait_for()


def has_policy(device: Device) -> bool:
    return device.ask("status")["policy"] is not None


@needs_browser
def test_an_operators_day(site: Site) -> None:
    """Token, join, tag, policy, a flow cut, a command, a live look, and who did it all."""
    with chromium() as browser, window(browser) as seen, window(browser) as other:
        page, table = seen.page, other.page
        seen.sign_in(site.url, "admin", site.mesh.password)
        keep(page, "1-overview")
        other.sign_in(site.url, "admin", site.mesh.password)
        table.goto(f"{site.url}/devices")
        other.wait_live()

        page.keyboard.press("n")
        page.wait_for_url(f"{site.url}/add")
        page.fill("#tags", "tag:camera")
        keep(page, "2-add")
        page.get_by_role("button", name="Make the token").click()
        page.get_by_text("Waiting for it to join").wait_for()
        seen.wait_live()
        keep(page, "3-token")
        page.get_by_role("tab", name="Token").click()
        token = page.locator("#way-token pre code").inner_text()
        camera = site.join("front-door", token)
        echo.serve(camera.host, camera.address, PORT)
        page.get_by_text("1 joined!").wait_for()  # both by themselves
        table.locator("#devices").get_by_role("link", name="front-door").wait_for()
        keep(page, "4-joined")
        keep(table, "4-devices")

        page.locator("#joined").get_by_role("link", name="front-door").click()
        page.wait_for_selector("#h-known")
        device_url = page.url
        page.fill("#tags", "tag:camera tag:front")
        page.get_by_role("button", name="Set tags").click()
        page.locator("main").get_by_text("Tagged").wait_for()
        keep(page, "5-tagged")

        before = site.flow(site.pump)
        page.goto(f"{site.url}/policy")
        set_policy(page, POLICY)
        for device in site.mesh.devices:
            until(partial(has_policy, device), 15, f"{device.name}'s policy")
        cut, kept = site.flow(site.pump), site.flow(camera)
        assert before.running, "it is allowed, and was there before"
        page.fill("#text", WITHOUT_PUMPS)
        page.get_by_role("button", name="Check", exact=True).click()
        page.wait_for_selector("table.diff")
        keep(page, "6-policy-checked")
        set_policy(page, WITHOUT_PUMPS)
        saved_at = time.time()
        page.fill("#src", "server")
        page.fill("#dst", f"pump:{PORT}")
        page.get_by_role("button", name="Explain").click()
        page.wait_for_selector("#explained .results")
        keep(page, "7-policy-in-force")
        time.sleep(max(0.0, saved_at + CUT_WITHIN_S + 1 - time.time()))
        for flow in (before, cut):
            last = echo.echoes(flow)[-1]
            print(f"cut {last - saved_at:.2f} s after the page said that the policy is in force")
            assert last < saved_at + CUT_WITHIN_S
        assert echo.echoes(kept)[-1] > saved_at + CUT_WITHIN_S, kept.text()[-200:]
        assert site.pump.ask("status")["policy"]["revoked"] >= 1

        page.goto(device_url)
        seen.wait_live()
        page.get_by_role("button", name="Collect its log").click()
        page.locator("#commands").get_by_text("done", exact=True).wait_for()
        keep(page, "8-command")
        page.locator("#commands").get_by_role("link", name="Output").click()
        page.wait_for_selector("#h-output")
        output = page.locator("pre code").inner_text()
        assert len(output.splitlines()) > 3 and " INFO " in output
        keep(page, "9-output")

        page.goto(device_url)
        seen.wait_live()
        page.get_by_role("button", name="Look live").click()
        now = page.locator("#now")
        now.get_by_text("live; running").wait_for()
        row = now.locator("tr", has=page.get_by_role("link", name="server", exact=True))
        row.wait_for()
        assert re.search(r"direct.*\d+\.\d ms", row.inner_text(), re.DOTALL), row.inner_text()
        page.wait_for_selector("[data-chart] canvas")
        page.wait_for_timeout(6_000)  # some samples for the chart
        keep(page, "10-live")
        text = now.inner_text()
        memory = re.search(r"([\d.]+) (MiB|KiB) of ([\d.]+)", text)
        assert memory is not None and float(memory[1]) > 0, text
        for said in ("version 1", "eth0", "control", "probe", "payload"):  # its slice has not changed since; the ledger
            assert said in text, text
        page.get_by_role("button", name="Stop looking").click()

        page.goto(f"{site.url}/audit")
        keep(page, "11-audit")
        rows = page.locator("#rows tbody tr").all_inner_texts()
        verbs = [row.split("\t")[1].strip() for row in rows]
        wanted = [
            "command.watch",
            "command.collect-logs",
            "policy.set",
            "policy.set",
            "device.tag",
            "token.create",
        ]
        found = [(verb, row) for verb, row in zip(verbs, rows, strict=True) if verb in wanted][: len(wanted)]
        assert [verb for verb, _ in found] == wanted and all("user:admin" in row for _, row in found)
        page.get_by_role("button", name="Follow it").click()
        page.locator("#chain").get_by_text("that is all of them").wait_for()
        for name, path in (("topology", "/topology"), ("overview", "/")):
            page.goto(f"{site.url}{path}")
            seen.wait_live()
            page.wait_for_timeout(1_000)
            keep(page, f"12-{name}")
        assert seen.complaints == [] and other.complaints == []
        said = "".join(process.text() for process in site.mesh.lab.processes() if process.name == "edgehub")
        assert token.removeprefix("em1.") not in said and site.mesh.password not in said


def test_dig_asks_the_device_itself(site: Site) -> None:
    def dig(*words: str) -> str:
        options = ("@100.100.100.100", "+short", "+tries=1", "+timeout=5")
        return site.server.host.run("dig", *options, *words).stdout.strip()

    v4, v6 = site.pump.addresses
    assert dig("pump.lab") == v4
    assert dig("+tcp", "pump.lab", "AAAA") == v6
    assert dig("-x", v4) == "pump.lab."
    token = site.api_token("devices:read", "devices:write")
    status, changed = site.curl("/api/v1/devices/pump", "-X", "PATCH", "--json", '{"name": "well"}', token=token)
    assert (status, changed["name"]) == (200, "well")
    until(lambda: dig("well.lab") == v4, 15, "the new name")  # who asked before is told
    site.curl("/api/v1/devices/well", "-X", "PATCH", "--json", '{"name": "pump"}', token=token)


def test_curl_with_a_scoped_token(site: Site) -> None:
    token = site.api_token("devices:read")
    status, listed = site.curl("/api/v1/devices?filter=online:yes+tag:pump", token=token)
    assert status == 200 and [device["name"] for device in listed["devices"]] == ["pump"]
    assert listed["devices"][0]["addresses"] == site.pump.addresses
    for path, words in (("/api/v1/audit", ()), ("/api/v1/devices/pump", ("-X", "DELETE"))):
        status, said = site.curl(path, *words, token=token)
        assert (status, said["code"]) == (403, "scope-missing"), said
    assert site.curl("/api/v1/devices")[0] == 401
    wrong = token[:-4] + ("abcd" if token[-4:] != "abcd" else "dcba")
    status, said = site.curl("/api/v1/devices", token=wrong)
    assert (status, said["code"]) == (403, "token-unknown")
    assert site.curl("/api/v1/devices", "-H", "Host: evil.example", token=token)[0] == 403
    status, audit = site.curl("/api/v1/audit?verb=refused", token=site.api_token("audit:read"))
    assert status == 200
    assert {"scope-missing", "token-unknown"} <= {row["detail"]["why"] for row in audit["rows"]}, audit
    assert token[-20:] not in json.dumps(audit) and wrong[-20:] not in json.dumps(audit)
