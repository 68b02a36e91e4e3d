"""A device of a rig: its drivers behind the protocols, its strategy, its agent. What suites work with."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hil.errors import CommandFailed, GuestStuck, HilError, RigFileWrong
from hil.machines import BY_NAME
from hil.rigs import login, strategy
from hil.rigs.guest import GuestMachine
from hil.rigs.network import SSH
from hil.rigs.power import ExternalPower, HTTPPower, USBPower
from hil.rigs.protocols import Console, Network, Power, Storage
from hil.rigs.rigfile import RigFile, TargetFile
from hil.rigs.schema import KINDS
from hil.rigs.serialport import open_console
from hil.rigs.storage import CardFile, SDMux, USBBoot

T = TypeVar("T")

ANSWER_TIMEOUT_S = 120.0
ASK_EVERY_S = 1.0
AGENT_S = 180.0
GUEST_AGENT_S = 900.0  # what a busy machine takes
GUEST_DELAY_S = 1.0
_PATTERNS = {
    "UBootDriver": ("prompt", "autoboot", "boot_expression", "bootstring"),
    "ShellDriver": ("prompt", "login_prompt"),
}


class Device:
    """Nothing is touched before it is asked for: the console's port is opened by the first use of it.

    `folder`: a short path for what is made meanwhile; `out`: for logs; `nets`: QEMU's, of a guest; `store`: of guests.
    """

    def __init__(
        self,
        rig: RigFile,
        target: TargetFile,
        *,
        folder: Path,
        out: Path,
        store: Path,
        nets: tuple[str, ...] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = target.name
        self.target = target
        self.rig = rig
        self.began = 0.0  # when the power came, monotonic
        self._out = out
        self._stack = ExitStack()
        self._console: Console | None = None
        self._check_patterns()
        self.guest: GuestMachine | None = None
        if guest := target.drivers.get("GuestDriver"):
            machine = BY_NAME.get(guest.values["machine"])
            if machine is None:
                self._wrong(guest.line, "GuestDriver.machine", f"no such machine; known are {', '.join(BY_NAME)}")
            self.guest = GuestMachine(self.name, machine, store, folder / self.name, nets, GUEST_DELAY_S)
            self._stack.callback(self.guest.off)
        self._off_at = -math.inf
        self._rest_s = GUEST_DELAY_S
        for name, item in target.drivers.items():
            if "Power" in KINDS[name].gives:
                self._rest_s = float(item.values.get("delay", GUEST_DELAY_S))
        self._power: Power | None = self.guest or self._power_driver()
        self._storage: Storage | None = self.guest or self._storage_driver()
        self._network = self._network_driver()
        self.strategy = strategy.Strategy(self.name, self._table(), self._cut, say)

    @property
    def power(self) -> Power:
        return self._needed(self._power, "Power")

    @property
    def storage(self) -> Storage:
        return self._needed(self._storage, "Storage")

    @property
    def network(self) -> Network:
        return self._needed(self._network, "Network")

    @property
    def console(self) -> Console:
        if self.guest is not None:
            return self.guest.console
        if self._console is None:
            driver = self._needed(self.target.drivers.get("SerialDriver"), "Console")
            port = self.target.bound("SerialDriver")
            log = self._out / self.name / "console.log"
            made = open_console(self.name, port, log, driver.values["txdelay"])
            self._stack.callback(made.close)
            self._console = made
        return self._console

    @property
    def board(self) -> str:
        """Its id in boards/."""
        return self.guest.machine.board if self.guest is not None else str(self.target.options["board"])

    def to(self, goal: str, through: tuple[str, ...] = ()) -> None:
        """To a state of the strategy's: off, bootloader, shell, agent."""
        self.strategy.to(goal, through)

    def cut(self) -> None:
        """Off, at once."""
        self.strategy.cut()

    def flash(self, image: Path) -> str:
        """Write what it starts from; it is off afterwards."""
        self.to(strategy.OFF)
        return self.storage.write(image)

    def loader(self, command: str) -> str:
        """What U-Boot says to a command, in the state bootloader."""
        return login.ask_loader(self.console, self.target.drivers["UBootDriver"].values, command)

    def ask(self, *verb: str, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """What `edgeagent VERB --json` says on it, in the state shell or agent."""
        said = self.console.shell(f"edgeagent {' '.join(verb)} --json", timeout_s)
        try:
            return json.loads(said)
        except ValueError:
            raise CommandFailed(f"{self.name}: edgeagent {verb[0]} --json said {said[-300:]!r}") from None

    def ping(self, name: str, count: int = 3) -> tuple[float, str]:
        """Least round trip through the mesh in seconds, and the path of the last answer. Raises CommandFailed."""
        said = self.console.shell(f"edgeagent ping {name} -c {count} --json", ANSWER_TIMEOUT_S)
        answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        good = [answer for answer in answers if answer.get("ms") is not None]
        if not good:
            raise CommandFailed(f"{self.name}: no answer from {name}: {said[-300:]}")
        return min(float(answer["ms"]) for answer in good) / 1000, str(good[-1].get("path", ""))

    def close(self) -> None:
        """A guest ends; a board keeps its power."""
        self._stack.close()
        self._console = None

    def _cut(self) -> None:
        self.power.off()
        self._off_at = time.monotonic()

    def _power_on(self, _: float) -> None:
        # What is switched on at once has had power all the time, to its capacitors.
        time.sleep(max(0.0, self._off_at + self._rest_s - time.monotonic()))
        if self.guest is None:
            self.console.skip()
        self.began = time.monotonic()
        self.power.on()

    def _stop_loader(self, timeout_s: float) -> None:
        login.stop_loader(self.console, self.target.drivers["UBootDriver"].values, timeout_s)

    def _boot(self, timeout_s: float) -> None:
        login.boot(self.console, self.target.drivers["UBootDriver"].values, timeout_s)

    def _wait_for_shell(self, timeout_s: float) -> None:
        if self.guest is not None:
            self.guest.login(timeout_s)
            return
        # A newline at the wrong time would stop U-Boot.
        nudge = "UBootDriver" not in self.target.drivers
        login.log_in(self.console, self.target.drivers["ShellDriver"].values, timeout_s, nudge=nudge)

    def _wait_for_agent(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        said = ""
        while time.monotonic() < deadline:
            asked = time.monotonic()
            said = self.console.shell("edgeagent status --json", ANSWER_TIMEOUT_S, check=False)
            try:
                if (json.loads(said).get("hub") or {}).get("connected"):
                    return
            except ValueError:
                pass  # not running yet
            time.sleep(ASK_EVERY_S + time.monotonic() - asked)  # half of a slow device's time is its own
        raise GuestStuck(
            f"{self.name}: no agent with its hub within {timeout_s:g} s; it said last: {said.strip()[-500:]}"
        )

    def _table(self) -> list[strategy.Row]:
        drivers = self.target.drivers
        loader, shell = drivers.get("UBootDriver"), drivers.get("ShellDriver")
        own = drivers.get("BoardStrategy")
        return strategy.rows(
            strategy.Steps(self._power_on, self._stop_loader, self._boot, self._wait_for_shell, self._wait_for_agent),
            loader=loader.values if loader else None,
            shell=shell.values if shell else None,
            agent_s=float(own.values["agent_timeout"]) if own else GUEST_AGENT_S if self.guest else AGENT_S,
            guest=self.guest is not None,
        )

    def _power_driver(self) -> Power | None:
        drivers = self.target.drivers
        if driver := drivers.get("HTTPPowerDriver"):
            values = self.target.bound("HTTPPowerDriver").values
            return HTTPPower(self.name, values, driver.values["delay"], self.rig.path.parent)
        if driver := drivers.get("USBPowerDriver"):
            port = self.target.bound("USBPowerDriver").values
            return USBPower(self.name, port["match"], port["index"], driver.values["delay"])
        if driver := drivers.get("ExternalPowerDriver"):
            return ExternalPower(self.name, driver.values)
        return None

    def _storage_driver(self) -> Storage | None:
        drivers = self.target.drivers
        if "CardFileDriver" in drivers:
            values = self.target.bound("CardFileDriver").values
            return CardFile(self.name, self.rig.file(values["path"]), values["size_mb"])
        if "SDMuxDriver" in drivers:
            return SDMux(self.name, self.target.bound("SDMuxDriver").values)
        if "USBBootDriver" in drivers:
            values = self.target.bound("USBBootDriver").values
            return USBBoot(self.name, values, self.power.on, self.power.off)
        return None

    def _network_driver(self) -> Network | None:
        driver = self.target.drivers.get("SSHDriver")
        if driver is None:
            return None
        key = driver.values["keyfile"]
        return SSH(self.name, self.target.bound("SSHDriver").values, self.rig.file(key) if key else None)

    def _needed(self, driver: T | None, protocol: str) -> T:
        if driver is None:
            names = [name for name, kind in KINDS.items() if protocol in kind.gives]
            raise HilError(
                f"{self.rig.path}:{self.target.line}: targets.{self.name}: no driver gives {protocol}; "
                f"known are {', '.join(names)}"
            )
        return driver

    def _check_patterns(self) -> None:
        for name, keys in _PATTERNS.items():
            if (item := self.target.drivers.get(name)) is None:
                continue
            for key in keys:
                try:
                    re.compile(item.values[key].encode())
                except re.error as error:
                    self._wrong(item.line, f"{name}.{key}", f"is no regular expression: {error}")

    def _wrong(self, line: int, where: str, what: str) -> NoReturn:
        raise RigFileWrong(f"{self.rig.path}:{line}: targets.{self.name}.drivers.{where}: {what}.")
