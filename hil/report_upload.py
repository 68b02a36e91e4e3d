"""A report told to a hub (docs/api.md): what it says as JSON, then the page of it, gzipped."""

from __future__ import annotations

import gzip
import os
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

from flash import hubapi
from flash.errors import FlashError
from hil import report_html
from hil.errors import UploadFailed
from hil.report_text import clean

TOKEN_VARIABLE = "EDGEHUB_TOKEN"
TIMEOUT_S = 60.0
# What a hub takes (docs/api.md); what is more is left out, the last first.
STEPS_MAX, FIGURES_MAX, GUESTS_MAX, EVENTS_MAX, TEXT_MAX, SAID_MAX = 200, 500, 64, 64, 200, 2_000
SAID_WHEN_PASSED_MAX = 500
PAGE_BYTES_MAX = 512 << 10  # gzipped
LINES_TRIED = (report_html.TRANSCRIPT_LINES_MAX, 300, 40)  # of a guest's console, until the page is short enough


class Uploaded(NamedTuple):
    number: int  # of the run, at the hub
    url: str  # of its page
    new: bool  # False: the hub had it already
    note: str  # what was left out; empty for nothing


def token_of(file: Path | None) -> str:
    """The API token: of a file, else of the environment. Raises UploadFailed; never says the token."""
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise UploadFailed(
                f"no API token: give --token-file FILE, or {TOKEN_VARIABLE} in the environment. "
                "`edgehub users token LOGIN --scope rigs:write` makes one"
            )
    else:
        try:
            with file.open(encoding="ascii") as opened:
                token = opened.read(hubapi.TOKEN_BYTES_MAX + 2).strip()
        except OSError as error:
            raise UploadFailed(f"--token-file {file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UploadFailed(f"--token-file {file}: there is no API token in it: one is ASCII") from None
    try:
        return hubapi.check_token(token)
    except FlashError as error:
        raise UploadFailed(str(error)) from None


def upload(told: dict[str, Any], folder: Path, hub: str, rig: str, token: str) -> Uploaded:
    """Raises UploadFailed. Doing it twice is one run: the hub knows its id."""
    try:
        api = hubapi.Hub(hub, token, timeout_s=TIMEOUT_S)
        name = urllib.parse.quote(rig, safe="")
        answer = api.ask("POST", f"/api/v1/rigs/{name}/runs", run_of(told))
        number = answer.get("number")
        if not isinstance(number, int):
            raise UploadFailed(f"{api.url}: the answer is not a hub's. Is it the address of the dashboard?")
        page, note = _page(told, folder)
        if page:
            api.ask("PUT", f"/api/v1/rigs/{name}/runs/{number}/report", page, "application/gzip")
    except FlashError as error:
        raise UploadFailed(str(error)) from None
    return Uploaded(number, f"{api.url}/rigs/{name}/{number}", answer.get("new") is True, note)


def _page(told: dict[str, Any], folder: Path) -> tuple[bytes, str]:
    """(gzip of a page that a hub takes, what was left out of it); empty where even a short one is too long."""
    for lines_max in LINES_TRIED:
        page = gzip.compress(report_html.render(told, folder, links=False, lines_max=lines_max).encode(), 9, mtime=0)
        if len(page) <= PAGE_BYTES_MAX:
            whole = lines_max == LINES_TRIED[0]
            return page, "" if whole else f"of consoles, {lines_max} lines a guest went along: the page was too long"
    return b"", f"its page has {len(page)} bytes gzipped, a hub takes {PAGE_BYTES_MAX}: only figures and steps went"


def run_of(told: dict[str, Any]) -> dict[str, Any]:
    """What a hub keeps of a report: no series and no files; texts of bounded length."""

    def text(value: object, limit: int = TEXT_MAX) -> str:
        return clean(str(value), limit)

    return {
        "id": told["id"],
        "suite": text(told["suite"], 64),
        "verdict": told["verdict"],
        "began": told["began"],
        "seconds": told["seconds"],
        "retries": told["retries"],
        "host": {name: text(value) for name, value in told["host"].items() if name != "load"},
        "versions": {text(name, 64): text(value) for name, value in list(told["versions"].items())[:16]},
        "steps": [
            {
                "name": text(step["name"]),
                "outcome": text(step["outcome"], 32),
                "at_s": step["at_s"],
                "seconds": step["seconds"],
                "load": step["load"],
                "error": text(step.get("error", ""), 64),
                "said": text(step["said"], SAID_WHEN_PASSED_MAX if step["outcome"] == "passed" else SAID_MAX),
            }
            for step in told["steps"][:STEPS_MAX]
        ],
        "figures": [
            {
                "what": text(row["what"]),
                "guest": text(row["guest"], 64),
                "value": row["value"],
                "unit": text(row["unit"], 32),
                "limit": row.get("limit"),
                "least": row.get("least", False),
            }
            for row in told["figures"][:FIGURES_MAX]
        ],
        "guests": [
            {
                "name": text(guest["name"], 64),
                "about": {text(name, 64): text(value) for name, value in list(guest["about"].items())[:16]},
                "events": [
                    {"at_s": event["at_s"], "what": text(event["what"]), "kind": event["kind"]}
                    for event in guest["events"][:EVENTS_MAX]
                ],
            }
            for guest in told["guests"][:GUESTS_MAX]
        ],
    }
