"""The other end of the local API, for the command line."""

from __future__ import annotations

import json
import socket
import time

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LINE_BYTES_MAX = 4 * 1_048_576


class LocalError(Exception):
    """The agent did not do it. `code` is the agent's, or "timeout" or "closed"."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class LocalClient:
    """One request to the agent over a connected stream socket; `timeout_s` covers all of it."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._buffer = b""

    def ask(self, request: dict[str, Any], on_progress: Callable[[dict[str, Any]], None] | None = None) -> Any:
        """The result. LocalError when the agent refuses, goes away, or does not answer in time."""
        with self._sock:
            try:
                self._sock.settimeout(self._left())
                self._sock.sendall(json.dumps(request).encode() + b"\n")
                while True:
                    answer = json.loads(self._line())
                    if not isinstance(answer, dict):
                        raise ValueError
                    if not isinstance(progress := answer.get("progress"), dict):
                        break
                    if on_progress is not None:
                        on_progress(progress)
            except TimeoutError:
                raise LocalError("timeout", f"no answer within {self._timeout_s:g} s.") from None
            except OSError as error:
                raise LocalError("closed", f"the agent went away: {error.strerror}.") from None
            except (ValueError, RecursionError):
                raise LocalError("failed", "the agent's answer is none.") from None
        if not answer.get("ok"):
            raise LocalError(str(answer.get("code", "failed")), str(answer.get("error", "no reason given.")))
        return answer.get("result")

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            self._sock.settimeout(self._left())
            chunk = self._sock.recv(65_536)
            if not chunk:
                raise LocalError("closed", "the agent went away.")
            self._buffer += chunk
            if len(self._buffer) > LINE_BYTES_MAX:
                raise LocalError("failed", "the agent's answer is too long.")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def connect(path: str, timeout_s: float) -> LocalClient | None:
    """A client of the agent that listens on `path`; None when none does. OSError for any other reason."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError:
        sock.close()
        raise
    return LocalClient(sock, timeout_s)
