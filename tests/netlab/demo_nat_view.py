"""How the NAT demo looks: devices, pairs with the path that each takes, and what a transfer does just now."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.netlab.homes import Member, RelayHost, Way
from tests.netlab.host import Host
from tests.netlab.transfer import STEP_S, Transfer

BARS = "▁▂▃▄▅▆▇█"
BAR_S = 0.2  # of a transfer in one bar
WIDE = 118
FRESH_S = 1.5  # so long a new path is shown in reverse


class Pair:
    """Two devices that meet, and what was seen of them."""

    def __init__(self, a: Member, b: Member, possible: bool) -> None:
        self.a = a
        self.b = b
        self.possible = possible  # a direct path
        self.began: float | None = None  # monotonic
        self.first_answer_s: float | None = None
        self.direct_s: float | None = None
        self.changed_at = 0.0
        self.there: Way | None = None
        self.back: Way | None = None

    @property
    def ways(self) -> list[Way]:
        return [way for way in (self.there, self.back) if way is not None and way.path != "none"]

    @property
    def is_direct(self) -> bool:
        return len(self.ways) == 2 and all(way.path == "direct" for way in self.ways)

    @property
    def is_relayed(self) -> bool:
        return len(self.ways) == 2 and all(way.path == "relay" for way in self.ways)


class View:
    """Set what is to be seen; `draw` it as often as you like."""

    def __init__(self, lab_id: str, pairs: Sequence[Pair], relays: Sequence[RelayHost], width: int) -> None:
        self.lab_id = lab_id
        self.pairs = pairs
        self.relays = relays
        self.wide = width >= WIDE
        self.width = width
        self.began = time.monotonic()
        self.transfer: Transfer | None = None
        self.now = ""  # what is being done

    def draw(self) -> RenderableType:
        parts: list[RenderableType] = [Text(""), self._pairs()]
        if self.transfer is not None:
            parts += [Text(""), chart(self.transfer, self.width - 40)]
        parts += [Text(""), self._foot()]
        return Group(*parts)

    def shells(self, hosts: Sequence[Host]) -> Group:
        """What to do in another terminal."""
        lines = [Text("\nFrom another terminal, a shell in each device:", "bold")]
        lines += [Text(f"  sh {host.enter}") for host in hosts]
        lines.append(Text("There: edgeagent peers, edgeagent netcheck, edgeagent status, tcpdump -ni eth0 …", "dim"))
        running = [relay for relay in self.relays if relay.process is not None and relay.process.running]
        kills = "  ".join(f"kill -9 {relay.process.pid}  ({relay.name})" for relay in running if relay.process)
        lines.append(Text.assemble(("Kill a relay: ", "bold"), kills))
        lines.append(Text("Ctrl-C here ends it and removes everything.", "dim"))
        return Group(*lines)

    def _pairs(self) -> Table:
        table = Table(box=None, padding=(0, 2 if self.wide else 1, 0, 0), header_style="dim", pad_edge=False)
        table.add_column("PAIR", no_wrap=True, min_width=15)
        table.add_column("PATH", no_wrap=True, min_width=6)
        table.add_column("BY", no_wrap=True, min_width=51 if self.wide else 21)
        headings = ("FIRST ANSWER", "DIRECT AFTER") if self.wide else ("FIRST", "DIRECT")
        for heading in ("LATENCY", "MTU", *headings):
            table.add_column(heading, no_wrap=True, justify="right")
        for pair in self.pairs:
            table.add_row(*self._pair(pair))
        return table

    def _pair(self, pair: Pair) -> tuple[Text | str, ...]:
        name = Text.assemble((pair.a.name, "bold cyan"), " ⇄ ", (pair.b.name, "bold cyan"))
        first = "" if pair.first_answer_s is None else f"{1e3 * pair.first_answer_s:.0f} ms"
        there = pair.there
        if not pair.ways or there is None:
            return name, Text("–" if pair.began is None else "none", "dim"), "", "", "", "", ""
        if pair.is_direct:
            shown, style, by = "direct", "green", f"{there.endpoint}"
            if self.wide and pair.back is not None:
                by += f" ⇄ {pair.back.endpoint}"
        else:
            shown, style = "relay", "yellow"
            by = " / ".join(dict.fromkeys(way.relay or "direct" for way in pair.ways))
        uplinks = [way.uplink for way in pair.ways if way.uplink is not None]
        if uplinks:
            by += f" by {uplinks[0]}"
        if time.monotonic() - pair.changed_at < FRESH_S:
            style += " reverse"
        latency = "" if there.latency_ms is None else f"{there.latency_ms:.0f} ms"
        after = "" if pair.direct_s is None else f"{pair.direct_s:.2f} s"
        return (
            name,
            Text(shown, style),
            Text(by, "" if pair.is_direct else "yellow"),
            latency,
            "" if there.mtu is None else str(there.mtu),
            first,
            Text(after, "green") if pair.possible else Text("impossible" if self.wide else "never", "dim"),
        )

    def _foot(self) -> Text:
        foot = Text("relays ")
        for relay in self.relays:
            runs = relay.process is not None and relay.process.running
            foot.append(f"{relay.name} ", "green" if runs else "bold red")
            foot.append("✓  " if runs else "✗ killed  ", "green" if runs else "bold red")
        foot.append(f" lab {self.lab_id}, up {time.monotonic() - self.began:.0f} s", "dim")
        if self.now:
            foot.append(f"   {self.now}", "bold")
        return foot


def chart(transfer: Transfer, width: int) -> Text:
    """Bars of what has arrived, the newest on the right; a gap in them is a gap."""
    rates = transfer.rates()
    each = round(BAR_S / STEP_S)
    bars = [sum(rates[at : at + each]) / each for at in range(0, len(rates) - each + 1, each)][-max(10, width) :]
    text = Text.assemble("iperf3 ", (transfer.name, "bold cyan"), "  ")
    for rate in bars:
        level = min(len(BARS) - 1, round(rate / transfer.mbit * (len(BARS) - 2)))
        text.append(*(("·", "bold red") if rate == 0.0 else (BARS[level], "green")))
    if bars:
        text.append(f"  {bars[-1]:.0f} Mbit/s")
    return text
