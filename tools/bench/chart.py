"""Ratios to the reference as grouped bars: `--svg`, or again from a file of `--json`.

`python -m tools.bench.chart FIGURES.json FILE.svg`. Bars begin at 0 and the reference is the line at 1: on the left
longer is better, on the right shorter. Colours suit light and dark pages.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from tools.bench.figures import Figure, Row, machine, number
from tools.bench.peers import OURS

PANEL, GAP, MARGIN, TOP = 430, 40, 20, 96
BAR, BAR_STEP, TITLE, GROUP_GAP = 10, 14, 20, 12
VALUES, RATIOS = 130, 70  # right of the bars: values end at the panel's edge, ratios that much before it
RATIO_SHOWN_MIN, RATIO_SHOWN_MAX = 1.25, 3.0
SIDES = (("more", "Longer is better"), ("less", "Shorter is better"))
OUR_NAME = "edge-wireguard"
OUR_COLOURS = {"edge-wireguard fast": "#2f6fed", "edge-wireguard pure": "#8db4ff"}
COLOURS = ("#8a929e", "#e08a1e", "#3aa675", "#b07ad6")
_STYLE = """\
text { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2328 }
.page { fill: #ffffff } .head { font-size: 16px; font-weight: 600 } .side { font-size: 13px; font-weight: 600 }
.dim { fill: #59636e } .small { font-size: 11px } .end { text-anchor: end }
.one { stroke: #1f2328; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117 } .dim { fill: #9aa4af } .one { stroke: #e6edf3 }
}"""


class Bar(NamedTuple):
    who: str
    value: float
    ratio: float


class Group(NamedTuple):
    """A gauge: its bars, and what the reference had."""

    title: str
    unit: str
    reference: float
    bars: list[Bar]


def draw(rows: Sequence[Row], on: Mapping[str, Any] | None = None) -> str:
    """An SVG of those figures that have a ratio. `on` is the machine, as `figures.machine` tells it: this one, now."""
    listed = [row for row in rows if isinstance(row, Figure) and row.ratio is not None and row.peer is not None]
    what = machine() if on is None else on
    groups = {side: [_group(figure) for figure in listed if figure.better == side] for side, _ in SIDES}
    names = list(dict.fromkeys(bar.who for side in groups.values() for group in side for bar in group.bars))
    others = [name for name in names if name not in OUR_COLOURS]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(others)}
    colours = {name: OUR_COLOURS.get(name) or colours[name] for name in names}
    reference = listed[0].peer["name"] if listed and listed[0].peer is not None else "nobody"
    height = TOP + max((sum(map(_height, side)) for side in groups.values()), default=0) + 30
    width = 2 * MARGIN + 2 * PANEL + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(f"The data path beside {reference}, as ratios")}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
        _text(MARGIN, 30, f"The data path, as a ratio to {reference} (the dashed line)", "head"),
        *_legend(colours),
    ]
    for column, (side, heading) in enumerate(SIDES):
        left = MARGIN + column * (PANEL + GAP)
        parts.append(_text(left, TOP - 12, heading, "side"))
        parts += _panel(groups[side], left, colours)
    told = f"{what['date']} · {what['cpu']}, {what['cores']} cores · Linux {what['kernel']}"
    told += " · medians of interleaved rounds"
    parts.append(_text(MARGIN, height - 12, told, "dim small"))
    return "\n".join((*parts, "</svg>")) + "\n"


def _group(figure: Figure) -> Group:
    assert figure.peer is not None and figure.ratio is not None
    title, _, who = figure.name.rpartition(": ")
    bars = [Bar(f"{OUR_NAME} {who}" if who in OURS else who, figure.value, figure.ratio)]
    bars += [
        Bar(other["name"], other["value"], other["ratio"]) for other in figure.others if other["ratio"] is not None
    ]
    return Group(title, figure.unit, figure.peer["value"], bars)


def _height(group: Group) -> int:
    return TITLE + _bars(group) + GROUP_GAP


def _bars(group: Group) -> int:
    return BAR_STEP * len(group.bars)


def _panel(groups: Sequence[Group], left: int, colours: Mapping[str, str]) -> list[str]:
    longest = max((bar.ratio for group in groups for bar in group.bars), default=1.0)
    scale = (PANEL - VALUES - 10) / min(max(longest, RATIO_SHOWN_MIN), RATIO_SHOWN_MAX)
    one, edge = left + scale, left + PANEL
    parts: list[str] = []
    y = TOP
    for group in groups:
        parts.append(_text(left, y + 12, group.title, ""))
        parts.append(_text(edge, y + 12, f"{number(group.reference)} {group.unit}", "dim small end"))
        y += TITLE
        for bar in group.bars:
            length = max(1.5, min(bar.ratio, RATIO_SHOWN_MAX) * scale)
            fill = colours[bar.who]
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" rx="1.5" fill="{fill}"/>')
            ratio = f"×{bar.ratio:.2f}" if bar.ratio >= 0.1 else f"×{bar.ratio:.3f}"
            beyond = "→ " if bar.ratio > RATIO_SHOWN_MAX else ""
            parts.append(_text(edge - RATIOS, y + BAR - 1, beyond + ratio, "small end"))
            parts.append(_text(edge, y + BAR - 1, number(bar.value), "dim small end"))
            y += BAR_STEP
        parts.append(f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="{y - _bars(group) - 3}" y2="{y}"/>')
        y += GROUP_GAP
    return parts


def _legend(colours: Mapping[str, str]) -> list[str]:
    parts: list[str] = []
    x = MARGIN
    for name, colour in colours.items():
        parts.append(f'<rect x="{x}" y="46" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 17, 56, name, ""))
        x += 40 + 7 * len(name)
    return parts


def _text(x: int, y: int, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>'


def read(path: Path, bench: str = "datapath") -> tuple[list[Row], dict[str, Any]]:
    """The figures of a file written by `--json`, and the machine that they are of."""
    what = json.loads(path.read_text(encoding="utf-8"))
    rows: list[Row] = []
    for each in what["figures"]:
        if each["bench"] == bench:
            peer = each["no_peer"] if each["peer"] is None else (each["peer"]["name"], each["peer"]["value"])
            others = [(other["name"], other["value"], other["ratio"]) for other in each["others"]]
            more = {"ratio": each["ratio"], "others": others, "better": each["better"]}
            rows.append(Figure(each["name"], each["value"], each["unit"], peer=peer, **more))
    return rows, what["machine"]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(*read(Path(sys.argv[1]))), encoding="utf-8")
