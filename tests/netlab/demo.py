"""`./dev demo`: a hub and three devices in the lab, watched live; with `--once` proved and taken down again.

Everything shown is asked of the real programs: `edgehub` and `edgeagent` as installed, `ping`, `iperf3`, `wg`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.live import Live

from tests.netlab import Lab, LabError, rights, until
from tests.netlab.demo_view import Pairs, View
from tests.netlab.mesh import Device, Mesh

IPERF_S = 2
FIRST_PING_S = 5
DASHBOARD_READY_S = 20.0
REFRESH_S = 2.0
PLAIN_REFRESH_S = 10.0  # where there is no terminal to draw on, each refresh is a block of lines
LOG_LINES_ON_FAILURE = 15
NARROW = 95


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./dev demo", description="A mesh of three devices and a hub, on this machine."
    )
    parser.add_argument("--once", action="store_true", help="prove that it works, then end (exit code 0)")
    options = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print("\n[bold]edgemesh[/]: three devices that know nothing but a join token, and a hub\n")
    began = time.monotonic()
    try:
        with Lab() as lab:
            demo = Demo(lab, console)
            try:
                demo.build()
                demo.prove()
            except LabError:
                demo.show_logs()
                raise
            if options.once:
                console.print()
                console.print(demo.view.table())
            else:
                demo.stay()
    except LabError as error:
        console.print(f"  [bold red]✗[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nEnded; nothing is left of it.")
        return 1 if options.once else 0
    console.print(f"\n[bold green]It works[/], in {time.monotonic() - began:.0f} s; nothing is left of it.")
    return 0


class Demo:
    """`build` the network, `prove` that it carries traffic, then `stay` until Ctrl-C."""

    def __init__(self, lab: Lab, console: Console) -> None:
        self.lab = lab
        self.console = console
        self.view = View(lab.id, narrow=console.width < NARROW)
        self.pings: Pairs = {}
        self.dashboard = dashboard()

    def build(self) -> None:
        """Hub and router on a backbone, devices on two subnets behind the router."""
        with self._step("lab") as step:
            backbone = self.lab.net("198.51.100.0/24", "2001:db8:0::/64")
            plant = self.lab.net("192.168.10.0/24", "2001:db8:10::/64")
            depot = self.lab.net("192.168.20.0/24", "2001:db8:20::/64")
            self.lab.router("router", backbone, plant, depot)
            self.mesh = Mesh(self.lab, backbone)
            for name, net in (("pump", plant), ("camera", plant), ("truck", depot)):
                self.mesh.device(name, net)
            step.done = "hub, router, three devices on two subnets behind it: network namespaces"
        with self._step("hub") as step:
            self.mesh.start_hub(self.dashboard)
            step.done = f"edgehub and its broker on {self.mesh.hub.address}:8883"
        token = self.mesh.token("--uses", "3")
        for device in self.mesh.devices:
            with self._step(device.name) as step:
                device.up(token)
                step.done = f"{device.host.address:<14} joined as {'  '.join(device.addresses)}"

    def prove(self) -> None:
        """Every pair reaches each other both ways, through WireGuard sessions of their own; then real traffic."""
        with self._step("pings") as step:
            first = [self._ping(a, b, FIRST_PING_S) for a, b in self._pairs()]
            again = [self._ping(a, b, 1) for a, b in self._pairs()]
            step.done = f"{len(again)} pairs by address; first {max(first):.0f} ms at most, then {min(again):.1f} ms"
        with self._step("iperf3") as step:
            a, b = self.mesh.devices[0], self.mesh.devices[-1]
            rate, moved = self._iperf3(a, b)
            step.done = f"{a.name} → {b.name} {rate:.0f} Mbit/s TCP through the tunnel, one stream"
        with self._step("proof") as step:
            for device in self.mesh.devices:
                self._check(device)
            if row_of(self.mesh.devices[-1], a)["rx_bytes"] < moved:
                raise LabError(f"{b.name}: iperf3's {moved} bytes did not come through the tunnel")
            step.done = "all paths direct, all sessions fresh, `wg show` and `edgeagent peers` agree"
        if self.dashboard is not None:
            with self._step("dashboard") as step:
                until_dashboard(self.mesh)
                step.done = way_in(self.mesh, self.dashboard)
        self._refresh()

    def stay(self) -> None:
        """Keep the table fresh, with a ping of each pair, until Ctrl-C."""
        if self.dashboard is not None:
            self.console.print(f"\n[bold]Dashboard[/]  {way_in(self.mesh, self.dashboard)}")
        self.console.print(self.view.shells([device.host for device in self.mesh.devices]))
        with ThreadPoolExecutor(len(self._pairs())) as pool:
            if not self.console.is_terminal:
                while True:
                    time.sleep(PLAIN_REFRESH_S)
                    self._tick(pool)
                    self.console.print(self.view.table())
            with Live(self.view.table(), console=self.console, auto_refresh=False) as live:
                while True:
                    self._tick(pool)
                    live.update(self.view.table(), refresh=True)
                    time.sleep(REFRESH_S)

    def show_logs(self) -> None:
        for process in self.lab.processes():
            self.console.print(f"[dim]--- log of {process.name}[/]")
            self.console.print(process.tail(LOG_LINES_ON_FAILURE), markup=False)

    def _pairs(self) -> list[tuple[Device, Device]]:
        return list(itertools.permutations(self.mesh.devices, 2))

    def _ping(self, a: Device, b: Device, timeout_s: int) -> float:
        trip_ms = a.host.ping(b.address, timeout_s)
        if trip_ms is None:
            raise LabError(f"{a.name} gets no answer from {b.name} ({b.address}) within {timeout_s} s")
        self.pings[a.name, b.name] = trip_ms
        return trip_ms

    def _tick(self, pool: ThreadPoolExecutor) -> None:
        pairs = self._pairs()
        trips = pool.map(lambda pair: pair[0].host.ping(pair[1].address), pairs)
        self.pings = {(a.name, b.name): trip for (a, b), trip in zip(pairs, trips, strict=True)}
        self._refresh()

    def _iperf3(self, a: Device, b: Device) -> tuple[float, int]:
        """Mbit/s, and bytes, that `b` received of `a`."""
        server = b.host.start("iperf3", "-s", "-1", "--forceflush", "-B", b.address)
        server.expect("listening")
        end = json.loads(a.host.sh(f"iperf3 -J -t {IPERF_S} -c {b.address}", timeout_s=IPERF_S + 20))["end"]
        server.wait()
        return end["sum_received"]["bits_per_second"] / 1e6, end["sum_received"]["bytes"]

    def _check(self, device: Device) -> None:
        others = {other.name for other in self.mesh.devices if other is not device}
        rows = device.ask("peers")
        if {row["name"] for row in rows} != others:
            raise LabError(f"{device.name}: knows {sorted(row['name'] for row in rows)}, want {sorted(others)}")
        for row in rows:
            if row["path"] != "direct" or row["handshake_age_s"] is None or not row["rx_bytes"] or not row["tx_bytes"]:
                raise LabError(f"{device.name}: no working session with {row['name']}: {row}")
        shown = device.host.run("wg", "show", "all", "latest-handshakes").stdout.split("\n")
        if sum(int(line.split()[-1]) > 0 for line in shown if line) != len(others):
            raise LabError(f"{device.name}: wg show disagrees: {shown}")

    def _refresh(self) -> None:
        """Ask everybody; a device whose agent is not running (somebody stopped it) is shown so."""
        self.view.pings = self.pings
        self.view.hub_runs = self.mesh.server is not None and self.mesh.server.running
        self.view.devices = [(device.name, device.address, peers_of(device)) for device in self.mesh.devices]

    def _step(self, name: str) -> Step:
        return Step(self.console, name)


def dashboard() -> socket.socket | None:
    """A listening socket that a browser on this machine reaches, which rights.py has made; None: nobody wants one."""
    number = os.environ.pop(rights.DASHBOARD, "")
    return socket.socket(fileno=int(number)) if number else None


def until_dashboard(mesh: Mesh) -> None:
    until(lambda: mesh.status()["process"].get("web_pid"), DASHBOARD_READY_S, "the dashboard")


def way_in(mesh: Mesh, listening: socket.socket) -> str:
    """Where the dashboard is, and who may sign in."""
    host, port = listening.getsockname()
    return f"http://{host}:{port}   login [bold]admin[/]   password [bold]{mesh.password}[/]"


class Step:
    """One line of the report: what is under way on a terminal, then what came of it and how long it took."""

    def __init__(self, console: Console, name: str) -> None:
        self.done = ""
        self._console = console
        self._name = name
        self._status = console.status(f"{name} …")

    def __enter__(self) -> Step:
        self._began = time.monotonic()
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._status.stop()
        if kind is None:
            took = f"{time.monotonic() - self._began:4.1f} s"
            line = f"  [green]✓[/] [bold]{self._name:<9}[/] [dim]{took}[/]  {self.done}"
            self._console.print(line, no_wrap=True, overflow="ellipsis")


def peers_of(device: Device) -> list[dict[str, Any]] | None:
    """The rows of `edgeagent peers`, None when there is no agent to ask."""
    result = device.host.run("edgeagent", "peers", "--json", check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


def row_of(device: Device, other: Device) -> dict[str, Any]:
    found: Callable[[], list[dict[str, Any]]] = lambda: [r for r in device.ask("peers") if r["name"] == other.name]  # noqa: E731
    return until(found, 2, f"{other.name} among the peers of {device.name}")[0]


if __name__ == "__main__":
    sys.exit(main())
