"""A serial console, of which the other side is a shell on a pty, or says what a test makes it say."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.console import Console
from hil.errors import CommandFailed, GuestDied, GuestStuck


class Other:
    """The machine's side of the socket."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.link: socket.socket | None = None

    def accept(self) -> socket.socket:
        self.link, _ = self._listener.accept()
        return self.link

    def close(self) -> None:
        if self.link is not None:
            self.link.close()
        self._listener.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    made = Other(tmp_path / "console.sock")
    yield made
    made.close()


@pytest.fixture
def console(tmp_path: Path, other: Other) -> Iterator[Console]:
    made = Console("guest", tmp_path / "console.sock", tmp_path / "console.log", lambda: True)
    yield made
    made.close()


def test_what_is_said_is_found_in_its_order_and_logged_with_times(
    console: Console, other: Other, tmp_path: Path
) -> None:
    link = other.accept()
    link.sendall(b"\x1b[1mbooting\x1b[0m\r\n[  OK  ] one")
    link.sendall(b" two\r\nlogin: ")
    assert console.expect(r"\[  OK  \] (\w+) two$", 5.0)[1] == b"one"
    console.expect("login: $", 5.0)
    with pytest.raises(GuestStuck, match="'booting' within"):
        console.expect("booting", 0.05)
    link.close()
    with pytest.raises(GuestDied, match="ended before 'more'"):
        console.expect("more", 5.0)
    console.close()
    lines = (tmp_path / "console.log").read_text().splitlines()
    assert [line.split(None, 1)[1] for line in lines] == ["booting", "[  OK  ] one two", "login: "]
    assert all(float(line.split()[0]) >= 0 for line in lines)


def test_commands_in_a_shell_say_what_they_say_and_how_they_end(console: Console, other: Other) -> None:
    link = other.accept()
    master, slave = pty.openpty()
    shell = subprocess.Popen(["sh"], stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "PS1": "# "})
    threads = [threading.Thread(target=copy, args=ends, daemon=True) for ends in ((master, link), (link, master))]
    for thread in threads:
        thread.start()
    console.send("stty -echo; PS1=; PS2=\n")
    assert console.shell("echo a b; echo c >&2") == "a b\nc\n"
    assert console.shell("printf unfinished") == "unfinished"
    assert console.shell("exit_code() { return 3; }; exit_code", check=False) == ""
    with pytest.raises(CommandFailed, match=r"'ls /nowhere' ended with [12]: .*nowhere"):
        console.shell("ls /nowhere")
    with pytest.raises(GuestStuck):
        console.shell("sleep 3", timeout_s=0.1)
    shell.kill()
    shell.wait()
    os.close(slave)
    os.close(master)


def test_a_machine_that_is_off_has_no_console(tmp_path: Path) -> None:
    with pytest.raises(GuestDied, match="guest: no console at"):
        Console("guest", tmp_path / "none.sock", tmp_path / "log", lambda: False)


def copy(source: int | socket.socket, target: int | socket.socket) -> None:
    try:
        while data := source.recv(4096) if isinstance(source, socket.socket) else os.read(source, 4096):
            target.sendall(data) if isinstance(target, socket.socket) else os.write(target, data)
    except OSError:
        return
