"""The first process of a simulated board's system: root file system, cable, agent, login. Run inside `unshare`.

`python -P init.py ROOT PORT CABLE`: ROOT is what was on the card, PORT the unix socket of the network cable (or ""),
CABLE the program that connects it. The namespaces of mounts, network, processes and host name are the board's own; /usr
is this machine's. The agent is the one on the card, by this interpreter. Nothing of ours is imported.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NoReturn

RESTART_S = 2.0  # as the unit of systemd has it
AGENT = "usr/lib/edgeagent/edgeagent.pyz"
ENABLED = "etc/systemd/system/multi-user.target.wants/edgeagent.service"
BIN = Path("/run/board")
# What programs of this machine look for in /etc, where the card does not have it.
LENT = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "passwd", "group", "nsswitch.conf", "protocols")
PR_SET_NAME, PR_CAPBSET_DROP = 15, 24
# What would reach this machine's kernel: modules, raw I/O, reboot, the clock, the kernel's log.
DROPPED = (16, 17, 22, 25, 34)


def main() -> None:
    root, port, cable = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    library = ctypes.CDLL(None)
    library.prctl(PR_SET_NAME, b"board-init", 0, 0, 0)
    for capability in DROPPED:
        library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    name = (root / "etc/hostname").read_text(encoding="ascii").strip() or "board"
    socket.sethostname(name)
    print(f"[    0.{os.getpid():06}] systemd[1]: Hostname set to <{name}>.", flush=True)
    children: dict[int, str] = {}
    if port:
        # Before the mounts, which may hide where the socket is.
        child = subprocess.Popen([sys.executable, "-P", cable, port], stdin=subprocess.DEVNULL)
        children[child.pid] = "cable"
    mount(root)
    write_agent(root)
    enabled = (root / ENABLED).is_symlink()
    if enabled:
        print("[  OK  ] Started edgeagent.service - Device agent of an edge mesh (WireGuard).", flush=True)
        children[start_agent().pid] = "agent"
    children[start_login(name)] = "login"
    due: list[tuple[float, str]] = []
    while True:
        # Whatever was orphaned is waited for here too, as by any first process.
        pid, _ = os.waitpid(-1, os.WNOHANG)
        what = children.pop(pid, "") if pid else ""
        if what == "login":
            children[start_login(name)] = "login"
        elif what == "agent":
            due.append((time.monotonic() + RESTART_S, what))
        if due and due[0][0] <= time.monotonic():
            due.pop(0)
            children[start_agent().pid] = "agent"
        if not pid:
            time.sleep(0.05)


def mount(root: Path) -> None:
    """/etc and /var are the card's; /run and /proc are new."""
    for folder in ("etc", "var/lib", "var/log", "var/tmp"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in LENT:
        ours, theirs = Path("/etc", name), root / "etc" / name
        if not ours.exists() or theirs.exists() or theirs.is_symlink():
            continue
        if ours.is_dir():
            shutil.copytree(ours, theirs, symlinks=True)
        else:
            shutil.copy(ours, theirs)
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "-o", "mode=755,size=16m", "tmpfs", "/run")
    run("mount", "-t", "proc", "proc", "/proc")
    for name in ("var", "etc"):
        run("mount", "--bind", str(root / name), f"/{name}")
    run("ip", "link", "set", "lo", "up")
    Path("/run/edgeagent").mkdir()
    BIN.mkdir()
    # Nothing of whoever runs the board: above all no settings of the agent.
    os.environ.clear()
    os.environ.update(PATH=f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8")


def write_agent(root: Path) -> None:
    """/usr/bin/edgeagent of the card, for this machine's interpreter."""
    agent = root / AGENT
    if agent.exists():
        shutil.copy(agent, BIN / "edgeagent.pyz")
        command = BIN / "edgeagent"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -P {BIN}/edgeagent.pyz "$@"\n', encoding="utf-8")
        command.chmod(0o755)


def start_agent() -> subprocess.Popen[bytes]:
    with open("/var/log/edgeagent.log", "ab") as log:
        return subprocess.Popen(
            [str(BIN / "edgeagent"), "run"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def start_login(name: str) -> int:
    """A login on the console, and root's shell: `root`, without a password."""
    pid = os.fork()
    if not pid:
        log_in(name)
    return pid


def log_in(name: str) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 1)
    while True:
        print(f"\r\nDebian GNU/Linux 12 {name} ttyS0\r\n\r\n{name} login: ", end="", flush=True)
        user = os.read(0, 256).decode("ascii", "replace").strip()
        if user == "root":
            break
        if user:
            os.write(1, b"Password: ")
            os.read(0, 256)
            time.sleep(1.0)
            os.write(1, b"\r\nLogin incorrect\r\n")
    os.chdir("/")
    environment = {**os.environ, "TERM": "vt220", "PS1": f"root@{name}:~# ", "USER": "root"}
    os.execve("/bin/sh", ["-sh"], environment)


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
