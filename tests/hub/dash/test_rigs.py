"""The pages of rigs, and the whole way of a report: from a folder to a running hub, and into a browser."""

from __future__ import annotations

import gzip
import html
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hil import cli, report_html
from hil.report_upload import run_of
from hub import people
from hub.core.rigs import Verdict
from hub.core.roles import Access, Principal
from hub.rigging import Trend
from hub.store.sqlite import SqliteStore
from hub.web.views.rigs import MARKS, change, charts, spark
from tests.hil import report_kit
from tests.hub.dash.browsing import MODES, chromium, keep, needs_browser, window
from tests.hub.dash.rigs import add_rigs
from tests.hub.dash.served import make_site
from tests.hub.dash.test_network import post, text
from tests.hub.dash.test_updates import browser_of
from tests.hub.web.kit import Browser, Site

NOW_S = int(time.time())  # for all tests, so that they have the same pages


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "hub")
    with made.write() as tx:
        add_rigs(tx, NOW_S)
    with made.running():
        yield made


@pytest.fixture
def owner(site: Site) -> Browser:
    browser = site.browser()
    browser.sign_in()
    return browser


def test_the_list_begins_with_what_failed(owner: Browser) -> None:
    page = html.unescape(text(owner, "/rigs"))
    assert re.findall(r'class="dev-name" href="/rigs/([\w-]+)"', page) == ["bench-lyon", "bench-graz", "qemu-ci"]
    assert "boot and join: guest-stuck" in page and "6 of 9" in page
    assert page.count('<a class="bad" href="/rigs/bench-lyon/') == 3 and 'data-live="rigs all"' in page
    assert page.count('href="/rigs/bench-graz/') == 21, "a strip of twenty, and the last"


def test_a_rig_shows_its_runs_and_how_its_figures_go(owner: Browser) -> None:
    page = html.unescape(text(owner, "/rigs/bench-graz"))
    assert page.count('class="dev-name nowrap"') == 12 and "a boot was tried again" in page
    assert "1–12 of 24 runs" in page
    next_page = text(owner, html.unescape(re.findall(r'href="([^"]*)" rel="next"', page)[0]))
    assert next_page.count('class="dev-name nowrap"') == 12 and "13–24 of 24 runs" in next_page
    assert (page + next_page).count('target="_blank" rel="noopener"') == 20, "so many pages are kept"
    data = [json.loads(each) for each in re.findall(r'data-trend="(.*?)"><fig', page)]
    assert {each["unit"] for each in data} == {"s", "MiB", "ms", "Mbit/s"}
    memory = next(each for each in data if each["unit"] == "MiB")
    assert [line["name"] for line in memory["lines"]] == ["pump", "camera", "truck"] and memory["limit"] == 32
    assert memory["runs"] == list(range(1, 25)) and all(len(line["values"]) == 24 for line in memory["lines"])
    assert "smoke 24" in text(owner, "/rigs/bench-graz?suite=smoke")
    assert "compared from the second run on" in text(owner, "/rigs/qemu-ci")
    for path in ("/rigs/none", "/rigs/bench-graz/99", "/rigs/none/1", "/rigs/bench-graz/1/report"):
        assert owner.client.get(path).status_code == 404, path


def test_a_run_shows_what_failed_and_what_was_measured(owner: Browser) -> None:
    page = html.unescape(text(owner, "/rigs/bench-lyon/9"))
    assert "guest-stuck" in page and "at each of 3 boots" in page and "2 boots were tried again" in page
    page = html.unescape(text(owner, "/rigs/bench-graz/12"))
    assert "Beyond" in page and "agent, resident memory of" in page and "beyond it" in page
    assert page.count('class="spark"') == 11 and 'href="/rigs/bench-graz/13"' in page
    assert 'href="/rigs/bench-graz/12/report"' in page
    assert "none was sent, or 20 newer ones" in html.unescape(text(owner, "/rigs/bench-graz/2"))


def test_who_may_remove_a_rig(site: Site, owner: Browser) -> None:
    operator = browser_of(site, Access.OPERATOR)
    assert 'action="/rigs/bench-graz/remove"' not in text(operator, "/rigs/bench-graz")
    assert post(operator, "/rigs/bench-graz/remove").status_code == 403
    assert post(owner, "/rigs/bench-graz/remove").headers["location"] == "/rigs?said=rig-removed"
    assert owner.client.get("/rigs/bench-graz").status_code == 404
    assert [row.object for row in site.audit("rig.remove")] == ["rig:bench-graz"]


def test_what_a_run_says_is_text(site: Site, owner: Browser) -> None:
    bad = "<script>alert(1)</script>"
    told = report_kit.told(failed=bad)
    told["host"]["name"] = told["guests"][0]["name"] = told["steps"][0]["name"] = bad
    body = {**run_of(told), "suite": bad, "figures": [{"what": bad, "guest": bad, "value": 1, "unit": bad, "limit": 3}]}
    program = site.program(site.token("olga", "rigs:write"))
    for number in (1, 2):
        answer = program.post("/api/v1/rigs/evil/runs", json={**body, "id": f"{number:032x}"})
        assert answer.status_code == 201, answer.text
    for path in ("/rigs", "/rigs/evil", "/rigs/evil/1"):
        page = text(owner, path)
        assert "<script>alert" not in page and "&lt;script&gt;" in page


def test_pictures_and_what_they_are_beside() -> None:
    assert set(MARKS) == set(Verdict)
    trend = Trend("rss", "pump", "MiB", 32.0, False, [(1, 20.0), (2, 20.0), (3, 20.0), (4, 25.0)])
    assert change(trend) == "+25 %" and 'class="spark-limit"' in spark(trend, 4)
    assert change(Trend("rss", "", "", None, False, [(1, 1.0), (2, 1.0)])) == "" == spark(Trend("a", "", ""), 1)
    many = [Trend("rss", f"g{number}", "MiB", 1.0, False, [(1, 1.0), (2, 2.0)]) for number in range(8)]
    other = Trend("rtt", "", "ms", None, False, [(1, 1.0), (2, 2.0)])
    assert [(each["what"], len(json.loads(each["data"])["lines"])) for each in charts([other, *many])] == [
        ("rss", 6),
        ("rss", 2),
        ("rtt", 1),
    ]


def test_pages_stand_what_a_run_may_say(site: Site, owner: Browser) -> None:
    """The last second that there is, and a figure infinitely many times what it was."""
    program = site.program(site.token("olga", "rigs:write"))
    for number, value in enumerate((1e-300, 1e-300, 1e-300, 1e15), 1):
        figures = [{"what": "drift", "value": value, "unit": "s"}]
        told = {**run_of(report_kit.told(seed=number)), "began": "9999-12-31T23:59:59-14:00", "figures": figures}
        assert program.post("/api/v1/rigs/odd/runs", json=told).status_code == 201
    assert "far from usual" in text(owner, "/rigs/odd/4")
    for path in ("/rigs", "/rigs/odd"):
        assert "9999-12-31" in text(owner, path)


@needs_browser
def test_a_report_goes_from_a_folder_to_a_hub_and_into_a_browser(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = make_site(tmp_path / "state")
    served.fill(0)
    folder = tmp_path / "run"
    told = report_kit.told(retries=1)
    report_kit.write(folder, told)
    (folder / "report.json").write_text(json.dumps(told))
    token = tmp_path / "rig.token"
    with closing(SqliteStore(served.state.database)) as store, store.write() as tx:
        ada = people.find_person(tx, "ada@example.org")
        who = Principal(ada.id, ada.login, ada.name, ada.role)
        _, secret = people.make_token(tx, int(time.time()), who, name="ci", scopes=("rigs:write",), life_s=600)
    token.write_text(secret)
    words = ["report", "upload", str(folder), "--hub", served.url, "--token-file", str(token)]
    evil = report_html.render(told, folder).replace("</body>", "<script>document.title = 'ran'</script></body>")
    with served.running():
        assert cli.main(words) == 0
        assert f"run 1 of bench-1: {served.url}/rigs/bench-1/1" in capsys.readouterr().out
        assert cli.main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["new"] is False
        with chromium() as browser:
            for mode in MODES:
                with window(browser, mode) as seen:
                    seen.sign_in(served.url)
                    seen.page.goto(f"{served.url}/rigs/bench-1/1")
                    assert seen.page.get_by_role("link", name="Whole report").get_attribute("target") == "_blank"
                    answer = seen.page.goto(f"{served.url}/rigs/bench-1/1/report")
                    assert answer is not None and answer.status == 200
                    assert seen.page.title() == "smoke: passed with retries · bench-1"
                    faults = [fault for fault in seen.look() if not fault.startswith("inline: <style>")]
                    keep(seen.page, "rig-report", mode)
                    assert faults == [] and seen.complaints == []
        monkeypatch.setattr(report_html, "render", lambda *_, **__: evil)
        told["id"] = "f" * 32
        (folder / "report.json").write_text(json.dumps(told))
        assert cli.main(words) == 0
        with chromium() as browser, window(browser) as seen:
            seen.sign_in(served.url)
            seen.page.goto(f"{served.url}/rigs/bench-1/2/report")
            assert seen.page.title() == "smoke: passed with retries · bench-1"
            assert any("script" in text.lower() for text in seen.complaints), "the browser says what it did not run"
        token.write_text(secret[:-1] + ("A" if secret[-1] != "A" else "B"))
        assert cli.main(words) == 1
        said = capsys.readouterr().err
        assert "upload-failed" in said and "runs: 403: This API token" in said and secret[:-1] not in said


def test_the_same_page_from_a_disk(tmp_path: Path) -> None:
    report_kit.write(tmp_path, report_kit.told())
    assert len(gzip.compress((tmp_path / "report.html").read_bytes())) < 20_000
