"""QEMU's machine protocol (docs/interop/qmp-spec.rst), the little that a rig needs: ask, and wait for the answer."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from hil.errors import CommandFailed, GuestDied, GuestStuck

ANSWER_TIMEOUT_S = 10.0
LINE_BYTES_MAX = 1 << 20


class Qmp:
    """A session on the unix socket `path`. Events are skipped."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._rest = b""
        self._line()  # the greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """What `command` returns. Raises GuestDied, GuestStuck, or CommandFailed for what QEMU refuses."""
        message = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise GuestDied(f"{self.name}: QMP: {error}") from None
        while True:
            answer = self._line()
            if "error" in answer:
                raise CommandFailed(f"{self.name}: {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._socket.close()

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise GuestStuck(f"{self.name}: QMP has not answered within {ANSWER_TIMEOUT_S:g} s") from None
            except OSError as error:
                raise GuestDied(f"{self.name}: QMP: {error}") from None
            if not data or len(self._rest) > LINE_BYTES_MAX:
                raise GuestDied(f"{self.name}: QMP has ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        parsed = json.loads(line)
        if not isinstance(parsed, dict):
            raise GuestDied(f"{self.name}: QMP said {line[:80]!r}")
        return parsed
