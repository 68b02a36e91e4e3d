"""TLS servers and HTTP proxies on loopback that do what a test tells them, and nothing they should."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from edgeagent.proto.relay_http import RELAY_PATH, UPGRADE
from tests.agent.broker import Authority

Handler = Callable[[socket.socket], None]
UPGRADED = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n".encode()
TIMEOUT_S = 20.0


class Server:
    """Hands each connection to `handler`, in a thread of its own; `close` ends them all."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: dict[socket.socket, None] = {}  # duplicates: TLS takes the descriptors of the others
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(TIMEOUT_S)  # who is accepted at the last moment is shut down below, too
        self._listener.close()
        for sock in list(self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()

    def _start(self, run: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT_S)
            twin = sock.dup()
            self._sockets[twin] = None
            self._start(partial(self._handle, sock, twin))

    def _handle(self, sock: socket.socket, twin: socket.socket) -> None:
        with twin, sock, suppress(OSError):
            self._handler(sock)
        del self._sockets[twin]


class Tls:
    """Makes handlers that speak TLS."""

    def __init__(self, directory: Path) -> None:
        certificate, key = Authority.valid_now().server()
        (directory / "c.pem").write_bytes(certificate)
        (directory / "k.pem").write_bytes(key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "c.pem", directory / "k.pem")

    def serve(self, handler: Handler) -> Handler:
        def handle(sock: socket.socket) -> None:
            with self._context.wrap_socket(sock, server_side=True) as tls:
                handler(tls)

        return handle

    def answer(self, answer: bytes) -> Handler:
        """One that says this to the request for the upgrade, and then nothing."""

        def handle(tls: socket.socket) -> None:
            read_head(tls)
            tls.sendall(answer)
            wait_for_end(tls)

        return self.serve(handle)

    def relay(self, then: Handler) -> Handler:
        """One that answers the upgrade like a relay, and goes on with `then`."""

        def handle(tls: socket.socket) -> None:
            assert read_head(tls).startswith(f"GET {RELAY_PATH} HTTP/1.1\r\n")
            tls.sendall(UPGRADED)
            then(tls)

        return self.serve(handle)


class Proxy(Server):
    """CONNECT, to where it leads; `wanted` is the Basic credentials that it wants, `heads` what it was asked."""

    def __init__(self, wanted: str = "", answer: bytes = b"", names: dict[str, str] | None = None) -> None:
        self.heads: list[str] = []
        self._wanted = wanted
        self._answer = answer  # instead of doing anything
        self._names = names or {}
        super().__init__(self._connect)

    def _connect(self, sock: socket.socket) -> None:
        head = read_head(sock)
        self.heads.append(head)
        if self._answer:
            sock.sendall(self._answer)
            wait_for_end(sock)
            return
        if self._wanted and f"Proxy-Authorization: Basic {self._wanted}\r\n" not in head:
            sock.sendall(b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n')
            return
        method, target, _ = head.split("\r\n")[0].split(" ")
        assert method == "CONNECT"
        host, _, port = target.rpartition(":")
        with socket.socket() as far:
            far.settimeout(TIMEOUT_S)
            try:
                far.connect((self._names.get(host, host), int(port)))
            except OSError:
                sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            sock.sendall(b"HTTP/1.0 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
            back = threading.Thread(target=_pump, args=(far, sock))
            back.start()
            _pump(sock, far)
            back.join()


def read_head(sock: socket.socket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        if not piece:
            raise ConnectionResetError
        head += piece
    return head.decode("ascii")


def say(data: bytes) -> Handler:
    """One that says this at once."""

    def handle(sock: socket.socket) -> None:
        sock.sendall(data)
        wait_for_end(sock)

    return handle


def wait_for_end(sock: socket.socket) -> None:
    while sock.recv(65_536):
        pass


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for sock in (source, sink):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
