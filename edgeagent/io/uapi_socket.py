"""The UNIX socket at which `wg` finds a userspace WireGuard interface."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectors import BaseSelector

    from edgeagent.proto.uapi import Target, Uapi

DIRECTORY = "/var/run/wireguard"
CLIENTS_MAX = 16
ACCEPT_AGAIN_S = 1.0  # where no descriptor is left for who knocks: the listener would wake us without end
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_READ_BYTES = 1 << 16
_READS_MAX = _ANSWERS_MAX = 16  # at one wake-up


class UapiSocketInUse(OSError):
    """Another process answers at the socket of this interface."""


def listen(interface: str, directory: str = DIRECTORY) -> socket.socket:
    """Open `directory`/`interface`.sock, only for our user. A socket that nobody answers at is replaced.

    Raises UapiSocketInUse, or OSError as the file system says it.
    """
    os.makedirs(directory, mode=0o755, exist_ok=True)
    path = f"{directory}/{interface}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    umask = os.umask(0o077)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            listener.bind(path)
        listener.listen(CLIENTS_MAX)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


def _remove_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise UapiSocketInUse(f"{path}: another process answers there")


class _Client:
    __slots__ = ("connection", "last_used_at", "sent", "session")

    def __init__(self, now: float, connection: socket.socket, session: Uapi) -> None:
        self.connection = connection
        self.session = session
        self.sent = 0  # bytes of the answer that are out
        self.last_used_at = now


class UapiSocket:
    """Serves `target` to at most CLIENTS_MAX clients; one more, and the one longest silent is hung up on.

    Its descriptors are registered in `selector` with `ready` as their data: `key.data(now, key.fd)`; `on_timeout` at
    `poll_timeout()`.
    """

    def __init__(self, listener: socket.socket, target: Target, selector: BaseSelector) -> None:
        self._listener = listener
        self._path = listener.getsockname()
        self._inode = os.stat(self._path).st_ino
        self._target = target
        self._selector = selector
        self._clients: dict[int, _Client] = {}
        self._accept_at: float | None = None  # while nobody is listened to
        selector.register(listener, EVENT_READ, self.ready)

    def ready(self, now: float, fd: int) -> None:
        """A descriptor is ready: accept, read and apply, or send an answer on."""
        if fd == self._listener.fileno():
            self._accept(now)
            return
        client = self._clients.get(fd)
        if client is None:  # hung up on since the selector reported it
            return
        client.last_used_at = now
        alive = self._send(now, client) if client.session.answer else self._receive(now, client)
        if not alive:
            self._hang_up(fd)
            return
        self._selector.modify(fd, EVENT_WRITE if client.session.answer else EVENT_READ, self.ready)

    def poll_timeout(self) -> float | None:
        return self._accept_at

    def on_timeout(self, now: float) -> None:
        if self._accept_at is not None and now >= self._accept_at:
            self._accept_at = None
            self._selector.register(self._listener, EVENT_READ, self.ready)

    def is_listed(self) -> bool:
        """Whether the socket is still in the file system, which is how users tell the interface to go away."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Hang up on all, and take the socket out of the file system if it is still ours."""
        for fd in list(self._clients):
            self._hang_up(fd)
        if self._accept_at is None:
            self._selector.unregister(self._listener)
        if self.is_listed():
            with suppress(FileNotFoundError):
                os.unlink(self._path)
        self._listener.close()

    def _accept(self, now: float) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # it went away again, or this process is out of descriptors
            if error.errno in _NONE_LEFT:
                self._selector.unregister(self._listener)
                self._accept_at = now + ACCEPT_AGAIN_S
            return
        if len(self._clients) >= CLIENTS_MAX:
            self._hang_up(min(self._clients, key=lambda fd: self._clients[fd].last_used_at))
        from edgeagent.proto.uapi import Uapi  # not before somebody asks: most agents never are asked

        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(now, connection, Uapi(self._target))
        self._selector.register(connection, EVENT_READ, self.ready)

    def _receive(self, now: float, client: _Client) -> bool:
        """False when the client is to be hung up on."""
        session = client.session
        for _ in range(_READS_MAX):
            try:
                data = client.connection.recv(_READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            session.receive(now, data)
            if session.answer:
                return self._send(now, client)
            if session.closed:
                return False
        return True

    def _send(self, now: float, client: _Client) -> bool:
        """False when the client is to be hung up on."""
        session = client.session
        for _ in range(_ANSWERS_MAX):
            if not session.answer:
                break
            try:
                with memoryview(session.answer) as answer:
                    client.sent += client.connection.send(answer[client.sent :])
            except BlockingIOError:
                return True
            except OSError:
                return False
            if client.sent == len(session.answer):
                client.sent = 0
                session.answered(now)
        return not session.closed

    def _hang_up(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._selector.unregister(client.connection)
        client.connection.close()
        client.session.close()
