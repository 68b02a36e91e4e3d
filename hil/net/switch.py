"""The network's sockets: a port is a unix socket to which QEMU, or the host's pump, connects; one thread serves all."""

from __future__ import annotations

import contextlib
import io
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hil.net.frames import FrameError, Frames, encode
from hil.net.link import Fault
from hil.net.world import HOST, Home, World

READ_BYTES = 1 << 18
BACKLOG_BYTES_MAX = 1 << 20  # for a port that does not read: what comes then is dropped
PCAP_BYTES_MAX = 16 << 20

T = TypeVar("T")


class _Port:
    def __init__(self, name: str, listener: socket.socket) -> None:
        self.name = name
        self.listener = listener
        self.link: socket.socket | None = None
        self.frames = Frames()
        self.out = bytearray()
        self.dropped = 0
        self.pcap: io.RawIOBase | None = None
        self.pcap_left = PCAP_BYTES_MAX


class Switch:
    """Runs from its making until `close`. `folder` gets a socket a port, and a .pcap where `pcap` is asked for."""

    def __init__(self, folder: Path, seed: int = 1, pcap: bool = False) -> None:
        self.folder = folder
        self._pcap = pcap
        self._world = World(seed)
        self._ports: dict[str, _Port] = {}
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._ended = False
        self._open(HOST)
        self._thread = threading.Thread(target=self._serve, name="hil switch", daemon=True)
        self._thread.start()

    def home(self, kind: str = "port") -> Home:
        """A new home, whose router translates as nat.KINDS[kind]."""
        return self.do(lambda world: world.home(kind))

    def plug(self, name: str, home: Home) -> str:
        """A new port of a home; what follows -netdev for it."""
        self.do(lambda world: world.plug(name, home))
        with self._lock:
            path = self._open(name)
        self._wake()
        return f"stream,server=off,addr.type=unix,addr.path={path}"

    def set_fault(self, port: str, fault: Fault) -> None:
        """Change a cable, at once; `host` is the hub's."""
        self.do(lambda world: world.set_fault(port, fault))

    def set_kind(self, port: str, kind: str) -> str:
        """Another router for that port's home; returns the kind of the old one."""
        return self.do(lambda world: world.set_kind(port, kind))

    def counts(self) -> dict[str, dict[str, int]]:
        """Frames by port."""
        return self.do(lambda world: {name: world.counts(name) for name in self._ports})

    def do(self, what: Callable[[World], T]) -> T:
        """Something to the world while no frame is on its way."""
        with self._lock:
            done = what(self._world)
        self._wake()
        return done

    def path(self, name: str) -> Path:
        """The unix socket of a port."""
        return self.folder / f"{name}.port"

    def close(self) -> None:
        self._ended = True
        self._wake()
        self._thread.join(5.0)
        for port in self._ports.values():
            for each in (port.link, port.listener, port.pcap):
                if each is not None:
                    each.close()
            self.path(port.name).unlink(missing_ok=True)
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _open(self, name: str) -> Path:
        path = self.path(name)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(1)
        listener.setblocking(False)
        port = _Port(name, listener)
        if self._pcap:
            port.pcap = (self.folder / f"{name}.pcap").open("wb", buffering=0)
            port.pcap.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1))
        self._ports[name] = port
        self._selector.register(listener, selectors.EVENT_READ, port)
        return path

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_out.send(b"x")

    def _serve(self) -> None:
        while not self._ended:
            with self._lock:
                wait = self._world.wait(time.monotonic())
            ready = self._selector.select(wait)
            with self._lock:
                for key, events in ready:
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            self._wake_in.recv(4096)
                    elif key.fileobj is key.data.listener:
                        self._accept(key.data)
                    elif key.data.link is key.fileobj:
                        if events & selectors.EVENT_WRITE:
                            self._flush(key.data)
                        if events & selectors.EVENT_READ:
                            self._read(key.data)
                for name, frame in self._world.due(time.monotonic()):
                    self._write(self._ports[name], frame)

    def _accept(self, port: _Port) -> None:
        link, _ = port.listener.accept()
        self._unplug(port)  # the one before has lost its power, if it says so or not
        link.setblocking(False)
        port.link, port.frames = link, Frames()
        self._selector.register(link, selectors.EVENT_READ, port)

    def _unplug(self, port: _Port) -> None:
        if port.link is not None:
            self._selector.unregister(port.link)
            port.link.close()
        port.link = None
        port.out.clear()

    def _read(self, port: _Port) -> None:
        assert port.link is not None
        try:
            data = port.link.recv(READ_BYTES)
            frames = port.frames.feed(data)
        except BlockingIOError:
            return
        except (OSError, FrameError):
            data, frames = b"", []
        if not data:
            self._unplug(port)
            return
        now = time.monotonic()
        for frame in frames:
            self._note(port, frame)
            self._world.receive(now, port.name, frame)

    def _write(self, port: _Port, frame: bytes) -> None:
        if port.link is None or len(port.out) > BACKLOG_BYTES_MAX:
            port.dropped += 1
            return
        self._note(port, frame)
        port.out += encode(frame)
        self._flush(port)

    def _flush(self, port: _Port) -> None:
        if port.link is None:
            return
        try:
            sent = port.link.send(port.out) if port.out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._unplug(port)
            return
        del port.out[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.out else 0)
        if self._selector.get_key(port.link).events != events:
            self._selector.modify(port.link, events, port)

    def _note(self, port: _Port, frame: bytes) -> None:
        if port.pcap is not None and port.pcap_left > 0:
            port.pcap_left -= len(frame) + 16
            seconds, part = divmod(time.time_ns(), 1_000_000_000)
            port.pcap.write(struct.pack("<IIII", seconds, part // 1000, len(frame), len(frame)) + frame)


def short_folder(folder: Path) -> bool:
    """Whether sockets fit below it (sun_path)."""
    return len(os.fsencode(folder)) < 80
