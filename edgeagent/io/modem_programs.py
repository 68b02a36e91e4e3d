"""Modems by programs that are there for them: ModemManager's `mmcli`, and `uqmi` on OpenWrt. Each call is a process
with bounded time and output; one at a time."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from edgeagent.io.child import Child
from edgeagent.proto import modem_programs as said

if TYPE_CHECKING:
    from collections.abc import Generator
    from selectors import BaseSelector

    from edgeagent.proto.modem import Reading

    Calls = Generator[list[str], Any, None]  # words of the next call; sent in is the JSON that it wrote, or None

LIMIT_S = 15.0  # of one call: mmcli itself gives up after 30
OUTPUT_BYTES_MAX = 32_768  # all neighbour cells of a town have 8 KiB
CALLS_MAX = 24  # of one poll: five a modem
_ENVIRON = {"LC_ALL": "C", "PATH": "/usr/bin:/usr/sbin:/bin:/sbin"}


class ProgramDriver:
    """Drive it as AtDriver. What a program may do is in `_calls`, which is given each answer."""

    name = ""

    def __init__(self, selector: BaseSelector, program: str) -> None:
        self.found: list[tuple[str, str, Reading]] = []
        self.why = ""
        self.done = True
        self.dropped = 0  # answers that were no JSON, too long, or never came
        self._selector = selector
        self._program = program
        self._child: Child | None = None
        self._running: Calls | None = None
        self._made = 0

    def begin(self, now: float) -> None:
        self.found, self.why, self.done = [], "", False
        self._running, self._made = self._calls(), 0
        self._next(now, None)

    def poll_timeout(self) -> float | None:
        return None if self._child is None else self._child.poll_timeout()

    def on_timeout(self, now: float) -> None:
        child = self._child
        if child is None:
            return
        child.on_timeout(now)
        if child.ended:
            self._child = None
            self._next(now, self._read(child))

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
        self._running, self.done = None, True

    def _calls(self) -> Calls:
        raise NotImplementedError

    def _next(self, now: float, answer: Any) -> None:
        assert self._running is not None
        try:
            words = self._running.send(answer)
            if self._made >= CALLS_MAX:
                raise StopIteration
            self._made += 1
            self._child = Child(
                now,
                self._selector,
                [self._program, *words],
                _ENVIRON,
                limit_s=LIMIT_S,
                output_max=OUTPUT_BYTES_MAX,
            )
        except StopIteration:
            self._running, self.done = None, True
        except OSError as error:
            self.why = f"{self._program}: {error.strerror}"
            self._running, self.done = None, True

    def _read(self, child: Child) -> Any:
        """Its JSON, from where it begins: warnings may stand before it."""
        text = child.output.decode("utf-8", "replace")
        begin = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=-1)
        if child.code or begin < 0:
            self.why = f"{os.path.basename(self._program)}: {child.why or _first_line(text) or f'exit {child.code}'}"
            self.dropped += bool(child.why)
            return None
        try:
            return json.JSONDecoder().raw_decode(text, begin)[0]
        except (ValueError, RecursionError):
            self.dropped += 1
            self.why = f"{os.path.basename(self._program)}: what it wrote is no JSON"
            return None


class MmcliDriver(ProgramDriver):
    """All modems that ModemManager has."""

    name = "ModemManager"

    def _calls(self) -> Calls:
        for path in said.modem_list((yield ["-L", "-J"])):
            modem = yield ["-m", path, "-J"]
            signal = yield ["-m", path, "--signal-get", "-J"]
            if said.mm_wants_setup(signal):  # else all of it is unknown; the next poll has it
                yield ["-m", path, "--signal-setup=60"]
            cells = yield ["-m", path, "--get-cell-info", "-J"]
            bearer = said.mm_bearer(modem)
            of_bearer = (yield ["-b", bearer, "-J"]) if bearer else None
            if isinstance(modem, dict):
                uplink, port = said.mm_ports(modem)
                reading = said.mm_reading(modem, signal, cells, of_bearer)
                self.found.append((port or path.rpartition("/")[2], uplink, reading))


class UqmiDriver(ProgramDriver):
    """The modem behind one control device, /dev/cdc-wdm0 for one."""

    name = "uqmi"

    def __init__(self, selector: BaseSelector, program: str, device: str, uplink: str = "") -> None:
        super().__init__(selector, program)
        self._device = device
        self._uplink = uplink

    def _calls(self) -> Calls:
        head = ["-s", "-t", "5000", "-d", self._device]
        signal = yield [*head, "--get-signal-info"]
        serving = yield [*head, "--get-serving-system"]
        if signal is None and serving is None:
            return
        cell = yield [*head, "--get-cell-location-info"]
        profile = yield [*head, "--get-profile-settings", "3gpp,1"]
        reading = said.qmi_reading(signal, serving, cell, profile)
        self.found.append((self._device, self._uplink or net_of_wdm(self._device), reading))


def net_of_wdm(device: str, root: str = "/sys/class/usbmisc") -> str:
    """The network interface of the USB interface that a control device belongs to; "" for none."""
    try:
        found = sorted(os.listdir(f"{root}/{os.path.basename(device)}/device/net"))
    except OSError:
        return ""
    return found[0] if found else ""


def _first_line(text: str) -> str:
    return "".join(char for char in text.strip().partition("\n")[0] if char.isprintable())[:100]
