"""A passkey in a real browser, with an authenticator that the browser plays itself (WebAuthn Level 3, section 11)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.dash.browsing import chromium, needs_browser, window
from tests.hub.dash.served import make_site

pytestmark = [needs_browser, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


def test_add_one_and_sign_in_with_nothing_else(tmp_path: Path) -> None:
    site = make_site(tmp_path / "state")
    site.fill(0)
    url = f"http://localhost:{site.port}"  # an address is nobody's relying party
    with site.running(), chromium() as browser, window(browser) as seen:
        devtools = seen.context.new_cdp_session(seen.page)
        devtools.send("WebAuthn.enable")
        made = devtools.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})["authenticatorId"]
        page = seen.page
        seen.sign_in(url)
        page.goto(f"{url}/account")
        page.fill("[data-passkey-name]", "desk")
        page.locator("[data-passkey-add]").click()
        page.locator(".feed").get_by_text("desk", exact=True).wait_for()
        assert len(devtools.send("WebAuthn.getCredentials", {"authenticatorId": made})["credentials"]) == 1

        page.goto("about:blank")  # a page that is open would ask for its changes without a cookie
        seen.context.clear_cookies()
        page.goto(f"{url}/devices")
        assert page.url.startswith(f"{url}/login")
        page.locator("[data-passkey-signin]").click()
        page.wait_for_url(f"{url}/devices")

        page.goto("about:blank")  # a page that is open would ask for its changes without a cookie
        seen.context.clear_cookies()
        devtools.send("WebAuthn.setUserVerified", {"authenticatorId": made, "isUserVerified": False})
        page.goto(f"{url}/login")
        page.locator("[data-passkey-signin]").click()
        page.wait_for_timeout(500)
        page.reload()
        assert page.url.startswith(f"{url}/login")  # possession alone is not enough
        assert seen.complaints == []
