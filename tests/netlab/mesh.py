"""A whole network in the lab: a hub, and devices that know nothing but a join token. For demo, tests and benches."""

from __future__ import annotations

import json
import re
import socket
import sys
from typing import Any

from hub.state import State
from tests.netlab.host import Host, Net
from tests.netlab.lab import Lab
from tests.netlab.process import LabError, Process, until

BROKER_PORT = 8883
# As systemd hands a socket over: descriptor 3, for the process of that number. No shell: dash takes no numbers above 9.
HAND_OVER = """
import os, sys
if int(sys.argv[1]) != 3:
    os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execvp(sys.argv[2], sys.argv[2:])
"""
HUB_READY_TIMEOUT_S = 90
JOIN_TIMEOUT_S = 30.0


class Device:
    """A host with an agent. `up` starts and joins it as a user would; the verbs of `edgeagent` are `ask`ed as JSON."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.name = host.name
        self.addresses: list[str] = []
        self.options: list[str] = []  # of `edgeagent up`
        self.words: list[str] = []  # before it

    @property
    def address(self) -> str:
        """The IPv4 address in the mesh."""
        return next(address for address in self.addresses if ":" not in address)

    def up(self, token: str | None = None, *, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """`edgeagent up`, which returns when the device has its address. The token goes in on standard input."""
        words = [
            *self.words,
            "edgeagent",
            "up",
            "--hostname",
            self.name,
            "--timeout",
            f"{timeout_s:g}",
            "--json",
            *self.options,
        ]
        if token is not None:
            words += ["--join-file", "-"]
        result = self.host.run(*words, input=token, timeout_s=timeout_s + 5)
        self.addresses = json.loads(result.stdout)["addresses"]

    def ask(self, *verb: str) -> Any:
        """The answer of `edgeagent VERB --json`."""
        try:
            return json.loads(self.host.run("edgeagent", *verb, "--json").stdout)
        except LabError as error:
            crash = self.host.directory / "edgeagent/crash"
            if crash.exists():
                raise LabError(f"{error}\n{crash.read_text()}") from None
            raise

    def pid(self) -> int:
        """The process id of the agent that runs."""
        return int(self.ask("status")["agent"]["pid"])


class Mesh:
    """Make it, `start_hub`, then `join` devices on the segments given."""

    def __init__(self, lab: Lab, net: Net, port: int = BROKER_PORT, hub: str = "hub") -> None:
        self.lab = lab
        self.port = port
        self.hub = lab.host(hub, net)
        self.server: Process | None = None
        self.password = ""  # of the owner, whose login is admin
        self.devices: list[Device] = []

    def init_hub(self) -> None:
        """Make the hub's state: keys, certificates, database."""
        address = f"{self.hub.address}:{self.port}"
        made = self.hub.run("edgehub", "init", "--name", "lab", "--address", address, "--listen", str(self.port))
        found = re.search(r"^password +(\S+)", made.stdout, re.MULTILINE)
        assert found is not None
        self.password = found[1]

    def start_hub(self, dashboard: socket.socket | None = None) -> None:
        """Serve, until the hub is ready for devices; first make its state when there is none.

        With a listening socket, of whatever network, the dashboard answers there, as for a socket unit of systemd.
        """
        if not (self.hub.directory / "edgehub").exists():
            self.init_hub()
        if dashboard is None:
            self.server = self.hub.start("edgehub", "serve", "--no-web")
        else:
            host, port = dashboard.getsockname()
            self.hub.run("edgehub", "web", "set", "--url", f"http://{host}:{port}")
            number = dashboard.fileno()
            command = (sys.executable, "-I", "-c", HAND_OVER, str(number), "edgehub", "serve")
            self.server = self.hub.start(*command, name="edgehub", fds=[number])
        until(self._is_ready, HUB_READY_TIMEOUT_S, "the hub's answer")

    def token(self, *options: str) -> str:
        """A new join token; `options` as for `edgehub token create`."""
        return self.hub.run("edgehub", "token", "create", *options).stdout.strip()

    def invite(self, region: str, uses: int = 1) -> str:
        """A new join token for relays."""
        return self.hub.run("edgehub", "relays", "invite", "--region", region, "--uses", str(uses)).stdout.strip()

    def relays(self) -> dict[str, str]:
        """State by id: "online", "offline" or "never"."""
        listed = json.loads(self.hub.run("edgehub", "relays", "list", "--json").stdout)
        return {relay["id"]: relay["state"] for relay in listed}

    def status(self) -> dict[str, Any]:
        """`edgehub status`, also of a hub that does not run."""
        status: dict[str, Any] = json.loads(self.hub.run("edgehub", "status", "--json", check=False).stdout)
        return status

    def device(self, name: str, net: Net) -> Device:
        """A device that has not joined yet."""
        device = Device(self.lab.host(name, net))
        self.devices.append(device)
        return device

    def _is_ready(self) -> bool:
        assert self.server is not None
        if not self.server.running:
            raise LabError(f"the hub ended:\n{self.server.tail()}")
        said = State(self.hub.directory / "edgehub").read_status()  # what `edgehub status` reads, a program less
        return said.get("pid") == self.server.pid and bool(said.get("connected"))
