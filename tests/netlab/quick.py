"""Hubs of labs at less cost: a database that is copied, and `edgehub` within the tests' own process.

As a program it takes most of a second to start, and labs call it by the hundred. What it does is the same: it works on
files of the hub's state. Programs stay `edgehub serve`, what another host runs, and all of the demo.
"""

from __future__ import annotations

import contextlib
import functools
import io
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import typer.main

from hub import cli, moving
from hub.setup import Owner, initialise
from hub.state import State
from tests.hub.kit import copy_empty
from tests.netlab.host import Host
from tests.netlab.mesh import Mesh
from tests.netlab.process import LabError

PASSWORD = "correct horse battery staple"
_COMMANDS = functools.cache(typer.main.get_command)
_one_at_a_time = threading.Lock()  # standard output is everybody's
_run = Host.run
_init_hub = Mesh.init_hub


def init_hub(mesh: Mesh) -> None:
    """As `Mesh.init_hub`, which does it where the hub's host has a name of its own: that is another release."""
    if mesh.hub.name != "hub":
        _init_hub(mesh)
        return
    mesh.password = PASSWORD
    with mock.patch.object(moving, "create_file", copy_empty):
        initialise(
            State(mesh.hub.directory / "edgehub"),
            domain="lab",
            listen=str(mesh.port),
            addresses=[f"{mesh.hub.address}:{mesh.port}"],
            owner=Owner("admin", mesh.password),
        )


def run(
    host: Host, *command: str | Path, timeout_s: float = 30.0, check: bool = True, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """As `Host.run`, whose time limit is the command's own where it is one of `edgehub` on the hub."""
    if command[0] != "edgehub" or host.name != "hub":
        return _run(host, *command, timeout_s=timeout_s, check=check, input=input)
    words = [str(word) for word in command]
    with _one_at_a_time:
        done = _edgehub(words, host.directory / "edgehub", input)
    if check and done.returncode != 0:
        raise LabError(f"{host.name}: {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def _edgehub(words: list[str], state: Path, given: str | None) -> subprocess.CompletedProcess[str]:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code = 0
    with (
        mock.patch.object(typer.main, "get_command", _COMMANDS),
        mock.patch.object(sys, "argv", [words[0], "--state-dir", str(state), *words[1:]]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO((given or "").encode()), "utf-8")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(words, code, *said)
