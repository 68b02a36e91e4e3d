"""A modem by AT commands on a serial port of its own, beside the one that carries the data.

`termios` directly: what is needed of a port is 20 lines, and the agent's loop needs its descriptor and no reads that
wait. The port is open exclusively (TIOCEXCL) while the agent runs, but it is looked at during a poll only: what a port
writes at other times costs nothing. Its modem lines stay as they are (no HUPCL), for some modems hang up by them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import termios
from contextlib import suppress
from glob import glob
from selectors import EVENT_READ
from typing import TYPE_CHECKING

from edgeagent.proto import at_dialects as dialects
from edgeagent.proto.at import TIMED_OUT, Talk

if TYPE_CHECKING:
    from selectors import BaseSelector

    from edgeagent.proto.modem import Reading

READ_BYTES = 4_096
WITHOUT_AFTER = 2  # a command that failed so often is not sent again


class AtDriver:
    """Drive it: `begin` a poll; then `on_timeout` at `poll_timeout()` until `done`; then `found` has (port, network
    interface or "", reading), or nothing, and `why` says why. `close` at any time."""

    name = "AT"

    def __init__(self, selector: BaseSelector, port: str, uplink: str = "") -> None:
        self.port = port
        self.uplink = uplink
        self.found: list[tuple[str, str, Reading]] = []
        self.why = ""
        self.done = True
        self.dropped = 0  # lines too long, or nothing that is known
        self._selector = selector
        self._fd = -1
        self._talk: Talk | None = None
        self._dialect = ""
        self._model: list[str] = []
        self._failed: dict[str, int] = {}

    def begin(self, now: float) -> None:
        self.found, self.why, self.done = [], "", False
        try:
            if self._fd < 0:
                self._fd = open_port(self.port)
            termios.tcflush(self._fd, termios.TCIFLUSH)  # what came since the last poll was asked by nobody
            self._selector.register(self._fd, EVENT_READ, self._readable)
        except (OSError, termios.error) as error:
            self._lost(error)
            return
        if not self._dialect:
            self._talk = Talk(now, [dialects.WAKE, dialects.MAKER, dialects.MODEL])
        else:
            self._ask(now)
        self._step(now)

    def poll_timeout(self) -> float | None:
        return None if self._talk is None else self._talk.poll_timeout()

    def on_timeout(self, now: float) -> None:
        if self._talk is not None:
            self._talk.handle_timeout(now)
            self._step(now)

    def close(self) -> None:
        self._talk, self.done = None, True
        if self._fd >= 0:
            with suppress(KeyError):
                self._selector.unregister(self._fd)
            with suppress(OSError):
                fcntl.ioctl(self._fd, termios.TIOCNXCL)
            os.close(self._fd)
            self._fd = -1
        self._dialect = ""  # another modem may come

    def _ask(self, now: float) -> None:
        without = {text for text, count in self._failed.items() if count >= WITHOUT_AFTER}
        self._talk = Talk(now, dialects.script(self._dialect, without))

    def _readable(self, now: float, _fd: int) -> None:
        if self._talk is None:
            return
        try:
            data = os.read(self._fd, READ_BYTES)  # one read a turn: then the data path has its own
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self._lost(OSError(errno.EIO, ""))
            return
        self._talk.handle_data(now, data)
        self._step(now)

    def _step(self, now: float) -> None:
        talk = self._talk
        assert talk is not None
        if wanted := talk.drain():
            try:
                if os.write(self._fd, wanted) != len(wanted):
                    raise OSError("the port takes nothing")
            except BlockingIOError:
                self._lost(OSError("the port takes nothing"))
                return
            except OSError as error:
                self._lost(error)
                return
        if talk.done:
            self._took(now, talk)

    def _took(self, now: float, talk: Talk) -> None:
        self.dropped += talk.noise + talk.assembler.overlong
        for text, why in talk.failures.items():
            hung = why == TIMED_OUT and text != dialects.WAKE.text  # it would hang at it every time
            self._failed[text] = WITHOUT_AFTER if hung else self._failed.get(text, 0) + 1
        if not self._dialect and not talk.fault:
            model = [*talk.answers.get(dialects.MAKER.text, ())[:1], *talk.answers.get(dialects.MODEL.text, ())[:1]]
            if model != self._model:
                self._failed.clear()
            self._model = model
            self._dialect = dialects.dialect_of(talk.answers)
            self._ask(now)
            self._step(now)
            return
        if self._dialect and talk.answers:  # also where it fell silent after some
            reading = dialects.read(talk.answers)
            reading.set_text(model=" ".join(self._model))
            self.found = [(self.port, self.uplink or net_beside(self.port), reading)]
        if talk.fault:
            self.why = f"{self.port}: {talk.fault}"
            self.close()
            return
        self._talk, self.done = None, True
        self._selector.unregister(self._fd)

    def _lost(self, error: OSError | termios.error) -> None:
        self.why = f"{self.port}: {why_not(error)}"
        self.close()


def open_port(path: str) -> int:
    """A descriptor of a serial port: raw, 115200 baud, 8N1, exclusive, never waiting. Raises OSError, termios.error."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTTY, "no serial port")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # root passes TIOCEXCL, but asks for this lock (minicom, pppd)
        fcntl.ioctl(fd, termios.TIOCEXCL)
        mode = termios.tcgetattr(fd)
        mode[0] = mode[1] = mode[3] = 0
        mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
        mode[4] = mode[5] = termios.B115200
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSANOW, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def why_not(error: OSError | termios.error) -> str:
    number = error.errno if isinstance(error, OSError) else error.args[0]
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO):
        return "the port is not there, or went away"
    if number in (errno.EBUSY, errno.EAGAIN):
        return "another program has the port (ModemManager? Then leave it to that: --modem mmcli)"
    if number in (errno.EACCES, errno.EPERM):
        return "not permitted"
    if number == errno.ENOTTY:
        return "it is no serial port"
    return os.strerror(number) if isinstance(number, int) else str(error)


def net_beside(port: str, root: str = "/sys/class/tty") -> str:
    """The network interface of the USB device that a serial port belongs to; "" where there is none (PPP)."""
    device = os.path.realpath(f"{root}/{os.path.basename(os.path.realpath(port))}/device")
    for _ in range(4):  # port, interface, device
        device = os.path.dirname(device)
        found = sorted(glob(f"{device}/*/net/*"))
        if found:
            return os.path.basename(found[0])
        if os.path.exists(f"{device}/idVendor"):
            break
    return ""
