"""A guest's serial console on a unix socket: everything it says is logged with times, and commands can be typed."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hil.errors import CommandFailed, GuestDied, GuestStuck

KEPT_BYTES = 1 << 20  # of what was said, to search in
CONNECT_TIMEOUT_S = 10.0
LOOK_S = 1.0
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][0-9A-B]|\x1b\][^\x07]*\x07|\r")
TAIL_LINES = 25


class Console:
    """Reads in a thread until the other side closes. `log` gets lines behind the seconds since the making of this."""

    def __init__(self, name: str, path: Path, log: Path, alive: Callable[[], bool]) -> None:
        self.name = name
        self._alive = alive
        self._began = time.monotonic()
        self._socket = self._connect(path)
        self._said = bytearray()
        self._whole = 0  # of which, in lines that have ended
        self._seen = 0
        self.said_bytes = 0  # in all
        self._news = threading.Condition()
        self._closed = False
        self._log = log.open("a", encoding="utf-8")
        self._thread = threading.Thread(target=self._read, name=f"console of {name}", daemon=True)
        self._thread.start()

    def expect(self, pattern: str, timeout_s: float, hangs: Callable[[], str] | None = None) -> re.Match[bytes]:
        """The first match behind the one before. Raises GuestStuck, or GuestDied when nothing more can come.

        `hangs` is asked every LOOK_S, and says why there is no point in waiting on; empty for none.
        """
        deadline = time.monotonic() + timeout_s
        compiled = re.compile(pattern.encode(), re.MULTILINE)
        with self._news:
            while True:
                if match := compiled.search(self._said, self._seen):
                    self._seen = match.end()
                    return match
                if self._closed:
                    raise GuestDied(f"{self.name}: QEMU ended before {pattern!r} was said:\n{self._tail()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise GuestStuck(
                        f"{self.name}: no {pattern!r} within {timeout_s:g} s; it said last:\n{self._tail()}"
                    )
                if hangs is not None and (why := hangs()):
                    raise GuestStuck(f"{self.name}: {why}; it said last:\n{self._tail()}")
                self._news.wait(left if hangs is None else min(left, LOOK_S))

    def send(self, text: str) -> None:
        """Type `text`."""
        try:
            self._socket.sendall(text.encode())
        except OSError as error:
            raise GuestDied(f"{self.name}: nothing can be typed any more: {error}") from None

    def shell(self, command: str, timeout_s: float = 30.0, *, check: bool = True) -> str:
        """What a command says in the root shell of the console. Raises CommandFailed for a status other than 0."""
        mark = secrets.token_hex(4)
        # The mark is put together in the guest, so that the echo of what is typed does not hold it.
        self.send(f'echo "<"{mark}; {{ {command}; }} 2>&1; echo "$?>"{mark}\n')
        self.expect(rf"<{mark}\n", timeout_s)  # maybe behind a prompt; the echo has a quotation mark in it
        begin = self._seen
        match = self.expect(rf"(?:^|(?<=[^\n]))(\d+)>{mark}\n", timeout_s)
        with self._news:
            said = bytes(self._said[begin : match.start()]).decode(errors="replace")
        if check and match[1] != b"0":
            raise CommandFailed(
                f"{self.name}: {command[:200]!r} ended with {match[1].decode()}: {said.strip()[-1500:]}"
            )
        return said

    def tail(self) -> str:
        """The last lines that were said."""
        with self._news:
            return self._tail()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(2.0)
        self._socket.close()
        self._log.close()

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                link.connect(str(path))
                return link
            except OSError as error:
                link.close()
                if not self._alive() or time.monotonic() >= deadline:
                    raise GuestDied(f"{self.name}: no console at {path}: {error}") from None
                time.sleep(0.02)

    def _read(self) -> None:
        line = b""
        while True:
            try:
                data = self._socket.recv(65536)
            except OSError:
                data = b""
            lines, newline, line = (line + data).rpartition(b"\n")
            if not data:
                lines, line = line, b""
            lines = ESCAPES.sub(b"", lines + newline)
            stamp = f"{time.monotonic() - self._began:9.3f}  "
            with contextlib.suppress(ValueError):  # the log has been closed
                self._log.writelines(f"{stamp}{text}\n" for text in lines.decode(errors="replace").splitlines())
                self._log.flush()
            with self._news:
                self.said_bytes += len(data)
                # An escape sequence may have come in parts: what has no end yet is cleaned anew each time.
                del self._said[self._whole :]
                self._said += lines
                if (over := len(self._said) - KEPT_BYTES) > 0:
                    del self._said[:over]
                    self._seen = max(0, self._seen - over)
                self._whole = len(self._said)
                self._said += ESCAPES.sub(b"", line)
                self._closed = not data
                self._news.notify_all()
            if not data:
                return

    def _tail(self) -> str:
        return "\n".join(self._said.decode(errors="replace").splitlines()[-TAIL_LINES:])
