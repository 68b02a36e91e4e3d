"""The host at the outside of the network: a namespace of its own, in which the hub and the relay run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hil.errors import NotReached
from hil.net.switch import Switch
from hil.net.world import HOST, HOST_ADDRESS, HOST_NETWORK
from hil.programs import Program, run, until

READY_TIMEOUT_S = 20.0
ROUTED = "203.0.113.0/24"  # routers' outsides


class HostPlace:
    """Makes the namespace, and connects it to the switch. Root makes it as root, others in a user namespace."""

    def __init__(self, switch: Switch, folder: Path) -> None:
        self.address = HOST_ADDRESS
        self.folder = folder
        rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        router = str(HOST_NETWORK.network_address + HOST_NETWORK.num_addresses - 2)
        pump = [sys.executable, "-I", str(Path(__file__).with_name("pump.py")), str(switch.path(HOST))]
        pump += [f"{HOST_ADDRESS}/{HOST_NETWORK.prefixlen}", router, ROUTED]
        self._pump = Program("pump", ["unshare", *rights, "--net", *pump], folder / "pump.log")
        self._enter = ["nsenter", "--target", str(self._pump.pid), "--net"]
        if rights:
            self._enter += ["--user", "--preserve-credentials"]
        try:
            until(
                lambda: self._is_ready(), READY_TIMEOUT_S, lambda: NotReached(f"the host's place: {self._pump.tail()}")
            )
        except BaseException:
            self._pump.stop()
            raise

    def start(self, name: str, *words: str, env: Mapping[str, str] | None = None) -> Program:
        """A program in there."""
        return Program(name, [*self._enter, "--", *words], self.folder / f"{name}.log", env)

    def run(self, *words: str, timeout_s: float = 60.0, env: Mapping[str, str] | None = None) -> str:
        """What a command in there printed."""
        return run([*self._enter, "--", *words], timeout_s, env, name=" ".join(words[:3]))

    def close(self) -> None:
        self._pump.stop()

    def _is_ready(self) -> bool:
        if self._pump.code is not None:
            raise NotReached(f"the host's place ended with {self._pump.code}: {self._pump.tail()}")
        return "ready" in self._pump.tail()
