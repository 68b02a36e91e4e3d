"""Turn into the agent, or start it in the background with a connection to it.

The connection brings its progress and its end: nothing is polled, and no file or argument carries the join token.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from fcntl import F_DUPFD, fcntl

from edgeagent import zipped
from edgeagent.io.localclient import LocalClient

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from typing import NoReturn

    from edgeagent.config import Settings

_CONTROL_FD = 3
# One thread: further arenas are only memory. No locale: nothing that the agent writes depends on one.
_LEAN = {"MALLOC_ARENA_MAX": "1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}


def become_agent(settings: Settings, token: str | None) -> NoReturn:
    """Go on as the agent, in this process. OSError when that cannot be."""
    arguments = _arguments(settings)
    if token is not None:
        reader, writer = os.pipe()  # holds 64 KiB; a token has 4 at most
        os.write(writer, token.encode("ascii"))
        os.close(writer)
        os.set_inheritable(reader, True)
        arguments.append(f"--token-fd={reader}")
    _execute(arguments, settings)


def start(settings: Settings, timeout_s: float) -> LocalClient:
    """A client of a new agent. The new process is a daemon: own session, root directory, no terminal.

    Its standard error stays the caller's until the agent has answered, so that what goes wrong before is seen.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                if os.fork() == 0:
                    _become_daemon(settings, theirs.fileno())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    return LocalClient(ours, timeout_s)


def _become_daemon(settings: Settings, control_fd: int) -> None:
    os.chdir("/")
    os.umask(0o077)
    # Where the caller had some of 0 to 2 closed, any of these may be one of them: out of the way first
    control_fd = fcntl(control_fd, F_DUPFD, _CONTROL_FD + 1)
    null = fcntl(os.open(os.devnull, os.O_RDWR), F_DUPFD, _CONTROL_FD + 1)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if not _is_callers(2):
        os.dup2(null, 2)
    os.dup2(control_fd, _CONTROL_FD)  # dup2 makes it inheritable
    for fd in os.listdir("/proc/self/fd"):  # what the caller left open: a pipe whose reader waits for its end
        if int(fd) > _CONTROL_FD:
            with suppress(OSError):  # the one that listed them
                os.close(int(fd))
    _execute([f"--control-fd={_CONTROL_FD}", *_arguments(settings)], settings)


def _is_callers(fd: int) -> bool:
    """Whether it is open, and not one that this process opened: those are not inheritable."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _execute(arguments: list[str], settings: Settings) -> NoReturn:
    from edgeagent import __path__ as package

    environment = {name: value for name, value in os.environ.items() if name != "EDGEAGENT_TOKEN"}
    environment |= _LEAN
    environment["EDGEAGENT_PROXY"] = settings.proxy  # may hold a password: arguments can be read by others
    # -P: nothing is imported from beside the file. no_debug_ranges: tracebacks have lines, not columns.
    words = [sys.executable, "-P", "-X", "utf8", "-X", "no_debug_ranges", *_optimization(package[0])]
    os.execve(sys.executable, [*words, *zipped.agentd(package[0]), *arguments], environment)


def _optimization(package: str) -> list[str]:
    """Without docstrings and assertions an agent is 0.6 MiB smaller. Modules have to be compiled for that, once: where
    the result cannot be kept, each start would do it, and what that leaves behind takes more."""
    if zipped.archive() is not None:  # compiled at each start in any case
        return ["-OO"]
    from importlib.util import cache_from_source

    compiled = cache_from_source(f"{package}/daemon.py", optimization="2")
    keeps = not sys.dont_write_bytecode and os.access(os.path.dirname(compiled), os.W_OK)
    return ["-OO"] if keeps or os.path.exists(compiled) else []


def _arguments(settings: Settings) -> list[str]:
    from edgeagent.board import apply

    board = apply(settings)
    if board.problem:
        print(f"edgeagent: warning: {board.problem}. Going on without it.", file=sys.stderr)
    if settings.watchdog == "auto":
        found = board.told.get("watchdog") or {}
        longest_s = found.get("timeout_s_max") or 60
        settings.watchdog = f"{found['device']},{min(60, longest_s)}" if "device" in found else "off"
    names = ["board", "state_dir", "socket", "interface", "mtu", "uplinks", "hostname", "metered", "budget", "dns"]
    names += ["memory_profile", "limits", "memory_ceiling", "allow_commands", "scripts", "lock", "log_level", "trial"]
    names.append("watchdog")
    if settings.port_fixed:
        names.append("port")
    switches = [] if settings.port_mapping else ["--port-mapping=off"]
    return switches + [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in names]
