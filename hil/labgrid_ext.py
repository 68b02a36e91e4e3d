"""What labgrid has to know of edgehil's rig files: `imports: [hil.labgrid_ext]`. Runs in labgrid's own environment.

labgrid and pyserial cannot share one, because labgrid brings its own `serial`; so nothing here imports it. The keys are
those of hil/rigs/schema.py, and what drivers do is what edgehil's do.
"""

from __future__ import annotations

import queue
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import attr
from labgrid.driver import Driver
from labgrid.driver.consoleexpectmixin import ConsoleExpectMixin
from labgrid.factory import target_factory
from labgrid.protocol import ConsoleProtocol, PowerProtocol
from labgrid.resource import Resource
from labgrid.step import step
from labgrid.strategy import Strategy, StrategyError
from pexpect import TIMEOUT

from hil.machines import BY_NAME
from hil.rigs.guest import GuestMachine
from hil.rigs.power import HTTPPower
from hil.rigs.schema import KINDS, NEEDED
from hil.rigs.storage import CardFile, SDMux, USBBoot

STORE = Path("build/hil")
AGENT_EVERY_S = 1.0


def _attributes(name: str) -> dict[str, Any]:
    """Of a kind, as attrs has them."""
    return {
        key: attr.ib(
            default=attr.NOTHING if what.default is NEEDED else what.default,
            validator=attr.validators.instance_of(what.type),
        )
        for key, what in KINDS[name].keys.items()
    }


def _values(thing: Any, name: str) -> dict[str, Any]:
    return {key: getattr(thing, key) for key in KINDS[name].keys}


def _resource(name: str) -> Any:
    made = attr.make_class(name, _attributes(name), bases=(Resource,), eq=False)
    return target_factory.reg_resource(made)


HTTPPowerPort = _resource("HTTPPowerPort")
SDMuxPort = _resource("SDMuxPort")
CardFilePort = _resource("CardFile")
USBBootPort = _resource("USBBootPort")
SwitchPort = _resource("SwitchPort")


class _OnRig(Driver):
    """A driver that knows where its rig file is."""

    @property
    def _folder(self) -> Path:
        return Path(self.target.env.config.base) if self.target.env is not None else Path()


@target_factory.reg_driver
@attr.s(eq=False)
class HTTPPowerDriver(_OnRig, PowerProtocol):
    """Power by HTTP."""

    bindings: ClassVar[dict[str, Any]] = {"port": {"HTTPPowerPort"}}
    delay = attr.ib(default=2.0, validator=attr.validators.instance_of(float))

    @property
    def _power(self) -> HTTPPower:
        return HTTPPower(self.target.name, _values(self.port, "HTTPPowerPort"), self.delay, self._folder)

    @Driver.check_active
    @step()
    def on(self) -> None:
        self._power.on()

    @Driver.check_active
    @step()
    def off(self) -> None:
        self._power.off()

    @Driver.check_active
    @step()
    def cycle(self) -> None:
        self._power.cycle()

    @Driver.check_active
    def get(self) -> bool | None:
        return self._power.state()


@target_factory.reg_driver
@attr.s(eq=False)
class CardFileDriver(_OnRig):
    """A file that stands for a card."""

    bindings: ClassVar[dict[str, Any]] = {"card": {"CardFile"}}

    @Driver.check_active
    @step(args=["image"])
    def write(self, image: str) -> str:
        return CardFile(self.target.name, self._folder / self.card.path, self.card.size_mb).write(Path(image))


@target_factory.reg_driver
@attr.s(eq=False)
class SDMuxDriver(_OnRig):
    """The card in a USB-SD-Mux."""

    bindings: ClassVar[dict[str, Any]] = {"mux": {"SDMuxPort"}}

    @Driver.check_active
    @step(args=["image"])
    def write(self, image: str) -> str:
        return SDMux(self.target.name, _values(self.mux, "SDMuxPort")).write(Path(image))


@target_factory.reg_driver
@attr.s(eq=False)
class USBBootDriver(_OnRig):
    """Storage that rpiboot shows; the power is the target's."""

    bindings: ClassVar[dict[str, Any]] = {"port": {"USBBootPort"}, "power": PowerProtocol}

    @Driver.check_active
    @step(args=["image"])
    def write(self, image: str) -> str:
        values = _values(self.port, "USBBootPort")
        return USBBoot(self.target.name, values, self.power.on, self.power.off).write(Path(image))


@target_factory.reg_driver
@attr.s(eq=False)
class GuestDriver(ConsoleExpectMixin, _OnRig, PowerProtocol, ConsoleProtocol):
    """A machine of QEMU, without edgehil's network."""

    machine = attr.ib(validator=attr.validators.in_(tuple(BY_NAME)))
    nat = attr.ib(default="port", validator=attr.validators.instance_of(str))
    txdelay = attr.ib(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._said: queue.Queue[bytes] = queue.Queue()
        self._room = tempfile.TemporaryDirectory(prefix="edgehil-")
        folder = Path(self._room.name)
        self._guest = GuestMachine(self.target.name, BY_NAME[self.machine], STORE, folder, (), 1.0)

    def on_deactivate(self) -> None:
        self._guest.off()

    @Driver.check_active
    @step()
    def on(self) -> None:
        self._guest.on()
        self._guest.console.hear = self._said.put

    @Driver.check_active
    @step()
    def off(self) -> None:
        self._guest.off()

    @Driver.check_active
    @step()
    def cycle(self) -> None:
        self.off()
        self.on()

    @Driver.check_active
    @step(args=["image"])
    def write_image(self, image: str) -> str:
        return self._guest.write(Path(image))

    def _read(self, size: int = 1, timeout: float = 0.0, max_size: int | None = None) -> bytes:
        try:
            return self._said.get(timeout=max(timeout, 0.001))
        except queue.Empty:
            raise TIMEOUT(f"nothing was said for {timeout:g} s") from None

    def _write(self, data: bytes) -> int:
        self._guest.console.send(data.decode())
        return len(data)


@target_factory.reg_driver
@attr.s(eq=False)
class BoardStrategy(Strategy):
    """off → bootloader → shell → agent, by labgrid's own drivers of console, U-Boot and shell."""

    bindings: ClassVar[dict[str, Any]] = {
        "power": PowerProtocol,
        "console": ConsoleProtocol,
        "uboot": {"UBootDriver", None},
        "shell": "ShellDriver",
    }
    agent_timeout = attr.ib(default=180, validator=attr.validators.instance_of(int))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.status = "unknown"

    @step(args=["status"])
    def transition(self, status: str) -> None:
        if status == self.status:
            return
        before = {"bootloader": "off", "shell": "bootloader" if self.uboot is not None else "off", "agent": "shell"}
        if status == "off":
            for driver in (self.shell, self.uboot, self.console):
                if driver is not None:
                    self.target.deactivate(driver)
            self.target.activate(self.power)
            self.power.off()
        elif status not in before or (status == "bootloader" and self.uboot is None):
            raise StrategyError(f"no way to {status!r}; known are off, bootloader (with a UBootDriver), shell, agent")
        else:
            self.transition(before[status])
            self._step(status)
        self.status = status

    def _step(self, status: str) -> None:
        if status == "bootloader":
            self.target.activate(self.console)
            self.power.on()
            self.target.activate(self.uboot)
        elif status == "shell":
            if self.uboot is not None:
                self.uboot.boot("")
                self.uboot.await_boot()
            else:
                self.target.activate(self.console)
                self.power.on()
            self.target.activate(self.shell)
        else:
            again = (
                f"for i in $(seq {self.agent_timeout}); do edgeagent status >/dev/null && exit 0; sleep 1; done; exit 1"
            )
            self.shell.run_check(again, timeout=self.agent_timeout + 10)
