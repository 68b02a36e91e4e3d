"""Debian's chromium, driven by Playwright: what it complains of, and what a screen reader would stumble over."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.hub.dash.fleet import PASSWORD

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENS = Path(__file__).parents[3] / "build" / "screens"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: apt-get install chromium)")

MODES: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1360, "height": 850}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1360, "height": 850}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True},
}

LOOK = Path(__file__).with_name("look.js").read_text(encoding="utf-8")


class Window:
    """One page of one browser context; `complaints` are errors of scripts, of the console, and of the page's policy."""

    def __init__(self, browser: Browser, mode: str) -> None:
        # Without motion: nothing is animated, and nobody waits for it.
        self.context = browser.new_context(**MODES[mode], reduced_motion="reduce")
        self.context.set_default_timeout(15_000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))

    def sign_in(self, url: str, login: str = "ada@example.org", password: str = PASSWORD) -> None:
        self.page.goto(f"{url}/login")
        self.page.fill("#login", login)
        self.page.fill("#password", password)
        self.page.get_by_role("button", name="Sign in", exact=True).click()
        self.page.wait_for_url(f"{url}/")

    def wait_live(self) -> None:
        self.page.wait_for_selector('[data-live-state][data-state="on"]', state="attached")

    def look(self) -> list[str]:
        found: list[str] = self.page.evaluate(LOOK)
        return found

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type} at {self.page.url}: {message.text}")


def keep(page: Page, name: str, mode: str) -> None:
    """A picture of the whole page, to be looked at."""
    SCREENS.mkdir(parents=True, exist_ok=True)
    # To hide the caret Playwright would add a style of its own, which the page's policy complains of
    page.screenshot(path=SCREENS / f"{name}-{mode}.png", full_page=True, caret="initial")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def window(browser: Browser, mode: str = "light") -> Iterator[Window]:
    made = Window(browser, mode)
    try:
        yield made
    finally:
        made.context.close()
