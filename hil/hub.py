"""The hub and a relay in the host's place, spoken to by their commands as an operator does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from hil.errors import HilError, NotReached
from hil.net.host import HostPlace
from hil.programs import Program, until

BROKER_PORT = 8883
READY_TIMEOUT_S = 180.0
STATUS_EVERY_S = 0.5
COMMAND_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 60.0
API = "http://127.0.0.1:8480/api/v1"
# Asked from inside the host's place. The token is in the environment: a command line can be read by all.
_GET = """
import os, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + os.environ["EDGEHIL_TOKEN"]})
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=10).read())
"""


class Hub:
    """A new network. `start` serves it, `start_relay` gives it a relay."""

    def __init__(self, place: HostPlace, folder: Path) -> None:
        self.place = place
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # The commands of the environment in which this runs.
        bin_folder = Path(sys.executable).parent
        self._env = {**os.environ, "EDGEHUB_STATE": str(folder / "hub"), "NO_COLOR": "1", "COLUMNS": "200"}
        self._env["PATH"] = f"{bin_folder}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        self._programs: list[Program] = []

    def start(self) -> None:
        """Raises NotReached when it is not ready in time."""
        self.ask(
            "init", "--name", "hil", "--address", f"{self.place.address}:{BROKER_PORT}", "--listen", str(BROKER_PORT)
        )
        self.serve()
        self._env["EDGEHIL_TOKEN"] = self.ask("users", "token", "admin", "--scope", "devices:read", "--name", "hil")
        server = self._server
        until(self._answers, READY_TIMEOUT_S, lambda: NotReached(f"no answer of the dashboard:\n{server.tail()}"), 1.0)

    def serve(self) -> None:
        """What `start` has made runs, from now on, or again."""
        server = self._server = self.place.start("edgehub", "edgehub", "serve", env=self._env)
        self._programs.append(server)
        until(
            lambda: self._is_ready(server),
            READY_TIMEOUT_S,
            lambda: NotReached(f"the hub is not ready within {READY_TIMEOUT_S:g} s:\n{server.tail()}"),
            STATUS_EVERY_S,
        )

    def status(self) -> dict[str, Any]:
        """`edgehub status --json`."""
        found: dict[str, Any] = json.loads(self.ask("status", "--json"))
        return found

    def kill(self) -> None:
        """SIGKILL to the hub and what it has started."""
        self._server.kill()

    def start_relay(self, region: str = "hil") -> None:
        """Raises NotReached when no relay is listed online in time."""
        token = self.folder / "relay.token"
        token.touch(mode=0o600)
        token.write_text(self.ask("relays", "invite", "--region", region), encoding="utf-8")
        self._relay_words = ["edgerelay", "serve", "--state-dir", str(self.folder / "relay")]
        self._relay_words += ["--public", self.place.address]
        self.serve_relay("--join-file", str(token))

    def kill_relay(self) -> None:
        """SIGKILL."""
        self._relay.kill()

    def serve_relay(self, *words: str) -> None:
        """What `start_relay` has made runs again. Raises NotReached when it is not listed online in time."""
        relay = self._relay = self.place.start("edgerelay", *self._relay_words, *words, env=self._env)
        self._programs.append(relay)
        until(
            lambda: any(each["state"] == "online" for each in json.loads(self.ask("relays", "list", "--json"))),
            READY_TIMEOUT_S,
            lambda: NotReached(f"no relay is online within {READY_TIMEOUT_S:g} s:\n{relay.tail()}"),
            STATUS_EVERY_S,
        )

    def ask(self, *words: str) -> str:
        """What `edgehub …` printed, stripped."""
        return self.place.run("edgehub", *words, timeout_s=COMMAND_TIMEOUT_S, env=self._env).strip()

    def devices(self) -> dict[str, dict[str, Any]]:
        """What the dashboard's API lists, by host name."""
        return {device["name"]: device for device in self.get("/devices")["devices"]}

    def get(self, path: str) -> Any:
        """An answer of the dashboard's API (docs/api.md)."""
        words = (sys.executable, "-I", "-c", _GET, API + path)
        return json.loads(self.place.run(*words, timeout_s=ANSWER_TIMEOUT_S, env=self._env))

    def close(self) -> None:
        for program in reversed(self._programs):
            program.stop()

    def _is_ready(self, server: Program) -> bool:
        if server.code is not None:
            raise NotReached(f"the hub ended with {server.code}:\n{server.tail()}")
        try:
            status = self.status()
        except (HilError, ValueError):
            return False
        return bool(status["running"] and status["process"].get("connected"))

    def _answers(self) -> bool:
        try:
            return "devices" in self.get("/devices")
        except (HilError, ValueError):
            return False
