"""The driver of Network: commands by OpenSSH, with a key. What a password would be asked for fails instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hil.errors import CommandFailed, NotReached
from hil.rigs.external import call

CONNECT_TIMEOUT_S = 10
# Of a device that is flashed every night, the host key is another one every night.
OPTIONS = (
    "-o", "BatchMode=yes",
    "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}",
    "-o", "StrictHostKeyChecking=no",
    "-o", "UserKnownHostsFile=/dev/null",
    "-o", "LogLevel=ERROR",
)  # fmt: skip
_SSH_FAILED = 255  # ssh(1): of itself, not of the command


class SSH:
    def __init__(self, name: str, service: Mapping[str, Any], keyfile: Path | None) -> None:
        self.name = name
        key = ["-i", str(keyfile), "-o", "IdentitiesOnly=yes"] if keyfile is not None else []
        self._words = [*OPTIONS, *key, "-p", str(service["port"]), "-l", service["username"], "--", service["address"]]

    def run(self, command: str, timeout_s: float = 30.0) -> str:
        """What `command` says in the user's shell there."""
        try:
            return call("ssh", [*self._words, command], timeout_s + CONNECT_TIMEOUT_S)
        except CommandFailed as error:
            if f"ended with {_SSH_FAILED}:" in str(error):
                raise NotReached(f"{self.name}: by ssh: {error}") from None
            raise CommandFailed(f"{self.name}: {command[:200]!r}: {error}") from None
