"""JUnit XML by the rules of its schema, and the page: whole, without a script, and whatever guests say is text."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hil import report_html, report_junit, report_svg, report_text
from tests.hil import report_kit

HOSTILE = (
    "</pre><script>alert(1)</script>\x1b[31mred\x1b[0m ]]> & \x00\x08\u202e\ud800<img src=http://evil.test onerror=x>"
)
# What the schema of Jenkins' xUnit plug-in (junit-10.xsd) allows: children, then attributes, those that must be first.
RULES: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors", "disabled"}),
    "testsuite": (
        {"properties", "testcase", "system-out", "system-err"},
        {"name", "tests", "failures", "errors"},
        {"time", "timestamp", "hostname", "skipped", "id", "package", "group", "file", "log", "url", "version"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, set()),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err", "rerunFailure", "flakyFailure"},
        {"name", "classname"},
        {"time", "group", "status", "assertions"},
    ),
    "failure": (set(), set(), {"type", "message"}),
    "flakyFailure": (set(), {"message", "type"}, set()),
    "system-out": (set(), set(), set()),
}


def parse(told: dict[str, Any]) -> ElementTree.Element:
    """As a strict reader does; raises where a rule is broken."""
    root = ElementTree.fromstring(report_junit.render(told))
    for element in root.iter():
        children, must, may = RULES[element.tag]
        assert {child.tag for child in element} <= children, element.tag
        assert must <= set(element.keys()) <= must | may, (element.tag, element.keys())
    for suite in root:
        cases = suite.findall("testcase")
        assert int(suite.get("tests", "")) == len(cases)
        assert int(suite.get("failures", "")) == sum(case.find("failure") is not None for case in cases)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp", "")), "no zone: xs:dateTime"
        assert all(re.fullmatch(r"\d+\.\d+", case.get("time", "")) for case in cases)
        tags = [child.tag for child in suite]
        assert tags == sorted(tags, key=["properties", "testcase"].index), "the schema has an order"
    assert int(root.get("tests", "")) == sum(int(suite.get("tests", "")) for suite in root)
    return root


def test_each_step_and_each_limit_is_a_test_case() -> None:
    root = parse(report_kit.told())
    steps, limits = root
    assert [case.get("name") for case in steps.findall("testcase")] == [step[0] for step in report_kit.STEPS]
    assert len(limits) == 8 and root.get("failures") == "0"
    properties = {each.get("name"): each.get("value") for each in steps.iter("property")}
    assert properties["verdict"] == "passed" and properties["version.commit"] == "3f0c1de"
    assert str(properties["agent, resident memory pump"]).endswith(" MiB")


def test_what_failed_says_so_with_its_name() -> None:
    root = parse(report_kit.told(failed="truck: no login\nit said last: …"))
    [failure] = root.iter("failure")
    assert (failure.get("type"), failure.get("message")) == ("guest-stuck", "truck: no login")
    assert failure.text == "truck: no login\nit said last: …"
    root = parse(report_kit.told(memory_mib=60.0))
    assert {failure.get("type") for failure in root.iter("failure")} == {"limit-passed"}
    assert "at most 32 MiB is allowed" in str(next(root.iter("failure")).text)


def test_a_boot_that_was_tried_again_is_flaky() -> None:
    root = parse(report_kit.told(retries=2))
    assert root.get("failures") == "0"
    [case] = [case for case in root.iter("testcase") if case.find("flakyFailure") is not None]
    assert case.get("name") == "boot and join" and len(case.findall("flakyFailure")) == 2


def hostile() -> dict[str, Any]:
    """Every text of a report is what somebody would break it with."""
    told = report_kit.told(retries=1)

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [spoil(each, key) for each in value]
        fixed = key in ("outcome", "kind", "verdict", "began", "transcript", "path")
        return value if fixed or not isinstance(value, str) else value + HOSTILE

    spoilt: dict[str, Any] = spoil(told)
    spoilt["kept"][0]["path"] = "javascript:alert(1)"
    return spoilt


def test_junit_takes_whatever_guests_say() -> None:
    text = " ".join(ElementTree.tostring(element, "unicode") for element in parse(hostile()))
    assert "\x1b" not in text and "\u202e" not in text and "&lt;script&gt;" in text


class Page(HTMLParser):
    """Looks at every tag."""

    VOID = frozenset(("meta", "link", "br", "img", "input", "hr"))

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.style = ""
        self.policy = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        named = dict(attrs)
        assert len(named) == len(attrs), "an attribute twice"
        for name, value in attrs:
            assert not name.startswith("on") and name not in ("style", "src", "srcset", "action", "xlink:href"), name
            if name == "href":
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named.get("content") or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize(
    "told",
    [
        report_kit.told(),
        report_kit.told(retries=1),
        report_kit.told(failed="truck: no login"),
        report_kit.told(memory_mib=60.0),
        hostile(),
        {**report_kit.told(), "steps": [], "figures": [], "series": [], "guests": [], "kept": [], "verdict": "failed"},
    ],
    ids=["passed", "retried", "failed", "beyond", "hostile", "nothing"],
)
def test_the_page_is_whole_and_asks_nothing_of_anybody(tmp_path: Path, told: dict[str, Any], links: bool) -> None:
    report_kit.write(tmp_path, report_kit.told())
    page = Page(report_html.render(told, tmp_path, links=links))
    assert page.tags.isdisjoint(("script", "img", "iframe", "object", "embed", "link", "form", "base"))
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert page.policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in page.style and "@import" not in page.style
    assert len(page.ids) == len(set(page.ids))
    assert all(not link.partition("/")[0].count(":") for link in page.links), "no scheme: a path beside the page"
    assert bool(page.links) is (links and bool(told["kept"]))
    for char in ("\x1b", "\x00", "\x08", "\u202e"):
        assert char not in page.html


def test_links_lead_to_what_was_kept(tmp_path: Path) -> None:
    told = report_kit.told()
    report_kit.write(tmp_path, told)
    page = Page(report_html.render(told, tmp_path))
    assert page.links and all((tmp_path / link).is_file() for link in page.links)


def test_transcripts_have_the_times_of_the_run_and_bounds(tmp_path: Path) -> None:
    told = report_kit.told(failed="truck: no login")
    report_kit.write(tmp_path, told)
    lines = "".join(f"{number / 10:9.3f}  line {number}\n" for number in range(9_000))
    (tmp_path / "pump/console.log").write_text(lines)
    html = report_html.render(told, tmp_path)
    assert "9000 lines" in html and "7000 lines are left out here" in html
    assert "<i>60.1</i>line 0\n" in html and "line 8999" in html and "line 4000\n" not in html
    assert re.search(r"<details open>\s*<summary>Serial console: 14 lines of 2 boots", html), "the one that failed"
    assert html.count("<details>") == 2


def test_a_report_names_no_file_beyond_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.log").write_text("    0.000  the secret\n")
    told = report_kit.told()
    for number, path in enumerate(("../secret.log", str(tmp_path / "secret.log"), ".")):
        told["guests"][number]["transcript"] = path
    (tmp_path / "run").mkdir()
    assert "the secret" not in report_html.render(told, tmp_path / "run")


def test_graphs_are_of_what_was_measured_often(tmp_path: Path) -> None:
    told = report_kit.told()
    for at_s, value in ((10.0, 3.0), (20.0, -1.0), (30.0, 5.0)):
        told["figures"].append(report_kit.figure("drift", value, "ms", "pump", at_s, limit=9))
    made = report_html.graphs(told)
    assert [(graph["what"], len(graph["names"])) for graph in made] == [("memory of its programs", 3), ("drift", 1)]
    assert made[1]["limit"] == 9 and 'class="limit"' in made[1]["picture"]
    told["series"] += [{**told["series"][0], "guest": f"g{number}"} for number in range(9)]
    assert len(report_html.graphs(told)) == 3, "six lines a picture"


@pytest.mark.parametrize(("raw", "step"), [(0.3, 0.5), (1, 1), (7, 10), (23, 50), (180, 200), (0, 1), (-3, 1)])
def test_steps_of_axes_are_round(raw: float, step: float) -> None:
    assert report_svg.nice(raw) == pytest.approx(step)


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (59.6, "1:00"), (185, "3:05"), (3720, "1:02:00")])
def test_times_as_people_say_them(seconds: float, text: str) -> None:
    assert report_svg.clock(seconds) == text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]0;title\x1b\\text", "text"),
        ("\x1b]never ends", ""),
        ("a\r\nb", "a\nb"),
        ("\x1b(Bplain\x1b=", "plain"),
        ("\x00\x07\u202e", "\N{REPLACEMENT CHARACTER}" * 3),
        ("grün → ≤", "grün → ≤"),
    ],
)
def test_escapes_go_and_controls_are_shown(said: str, shown: str) -> None:
    assert report_text.clean(said) == shown
