"""`./dev demo --nat`: four devices behind NATs that meet by relay at once, and directly where that is possible.

Everything shown is asked of the real programs. Lines are as long as such lines are, by tests/netlab/cable.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tests.netlab import Lab, LabError, LabTimeout, until
from tests.netlab.demo import LOG_LINES_ON_FAILURE, Step, dashboard, until_dashboard, way_in
from tests.netlab.demo_nat_view import Pair, View, chart
from tests.netlab.flow import Flow
from tests.netlab.homes import SECOND_HOME, Homes, Member, RelayHost, Way
from tests.netlab.nat import Kind, NatRouter
from tests.netlab.transfer import Transfer

RELAYS = {"fra-1": 6.0, "ams-1": 24.0}  # one way in ms, from the middle of the internet
WATCH_EVERY_S = 0.02
SETTLE_S = 10.0
DIRECT_AT_WORST_S = 10.0
RELAYED_FOR_S = 1.0  # a pair that stays on its relay has the table to itself for so long
FLOW_EVERY_S = 0.02
MBIT = 20
TRANSFER_S = 12
BREAK_AFTER_S = 3.0
CONSEQUENCE_S = 60.0  # what happens later is no consequence of what was broken
REFRESH_PER_S = 12


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev demo --nat", description="Devices behind NATs, on this machine.")
    parser.add_argument("--once", action="store_true", help="prove that it works, then end (exit code 0)")
    options = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print("\n[bold]edgemesh[/]: four devices behind NATs that no packet passes unasked, a hub, two relays\n")
    began = time.monotonic()
    try:
        with Lab() as lab:
            demo = Demo(lab, console)
            try:
                demo.build()
                with demo.watched():
                    demo.meet()
                    demo.check()
                    demo.kill_a_relay()
                    demo.pull_a_cable()
                    if not options.once:
                        demo.stay()
                console.print(demo.view.draw())
            except LabError:
                demo.show_logs()
                raise
    except LabError as error:
        console.print(f"  [bold red]✗[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nEnded; nothing is left of it.")
        return 1 if options.once else 0
    console.print(f"\n[bold green]It works[/], in {time.monotonic() - began:.0f} s; nothing is left of it.")
    return 0


class Demo:
    """`build` the world; then, `watched`: let all pairs `meet`, `check` what came of it, break things, `stay`."""

    def __init__(self, lab: Lab, console: Console) -> None:
        self.lab = lab
        self.console = console
        self.pairs: list[Pair] = []
        self.dashboard = dashboard()
        self._broke: dict[str, tuple[str, float]] = {}  # what was done to a "relay" or an "uplink" last, and when
        self._flows = ExitStack()

    # The world

    def build(self) -> None:
        """Hub and relays on the internet, each device behind its router."""
        with self._step("hub") as step:
            self.homes = Homes(self.lab)
            self.homes.start(dashboard=self.dashboard)
            step.done = f"edgehub and its broker on {self.homes.mesh.hub.address}:{self.homes.mesh.port}"
        with self._step("relays") as step:
            for name, delay_ms in RELAYS.items():
                self.homes.add_relay(name, region=name.partition("-")[0], delay_ms=delay_ms)
            self.homes.until_online(*self.homes.relays)
            step.done = ", ".join(f"{relay.name} on {relay.host.address}" for relay in self.homes.relays)
        if self.dashboard is not None:
            with self._step("dashboard") as step:
                until_dashboard(self.homes.mesh)
                step.done = way_in(self.homes.mesh, self.dashboard)
        homes = self.homes
        mobile = homes.carrier(Kind.SYMMETRIC, delay_ms=20.0)
        modem = homes.home(Kind.SYMMETRIC, delay_ms=25.0, prefix=SECOND_HOME)
        self._add("pump", homes.home(Kind.PORT, delay_ms=8.0), "port-restricted NAT at home, and a modem", modem)
        self._add("camera", homes.home(Kind.FULL, delay_ms=12.0), "full-cone NAT at home")
        self._add("truck", homes.home(Kind.PORT, mobile.inside, delay_ms=2.0), "NAT behind a carrier's symmetric NAT")
        self._add("kiosk", homes.home(Kind.TCP_443, delay_ms=5.0), "firewall: TCP to port 443, nothing else")
        possible = {("pump", "camera"), ("camera", "truck")}
        self.pairs = [
            Pair(a, b, (a.name, b.name) in possible) for a, b in itertools.combinations(self.homes.members, 2)
        ]
        self.view = View(self.lab.id, self.pairs, self.homes.relays, self.console.width)

    def _add(self, name: str, router: NatRouter, network: str, second: NatRouter | None = None) -> None:
        with self._step(name) as step:
            member = self.homes.member(name, router)
            if second is not None:
                self.homes.add_uplink(member, second)
            self.homes.up(member)
            nearest = min(RELAYS, key=lambda relay: RELAYS[relay])
            with suppress(LabTimeout):  # on a busy machine another one may look as near
                until(lambda: home_of(member) == nearest, SETTLE_S, f"{name} at {nearest}")
            relay = next(each for each in member.request("status")["relays"] if each["home"])
            carrier = {"udp": "UDP", "tls": "TLS"}[relay["carrier"]]
            step.done = f"{member.address:<15} {network}, at relay {relay['id']} by {carrier}"

    # What happens in it

    def meet(self) -> None:
        """One pair after the other speaks for the first time, and goes on."""
        for pair in self.pairs:
            self.view.now = f"{pair.a.name} sends {pair.b.name} its first packet"
            pair.began = time.monotonic()
            pair.first_answer_s = self.homes.first_answer_s(pair.a, pair.b)
            self._flows.enter_context(Flow(pair.a.host, pair.b.address))
            if pair.possible:
                until(lambda pair=pair: pair.is_direct, DIRECT_AT_WORST_S, f"{name_of(pair)} direct")  # type: ignore[misc]
            else:
                time.sleep(RELAYED_FOR_S)

    def check(self) -> None:
        """Every pair is connected, by the path that it should have."""
        for pair in self.pairs:
            if not pair.is_direct if pair.possible else not pair.is_relayed:
                raise LabError(f"{name_of(pair)}: {pair.there}, back {pair.back}")
        answers = [pair.first_answer_s or 0.0 for pair in self.pairs]
        direct = [pair.direct_s or 0.0 for pair in self.pairs if pair.possible]
        self._say(
            "pairs",
            f"{len(self.pairs)} of {len(self.pairs)} connected, first answer within {max(answers):.2f} s; "
            f"{len(direct)} of {len(direct)} possible ones direct within {max(direct):.2f} s",
        )

    def kill_a_relay(self) -> None:
        """While a transfer and 50 packets a second go through it."""
        pair = next(pair for pair in self.pairs if {pair.a.name, pair.b.name} == {"pump", "truck"})
        relay = self._relay_of(pair)
        gap_s, standstill_s = self._break(pair, "relay", f"{relay.name} was killed", relay.kill)
        found = self._relay_of(pair)
        if found is relay:
            raise LabError(f"{name_of(pair)} is still at {relay.name}, which is dead")
        self._say(
            "relay",
            f"{relay.name} killed under load: {gap_s:.2f} s without a packet, TCP stood for {standstill_s:.1f} s; "
            f"now by {found.name}",
        )
        relay.start()
        self.homes.until_online(relay)
        self._broke["relay"] = (f"{relay.name} came back", time.monotonic())

    def pull_a_cable(self) -> None:
        """Of the first of two uplinks, while a transfer and 50 packets a second go by it."""
        pair = next(pair for pair in self.pairs if {pair.a.name, pair.b.name} == {"pump", "camera"})
        first = pair.a.host.ports[0]
        until(lambda: uplink_of(pair) == first.ifname, DIRECT_AT_WORST_S, f"{name_of(pair)} by {first.ifname}")
        gap_s, standstill_s = self._break(pair, "uplink", f"{pair.a.name}'s cable was pulled", first.pull)
        second = uplink_of(pair)
        if second in (first.ifname, None):
            raise LabError(f"{name_of(pair)}: {pair.there}, though the cable of {first.ifname} is pulled")
        self._say(
            "uplink",
            f"{first.ifname} cut under load: {gap_s:.2f} s without a packet, TCP stood for {standstill_s:.1f} s; "
            f"now by {second}",
        )
        first.plug_in()
        self._broke["uplink"] = ("it was plugged in again", time.monotonic())

    def _break(self, pair: Pair, part: str, what: str, action: Callable[[], None]) -> tuple[float, float]:
        """Do it while a transfer runs; the longest time without an answer to a packet, and without a byte of TCP."""
        with Flow(pair.a.host, pair.b.address, FLOW_EVERY_S) as flow:
            self.view.transfer = transfer = Transfer(pair.a, pair.b, TRANSFER_S, MBIT)
            self.view.now = f"{transfer.name}: 50 packets a second, and TCP at {MBIT} Mbit/s"
            time.sleep(BREAK_AFTER_S)
            began = time.time()
            self._broke[part] = (what, time.monotonic())
            action()
            self._event(Text(what, "bold red"))
            self.view.now = what
            flow.until_answered(TRANSFER_S)
            transfer.wait()
            gap_s = flow.longest_gap_s(began)
        self.view.transfer, self.view.now = None, ""
        self._event(chart(transfer, self.console.width - 40))
        return gap_s, transfer.standstill_s()

    def stay(self) -> None:
        """Until Ctrl-C."""
        if self.dashboard is not None:
            self.console.print(f"\n[bold]Dashboard[/]  {way_in(self.homes.mesh, self.dashboard)}")
        self.console.print(self.view.shells([member.host for member in self.homes.members]))
        while True:
            time.sleep(3600)

    def show_logs(self) -> None:
        for process in self.lab.processes():
            self.console.print(f"[dim]--- log of {process.name}[/]")
            self.console.print(process.tail(LOG_LINES_ON_FAILURE), markup=False)

    # Watching

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The table lives, and each change of a path is told."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), name="watch")
        live = Live(
            get_renderable=self.view.draw, console=self.console, refresh_per_second=REFRESH_PER_S, transient=True
        )
        with self._flows, live if self.console.is_terminal else nullcontext():
            watch.start()
            try:
                yield
            finally:
                over.set()
                watch.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(WATCH_EVERY_S):
            ways = {member.name: member.ways() for member in self.homes.members}
            now = time.monotonic()
            for pair in self.pairs:
                if pair.began is not None:
                    self._look(now, pair, ways[pair.a.name].get(pair.b.name), ways[pair.b.name].get(pair.a.name))

    def _look(self, now: float, pair: Pair, there: Way | None, back: Way | None) -> None:
        old, was_direct = pair.there, pair.is_direct
        pair.there, pair.back = there, back
        before, after = (None if way is None or way.path == "none" else str(way) for way in (old, there))
        assert pair.began is not None
        if after is not None and after != before:
            pair.changed_at = now
            change = after if before is None else f"{before} → {after}"
            if old is not None and there is not None and old.endpoint == there.endpoint and there.uplink:
                change = f"{there.path} by {old.uplink} → by {there.uplink}"
            moved = "relay" if old is not None and old.relay and there is not None and there.relay else "uplink"
            broke, at = self._broke.get(moved, ("", pair.began))
            since = f" {now - at:.2f} s after {broke}" if broke else f" after {now - at:.2f} s"
            if broke and now - at > CONSEQUENCE_S:
                since = ""
            self._event(Text.assemble((f"{pair.a.name} → {pair.b.name}", "bold cyan"), f": {change}{since}"))
        if pair.is_direct and not was_direct and pair.direct_s is None:
            pair.direct_s = now - pair.began

    # Telling

    def _relay_of(self, pair: Pair) -> RelayHost:
        assert pair.there is not None
        return next(relay for relay in self.homes.relays if relay.name == pair.there.relay)

    def _event(self, text: Text) -> None:
        at = Text(f"  {time.monotonic() - self.view.began:6.2f} s  ", "dim")
        self.console.print(Text.assemble(at, text), no_wrap=True, overflow="ellipsis")

    def _say(self, name: str, done: str) -> None:
        line = f"  [green]✓[/] [bold]{name:<6}[/] {done}"
        self.console.print(line, no_wrap=True, overflow="ellipsis")

    def _step(self, name: str) -> Step:
        return Step(self.console, name)


def home_of(member: Member) -> str | None:
    status = member.request("status")
    home: str | None = status["self"]["home_relay"] if status else None
    return home


def uplink_of(pair: Pair) -> str | None:
    """By which the first of the two sends, where it has several."""
    return None if pair.there is None else pair.there.uplink


def name_of(pair: Pair) -> str:
    return f"{pair.a.name} – {pair.b.name}"


if __name__ == "__main__":
    sys.exit(main())
