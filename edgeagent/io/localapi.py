"""The local API: a unix stream socket, JSON lines, for root and the daemon's own user only.

A connection carries one request: a line with a JSON object that has the key `do`. The answer is any number of
`{"progress": {…}}` lines, then `{"ok": true, "result": …}` or `{"ok": false, "code": …, "error": …}`, then the end.
Everything a client can do is bounded: how many there are, how long a request is, how long it takes to write it and to
read the answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from selectors import BaseSelector

    Watch = Callable[
        [int, int, Callable[[float, int], None]], None
    ]  # (descriptor, selectors mask, callback(now, mask))
    Unwatch = Callable[[int], None]
    Handler = Callable[[float, "Client", str, dict[str, Any]], None]  # (now, client, verb, request)

CLIENTS_MAX = 16
REQUEST_BYTES_MAX = 16_384  # a join token with eight brokers and many tags has 2 KiB
OUTPUT_BYTES_MAX = 1_048_576
TRANSFER_TIMEOUT_S = 5.0  # for a client to write its request, or to take the answer
WAIT_TIMEOUT_S = 86_400.0  # for an answer that has to wait for the hub or for a person
ACCEPT_AGAIN_S = 1.0  # where no descriptor is left for who knocks: the listener would wake us without end
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_UCRED = struct.Struct("3i")


class Client:
    """One request. The handler calls `progress` any number of times and then `answer` or `refuse` once."""

    def __init__(self, api: LocalApi, sock: socket.socket) -> None:
        self._api = api
        self.sock = sock
        self.input = b""
        self.output = b""
        self.asked = False
        self.answered = False
        self.deadline = time.monotonic() + TRANSFER_TIMEOUT_S

    @property
    def is_open(self) -> bool:
        return self.sock.fileno() >= 0

    def progress(self, **what: Any) -> None:
        self._send(_line({"progress": what}))

    def answer(self, result: Any) -> None:
        self._end(_line({"ok": True, "result": result}))

    def refuse(self, code: str, error: str) -> None:
        """`code` is usage, failed, refused, not-joined, unknown or timeout; the command's exit status follows it."""
        self._end(refusal(code, error))

    def ready(self, now: float, _fd: int) -> None:
        if self.is_open:
            self._api.serve(now, self)

    def _end(self, line: bytes) -> None:
        self.answered = True
        self.deadline = time.monotonic() + TRANSFER_TIMEOUT_S
        self._send(line)

    def _send(self, line: bytes) -> None:
        if self.is_open:
            self.output += line
            self._api.pump(self)


class LocalApi:
    """Drive: `open`; its descriptors are registered in `selector`, to be called as `key.data(now, key.fd)`; call
    `on_timeout` at `poll_timeout()`.

    `refused` counts connections turned away (another user, too many), `malformed` requests that are none.
    """

    def __init__(self, path: str, handler: Handler, selector: BaseSelector) -> None:
        self.path = path
        self.refused = 0
        self.malformed = 0
        self._handler = handler
        self._selector = selector
        self._listener: socket.socket | None = None
        self._clients: list[Client] = []
        self._accept_at: float | None = None  # while nobody is listened to

    @property
    def clients(self) -> int:
        return len(self._clients)

    def open(self) -> None:
        """Listen. OSError when the path cannot be used; FileExistsError when another agent answers there."""
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        umask = os.umask(0o177)
        try:
            _unlink_stale(self.path)
            listener.bind(self.path)
            listener.listen(CLIENTS_MAX)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(umask)
        self._listener = listener
        self._selector.register(listener, EVENT_READ, self._accept)

    def adopt(self, sock: socket.socket) -> Client:
        """Serve a connection that did not come through the socket: that of the command which started this daemon."""
        sock.setblocking(False)
        client = Client(self, sock)
        self._clients.append(client)
        self._selector.register(sock, EVENT_READ, client.ready)
        return client

    def close(self) -> None:
        self.stop_listening()
        for client in list(self._clients):
            self.drop(client)

    def stop_listening(self) -> None:
        """Take the socket away; who is connected stays."""
        if self._listener is not None:
            if self._accept_at is None:
                self._selector.unregister(self._listener)
            self._accept_at = None
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def poll_timeout(self) -> float | None:
        times = [client.deadline for client in self._clients]
        return min(times if self._accept_at is None else [*times, self._accept_at], default=None)

    def on_timeout(self, now: float) -> None:
        for client in list(self._clients):
            if now >= client.deadline:
                self.drop(client)
        if self._accept_at is not None and now >= self._accept_at and self._listener is not None:
            self._accept_at = None
            self._selector.register(self._listener, EVENT_READ, self._accept)

    def pump(self, client: Client) -> None:
        """Write what the client takes now; the rest when it takes more. An answered client is let go."""
        try:
            while client.output:
                client.output = client.output[client.sock.send(client.output) :]
        except BlockingIOError:
            if len(client.output) > OUTPUT_BYTES_MAX:
                self.drop(client)
            else:
                self._rearm(client)
        except OSError:
            self.drop(client)
        else:
            if client.answered:
                self.drop(client)
            else:
                self._rearm(client)

    def drop(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client.sock)
            client.sock.close()

    def _accept(self, now: float, _fd: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # the client gave up, or no descriptor is left
            self.refused += 1
            if error.errno in _NONE_LEFT:
                self._selector.unregister(self._listener)
                self._accept_at = now + ACCEPT_AGAIN_S
            return
        _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()) or len(self._clients) >= CLIENTS_MAX:
            self.refused += 1
            sock.close()
            return
        self.adopt(sock)

    def _rearm(self, client: Client) -> None:
        self._selector.modify(client.sock, EVENT_READ | (EVENT_WRITE if client.output else 0), client.ready)

    def serve(self, now: float, client: Client) -> None:
        """The client can be read or written."""
        if client.output:
            self.pump(client)
        if client.is_open:
            self._read(now, client)

    def _read(self, now: float, client: Client) -> None:
        try:
            data = client.sock.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(client)
            return
        if client.asked:  # only the end of the connection matters now
            return
        client.input += data
        line, newline, _ = client.input.partition(b"\n")
        if len(line) > REQUEST_BYTES_MAX:
            self.malformed += 1
            client.refuse("usage", f"a request has at most {REQUEST_BYTES_MAX} bytes")
        elif newline:
            client.asked, client.input = True, b""
            client.deadline = now + WAIT_TIMEOUT_S
            self._request(now, client, line)

    def _request(self, now: float, client: Client, line: bytes) -> None:
        import json  # not before somebody asks, as a service may never be: 0.15 MiB

        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        verb = request.get("do") if isinstance(request, dict) else None
        if isinstance(request, dict) and isinstance(verb, str):
            self._handler(now, client, verb, request)
        else:
            self.malformed += 1
            client.refuse("usage", 'a request is one line of JSON, an object with the key "do"')


def refusal(code: str, error: str) -> bytes:
    """The line that says no."""
    return _line({"ok": False, "code": code, "error": error})


def _line(answer: dict[str, Any]) -> bytes:
    import json

    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def _unlink_stale(path: str) -> None:
    """Remove a socket that a dead daemon left. FileExistsError when somebody answers, or when it is no socket."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        code = probe.connect_ex(path)
    finally:
        probe.close()
    if code == errno.ENOENT:
        return
    if code == errno.ECONNREFUSED and stat.S_ISSOCK(os.lstat(path).st_mode):
        os.unlink(path)
        return
    raise FileExistsError(errno.EEXIST, "it is in use", path)
