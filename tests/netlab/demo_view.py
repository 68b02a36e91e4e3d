"""How the demo looks: the table of who reaches whom by which path, and how to get into a device."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from edgeagent.status import duration, size
from tests.netlab.host import Host

Pairs = dict[tuple[str, str], float | None]


class View:
    """Set `devices`, `pings` and `hub_runs`, then `table()` draws them."""

    def __init__(self, lab_id: str, narrow: bool) -> None:
        self.narrow = narrow
        self.lab_id = lab_id
        self.began = time.monotonic()
        self.hub_runs = True
        self.pings: Pairs = {}
        self.devices: list[tuple[str, str, list[dict[str, Any]] | None]] = []

    def table(self) -> Group:
        table = Table(box=None, padding=(0, 1 if self.narrow else 3, 0, 0), header_style="dim")
        table.add_column("DEVICE", no_wrap=True)
        table.add_column("ADDRESS, PATH", no_wrap=True, min_width=29)
        for heading in ("HANDSHAKE", "PING", "RX", "TX"):
            table.add_column(heading, no_wrap=True, justify="right")
        for name, address, peers in self.devices:
            table.add_row(Text(name, "bold cyan"), Text(address, "cyan"))
            if peers is None:
                table.add_row("", Text("the agent is not running", "red"))
            for peer in peers or ():
                table.add_row(*self._peer(name, peer))
        hub = Text("running", "green") if self.hub_runs else Text("down: what is connected stays so", "yellow")
        up = duration(time.monotonic() - self.began)
        return Group(table, Text.assemble("\nhub ", hub, f", lab {self.lab_id}, up {up}"))

    def _peer(self, name: str, peer: dict[str, Any]) -> tuple[Text | str, ...]:
        live = peer["path"] != "none"
        shown, style = (peer["path"], "green") if live else ("no path", "red")
        age = peer["handshake_age_s"]
        trip_ms = self.pings.get((name, peer["name"]))
        return (
            f"  → {peer['name']}",
            Text.assemble((shown, style), f" {peer['endpoint'] or ''}"),
            "never" if age is None else duration(age),
            "lost" if trip_ms is None else f"{trip_ms:.1f} ms",
            size(peer["rx_bytes"]),
            size(peer["tx_bytes"]),
        )

    def shells(self, hosts: list[Host]) -> Group:
        """What to type in another terminal."""
        lines = [Text("\nA shell in each device, from another terminal:", "bold")]
        lines += [Text(f"  sh {host.enter}") for host in hosts]
        lines.append(Text("There: edgeagent status, edgeagent ping truck, wg show, tcpdump -ni eth0 …", "dim"))
        lines.append(Text("Ctrl-C here ends it and removes everything.\n", "dim"))
        return Group(*lines)
