"""Passkeys in a real browser, with authenticators that it plays itself (WebAuthn Level 3, section 11).

`./dev test --slow` keeps pictures of what the pages say, in build/screens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.hub.dash.browsing import MODES, Window, chromium, keep, needs_browser, window
from tests.hub.dash.served import Served, make_site

pytestmark = [needs_browser, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}
IN_LIGHT_ALWAYS = ["light", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES if mode != "light")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    site = make_site(tmp_path_factory.mktemp("passkeys") / "state")
    site.fill(0)
    with site.running():
        yield site


class Desk:
    """Somebody before a window, with the authenticators of their machine."""

    def __init__(self, seen: Window, site: Served, picture: str) -> None:
        self.seen, self.page = seen, seen.page
        self.url = f"http://localhost:{site.port}"  # an address is nobody's relying party
        self.faults: list[str] = []
        self._picture = picture
        self._devtools = seen.context.new_cdp_session(seen.page)
        self._devtools.send("WebAuthn.enable")
        self._authenticator = ""

    def tell(self, what: str, **parameters: Any) -> Any:
        """To the authenticator, by Chrome's developer tools."""
        return self._devtools.send(f"WebAuthn.{what}", {"authenticatorId": self._authenticator, **parameters})

    def plug(self, **changes: bool) -> None:
        """Another authenticator in the place of the one before."""
        self.unplug()
        made = self._devtools.send("WebAuthn.addVirtualAuthenticator", {"options": {**AUTHENTICATOR, **changes}})
        self._authenticator = made["authenticatorId"]

    def unplug(self) -> None:
        if self._authenticator:
            self.tell("removeVirtualAuthenticator")
            self._authenticator = ""

    def add(self, name: str = "") -> None:
        self.page.get_by_label("Name of a new passkey").fill(name)
        self.page.get_by_role("button", name="Add a passkey").click()

    def use(self) -> None:
        self.page.get_by_role("button", name="Use a passkey").click()

    def remove(self) -> None:
        self.page.locator("[aria-labelledby=h-passkeys]").get_by_role("button", name="Remove").click()
        self.page.locator("#confirm").get_by_role("button", name="Remove").click()
        self.page.get_by_text("The passkey was removed.").wait_for()

    def sign_out(self) -> None:
        out = self.page.locator("form[action='/logout'] button")
        if not out.is_visible():  # on a phone it is in the menu
            self.page.get_by_role("button", name="Menu").click()
        out.click()
        self.page.wait_for_url(f"{self.url}/login")

    def hears(self, words: str, picture: str = "") -> None:
        """The page says so, is whole, and its button can be pressed again."""
        expect(self.page.locator("[data-passkey-status]")).to_contain_text(words)
        expect(self.page.get_by_role("button", name=re.compile("a passkey"))).to_be_enabled()
        self.look(picture)

    def look(self, picture: str) -> None:
        self.faults += [f"{picture}: {fault}" for fault in self.seen.look()]
        if self._picture and picture:
            keep(self.page, f"passkey-{picture}", self._picture)


@pytest.fixture
def sit(browser: Browser, site: Served, request: pytest.FixtureRequest) -> Any:
    pictures = "not slow" not in str(request.config.option.markexpr)

    @contextmanager
    def sit(mode: str = "light") -> Iterator[Desk]:
        with window(browser, mode) as seen:
            desk = Desk(seen, site, mode if pictures else "")
            yield desk
            assert desk.faults == []

    return sit


def refusals(seen: Window) -> int:
    """How often the hub refused, which the console tells; all else that it was told is taken for a fault."""
    mere = [text for text in seen.complaints if re.search(r"/login: Failed to load .* status of 403", text)]
    assert mere == seen.complaints
    return len(mere)


def test_add_one_and_sign_in_with_nothing_else(sit: Any) -> None:
    with sit() as desk:
        page = desk.page
        desk.plug()
        desk.seen.sign_in(desk.url)
        page.goto(f"{desk.url}/account")
        desk.add("desk")
        page.get_by_text("The passkey was added.").wait_for()
        page.locator(".feed").get_by_text("desk", exact=True).wait_for()
        assert len(desk.tell("getCredentials")["credentials"]) == 1

        desk.sign_out()
        page.goto(f"{desk.url}/devices")
        assert page.url.startswith(f"{desk.url}/login")
        desk.use()
        page.wait_for_url(f"{desk.url}/devices")

        page.goto(f"{desk.url}/account")
        desk.remove()
        desk.sign_out()
        desk.use()  # the authenticator has it still
        desk.hears("not known here")
        page.goto(f"{desk.url}/devices")
        assert page.url.startswith(f"{desk.url}/login")
        assert refusals(desk.seen) == 1


@pytest.mark.parametrize("mode", IN_LIGHT_ALWAYS)
def test_what_does_not_come_about_is_said(sit: Any, mode: str) -> None:
    with sit(mode) as desk:
        page = desk.page
        desk.seen.sign_in(desk.url)
        page.goto(f"{desk.url}/account")
        desk.look("none")
        for unfit in ({"hasUserVerification": False, "isUserVerified": False}, {"hasResidentKey": False}):
            desk.plug(**unfit)
            desk.add()
            desk.hears("No passkey was made")
        desk.plug(isUserVerified=False)
        desk.add()
        desk.hears("did not verify you", "not-made")
        desk.plug()
        desk.add("a laptop")
        page.get_by_text("The passkey was added.").wait_for()
        desk.look("added")
        desk.add()
        desk.hears("has a passkey for your account already", "twice")

        desk.sign_out()
        desk.look("login")
        desk.tell("setUserVerified", isUserVerified=False)
        desk.use()
        desk.hears("did not verify you", "not-signed-in")
        desk.tell("setUserVerified", isUserVerified=True)
        desk.tell("setAutomaticPresenceSimulation", enabled=False)
        desk.use()
        expect(page.locator("[data-passkey-status]")).to_have_text("Your browser or device asks you now.")
        desk.look("waiting")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("[data-passkey-status]")).to_be_hidden()
        desk.tell("setAutomaticPresenceSimulation", enabled=True)
        desk.use()
        page.wait_for_url(f"{desk.url}/")

        page.goto(f"{desk.url}/account")
        desk.remove()
        desk.look("removed")
        desk.sign_out()
        desk.use()
        desk.hears("not known here", "unknown")
        desk.tell("clearCredentials")
        desk.use()
        desk.hears("there is no passkey for this hub")
        assert refusals(desk.seen) == 1


def test_a_hub_that_does_not_answer(sit: Any) -> None:
    with sit() as desk:
        desk.plug()
        desk.page.goto(f"{desk.url}/login")
        options = "**/login/passkey/options"
        desk.page.route(options, lambda route: route.abort())
        desk.use()
        desk.hears("The hub does not answer")
        desk.page.unroute(options)
        desk.page.route(options, lambda route: route.fulfill(status=502, content_type="text/html", body="<h1>Bad"))
        desk.use()
        desk.hears("status 502")


@pytest.mark.parametrize("mode", IN_LIGHT_ALWAYS)
def test_an_address_has_none_and_leads_to_the_name(sit: Any, site: Served, mode: str) -> None:
    with sit(mode) as desk:
        page = desk.page
        page.goto(f"{site.url}/login?next=/devices")
        assert page.get_by_role("button", name="Use a passkey").count() == 0
        page.get_by_text(f"instead of 127.0.0.1:{site.port}").wait_for()
        desk.look("address")
        desk.seen.sign_in(site.url)
        page.goto(f"{site.url}/account")
        page.get_by_text("Passkeys need a name").wait_for()
        assert page.get_by_role("button", name="Add a passkey").count() == 0
        desk.look("address-account")
        page.get_by_role("link", name=f"localhost:{site.port}").click()
        page.wait_for_url(f"{desk.url}/login?next=/account")
        assert page.get_by_role("button", name="Use a passkey").count() == 1
        assert desk.seen.complaints == []


def test_what_the_policy_of_a_page_forbids_would_be_seen(sit: Any) -> None:
    with sit() as desk:
        desk.page.goto(f"{desk.url}/login")
        desk.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: '0'}))")
        assert ["Content Security Policy" in text for text in desk.seen.complaints] == [True]
        desk.faults.clear()
