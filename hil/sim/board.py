"""A simulated board: a serial port that is a pty, power, a card; a scripted boot loader, and behind it a real system.

Off, it says nothing. With power it says U-Boot's lines, counts down, and either stops at the prompt or boots what is on
the card: the root file system is taken out of it by debugfs, and the system of hil/sim/init.py runs in namespaces of
its own, with the agent that edgeflash put there. A power cut is SIGKILL to that system's first process, which takes all
others with it.

What the system writes is in a folder, not on the card: mounting wants root. It stays until the card is written again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import tty
from pathlib import Path

from hil.errors import CommandFailed, MissingProgram
from hil.rigs.external import call, program
from hil.rigs.storage import DUT, side_of
from hil.sim.uboot import BOOT, PROMPT, VERSION, Prompt

DEBUGFS_TIMEOUT_S = 120.0
GONE_S = 30.0  # for what SIGKILL has ended
OFF_S = 60.0
KEPT = ("/etc", "/var", "/usr/lib/edgeagent")  # of what is on the card; the rest is this machine's
HERE = Path(__file__).parent


class _PowerLost(Exception):
    pass


class Board:
    """`port` is its serial port; `on`, `off` and `is_on` its power; `card` a file, which may not be there. `folder`
    gets what the board holds. `tick_s`: of the count-down, a second on other boards."""

    def __init__(self, name: str, folder: Path, card: Path, cable: Path | None = None, tick_s: float = 1.0) -> None:
        self.name = name
        self.card = card
        self._folder = folder
        self._cable = cable
        self._tick_s = tick_s
        folder.mkdir(parents=True, exist_ok=True)
        self._master, self._slave = pty.openpty()  # ours is kept open: the port stays when nobody listens
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.port = os.ttyname(self._slave)
        self._environment = {
            "arch": "sandbox",
            "baudrate": "115200",
            "bootcmd": "boot",
            "bootdelay": "2",
            "board": "edgehil",
            "serial#": name,
        }
        self._lock = threading.Lock()
        self._powered = False
        self._wake_in, self._wake_out = os.pipe()
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        return self._powered

    def on(self) -> None:
        with self._lock:
            if not self._powered:
                self._powered = True
                with contextlib.suppress(BlockingIOError):
                    while os.read(self._master, 4096):
                        pass  # what was typed while it was off
                self._thread = threading.Thread(target=self._live, name=f"board {self.name}", daemon=True)
                self._thread.start()

    def off(self) -> None:
        with self._lock:
            if self._powered and self._thread is not None:
                self._powered = False
                os.write(self._wake_out, b"x")
                self._thread.join(OFF_S)
                os.read(self._wake_in, 1)

    def close(self) -> None:
        self.off()
        for each in (self._master, self._slave, self._wake_in, self._wake_out):
            os.close(each)

    def _live(self) -> None:
        with contextlib.suppress(_PowerLost):
            while True:
                self._say(
                    f"\r\n{VERSION}\r\n\r\nDRAM:  512 MiB\r\nMMC:   mmc@0: 0\r\nIn:    serial\r\nOut:   serial\r\n"
                )
                if self._loader() == BOOT and (root := self._root()) is not None:
                    self._system(root)

    def _loader(self) -> str:
        """Until something is wished for: BOOT or RESET."""
        if not self._counted_down():
            prompt = Prompt(self._environment, self._card_bytes())
            self._say(f"\r\n{PROMPT}")
            while not prompt.wish:
                self._say(prompt.feed(self._hear(None).decode("ascii", "replace")))
            return prompt.wish
        return BOOT

    def _counted_down(self) -> bool:
        delay = self._environment.get("bootdelay", "0")
        left = min(int(delay), 99) if delay.isdecimal() else 0
        self._say(f"Hit any key to stop autoboot: {left:2d} ")
        while left:
            if self._hear(self._tick_s):
                return False
            left -= 1
            self._say(f"\b\b\b{left:2d} ")
        self._say("\r\n")
        return True

    def _card_bytes(self) -> int:
        """0: there is none in the board's reader."""
        with contextlib.suppress(OSError):
            return self.card.stat().st_size if side_of(self.card) == DUT else 0
        return 0

    def _root(self) -> Path | None:
        """The root file system, from the card when it was written since; None: there is no card, as was said."""
        if not self._card_bytes():
            self._say("Card did not respond to voltage select! : -110\r\n** Bad device specification mmc 0 **\r\n")
            self._hear(self._tick_s)
            return None
        self._say("\r\nStarting kernel ...\r\n\r\n")
        self._say(f"[    0.000000] Linux version {os.uname().release} (edgehil, a simulated board)\r\n")
        self._say(f"[    0.000000] Machine model: {self.name}, {self._card_bytes() >> 20} MiB of card\r\n")
        root, mark = self._folder / "root", self._folder / "written"
        written = str(self.card.stat().st_mtime_ns)
        try:
            if not mark.exists() or mark.read_text(encoding="ascii") != written:
                shutil.rmtree(root, ignore_errors=True)
                root.mkdir()
                self._unpack(root)
                mark.write_text(written, encoding="ascii")
        except (CommandFailed, MissingProgram) as error:
            why = str(error).replace("\n", " ")[-200:]
            self._say(f"[    1.000000] {why}\r\n")
            self._say(
                "[    1.000000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(179,0)\r\n"
            )
            while True:
                self._hear(None)  # until the power goes
        self._say("[    1.000000] EXT4-fs (mmcblk0): mounted filesystem with ordered data mode.\r\n")
        return root

    def _unpack(self, root: Path) -> None:
        for path in KEPT:
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            said = call("debugfs", ["-R", f"rdump {path} {target.parent}", str(self.card)], DEBUGFS_TIMEOUT_S)
            if path == "/etc" and not target.is_dir():
                raise CommandFailed(f"no file system, or no /etc: {said[-200:]}")

    def _system(self, root: Path) -> None:
        """Until the power goes, or its first process ends."""
        master, slave = pty.openpty()
        set_size(slave)
        rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        words = [program("unshare"), *rights, "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child=SIGKILL"]
        words += ["--", sys.executable, "-P", str(HERE / "init.py"), str(root.resolve())]
        words += [str(self._cable) if self._cable is not None else "", str(HERE / "cable.py")]
        child = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        try:
            self._relay(master, child)
        finally:
            # The first process of all, which is unshare's child: when it has ended all others have, and unshare ends.
            for first in children(child.pid):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(first, signal.SIGKILL)
                os.close(first)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GONE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            os.close(master)
        self._say("\r\n[   99.000000] reboot: Restarting system\r\n")

    def _relay(self, inner: int, child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            ready, _, _ = select.select((inner, self._master, self._wake_in), (), (), 0.5)
            self._check_power()
            with contextlib.suppress(OSError):
                if inner in ready:
                    self._write(os.read(inner, 4096))
                if self._master in ready:
                    os.write(inner, os.read(self._master, 4096))

    def _hear(self, timeout_s: float | None) -> bytes:
        """What is typed; nothing at the end of the time."""
        ready, _, _ = select.select((self._master, self._wake_in), (), (), timeout_s)
        self._check_power()
        with contextlib.suppress(OSError):
            return os.read(self._master, 4096) if ready else b""
        return b""

    def _say(self, text: str) -> None:
        self._check_power()
        self._write(text.encode())

    def _write(self, data: bytes) -> None:
        """As a UART does: what nobody takes is lost."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, data)

    def _check_power(self) -> None:
        if not self._powered:
            raise _PowerLost


def children(pid: int) -> list[int]:
    """A descriptor of each child (pidfd_open(2)), which means no other however late it is used."""
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            found.append(os.pidfd_open(int(child)))
    return found


def set_size(terminal: int) -> None:
    """As wide as a terminal gets, or the shell would wrap what is typed."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 1000, 0, 0))
