"""Boot loader and login on a console: what is waited for, and what is typed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from hil.errors import CommandFailed, GuestStuck
from hil.rigs.protocols import Console

LOGINS_MAX = 3
SILENCE_S = 10.0  # after which a newline is typed: the prompt may have been written over by the kernel
QUIET = "stty -echo; PS1=; PS2=; dmesg -n 1 2>/dev/null; unset PROMPT_COMMAND\n"


def stop_loader(console: Console, loader: Mapping[str, Any], timeout_s: float) -> None:
    """From the power to U-Boot's prompt."""
    deadline = time.monotonic() + timeout_s
    console.expect(loader["boot_expression"], timeout_s)
    console.expect(loader["autoboot"], _left(deadline))
    console.send(loader["interrupt"])
    console.expect(loader["prompt"], _left(deadline))


def boot(console: Console, loader: Mapping[str, Any], timeout_s: float) -> None:
    """From U-Boot's prompt to the kernel's first line."""
    console.send(loader["boot_command"] + "\n")
    console.expect(loader["bootstring"], timeout_s)


def ask_loader(console: Console, loader: Mapping[str, Any], command: str, timeout_s: float = 10.0) -> str:
    """What U-Boot says to a command, at its prompt."""
    console.skip()
    console.send(command + "\n")
    said = console.expect(rf"(?s)\n(.*?){loader['prompt']}", timeout_s)
    return said[1].decode(errors="replace")


def log_in(console: Console, shell: Mapping[str, Any], timeout_s: float, *, nudge: bool) -> None:
    """Until there is a root shell, which is made quiet. `nudge`: a newline is typed into silence, which is not to be
    done where a boot loader may take it for a wish to stop. Raises GuestStuck, or CommandFailed for a login that is
    refused."""
    deadline = time.monotonic() + timeout_s
    wanted = rf"(?P<prompt>{shell['prompt']})|(?P<login>{shell['login_prompt']})|(?P<password>[Pp]assword: )"
    logins = 0
    while True:
        before = console.tail()
        try:
            match = console.expect(wanted, min(SILENCE_S, _left(deadline)) if nudge else _left(deadline))
        except GuestStuck:
            if time.monotonic() >= deadline:
                raise
            if console.tail() == before:
                console.send("\n")
            continue
        if match["prompt"] is not None:
            console.send(QUIET)
            console.shell("true", _left(deadline))
            return
        if match["login"] is not None:
            logins += 1
            if logins > LOGINS_MAX:
                raise CommandFailed(f"{console.name}: {LOGINS_MAX} logins of {shell['username']} were refused")
            console.send(shell["username"] + "\n")
        elif not shell["password"]:
            raise CommandFailed(f"{console.name}: asks {shell['username']} for a password; ShellDriver has none")
        else:
            console.send(shell["password"] + "\n")


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
