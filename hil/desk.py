"""An agent on this machine, outside of all homes beside hub and relay: whom a guest reaches that is alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from hil.errors import CommandFailed, HilError, NotReached
from hil.net.host import HostPlace
from hil.programs import Program, until

NAME = "desk"
JOIN_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.5
INTERVAL_S = "0.2"  # between pings


class Desk:
    """Runs from its making on; `folder` gets its state, socket and log. Raises NotReached where it does not join."""

    def __init__(self, place: HostPlace, folder: Path, token: str) -> None:
        self.name = NAME
        self._place = place
        folder.mkdir(mode=0o700, parents=True)
        given = folder / "join"
        given.touch(mode=0o600)
        given.write_text(token, encoding="utf-8")
        self._env = {**os.environ, "EDGEAGENT_STATE": str(folder / "state"), "EDGEAGENT_SOCKET": str(folder / "agent")}
        self._env["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        words = ["edgeagent", "run", "--join-file", str(given), "--hostname", NAME, "--dns", "off", "--watchdog", "off"]
        self._program = place.start(NAME, *words, env=self._env)
        try:
            until(
                self._has_joined,
                JOIN_TIMEOUT_S,
                lambda: NotReached(f"{NAME}: has not joined within {JOIN_TIMEOUT_S:g} s:\n{self._program.tail()}"),
                POLL_S,
            )
        except BaseException:
            self.close()
            raise
        given.unlink()

    @property
    def address(self) -> str:
        """Its IPv4 address in the mesh."""
        addresses: list[str] = self.ask("status")["self"]["addresses"]
        return next(address for address in addresses if ":" not in address)

    def ask(self, *verb: str) -> Any:
        """What `edgeagent VERB --json` says."""
        return json.loads(self._run(*verb))

    def ping(self, name: str, count: int = 3, wait_s: float = 5.0) -> tuple[float, str]:
        """As a guest's; `wait_s` for each answer."""
        words = ("ping", name, "-c", str(count), "-i", INTERVAL_S, "-W", f"{wait_s:g}")
        return answers(self.name, name, self._run(*words))

    def start(self, name: str, *words: str) -> Program:
        """A program beside it."""
        return self._place.start(name, *words)

    def close(self) -> None:
        self._program.stop()

    def _run(self, *words: str) -> str:
        return self._place.run("edgeagent", *words, "--json", timeout_s=ANSWER_TIMEOUT_S, env=self._env)

    def _has_joined(self) -> bool:
        if self._program.code is not None:
            raise NotReached(f"{NAME}: the agent ended with {self._program.code}:\n{self._program.tail()}")
        try:
            return bool(self.address)
        except (HilError, ValueError, KeyError, TypeError, StopIteration):
            return False


def answers(asker: str, asked: str, said: str) -> tuple[float, str]:
    """Of what `edgeagent ping --json` said: the least round trip in seconds, and the last path. CommandFailed where
    nothing answered."""
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    good = [each for each in told if each.get("ms") is not None]
    if not good:
        raise CommandFailed(f"{asker}: no answer from {asked}: {said[-300:]}")
    return min(float(each["ms"]) for each in good) / 1000, str(good[-1].get("path", ""))
