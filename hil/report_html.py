"""A run as one HTML file that asks nothing of anybody: no script, nothing from elsewhere, everything escaped.

Its own policy (CSP) allows one style sheet by its hash and nothing else. Shown from a disk, by a CI system or by a hub
it is the same; printed, too.
"""

from __future__ import annotations

import base64
import hashlib
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


def render(told: dict[str, Any], folder: Path, *, links: bool = True) -> str:
    """`folder` has the files that `told` names. Without `links` they are named only: for a page that leaves them."""
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
        "beyond": [row for row in told["figures"] if not row["ok"]],
        "limited": sum("limit" in row for row in told["figures"]),
        "timeline": svg.timeline(told["steps"], told["guests"], told["seconds"]),
        "graphs": graphs(told)[:GRAPHS_MAX],
        "consoles": _consoles(told, folder, failed),
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
            names = [(name, f"{points[-1][1]:g} {unit}") for name, points in part]
            limit = limits.get((what, unit))
            made.append({"what": what, "names": names, "picture": svg.graph(part, unit, limit), "limit": limit})
    return made


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _consoles(told: dict[str, Any], folder: Path, failed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each guest with its transcript, whose times are those of the run where its power-ons are known."""
    said = " ".join(str(step["said"]) for step in failed)
    limit = min(TRANSCRIPT_LINES_MAX, TRANSCRIPTS_LINES_MAX // max(len(told["guests"]), 1))
    made = []
    for guest in told["guests"]:
        begins = [event["at_s"] for event in guest["events"] if event["kind"] == "on"]
        lines: list[Line] = []
        path = folder / guest["transcript"] if guest["transcript"] else None
        if path is not None and path.is_file():
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
                "open": bool(guest["name"]) and guest["name"] in said,
            }
        )
    return made


def _when(line: Line, begins: list[float]) -> str:
    if line.at_s < 0:
        return ""
    began = begins[line.boot] if line.boot < len(begins) else 0.0
    return f"{began + line.at_s:.1f}"
