"""One emulated machine: QEMU by TCG, its console, its power."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hil import journal
from hil.console import Console
from hil.errors import GuestStuck, HilError, MissingImage
from hil.machines import Machine
from hil.programs import Program, until
from hil.qmp import Qmp
from hil.stuck import Stillness

LOGIN_TIMEOUT_S = 600.0
# What costs an emulated processor much and shows nothing here: zeroed pages, guards against other guests' code.
QUICK = "quiet init_on_alloc=0 mitigations=off audit=0 apparmor=0 selinux=0 rcupdate.rcu_expedited=1 nokaslr"


class Boot(NamedTuple):
    """What a machine starts from: files."""

    kernel: Path
    initrd: Path
    root: Path
    root_format: str = "raw"
    words: str = ""  # more of the kernel's command line
    tree: Path | None = None  # device tree; None: QEMU makes one


class Guest:
    """Off until `power_on`. `folder` gets sockets and logs, and must have a short path (unix sockets: 107 bytes)."""

    def __init__(self, name: str, machine: Machine, boot: Boot, folder: Path, nets: Sequence[str] = ()) -> None:
        self.name = name
        self.machine = machine
        self.boot = boot
        self.folder = folder
        self.nets = nets  # QEMU's options for -netdev, without the id
        self.starts = 0
        self.began = 0.0  # of the last start, monotonic
        self._program: Program | None = None
        self._console: Console | None = None
        journal.describe(name, machine=machine.name, board=machine.board)

    @property
    def running(self) -> bool:
        return self._program is not None and self._program.code is None

    @property
    def console(self) -> Console:
        if self._console is None:
            raise RuntimeError(f"{self.name} is off")
        return self._console

    def power_on(self, cache: str = "writeback", *, disk: Sequence[str] = (), clock: str = "") -> None:
        """Start QEMU; returns when the console is connected, before the guest has said anything. Raises MissingImage,
        MissingProgram, GuestDied.

        `disk` are QEMU's options that make the drive `root`, where it is not just the image; `clock` is what the
        board's real-time clock says, as 1970-01-01T00:00:00: with none it is right.
        """
        self.power_off()
        for path in (self.boot.kernel, self.boot.initrd, self.boot.root, self.boot.tree):
            if path is not None and not path.is_file():
                raise MissingImage(f"{self.name}: {path} is not there. `./dev hil build {self.machine.name} --fresh`")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        self.began = time.monotonic()
        serial = self.folder / "console.sock"
        serial.unlink(missing_ok=True)
        words = self._words(serial, disk or self._image(cache), clock)
        self._program = Program(self.name, words, self.folder / "qemu.log")
        program = self._program
        journal.note(self.name, "power on", journal.Kind.ON)
        self._console = Console(self.name, serial, self.folder / "console.log", lambda: program.code is None)

    def power_off(self) -> None:
        """Cut the power: SIGKILL to QEMU. What the guest has not written to its disk is lost."""
        if self._program is not None:
            self._program.kill()
            self._program = None
            journal.note(self.name, "power off", journal.Kind.OFF)
        if self._console is not None:
            self._console.close()
            self._console = None

    def wait_off(self, timeout_s: float) -> None:
        """Until the guest has switched itself off. Raises GuestStuck."""
        late = GuestStuck(f"{self.name}: has not switched itself off within {timeout_s:g} s")
        until(lambda: not self.running, timeout_s, lambda: late)

    def login(self, timeout_s: float = LOGIN_TIMEOUT_S) -> None:
        """Until the console has a root shell, which is made quiet."""
        self.console.expect(r"root@[\w-]+:~# ", timeout_s, self.hangs())
        self.console.send("stty -echo; PS1=; PS2=; dmesg -n 1; unset PROMPT_COMMAND\n")
        self.console.shell("true")

    def hangs(self) -> Callable[[], str]:
        """For one wait, from now on: says why it has no point, empty for none (`hil.stuck`)."""
        stillness = Stillness()
        return lambda: stillness.look(time.monotonic(), self.console.said_bytes, self.processor_s())

    def processor_s(self) -> float:
        """Seconds of this machine's processors since the power came: unlike time, they are the same under load."""
        if self._program is None:
            return 0.0
        try:
            fields = Path(f"/proc/{self._program.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)

    def state(self) -> str:
        """What QEMU says of it, for people: off, running, guest-panicked …"""
        if not self.running:
            return "off"
        try:
            session = Qmp(self.name, self.folder / "qmp.sock")
        except (OSError, HilError) as error:
            return f"QEMU does not answer ({error})"
        try:
            return str(session.ask("query-status")["status"])
        except HilError as error:
            return str(error)
        finally:
            session.close()

    def _image(self, cache: str) -> list[str]:
        kind = "sd" if self.machine.bus == "usb" else "none,id=root"
        return ["-drive", f"file={self.boot.root},format={self.boot.root_format},cache={cache},if={kind}"]

    def _words(self, serial: Path, disk: Sequence[str], clock: str) -> list[str]:
        machine, boot = self.machine, self.boot
        line = f"console={machine.console},115200 root={machine.root} rw panic=-1 {QUICK} {boot.words}".strip()
        # QEMU would keep a GiB of translated code; a guest's whole userland fits this.
        words = [machine.program, *machine.options, "-accel", "tcg,tb-size=128"]
        words += ["-nodefaults", "-display", "none", "-no-reboot"]
        words += ["-rtc", f"base={clock}"] if clock else []
        words += ["-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", line]
        if boot.tree is not None:
            words += ["-dtb", str(boot.tree)]
        words += disk
        if machine.bus == "usb":
            # The first of its UARTs is Bluetooth's by that device tree.
            words += ["-serial", "null"]
        else:
            words += ["-device", f"virtio-blk-{machine.bus},drive=root", "-device", f"virtio-rng-{machine.bus}"]
        words += ["-chardev", f"socket,id=serial,path={serial},server=on,wait=on", "-serial", "chardev:serial"]
        words += ["-qmp", f"unix:{self.folder / 'qmp.sock'},server=on,wait=off"]
        card = "usb-net" if machine.bus == "usb" else f"virtio-net-{machine.bus}"
        for number, net in enumerate(self.nets):
            mac = f"52:54:00:{hash_of(self.name) >> 8:02x}:{hash_of(self.name) & 255:02x}:{number:02x}"
            words += ["-netdev", f"{net},id=net{number}", "-device", f"{card},netdev=net{number},mac={mac}"]
        return words


def hash_of(name: str) -> int:
    """A number of 16 bits for a name, the same in every run."""
    value = 0
    for byte in name.encode():
        value = (value * 31 + byte) & 0xFFFF
    return value
