"""Every page, wide and narrow: it is whole and says nothing to the console.

`./dev test --slow` loads each in light, in dark and as a phone does, and keeps pictures of them in build/screens: look
at them after a change of style.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.hub.dash.browsing import MODES, Window, chromium, keep, needs_browser, window
from tests.hub.dash.served import Served, make_site

pytestmark = [pytest.mark.long, needs_browser]


@pytest.fixture(scope="module")
def pictures(request: pytest.FixtureRequest) -> bool:
    """Whether there is time for them: of a whole page they take longer than all else that is done with it."""
    return "not slow" not in str(request.config.option.markexpr)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    site = make_site(tmp_path_factory.mktemp("fleet") / "state")
    site.fill(48)
    with site.running():
        yield site


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A hub on its first day: every page has to teach."""
    site = make_site(tmp_path_factory.mktemp("nothing") / "state")
    site.fill(0)
    with site.running():
        yield site


def open_device(page: Page) -> None:
    page.goto(page.url.partition("/devices")[0] + "/devices?q=name:cam-graz-1")
    page.locator("a.dev-name").click()
    page.wait_for_selector("#h-known")


def open_gateway(page: Page) -> None:
    page.goto(page.url.partition("/devices")[0] + "/devices?q=name:gw-lyon-1")
    page.locator("a.dev-name").click()
    page.wait_for_selector("#h-routes")


def make_token(page: Page) -> None:
    page.fill("#tags", "tag:camera")
    page.get_by_role("button", name="Make the token").click()
    page.wait_for_selector("#way-shell pre")


def show_code(page: Page) -> None:
    make_token(page)
    page.get_by_role("tab", name="QR code").click()


def choose_three(page: Page) -> None:
    for row in (1, 2, 3):
        page.locator(f"tbody tr:nth-child({row}) input[name=id]").check()


def break_policy(page: Page) -> None:
    page.fill("#text", page.input_value("#text").replace('"tag:server:443"', '"tag:servers:443x"', 1))
    page.get_by_role("button", name="Check", exact=True).click()
    page.wait_for_selector("#result[data-lines]:not([data-lines=''])")


def change_policy(page: Page) -> None:
    page.fill("#text", page.input_value("#text").replace("5683", "5684"))
    page.get_by_role("button", name="Check", exact=True).click()
    page.wait_for_selector("table.diff")
    page.fill("#src", "cam-graz-1")
    page.fill("#dst", "edge-graz-5:443")
    page.get_by_role("button", name="Explain").click()
    page.wait_for_selector("#explained .results")


def draw_graph(page: Page) -> None:
    page.wait_for_selector("#graph canvas")


def draw_trends(page: Page) -> None:
    page.wait_for_selector("[data-trend] canvas")


def draw_map(page: Page) -> None:
    page.wait_for_selector("#map path.pin")


def follow_chain(page: Page) -> None:
    page.get_by_role("button", name="Follow it").click()
    page.wait_for_selector("#chain .note.ok")


def press_help(page: Page) -> None:
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")


def add_client(page: Page) -> None:
    page.fill(
        "#name", f"phone-{page.viewport_size['width'] if page.viewport_size else 0}-{page.evaluate('Date.now()')}"
    )
    page.fill("#gateway", "gw-lyon-1")
    page.fill("#endpoint", "vpn.example.org:51820")
    page.get_by_role("button", name="Add the client").click()
    page.wait_for_selector("#h-made")


def add_client_wrongly(page: Page) -> None:
    page.fill("#name", "phone-wrong")
    page.fill("#gateway", "gw-lyon-1")
    page.fill("#endpoint", "vpn.example.org")
    page.get_by_role("button", name="Add the client").click()
    page.wait_for_selector("#endpoint-wrong")


def add_record_wrongly(page: Page) -> None:
    page.fill("#name", "cam-graz-1")
    page.fill("#value", "192.168.7.21")
    page.get_by_role("button", name="Add the record").click()
    page.wait_for_selector("#name-wrong")


def refuse_to_turn_on(page: Page) -> None:
    page.get_by_role("button", name="Request: on").click()
    page.wait_for_selector("#on-wrong")


def make_rollout_wrongly(page: Page) -> None:
    page.fill("#groups", "10%, 1, 100%")
    page.get_by_role("button", name="Make the rollout").click()
    page.wait_for_selector("#groups-wrong")


def open_rollout(page: Page) -> None:
    page.locator(".rollouts a.dev-name").first.click()
    page.wait_for_selector("#h-plan")


PAGES: tuple[tuple[str, str, Callable[[Page], None] | None], ...] = (
    ("overview", "/", None),
    ("devices", "/devices", None),
    ("devices-chosen", "/devices", choose_three),
    ("device", "/devices", open_device),
    ("device-gateway", "/devices", open_gateway),
    ("updates", "/updates", None),
    ("updates-wrong", "/updates", make_rollout_wrongly),
    ("rollout", "/updates", open_rollout),
    ("rollout-paused", "/updates/3", None),
    ("rigs", "/rigs", None),
    ("rig", "/rigs/bench-graz", draw_trends),
    ("rig-run", "/rigs/bench-graz/24", None),
    ("rig-run-failed", "/rigs/bench-lyon/9", None),
    ("rig-run-retried", "/rigs/bench-graz/17", None),
    ("topology", "/topology", draw_graph),
    ("map", "/map", draw_map),
    ("add", "/add", None),
    ("add-made", "/add", make_token),
    ("add-code", "/add", show_code),
    ("policy", "/policy", None),
    ("policy-wrong", "/policy", break_policy),
    ("policy-change", "/policy", change_policy),
    ("routes", "/routes", None),
    ("routes-client", "/routes", add_client),
    ("routes-wrong", "/routes", add_client_wrongly),
    ("names", "/names", None),
    ("names-wrong", "/names", add_record_wrongly),
    ("lock", "/lock", None),
    ("lock-refused", "/lock", refuse_to_turn_on),
    ("tokens", "/tokens", None),
    ("relays", "/relays", None),
    ("users", "/users", None),
    ("api-tokens", "/api-tokens", None),
    ("audit", "/audit", follow_chain),
    ("settings", "/settings", None),
    ("account", "/account", None),
    ("help", "/", press_help),
    ("not-found", "/devices/aaaaaaaaaaaaaaaaaaaaaaaa", None),
)
EMPTY = (
    *("/", "/devices", "/updates", "/rigs", "/topology", "/map", "/policy", "/routes", "/names", "/lock"),
    *("/tokens", "/relays", "/api-tokens", "/audit", "/settings"),
)


def faults_of(browser: Browser, fleet: Served, mode: str, look: Callable[[Window, str], list[str]]) -> list[str]:
    """What `look` finds on each page, given the page's name, and what the console was told."""
    faults: list[str] = []
    with window(browser, mode) as seen:
        seen.page.goto(f"{fleet.url}/login")
        faults += [f"login: {fault}" for fault in look(seen, "login")]
        seen.sign_in(fleet.url)
        for name, path, act in PAGES:
            answer = seen.page.goto(f"{fleet.url}{path}")
            assert answer is not None and answer.status == (404 if name == "not-found" else 200), path
            seen.wait_live()
            if act is not None:
                act(seen.page)
            faults += [f"{name}: {fault}" for fault in look(seen, name)]
            if name in ("policy-wrong", "policy-change"):  # what is left unsaved would ask before the next page
                seen.page.reload()
        # A page that is not there, and forms that come back with what is wrong with them, are meant to be such.
        return faults + [text for text in seen.complaints if not re.search("status of 40[04]", text)]


def test_every_page_is_whole_wide_and_narrow(browser: Browser, fleet: Served) -> None:
    def look(seen: Window, name: str) -> list[str]:
        faults = seen.look()
        seen.page.set_viewport_size(MODES["phone"]["viewport"])
        faults += [f"narrow: {fault}" for fault in seen.look()]
        seen.page.set_viewport_size(MODES["light"]["viewport"])
        return faults

    assert faults_of(browser, fleet, "light", look) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_page_is_whole_in_each_mode(browser: Browser, fleet: Served, mode: str) -> None:
    def look(seen: Window, name: str) -> list[str]:
        keep(seen.page, name, mode)
        return seen.look()

    assert faults_of(browser, fleet, mode, look) == []


@pytest.mark.parametrize("mode", ["light", pytest.param("phone", marks=pytest.mark.slow)])
def test_a_hub_without_devices_teaches(browser: Browser, nothing: Served, mode: str, pictures: bool) -> None:
    faults: list[str] = []
    with window(browser, mode) as seen:
        seen.sign_in(nothing.url)
        for path in EMPTY:
            seen.page.goto(f"{nothing.url}{path}")
            name = f"empty-{path.strip('/') or 'overview'}"
            faults += [f"{name}: {fault}" for fault in seen.look()]
            if pictures:
                keep(seen.page, name, mode)
            if path not in ("/policy", "/audit", "/settings"):
                assert seen.page.locator("main .empty-ours").count() >= 1, path
        assert seen.complaints == []
    assert faults == []


def test_the_keyboard_goes_everywhere(browser: Browser, fleet: Served) -> None:
    with window(browser) as seen:
        seen.sign_in(fleet.url)
        page = seen.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("g")
        page.keyboard.press("d")
        page.wait_for_url(f"{fleet.url}/devices")
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("x")
        assert page.locator("tr[data-at] input[name=id]").is_checked()
        assert page.locator("[data-bulk-count]").text_content() == "1 chosen"
        page.keyboard.press("/")
        page.keyboard.type("tag:camera online:no")
        page.wait_for_url("**/devices?*online*")
        assert 0 < page.locator("#devices tbody tr").count() < 5
        page.keyboard.press("Escape")
        page.locator("#devices tbody a.dev-name").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#h-id")
        assert seen.complaints == []


def test_colours_follow_the_system_and_the_switch(browser: Browser, fleet: Served) -> None:
    with window(browser, "dark") as seen:
        seen.sign_in(fleet.url)
        theme = "document.documentElement.dataset.bsTheme"
        assert seen.page.evaluate(theme) == "dark"
        seen.page.get_by_role("button", name="Colours").click()
        assert seen.page.evaluate(theme) == "light"
        seen.page.goto(f"{fleet.url}/tokens")
        assert seen.page.evaluate(theme) == "light"


def test_a_device_is_shown_live_while_somebody_looks(browser: Browser, fleet: Served, pictures: bool) -> None:
    with window(browser) as seen:
        seen.sign_in(fleet.url)
        seen.page.goto(f"{fleet.url}/devices")
        open_device(seen.page)
        seen.wait_live()
        seen.page.get_by_role("button", name="Look live").click()
        seen.page.get_by_role("button", name="Stop looking").wait_for()
        device = seen.page.url.rpartition("/")[2]
        for number in range(3):  # as the hub takes in what a device says
            fleet.say(device, up=500_000 + number)
            seen.page.locator("#now").get_by_text("live; running").wait_for()
            seen.page.wait_for_timeout(1_100)  # samples of one second are one point
        seen.page.wait_for_selector("[data-chart] canvas")
        assert seen.page.locator("[data-watch-said]").inner_text() == "Live."
        if pictures:
            keep(seen.page, "device-live", "light")
        seen.page.get_by_role("button", name="Stop looking").click()
        seen.page.get_by_role("button", name="Look live").wait_for()
        seen.page.goto(f"{fleet.url}/audit?verb=command.watch")
        assert seen.page.locator("#rows tbody tr").count() == 1
        assert seen.complaints == []


def test_destructive_things_are_asked_about(browser: Browser, fleet: Served) -> None:
    with window(browser) as seen:
        seen.sign_in(fleet.url)
        page = seen.page
        page.goto(f"{fleet.url}/devices?q=name:pump-graz-6")
        page.locator("input[name=id]").check()
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("button", name="Cancel").click()
        assert page.locator("#devices tbody tr").count() == 1
        page.get_by_role("button", name="Remove").click()
        page.locator("#confirm").get_by_role("button", name="Remove").click()
        page.wait_for_selector("text=Removed: 1 device")
        assert page.locator("#devices tbody tr").count() == 0
        assert seen.complaints == []
