"""A run as JUnit XML, as CI systems read it: the elements and attributes of the schema of Jenkins' xUnit plug-in
(junit-10), which pytest and Maven Surefire write too.

A test case a step in the first suite, a test case a limit in the second. Figures are properties of the first.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from hil.report_text import clean

TEXT_MAX = 16_000
MESSAGE_MAX = 300


def render(told: dict[str, Any]) -> bytes:
    """XML 1.0 in UTF-8. `told`: what `hil.report.Report.told` gives."""
    limited = [row for row in told["figures"] if "limit" in row]
    suites = [_steps(told)]
    if limited:
        suites.append(_limits(told, limited))
    root = ElementTree.Element("testsuites", name=clean(told["suite"]), time=_time(told["seconds"]))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in suites)))
    root.extend(suites)
    ElementTree.indent(root, " ")
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root) + b"\n"


def _steps(told: dict[str, Any]) -> ElementTree.Element:
    steps = told["steps"]
    failed = [step for step in steps if step["outcome"] != "passed"]
    suite = _suite(told, told["suite"], len(steps), len(failed), told["seconds"])
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"verdict": told["verdict"], "retries": told["retries"], "rig": told["rig"], "run": told["id"]}
    facts |= {f"version.{name}": value for name, value in told["versions"].items()}
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=clean(name), value=clean(str(value)))
    for row in told["figures"]:
        name = f"{row['what']} {row['guest']}".strip()
        ElementTree.SubElement(properties, "property", name=clean(name), value=clean(f"{row['value']:g} {row['unit']}"))
    retried = {step: told_of for step, told_of in _retries(told) if told_of}
    for number, step in enumerate(steps):
        case = _case(suite, told["suite"], step["name"], step["seconds"])
        if step["outcome"] != "passed":
            _failure(case, "failure", step.get("error", "failed"), step["said"])
            continue
        for what in retried.get(number, ()):  # as Surefire says that a test passed at another try
            _failure(case, "flakyFailure", "guest-stuck", what)
        if step["said"]:
            ElementTree.SubElement(case, "system-out").text = clean(str(step["said"]), TEXT_MAX)
    return suite


def _limits(told: dict[str, Any], limited: list[dict[str, Any]]) -> ElementTree.Element:
    name = f"{told['suite']} limits"
    suite = _suite(told, name, len(limited), sum(not row["ok"] for row in limited), 0.0)
    for row in limited:
        case = _case(suite, name, f"{row['what']} {row['guest']}".strip(), 0.0)
        sign = "at least" if row["least"] else "at most"
        said = f"{row['value']:g} {row['unit']}; {sign} {row['limit']:g} {row['unit']} is allowed"
        if row["ok"]:
            ElementTree.SubElement(case, "system-out").text = clean(said)
        else:
            _failure(case, "failure", "limit-passed", said)
    return suite


def _retries(told: dict[str, Any]) -> list[tuple[int, list[str]]]:
    """(number of a step, what was tried again while it ran)."""
    events = [
        (event["at_s"], f"{guest['name']}: {event['what']}")
        for guest in told["guests"]
        for event in guest["events"]
        if event["kind"] == "retry"
    ]
    return [
        (number, [what for at_s, what in events if step["at_s"] <= at_s <= step["at_s"] + step["seconds"]])
        for number, step in enumerate(told["steps"])
    ]


def _suite(told: dict[str, Any], name: str, tests: int, failures: int, seconds: float) -> ElementTree.Element:
    return ElementTree.Element(
        "testsuite",
        name=clean(name),
        tests=str(tests),
        failures=str(failures),
        errors="0",
        skipped="0",
        time=_time(seconds),
        timestamp=told["began"].rstrip("Z"),
        hostname=clean(told["host"]["name"]),
    )


def _case(suite: ElementTree.Element, classname: str, name: str, seconds: float) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=f"edgehil.{clean(classname)}", name=clean(name), time=_time(seconds)
    )


def _failure(case: ElementTree.Element, element: str, kind: str, said: str) -> None:
    text = clean(str(said), TEXT_MAX)
    message = clean(text.split("\n", 1)[0], MESSAGE_MAX)
    ElementTree.SubElement(case, element, type=clean(kind), message=message).text = text


def _time(seconds: float) -> str:
    return f"{seconds:.2f}"
