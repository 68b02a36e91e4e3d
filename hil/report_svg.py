"""Pictures of a report as SVG that stands in a page: coordinates are shares of the width, so text keeps its size, and
colours are classes, so that they follow the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

ROW, BAR = 34, 8  # heights, px
LEFT_OUT_PX = 26  # for the axis
PLOT_TOP, PLOT_HEIGHT, GRAPH_HEIGHT = 14, 140, 182
LINES_MAX = 6  # in a graph: so many can be told apart
_LANE_ENDS = ("off",)


def timeline(steps: Sequence[dict[str, Any]], guests: Sequence[dict[str, Any]], seconds: float) -> Markup:
    """A row a step, then a row a guest: when it had power, until when it booted, and what happened to it."""
    total = max(seconds, 1.0, *(step["at_s"] + step["seconds"] for step in steps)) if steps else max(seconds, 1.0)
    shown = [guest for guest in guests if guest["events"]]
    height = ROW * (len(steps) + len(shown)) + LEFT_OUT_PX
    parts = [_axis(total, height)]
    for number, step in enumerate(steps):
        top = number * ROW
        kind = "ok" if step["outcome"] == "passed" else "bad"
        parts.append(_label(step["at_s"] / total, top, f"{step['name']} · {step['seconds']:.1f} s"))
        parts.append(_bar(kind, step["at_s"], step["seconds"], total, top, f"{step['name']}: {step['outcome']}"))
    for number, guest in enumerate(shown):
        parts.append(_lane(guest, total, (len(steps) + number) * ROW))
    return Markup('<svg class="timeline" width="100%" height="{}" aria-hidden="true">{}</svg>').format(
        height, Markup("").join(parts)
    )


def graph(lines: Sequence[tuple[str, Sequence[Sequence[float]]]], unit: str, limit: float | None = None) -> Markup:
    """`lines`: a name and [x, y] each, at most LINES_MAX; y begins at 0 unless it goes below."""
    points = [point for _, line in lines for point in line]
    left, right = min(point[0] for point in points), max(point[0] for point in points)
    values = [point[1] for point in points] + ([limit] if limit is not None else [])
    low, high = min(0.0, *values), max(values)
    if high <= low:
        high = low + 1.0
    step = nice((high - low) / 3)
    high = step * math.ceil(high / step - 1e-9)
    low = step * math.floor(low / step + 1e-9)
    width = max(right - left, 1e-9)

    def y(value: float) -> float:
        return PLOT_HEIGHT * (1 - (value - low) / (high - low))

    parts = []
    for number in range(round((high - low) / step) + 1):
        at = round(PLOT_TOP + y(low + number * step), 1)
        text = f"{number * step + low:g}" + (f" {unit}" if low + number * step >= high else "")
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(at))
        parts.append(Markup('<text class="tick" x="2" y="{}">{}</text>').format(round(at - 3, 1), text))
    parts.append(
        Markup('<svg y="{}" width="100%" height="{}" viewBox="0 0 1000 {}" preserveAspectRatio="none">').format(
            PLOT_TOP, PLOT_HEIGHT, PLOT_HEIGHT
        )
    )
    for number, (_, line) in enumerate(lines[:LINES_MAX]):
        path = " ".join(f"{1000 * (each[0] - left) / width:.1f},{y(each[1]):.1f}" for each in line)
        parts.append(Markup('<polyline class="line l{}" points="{}"/>').format(number, path))
    if limit is not None:
        parts.append(Markup('<line class="limit" x1="0" x2="1000" y1="{0}" y2="{0}"/>').format(round(y(limit), 1)))
    parts.append(Markup("</svg>"))
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(
            Markup('<text class="tick" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
                round(100 * share, 1), GRAPH_HEIGHT - 8, anchor, clock(left + share * width)
            )
        )
    return Markup('<svg class="graph" width="100%" height="{}" aria-hidden="true">{}</svg>').format(
        GRAPH_HEIGHT, Markup("").join(parts)
    )


def nice(raw: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, not below `raw`."""
    if raw <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= raw * 0.999999)


def clock(seconds: float) -> str:
    """As in 45 s, 3:05, 1:02:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _axis(total: float, height: int) -> Markup:
    step = nice(total / 5)
    for better in (15, 30, 60, 120, 300, 600, 1800, 3600):  # where people count in minutes
        if total / 6 <= better and total > 60:
            step = float(better)
            break
    parts = []
    for number in range(int(total / step) + 1):
        share = round(100 * number * step / total, 2)
        anchor = "start" if number == 0 else "end" if share > 96 else "middle"
        parts.append(
            Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="{1}"/>').format(share, height - LEFT_OUT_PX + 4)
        )
        parts.append(
            Markup('<text class="tick" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
                share, height - 7, anchor, clock(number * step)
            )
        )
    return Markup("").join(parts)


def _label(share: float, top: int, text: str) -> Markup:
    """Above what begins at `share`, on the side where there is room."""
    anchor = "end" if share > 0.5 else "start"
    at = round(100 * min(share, 1.0), 2)
    return Markup('<text class="row" x="{}%" y="{}" text-anchor="{}">{}</text>').format(at, top + 15, anchor, text)


def _bar(kind: str, at_s: float, seconds: float, total: float, top: int, title: str) -> Markup:
    width = max(100 * seconds / total, 0.3)
    return Markup('<rect class="bar {}" x="{}%" y="{}" width="{}%" height="{}" rx="2"><title>{}</title></rect>').format(
        kind, round(min(100 * at_s / total, 99.7), 2), top + 20, round(width, 2), BAR, title
    )


def _lane(guest: dict[str, Any], total: float, top: int) -> Markup:
    parts = [Markup('<text class="row guest" x="0" y="{}">{}</text>').format(top + 15, guest["name"])]
    on_s: float | None = None
    good_s: float | None = None

    def power(until_s: float) -> None:
        if on_s is None:
            return
        parts.append(_bar("boot", on_s, (good_s or until_s) - on_s, total, top, f"{guest['name']}: booting"))
        if good_s is not None:
            parts.append(_bar("on", good_s, until_s - good_s, total, top, f"{guest['name']}: up"))

    for event in guest["events"]:
        if event["kind"] == "on":
            power(event["at_s"])
            on_s, good_s = event["at_s"], None
        elif event["kind"] in _LANE_ENDS:
            power(event["at_s"])
            on_s = good_s = None
        elif event["kind"] == "good" and on_s is not None and good_s is None:
            good_s = event["at_s"]
    power(total)
    for event in guest["events"]:
        parts.append(
            Markup(
                '<svg class="mark {}" x="{}%" y="{}"><path d="M0-6 6 0 0 6-6 0z"/><title>{}, {}: {}</title></svg>'
            ).format(
                event["kind"],
                round(100 * min(event["at_s"] / total, 1.0), 2),
                top + 20 + BAR // 2,
                guest["name"],
                clock(event["at_s"]),
                event["what"],
            )
        )
    return Markup("").join(parts)
