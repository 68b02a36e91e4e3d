"""The whole way in a browser, over a real hub and broker: token, join, tag, policy, audit row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent.proto.token import Token as JoinToken
from tests.hub.dash.browsing import chromium, needs_browser, window
from tests.hub.dash.served import Served
from tests.hub.rig import Rig

pytestmark = needs_browser


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "hub")
    try:
        yield made
    finally:
        made.end()


@pytest.mark.slow
def test_from_a_token_to_the_audit_row(rig: Rig) -> None:
    site = Served(rig.state)
    site.fill(0)
    rig.start()
    with site.running(), chromium() as browser, window(browser) as seen, window(browser) as other:
        page, table = seen.page, other.page
        seen.sign_in(site.url)
        other.sign_in(site.url, "ben@example.org")
        table.goto(f"{site.url}/devices")
        assert "No device has joined yet" in table.locator("main").inner_text()

        page.keyboard.press("n")
        page.wait_for_url(f"{site.url}/add")
        page.fill("#tags", "tag:camera")
        page.get_by_role("button", name="Make the token").click()
        assert "Waiting for it to join" in page.locator("#joined").inner_text()
        seen.wait_live()
        rig.wait_settled()
        page.get_by_role("tab", name="Token").click()
        text = page.locator("#way-token pre code").inner_text()

        member = rig.join(JoinToken.decode(rig.crypto, text), host="front-door")
        assert member.is_in
        page.get_by_text("1 joined!").wait_for()
        page.locator("#joined").get_by_role("link", name="front-door").click()
        page.wait_for_url(f"{site.url}/devices/{member.id}")

        page.fill("#tags", "tag:camera site-graz")
        page.get_by_role("button", name="Set tags").click()
        page.locator("main").get_by_text("Tagged").wait_for()
        assert page.locator("#device .tag").all_inner_texts() == ["tag:camera", "tag:site-graz"]

        table.goto(f"{site.url}/devices")
        other.wait_live()
        page.fill("#name", "gate")
        page.get_by_role("button", name="Rename").click()
        table.locator("#devices").get_by_role("link", name="gate").wait_for()  # by itself

        page.goto(f"{site.url}/policy")
        page.get_by_role("button", name="Save").click()
        page.locator("#confirm").get_by_role("button", name="Put into force").click()
        page.get_by_text("The policy is in force").wait_for()

        page.goto(f"{site.url}/audit")
        rows = page.locator("#rows tbody tr").all_inner_texts()
        verbs = [row.split("\t")[1].strip() for row in rows]
        assert verbs[:4] == ["policy.set", "device.rename", "device.tag", "token.create"]
        assert f"device:{member.id}" in rows[2] and "user:ada@example.org" in rows[2]
        page.get_by_role("button", name="Follow it").click()
        page.locator("#chain").get_by_text("that is all of them").wait_for()
        assert seen.complaints == [] and other.complaints == []
        secret = text.removeprefix("em1.")
        assert secret not in (rig.state.directory / "web.log").read_text() + rig.log.read_text()
    assert rig.stop() == 0
