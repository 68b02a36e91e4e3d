"""A run as one HTML file that asks nothing of anybody: no script, nothing from elsewhere, everything escaped.

Its own policy (CSP) allows one style sheet by its hash and nothing else. Shown from a disk, by a CI system or by a hub
it is the same; printed, too.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hil import report_svg as svg
from hil.report_text import Line, bounded, clean, transcript

TRANSCRIPT_LINES_MAX = 2_000  # of a guest
TRANSCRIPTS_LINES_MAX = 12_000  # of all
SAID_MAX = 8_000
GRAPHS_MAX = 24
HERE = Path(__file__).parent
_VERDICTS = {
    "passed": ("ok", "passed"),
    "retried": ("warn", "passed with retries"),
    "failed": ("bad", "failed"),
}


def render(told: dict[str, Any], folder: Path, *, links: bool = True, lines_max: int = TRANSCRIPT_LINES_MAX) -> str:
    """`folder` has the files that `told` names. Without `links` they are named only: for a page that leaves them.

    `lines_max`: of each guest's transcript.
    """
    told = _cleaned(told)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update({"clean": clean, "clock": svg.clock, "size": size})
    style = (HERE / "report.css").read_text(encoding="utf-8").strip()
    failed = [step for step in told["steps"] if step["outcome"] != "passed"]
    known: dict[str, Any] = {
        **told,
        "style": Markup(style),  # ours, and the only text that is not escaped
        "style_hash": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        "mark": _VERDICTS[told["verdict"]],
        "failed": failed,
        "table": grouped(told["figures"]),
        "beyond": [row for row in told["figures"] if not row["ok"]],
        "limited": sum("limit" in row for row in told["figures"]),
        "timeline": svg.timeline(told["steps"], told["guests"], told["seconds"]),
        "graphs": graphs(told)[:GRAPHS_MAX],
        "consoles": _consoles(told, folder, failed, lines_max),
        "links": links,
        "said_max": SAID_MAX,
    }
    return environment.get_template("report.html.jinja").render(known)


def graphs(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured three times or more, a graph for each thing and a line for each guest."""
    found: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    limits: dict[tuple[str, str], float] = {}
    for series in told["series"]:
        found.setdefault((series["what"], series["unit"]), {})[series["guest"]] = series["points"]
    for row in told["figures"]:
        key = (row["what"], row["unit"])
        found.setdefault(key, {}).setdefault(row["guest"], []).append([row["at_s"], row["value"]])
        if "limit" in row:
            limits[key] = row["limit"]
    made = []
    for (what, unit), by_guest in found.items():
        lines = [(guest, points) for guest, points in by_guest.items() if len(points) >= 3]
        if not lines:
            continue
        for at in range(0, len(lines), svg.LINES_MAX):
            part = lines[at : at + svg.LINES_MAX]
            names = [(name, f"{points[-1][1]:.4g} {unit}") for name, points in part]
            limit = limits.get((what, unit))
            made.append({"what": what, "names": names, "picture": svg.graph(part, unit, limit), "limit": limit})
    return made


def grouped(figures: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """(figure, whether the one above it is of the same kind): those of a kind together, in the order of their first."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in figures:
        kinds.setdefault((row["what"], row["unit"]), []).append(row)
    return [(row, at > 0) for rows in kinds.values() for at, row in enumerate(rows)]


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _cleaned(value: Any) -> Any:
    """Of a report, every text as it may be shown: a guest chooses names and errors too."""
    if isinstance(value, dict):
        return {_cleaned(name): _cleaned(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    return clean(value) if isinstance(value, str) else value


def _consoles(told: dict[str, Any], folder: Path, failed: list[dict[str, Any]], lines_max: int) -> list[dict[str, Any]]:
    """Each guest with its transcript, whose times are those of the run where its power-ons are known."""
    said = "\n".join(str(step["said"]) for step in failed)
    limit = min(lines_max, TRANSCRIPTS_LINES_MAX // max(len(told["guests"]), 1))
    made = []
    for guest in told["guests"]:
        begins = [event["at_s"] for event in guest["events"] if event["kind"] == "on"]
        lines: list[Line] = []
        path = (folder / guest["transcript"]).resolve()
        if path.is_file() and path.is_relative_to(folder.resolve()):  # a report that was sent to us may name any file
            lines = list(transcript(path))
        first, left_out, last = bounded(lines, limit)
        made.append(
            {
                **guest,
                "lines": len(lines),
                "boots": lines[-1].boot + 1 if lines else 0,
                "first": [(_when(line, begins), line.text) for line in first],
                "left_out": left_out,
                "last": [(_when(line, begins), line.text) for line in last],
                "open": _is_about(said, guest["name"]),
            }
        )
    return made


def _is_about(said: str, guest: str) -> bool:
    """Whether an error is about `guest`: its first line names it, or a line begins with it, as a rig's errors do."""
    first = said.partition("\n")[0]
    word = re.escape(guest)
    return bool(re.search(rf"(?<!\w){word}(?!\w)", first) or re.search(rf"^{word}[ :(]", said, re.MULTILINE))


def _when(line: Line, begins: list[float]) -> str:
    if line.at_s < 0:
        return ""
    began = begins[line.boot] if line.boot < len(begins) else 0.0
    return f"{began + line.at_s:.1f}"
