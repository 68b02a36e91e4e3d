"""A rig: the network, hub and relay at its outside, guests in homes; all of it goes when the rig is left."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from hil import journal
from hil.desk import INTERVAL_S, Desk, answers
from hil.errors import CommandFailed, GuestStuck, NotReached
from hil.guests.build import Built
from hil.hub import Hub
from hil.machines import Machine
from hil.net.host import HostPlace
from hil.net.switch import Switch
from hil.programs import until
from hil.qemu import Guest
from hil.stuck import BOOT_RETRIES_MAX

ONLINE_TIMEOUT_S = 900.0  # what a busy machine takes; an idle one a tenth of it
ANSWER_TIMEOUT_S = 120.0
CONNECTED_TIMEOUT_S = 600.0
POLL_S = 1.0


class Device:
    """A guest with an agent."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.name = guest.name

    def ask(self, *verb: str, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """What `edgeagent VERB --json` says in the guest: the last line or the whole, as JSON."""
        said = self.guest.console.shell(f"edgeagent {' '.join(verb)} --json", timeout_s)
        try:
            return json.loads(said)
        except ValueError:
            raise CommandFailed(f"{self.name}: edgeagent {verb[0]} --json said {said[-300:]!r}") from None

    def wait_connected(self, timeout_s: float = CONNECTED_TIMEOUT_S) -> None:
        """Until the agent says that the hub's broker has it. Raises NotReached."""

        def connected() -> bool:
            try:
                hub = self.ask("status").get("hub")
            except CommandFailed:  # it is starting
                return False
            return bool(hub and hub["connected"])

        until(connected, timeout_s, lambda: NotReached(f"{self.name}: not connected within {timeout_s:g} s"), POLL_S)

    def rss_kb(self) -> int:
        """Resident memory of the agent, of which much is shared with nobody: Python is not."""
        said = self.guest.console.shell("grep -h VmRSS /proc/$(systemctl show -p MainPID --value edgeagent)/status")
        return int(said.split()[1])

    def ping(self, name: str, count: int = 3) -> tuple[float, str]:
        """Least round trip through the mesh in seconds, and the path of the last answer. Raises CommandFailed."""
        words = f"edgeagent ping {name} -c {count} -i {INTERVAL_S} --json"
        return answers(self.name, name, self.guest.console.shell(words, ANSWER_TIMEOUT_S))


class Rig:
    """`with Rig(out) as rig`: switch, host's place, hub and relay run. `out` gets logs and consoles when it is left."""

    def __init__(self, out: Path, *, pcap: bool = False) -> None:
        self.out = out
        self._pcap = pcap
        self._stack = ExitStack()
        self.devices: dict[str, Device] = {}
        self.desk: Desk | None = None

    def __enter__(self) -> Rig:
        with ExitStack() as stack:
            # Unix sockets want short paths.
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgehil-")))
            stack.callback(self._keep)
            self.switch = Switch(self.folder, pcap=self._pcap)
            stack.callback(self.switch.close)
            self.place = HostPlace(self.switch, self.folder)
            stack.callback(self.place.close)
            self.hub = Hub(self.place, self.folder)
            stack.callback(self.hub.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def guest(self, name: str, machine: Machine, built: Built, disk: Path, kind: str = "port") -> Device:
        """A guest in a home of its own, behind a router of the kind given; off."""
        net = self.switch.plug(name, self.switch.home(kind))
        guest = Guest(name, machine, built.boot(disk), self.folder / name, [net])
        self._stack.callback(guest.power_off)
        device = self.devices[name] = Device(guest)
        return device

    def add_desk(self) -> Desk:
        """An agent on this machine, which has joined. Raises NotReached."""
        self.desk = Desk(self.place, self.folder / "desk", self.hub.ask("token", "create"))
        self._stack.callback(self.desk.close)
        return self.desk

    def wait_online(self, names: Sequence[str], timeout_s: float = ONLINE_TIMEOUT_S) -> dict[str, tuple[float, float]]:
        """Of each, from its power-on until the hub listed it online, to within a look or two at the list: seconds, and
        seconds of this machine's processors. A boot that hangs is tried again, at most BOOT_RETRIES_MAX times; then it
        raises GuestStuck."""
        found: dict[str, tuple[float, float]] = {}
        hangs = {name: self.devices[name].guest.hangs() for name in names}
        retries = dict.fromkeys(names, 0)

        def look() -> bool:
            listed = self.hub.devices()
            now = time.monotonic()
            for name in names:
                device = listed.get(name)
                if name not in found and device is not None and device["online"]:
                    guest = self.devices[name].guest
                    found[name] = now - guest.began, guest.processor_s()
                    journal.note(name, "online", journal.Kind.GOOD)
            for name in names:
                if name not in found and not self.devices[name].guest.running:
                    raise NotReached(f"{name}: QEMU ended; it said last:\n{self.devices[name].guest.console.tail()}")
                if name not in found and (why := hangs[name]()):
                    again(name, why)
            return len(found) == len(names)

        def again(name: str, why: str) -> None:
            guest = self.devices[name].guest
            journal.note(name, f"stuck: {why}", journal.Kind.BAD)
            if retries[name] >= BOOT_RETRIES_MAX:
                tries = f"at {retries[name] + 1} boots"
                raise GuestStuck(
                    f"{name}: {why}, {tries}. QEMU says {guest.state()}; it said last:\n{guest.console.tail()}"
                )
            retries[name] += 1
            journal.note(name, f"booted again, {retries[name]} of {BOOT_RETRIES_MAX}: {why}", journal.Kind.RETRY)
            guest.power_on()
            hangs[name] = guest.hangs()

        def late() -> NotReached:
            missing = [name for name in names if name not in found]
            guests = [self.devices[name].guest for name in missing]
            tails = "\n".join(f"{each.name} ({each.state()}) said last:\n{each.console.tail()}" for each in guests)
            return NotReached(f"not online within {timeout_s:g} s: {', '.join(missing)}.\n{tails}")

        until(look, timeout_s, late, POLL_S)
        return found

    def _keep(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for path in self.folder.rglob("*"):
            if path.is_file() and path.suffix in (".log", ".pcap"):
                target = self.out / path.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
