"""The pages of updates, without a browser: what they show, who may press what, and forms that come back."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.core.roles import Access
from hub.core.rollout import Group, RolloutState
from hub.rolling import GroupView
from hub.web.views.updates import GROUP_MARKS, MARKS, split_bar
from tests.hub.dash.fleet import add_fleet
from tests.hub.dash.rollouts import add_rollouts
from tests.hub.dash.test_network import fault_at, post, text
from tests.hub.web.kit import Browser, Site

FORM = {"version": "0.3.0", "selector": "", "groups": "1,100%", "soak": "1h", "max_failed_percent": "10"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "hub")
    with made.write() as tx:
        wall_s = int(time.time())
        add_rollouts(tx, made.state, wall_s, add_fleet(tx, wall_s, 48))
    with made.running():
        yield made


@pytest.fixture
def owner(site: Site) -> Browser:
    browser = site.browser()
    browser.sign_in()
    return browser


def browser_of(site: Site, role: Access) -> Browser:
    site.add_person(role.value, role)
    browser = site.browser()
    browser.sign_in(role.value)
    return browser


def state_of(site: Site, number: int) -> RolloutState:
    with site.write() as tx:
        found = tx.rollouts.get(number)
    assert found is not None
    return found.state


def test_the_list_shows_each_state_with_its_reason(owner: Browser) -> None:
    page = html.unescape(text(owner, "/updates"))
    for said in (
        "waits for approval",
        "paused",
        "running",
        "1 of 2 failed; 10 % pause it",
        "the lab moves house first",
    ):
        assert said in page
    assert page.index('href="/updates/5"') < page.index('href="/updates/3"'), "the newest first"
    assert re.search(r'<strong class="num">0\.3\.0</strong>', page) and "mipsel-musl" in page
    assert 'data-live="rollouts devices all"' in page


def test_one_rollout_shows_its_devices_and_why(owner: Browser) -> None:
    page = html.unescape(text(owner, "/updates/3"))
    assert "no handshake with any of 3 peers within 300 s" in page and "tried again when it is resumed" in page
    page = html.unescape(text(owner, "/updates/5?state=failed"))
    assert page.count('class="dev-name nowrap"') == 1 and "212.0 KiB are free" in page
    assert owner.client.get("/updates/99").status_code == 404
    first = text(owner, "/updates/1")
    assert first.count('class="dev-name nowrap"') == 44 and "44 devices" in first


def test_people_decide_by_buttons_and_it_is_audited(site: Site, owner: Browser) -> None:
    answer = post(owner, "/updates/4/approve", to="list")
    assert answer.status_code == 303 and answer.headers["location"].startswith("/updates?said=rollout-approved")
    assert state_of(site, 4) is RolloutState.RUNNING
    for verb, state in (
        ("pause", RolloutState.PAUSED),
        ("resume", RolloutState.RUNNING),
        ("abort", RolloutState.ABORTED),
    ):
        assert post(owner, f"/updates/4/{verb}").status_code == 303
        assert state_of(site, 4) is state
    assert [row.actor for row in site.audit("rollout.abort")] == ["user:olga"]
    assert "makes no sense then" in html.unescape(post(owner, "/updates/4/resume").text)
    assert post(owner, "/updates/4/burn").status_code == 404
    assert post(owner, "/updates/99/abort").status_code == 404


@pytest.mark.parametrize("role", [Access.OPERATOR, Access.VIEWER])
def test_who_may_not_sees_no_button_and_is_refused(site: Site, role: Access) -> None:
    browser = browser_of(site, role)
    page = text(browser, "/updates")
    assert "/updates/4/approve" not in page and "/updates/3/resume" not in page
    assert ("/updates/5/pause" in page) is (role is Access.OPERATOR)
    assert ('id="new"' in page) is (role is Access.OPERATOR)
    assert post(browser, "/updates/4/approve").status_code == 403
    assert post(browser, "/updates", **FORM).status_code == (303 if role is Access.OPERATOR else 403)
    assert state_of(site, 4) is RolloutState.AWAITING


def test_a_rollout_is_made_by_the_form(site: Site, owner: Browser) -> None:
    answer = post(owner, "/updates", **FORM, windows="mon-fri 01:00-05:00", time_zone="Europe/Berlin", draft="yes")
    assert answer.headers["location"] == "/updates/6?said=rollout-made"
    assert state_of(site, 6) is RolloutState.DRAFT
    page = html.unescape(text(owner, "/updates/6"))
    assert "mon-fri 01:00-05:00 (Europe/Berlin)" in page and "/updates/6/submit" in page
    settings = {**FORM, "version": "", "settings": "log-level = debug\nbudget=wwan0=2MB/day"}
    assert post(owner, "/updates", **settings).headers["location"] == "/updates/7?said=rollout-made"
    assert "wwan0=2MB/day" in html.unescape(text(owner, "/updates/7"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": ""}, "version"),
        ({"version": "9.9"}, "version"),
        ({"selector": "colour:red"}, "selector"),
        ({"selector": "name:nobody"}, "selector"),
        ({"groups": "10%, 1, 100%"}, "groups"),
        ({"soak": "soon"}, "soak"),
        ({"soak": "99w"}, "soak"),
        ({"max_failed_percent": "many"}, "max_failed_percent"),
        ({"max_failed_percent": "101"}, "max_failed_percent"),
        ({"windows": "noon"}, "windows"),
        ({"windows": "01:00-02:00", "time_zone": "Mars"}, "time_zone"),
        ({"version": "", "settings": "debug"}, "settings"),
        ({"version": "", "settings": "state-dir=/"}, "settings"),
    ],
)
def test_a_form_comes_back_with_what_is_wrong_at_its_field(
    site: Site, owner: Browser, change: dict[str, str], field: str
) -> None:
    answer = post(owner, "/updates", **{**FORM, **change, "draft": "yes"})
    assert answer.status_code == 400 and fault_at(answer.text)[0] == field
    kept = next(iter(change.values()))
    assert not kept or html.escape(kept) in answer.text, "what was typed is still there"
    with site.write() as tx:
        assert len(tx.rollouts.newest()) == 5


def test_a_devices_page_says_what_rollouts_brought(site: Site, owner: Browser) -> None:
    with site.write() as tx:
        row = tx.rollouts.devices(3, limit=2)[1]
        tx.rollouts.save_settings(row.device, {"log-level": "debug"})
    page = html.unescape(text(owner, f"/devices/{row.device}"))
    assert "no handshake with any of 3 peers" in page and 'href="/updates/3"' in page
    assert "Settings by the hub" in page and "log-level=debug" in page


def test_the_overview_says_what_waits_for_somebody(owner: Browser) -> None:
    page = html.unescape(text(owner, "/"))
    assert "The rollout of version 0.2.0 has paused" in page and "waits for approval" in page


def test_every_state_has_a_mark_and_a_bar_is_as_long_as_its_devices() -> None:
    assert set(MARKS) == set(RolloutState)
    view = GroupView(1, str(Group(count=8)), 8, done=4, failed=1, under_way=1, state="under way")
    assert view.state in GROUP_MARKS
    widths = [float(each) for each in re.findall(r'x="[\d.]+" width="([\d.]+)"', split_bar(view))]
    assert widths == [50.0, 12.5, 12.5]
